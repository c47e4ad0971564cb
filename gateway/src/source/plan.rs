//! What the Peers of the cluster ask of the gateway. Pure.

use ipnet::IpNet;
use liquid_crds::{NetworkStatus, Peer};
use liquid_gateway::gateway::Config;
use liquid_gateway::nat::Remap;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::wireguard::key::{PrivateKey, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Both ends send at least this often: NATs between them stay open, and three that are missing tell that the way is
/// broken.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Not heard of for so long, a peer is not there.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
/// So long one address of a peer is tried before the next is: two handshakes, and time for the answer.
pub(super) const TRY: Duration = Duration::from_secs(11);

/// What the Peers ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Prefixes of this cluster's pods.
    pub(super) local: Vec<IpNet>,
    /// The peers, by name.
    pub(super) peers: BTreeMap<String, Planned>,
    /// Peers that cannot be served, and why.
    pub(super) refused: BTreeMap<String, String>,
}

/// What is asked for one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    /// The ways to it, in the order they are tried.
    pub(super) ways: Vec<Way>,
    /// Its prefixes.
    remaps: Vec<Remap>,
}

/// A gateway of a peer, and an address of it (host:port); without one it has to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    key: PublicKey,
    pub(super) endpoint: Option<String>,
}

impl Plan {
    /// What these Peers ask. What is wrong with one does not concern the others.
    pub(super) fn new<'a>(peers: impl Iterator<Item = (&'a String, &'a Peer)>) -> Self {
        let mut plan = Self::default();
        let (mut keys, mut views) = (BTreeMap::new(), Vec::<(IpNet, String)>::new());
        let mut local = BTreeSet::new();
        for (name, peer) in peers {
            let Some(network) = peer.status.as_ref().and_then(|status| status.network.as_ref()) else {
                continue;
            };
            local.extend(network.our_pod_cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()));
            if network.pod_cidrs.is_empty() || network.gateways.is_empty() {
                continue;
            }
            match planned(network) {
                Ok(planned) => {
                    let same_key = planned
                        .ways
                        .iter()
                        .find_map(|way| keys.get(&way.key.0).filter(|other| *other != name));
                    let same_view = planned.remaps.iter().find_map(|remap| {
                        views.iter().find(|(view, _)| *view == remap.view()).map(|(_, other)| other)
                    });
                    if let Some(other) = same_key.or(same_view) {
                        plan.refused
                            .insert(name.clone(), format!("it has a key or a prefix of peer {other}"));
                        continue;
                    }
                    keys.extend(planned.ways.iter().map(|way| (way.key.0, name.clone())));
                    views.extend(planned.remaps.iter().map(|remap| (remap.view(), name.clone())));
                    plan.peers.insert(name.clone(), planned);
                }
                Err(why) => drop(plan.refused.insert(name.clone(), why)),
            }
        }
        plan.local = local.into_iter().collect();
        plan
    }

    /// The configuration of the data path, on the `chosen` way to each peer (by its place), at the addresses `resolved`.
    pub(super) fn config(
        &self,
        private_key: &PrivateKey,
        mtu: u16,
        chosen: &BTreeMap<String, usize>,
        resolved: impl Fn(&str) -> Option<SocketAddr>,
    ) -> Config {
        let peers = self.peers.iter().filter_map(|(name, planned)| {
            let way = planned.way(chosen.get(name).copied().unwrap_or_default())?;
            Some(PeerConfig {
                name: name.clone(),
                public_key: way.key,
                preshared_key: None,
                endpoint: way.endpoint.as_deref().and_then(&resolved),
                keepalive: Some(KEEPALIVE),
                remaps: planned.remaps.clone(),
                mtu,
            })
        });
        Config { private_key: private_key.clone(), local: self.local.clone(), peers: peers.collect() }
    }

    /// All addresses of peers.
    pub(super) fn endpoints(&self) -> BTreeSet<String> {
        self.peers.values().flat_map(|peer| &peer.ways).filter_map(|way| way.endpoint.clone()).collect()
    }
}

impl Planned {
    /// The way at a place, counted round and round.
    fn way(&self, place: usize) -> Option<&Way> {
        self.ways.get(place % self.ways.len().max(1))
    }
}

fn planned(network: &NetworkStatus) -> Result<Planned, String> {
    let mut ways = Vec::new();
    for gateway in &network.gateways {
        let key: PublicKey = gateway.public_key.parse().map_err(|error| format!("public key: {error}"))?;
        let endpoints =
            gateway.endpoints.iter().map(|endpoint| Way { key, endpoint: Some(endpoint.clone()) });
        ways.extend(endpoints);
        if gateway.endpoints.is_empty() {
            ways.push(Way { key, endpoint: None });
        }
    }
    let remaps = network.pod_cidrs.iter().map(|cidr| {
        let (real, seen) =
            cidr.prefixes().ok_or_else(|| format!("{} cannot stand for {}", cidr.seen, cidr.real))?;
        Remap::new(seen, real).map_err(|error| error.to_string())
    });
    Ok(Planned { ways, remaps: remaps.collect::<Result<_, _>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    const OTHER: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

    fn peer(name: &str, key: &str, seen: &str, endpoints: &[&str]) -> (String, Peer) {
        let object = json!({
            "apiVersion": "liquid.mesh/v1alpha1", "kind": "Peer", "metadata": {"name": name},
            "spec": {"clusterID": "6a9f0d5e-0000-4000-8000-000000000001"},
            "status": {"network": {
                "podCIDRs": [{"real": "10.244.0.0/16", "seen": seen}], "ourPodCIDRs": ["10.244.0.0/23"],
                "gateways": [{"publicKey": key, "endpoints": endpoints}],
            }},
        });
        (name.to_owned(), serde_json::from_value(object).unwrap())
    }

    fn plan(peers: &[(String, Peer)]) -> Plan {
        Plan::new(peers.iter().map(|(name, peer)| (name, peer)))
    }

    fn config(plan: &Plan, place: usize) -> Config {
        let chosen = plan.peers.keys().map(|name| (name.clone(), place)).collect();
        plan.config(&PrivateKey::new([1; 32]), 1420, &chosen, |text| text.parse().ok())
    }

    #[test]
    fn a_peer_becomes_a_tunnel() {
        let plan = plan(&[peer("b", KEY, "10.200.0.0/16", &["192.0.2.1:31820", "192.0.2.2:31820"])]);
        let first = config(&plan, 0);
        assert_eq!(first.local, ["10.244.0.0/23".parse::<IpNet>().unwrap()]);
        let peer = &first.peers[0];
        assert_eq!((peer.name.as_str(), peer.endpoint), ("b", Some("192.0.2.1:31820".parse().unwrap())));
        let remap = peer.remaps[0];
        assert_eq!(
            (remap.view().to_string(), remap.real().to_string()),
            ("10.200.0.0/16".into(), "10.244.0.0/16".into())
        );
        assert_eq!(config(&plan, 1).peers[0].endpoint, Some("192.0.2.2:31820".parse().unwrap()));
        assert_eq!(config(&plan, 2).peers[0].endpoint, first.peers[0].endpoint, "round and round");
    }

    #[test]
    fn a_peer_without_an_address_has_to_call() {
        let config = config(&plan(&[peer("b", KEY, "10.200.0.0/16", &[])]), 0);
        assert_eq!((config.peers.len(), config.peers[0].endpoint), (1, None));
    }

    #[test]
    fn what_is_wrong_with_one_peer_does_not_concern_the_others() {
        let peers = [
            peer("a", "short", "10.200.0.0/16", &[]),
            peer("b", KEY, "10.201.0.0/16", &[]),
            peer("c", KEY, "10.202.0.0/16", &[]),
            peer("d", OTHER, "10.201.0.0/16", &[]),
            peer("e", OTHER, "10.203.0.0/17", &[]),
            peer("f", OTHER, "10.204.0.0/16", &[]),
        ];
        let plan = plan(&peers);
        assert_eq!(plan.peers.keys().collect::<Vec<_>>(), ["b", "f"]);
        assert_eq!(plan.refused.keys().collect::<Vec<_>>(), ["a", "c", "d", "e"]);
    }

    #[test]
    fn peers_without_a_network_are_none_of_the_gateways_business() {
        let (name, mut without) = peer("b", KEY, "10.200.0.0/16", &[]);
        without.status = None;
        assert_eq!(plan(&[(name, without)]), Plan::default());
    }
}
