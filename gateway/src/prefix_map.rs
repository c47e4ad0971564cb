//! Longest-prefix match as a binary search over ranges.

use ipnet::IpNet;
use std::net::IpAddr;

/// A map from prefixes to values that answers for an address with the value of the most specific prefix.
///
/// Built once and then only read: nested prefixes are flattened to ranges that do not overlap, so a lookup is one
/// binary search, about 10 steps for 1,000 prefixes.
#[derive(Debug, Clone, Default)]
pub struct PrefixMap<T> {
    v4: Vec<(u128, Option<T>)>,
    v6: Vec<(u128, Option<T>)>,
}

impl<T: Copy> PrefixMap<T> {
    /// Builds the map; of equal prefixes the first counts.
    pub fn new(entries: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let (v4, v6): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(prefix, _)| prefix.addr().is_ipv4());
        Self { v4: flatten(&v4), v6: flatten(&v6) }
    }

    /// The value of the longest prefix that holds `address`.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<T> {
        let ranges = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let key = number(address);
        let after = ranges.partition_point(|(start, _)| *start <= key);
        ranges.get(after.checked_sub(1)?).and_then(|(_, value)| *value)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Starts of the ranges in which the answer does not change, each with that answer.
fn flatten<T: Copy>(entries: &[(IpNet, T)]) -> Vec<(u128, Option<T>)> {
    let mut starts: Vec<u128> = Vec::with_capacity(entries.len() * 2);
    for (prefix, _) in entries {
        starts.push(number(prefix.network()));
        starts.extend(number(prefix.broadcast()).checked_add(1));
    }
    starts.sort_unstable();
    starts.dedup();
    let longest = |at: u128| {
        let holds = |prefix: &IpNet| number(prefix.network()) <= at && at <= number(prefix.broadcast());
        let candidates = entries.iter().rev().filter(|(prefix, _)| holds(prefix));
        candidates.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, value)| *value)
    };
    starts.into_iter().map(|start| (start, longest(start))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn naive(entries: &[(IpNet, usize)], address: IpAddr) -> Option<usize> {
        let longest = entries.iter().filter(|(prefix, _)| prefix.contains(&address));
        let length = longest.clone().map(|(prefix, _)| prefix.prefix_len()).max()?;
        longest.clone().find(|(prefix, _)| prefix.prefix_len() == length).map(|(_, value)| *value)
    }

    /// Few bits, so that prefixes nest and repeat.
    fn prefix() -> impl Strategy<Value = IpNet> {
        (any::<bool>(), 0u8..16, 0u8..=8).prop_map(|(v4, bits, length)| {
            let address = if v4 {
                IpAddr::V4(Ipv4Addr::new(bits << 4, 0, 0, 0))
            } else {
                IpAddr::V6(Ipv6Addr::from(u128::from(bits) << 124))
            };
            IpNet::new(address, length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(prefixes in prop::collection::vec(prefix(), 0..12), v4 in any::<u32>(), v6 in any::<u128>()) {
            let entries: Vec<_> = prefixes.into_iter().enumerate().map(|(value, prefix)| (prefix, value)).collect();
            let map = PrefixMap::new(entries.clone());
            for address in [IpAddr::V4(Ipv4Addr::from(v4)), IpAddr::V6(Ipv6Addr::from(v6))] {
                prop_assert_eq!(map.get(address), naive(&entries, address));
            }
        }
    }
}
