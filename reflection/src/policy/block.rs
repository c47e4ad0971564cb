//! Blocks of addresses, and what becomes of them in another cluster.

use crate::addresses::{Prefixes, moved};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where pods have addresses in one cluster or another, unless it is known where exactly.
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

/// Addresses of a prefix, without those of others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Block {
    /// The prefix.
    pub cidr: IpNet,
    /// Prefixes in it that do not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
}

impl Block {
    /// What of it is in `prefix`.
    pub(super) fn within(&self, prefix: IpNet) -> Option<Self> {
        let cidr = if prefix.contains(&self.cidr) {
            self.cidr
        } else if self.cidr.contains(&prefix) {
            prefix
        } else {
            return None;
        };
        Self { cidr, except: self.except.clone() }.tidy()
    }

    /// What of it is in none of these prefixes.
    pub(super) fn without(&self, prefixes: impl IntoIterator<Item = IpNet>) -> Option<Self> {
        let except = self.except.iter().copied().chain(prefixes).collect();
        Self { cidr: self.cidr, except }.tidy()
    }

    /// The same addresses with the network part of `to` in the place of that of `from`, in which they are.
    fn moved(&self, from: &IpNet, to: &IpNet) -> Self {
        let moved = |net: &IpNet| {
            let address = moved(net.network(), from, to);
            // The length is one of that family.
            IpNet::new(address, net.prefix_len()).unwrap_or(*net)
        };
        Self { cidr: moved(&self.cidr), except: self.except.iter().map(moved).collect() }
    }

    /// As the API server takes it: what is excepted lies within, and something is left.
    fn tidy(self) -> Option<Self> {
        let inside: Vec<IpNet> = self
            .except
            .into_iter()
            .filter(|except| self.cidr.contains(except) || except.contains(&self.cidr))
            .collect();
        let except = IpNet::aggregate(&inside);
        let left = !except.iter().any(|except| except.contains(&self.cidr));
        left.then_some(Self { cidr: self.cidr, except })
    }
}

/// What a block of home's addresses means in the provider.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    /// Pods at home, and hosts outside that are reached through it, by their addresses there.
    pub(super) home: Vec<Block>,
    /// What the provider finds under these addresses.
    pub(super) there: Vec<Block>,
}

/// Takes a block apart. `own` are the prefixes of pods at home, `seen` those of the provider's pods, with the ones under
/// which home sees them. All other addresses are taken to be those of one and the same machine from both sides, unless
/// the provider has pods there; also those of hosts `outside` that are reached through home as well.
pub(super) fn split(block: &Block, own: &[IpNet], outside: &[IpNet], seen: &Prefixes) -> Split {
    let home = own.iter().chain(outside).filter_map(|prefix| block.within(*prefix)).collect();
    let pods = seen.pairs().iter().filter_map(|(real, seen)| Some(block.within(*seen)?.moved(seen, real)));
    let private = || PRIVATE.iter().filter_map(|prefix| prefix.parse().ok());
    let rest = if own.is_empty() && block.cidr.prefix_len() != 0 {
        // Which addresses are those of pods is not known.
        block.without(private())
    } else {
        let pairs = seen.pairs().iter().flat_map(|(real, seen)| [*real, *seen]);
        block.without(own.iter().copied().chain(pairs))
    };
    Split { home, there: rest.into_iter().chain(pods).collect() }
}

/// A block of pods at home, as the provider sees them.
pub(super) fn seen_from_there(block: &Block, home: &Prefixes) -> Vec<Block> {
    let pairs = home.pairs().iter();
    pairs.filter_map(|(real, seen)| Some(block.within(*real)?.moved(real, seen))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn block(cidr: &str, except: &[&str]) -> Block {
        Block { cidr: net(cidr), except: except.iter().map(|text| net(text)).collect() }
    }

    fn pairs(pairs: &[(&str, &str)]) -> Prefixes {
        Prefixes::new(pairs.iter().map(|(real, seen)| (net(real), net(seen))))
    }

    #[test]
    fn addresses_of_pods_are_taken_out_and_translated() {
        let own = [net("10.244.0.0/16")];
        // The provider has pods under the same addresses; home sees them elsewhere.
        let seen = pairs(&[("10.244.0.0/16", "10.200.0.0/16")]);
        let all = split(&block("0.0.0.0/0", &["10.244.1.0/24"]), &own, &[], &seen);
        assert_eq!(all.home, [block("10.244.0.0/16", &["10.244.1.0/24"])]);
        assert_eq!(
            all.there,
            [block("0.0.0.0/0", &["10.200.0.0/16", "10.244.0.0/16"]), block("10.244.0.0/16", &[])]
        );
        let some = split(&block("10.244.3.0/24", &[]), &own, &[], &seen);
        assert_eq!((some.home, some.there), (vec![block("10.244.3.0/24", &[])], vec![]));
        let remote = split(&block("10.200.7.0/24", &["10.200.7.128/25"]), &own, &[], &seen);
        assert_eq!(remote.there, [block("10.244.7.0/24", &["10.244.7.128/25"])]);
        let outside = split(&block("192.0.2.0/24", &[]), &own, &[], &seen);
        assert_eq!((outside.home, outside.there), (vec![], vec![block("192.0.2.0/24", &[])]));
    }

    #[test]
    fn hosts_outside_that_are_reached_through_home_are_so_besides() {
        let own = [net("10.244.0.0/16")];
        let split = split(&block("192.0.2.0/24", &[]), &own, &[net("192.0.2.7/32")], &Prefixes::default());
        assert_eq!(split.home, [block("192.0.2.7/32", &[])]);
        assert_eq!(split.there, [block("192.0.2.0/24", &[])]);
    }

    #[test]
    fn without_a_network_private_addresses_may_be_anybodys() {
        let split = |cidr: &str| split(&block(cidr, &[]), &[], &[], &Prefixes::default()).there;
        assert_eq!(split("10.1.0.0/16"), []);
        assert_eq!(split("198.51.100.0/24"), [block("198.51.100.0/24", &[])]);
        assert_eq!(split("0.0.0.0/0"), [block("0.0.0.0/0", &[])], "everybody is everybody");
        assert_eq!(split("172.0.0.0/8"), [block("172.0.0.0/8", &["172.16.0.0/12"])]);
    }

    #[test]
    fn what_is_excepted_whole_is_gone() {
        let own = [net("10.244.0.0/16")];
        assert_eq!(
            split(&block("10.244.0.0/16", &["10.244.0.0/16"]), &own, &[], &Prefixes::default()).home,
            []
        );
        assert_eq!(block("10.0.0.0/24", &["10.0.0.0/25", "10.0.0.128/25"]).tidy(), None);
        assert_eq!(
            seen_from_there(&block("10.244.9.0/24", &[]), &pairs(&[("10.244.0.0/16", "100.64.0.0/16")])),
            [block("100.64.9.0/24", &[])]
        );
        assert_eq!(seen_from_there(&block("10.244.9.0/24", &[]), &Prefixes::default()), []);
    }
}
