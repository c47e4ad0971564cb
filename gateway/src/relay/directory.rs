//! Who may reach whom by the relay. A value, made anew at each change.

use liquid_crds::ClusterId;
use liquid_gateway::liveness::Way;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Who may reach whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    /// The tunnels to the peers, by their identities.
    pub(crate) paths: BTreeMap<ClusterId, Vec<Path>>,
    /// Who is at the other end of each tunnel, by the address under which it is seen here.
    pub(crate) callers: BTreeMap<Ipv4Addr, Caller>,
    /// Addresses of this cluster's processes that have links.
    pub(crate) clients: BTreeSet<IpAddr>,
    /// Where this cluster's link endpoint is.
    pub(crate) link: Option<SocketAddr>,
}

/// A tunnel to a gateway of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    /// The address under which that gateway is seen here.
    pub(crate) control: Ipv4Addr,
    /// How well it works.
    pub(crate) way: Way,
}

/// Who may come out of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Name of the peer, or of the token that a guest has.
    pub(crate) name: String,
    /// It has to join first.
    pub(crate) guest: bool,
}

impl Directory {
    /// The gateways of a cluster to which there are tunnels, best first.
    pub(crate) fn gateways(&self, cluster: &ClusterId) -> Vec<Ipv4Addr> {
        let paths = self.paths.get(cluster).map(Vec::as_slice).unwrap_or_default();
        let mut paths: Vec<Path> = paths.iter().copied().filter(|path| path.way >= Way::Standby).collect();
        paths.sort_by_key(|path| Reverse(path.way));
        paths.into_iter().map(|path| path.control).collect()
    }

    /// Whether the relay is there for whoever has this address.
    pub(crate) fn serves(&self, client: IpAddr) -> bool {
        self.clients.contains(&client.to_canonical())
    }

    /// Who calls from this address.
    pub(crate) fn caller(&self, address: IpAddr) -> Option<&Caller> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.callers.get(&address),
            IpAddr::V6(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_that_work_lead_to_a_peer_and_those_that_are_about_to_end_come_last() {
        let id: ClusterId = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap();
        let address = |last: u8| Ipv4Addr::new(169, 254, 112, last);
        let path = |last: u8, way: Way| Path { control: address(last), way };
        let paths =
            vec![path(2, Way::Down), path(3, Way::Standby), path(4, Way::Up), path(5, Way::Recovering)];
        let directory = Directory { paths: BTreeMap::from([(id.clone(), paths)]), ..Directory::default() };
        assert_eq!(directory.gateways(&id), [address(4), address(3)]);
        let stranger: ClusterId = "00000000-8c1e-4a8e-9d55-0123456789ab".parse().unwrap();
        assert!(directory.gateways(&stranger).is_empty());
    }

    #[test]
    fn nobody_is_served_or_let_in_who_is_not_known() {
        let address = Ipv4Addr::new(169, 254, 112, 2);
        let caller = Caller { name: "turin".to_owned(), guest: false };
        let directory = Directory {
            clients: BTreeSet::from([IpAddr::from([10, 1, 0, 5])]),
            callers: BTreeMap::from([(address, caller.clone())]),
            ..Directory::default()
        };
        assert!(directory.serves("::ffff:10.1.0.5".parse().unwrap()));
        assert!(!directory.serves(address.into()));
        assert_eq!(directory.caller(address.into()), Some(&caller));
        assert_eq!(directory.caller([10, 1, 0, 5].into()), None);
    }
}
