//! Addresses of pods, and how the other cluster sees them.

use ipnet::IpNet;
use liquid_link::digest::Hash;
use std::net::IpAddr;

/// Prefixes of a cluster's pods, each with the one under which another cluster sees it. Both are of one family and
/// length, and an address keeps its host part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Prefixes(Vec<(IpNet, IpNet)>);

impl Prefixes {
    /// Prefixes as they are and as they are seen; pairs that do not stand for each other are left out.
    pub fn new(pairs: impl IntoIterator<Item = (IpNet, IpNet)>) -> Self {
        let mut pairs: Vec<_> =
            pairs.into_iter().filter(|(real, seen)| stand_for_each_other(real, seen)).collect();
        pairs.sort();
        Self(pairs)
    }

    /// The pairs.
    pub fn pairs(&self) -> &[(IpNet, IpNet)] {
        &self.0
    }

    /// Digest of the pairs.
    pub fn digest(&self) -> Hash {
        let pairs: Vec<String> = self.0.iter().map(|(real, seen)| format!("{real}={seen}")).collect();
        Hash::of(pairs.join(",").as_bytes())
    }

    /// Whether there are none: the other cluster sees nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The address under which `real` is seen; `None` if it is not.
    pub fn seen(&self, real: IpAddr) -> Option<IpAddr> {
        self.all_seen(real).next()
    }

    /// All addresses under which `real` is seen.
    pub fn all_seen(&self, real: IpAddr) -> impl Iterator<Item = IpAddr> {
        let pairs = self.0.iter().filter(move |(from, _)| from.contains(&real));
        pairs.map(move |(from, to)| moved(real, from, to))
    }

    /// Whether `address` is one under which something is seen.
    pub fn is_seen(&self, address: IpAddr) -> bool {
        self.0.iter().any(|(_, seen)| seen.contains(&address))
    }
}

fn stand_for_each_other(real: &IpNet, seen: &IpNet) -> bool {
    real.max_prefix_len() == seen.max_prefix_len() && real.prefix_len() == seen.prefix_len()
}

/// `address` with the network part of `to` instead of that of `from`.
pub(crate) fn moved(address: IpAddr, from: &IpNet, to: &IpNet) -> IpAddr {
    match (address, from, to) {
        (IpAddr::V4(address), IpNet::V4(from), IpNet::V4(to)) => {
            IpAddr::V4((u32::from(to.network()) | (u32::from(address) & u32::from(from.hostmask()))).into())
        }
        (IpAddr::V6(address), IpNet::V6(from), IpNet::V6(to)) => IpAddr::V6(
            (u128::from(to.network()) | (u128::from(address) & u128::from(from.hostmask()))).into(),
        ),
        // Pairs are of one family, and an address is only moved if it lies in its first one.
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(pairs: &[(&str, &str)]) -> Prefixes {
        Prefixes::new(pairs.iter().map(|(real, seen)| (real.parse().unwrap(), seen.parse().unwrap())))
    }

    #[test]
    fn an_address_keeps_its_host_part() {
        let prefixes = prefixes(&[
            ("10.244.0.0/16", "100.64.0.0/16"),
            ("10.9.8.0/24", "10.9.8.0/24"),
            ("fd00:1::/48", "fd00:2::/48"),
        ]);
        let seen = |real: &str| prefixes.seen(real.parse().unwrap()).map(|seen| seen.to_string());
        assert_eq!(seen("10.244.3.7").as_deref(), Some("100.64.3.7"));
        assert_eq!(seen("10.9.8.200").as_deref(), Some("10.9.8.200"));
        assert_eq!(seen("fd00:1::3:7").as_deref(), Some("fd00:2::3:7"));
        assert_eq!(seen("192.0.2.1"), None);
        let is_seen = |address: &str| prefixes.is_seen(address.parse().unwrap());
        assert!(is_seen("100.64.3.7") && is_seen("fd00:2::1") && !is_seen("10.244.3.7"));
    }

    #[test]
    fn pairs_of_different_kinds_count_for_nothing() {
        let none = prefixes(&[("10.0.0.0/16", "10.0.0.0/17"), ("10.0.0.0/32", "fd00::/32")]);
        assert!(none.is_empty() && none.seen("10.0.0.1".parse().unwrap()).is_none());
    }
}
