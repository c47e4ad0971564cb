//! What the Peers of the cluster ask of the gateway. Pure.

use ipnet::IpNet;
use liquid_crds::{NetworkStatus, Peer};
use liquid_gateway::gateway::Config;
use liquid_gateway::nat::Remap;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::tunnel::TunnelConfig;
use liquid_gateway::wireguard::key::{PrivateKey, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Both ends send at least this often: NATs between them stay open, and three that are missing tell that the way is
/// broken.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Not heard of for so long, a gateway is not there.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

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
    tunnels: Vec<PlannedTunnel>,
    /// Its prefixes.
    remaps: Vec<Remap>,
}

/// A gateway of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PlannedTunnel {
    name: String,
    key: PublicKey,
    /// Addresses (host:port); without any it has to call.
    endpoints: Vec<String>,
    probes: bool,
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
                    let same_key = planned.tunnels.iter().find_map(|tunnel| keys.get(&tunnel.key.0));
                    let same_view = planned.remaps.iter().find_map(|remap| {
                        views.iter().find(|(view, _)| *view == remap.view()).map(|(_, other)| other)
                    });
                    if let Some(other) = same_key.or(same_view) {
                        plan.refused
                            .insert(name.clone(), format!("it has a key or a prefix of peer {other}"));
                        continue;
                    }
                    keys.extend(planned.tunnels.iter().map(|tunnel| (tunnel.key.0, name.clone())));
                    views.extend(planned.remaps.iter().map(|remap| (remap.view(), name.clone())));
                    plan.peers.insert(name.clone(), planned);
                }
                Err(why) => drop(plan.refused.insert(name.clone(), why)),
            }
        }
        plan.local = local.into_iter().collect();
        plan
    }

    /// The configuration of the data path, with the addresses that names have `resolved` to.
    pub(super) fn config(
        &self,
        private_key: &PrivateKey,
        mtu: u16,
        resolved: impl Fn(&str) -> Vec<SocketAddr>,
    ) -> Config {
        let addresses = |endpoints: &[String]| {
            let mut addresses = Vec::new();
            for address in endpoints.iter().flat_map(|endpoint| resolved(endpoint)) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            addresses
        };
        let tunnel = |planned: &PlannedTunnel| TunnelConfig {
            name: planned.name.clone(),
            public_key: planned.key,
            preshared_key: None,
            endpoints: addresses(&planned.endpoints),
            keepalive: Some(KEEPALIVE),
            probes: planned.probes,
            tells_lanes: planned.probes,
        };
        let peers = self.peers.iter().map(|(name, planned)| PeerConfig {
            name: name.clone(),
            remaps: planned.remaps.clone(),
            mtu,
            tunnels: planned.tunnels.iter().map(tunnel).collect(),
        });
        Config { private_key: private_key.clone(), local: self.local.clone(), peers: peers.collect() }
    }

    /// All addresses of peers.
    pub(super) fn endpoints(&self) -> BTreeSet<String> {
        let tunnels = self.peers.values().flat_map(|peer| &peer.tunnels);
        tunnels.flat_map(|tunnel| &tunnel.endpoints).cloned().collect()
    }
}

fn planned(network: &NetworkStatus) -> Result<Planned, String> {
    let mut tunnels = Vec::<PlannedTunnel>::new();
    for gateway in &network.gateways {
        let key: PublicKey = gateway.public_key.parse().map_err(|error| format!("public key: {error}"))?;
        // A tunnel is known by the name of its gateway, so that it goes on when the key changes; peers of earlier versions
        // tell none.
        let name = gateway.name.clone().unwrap_or_else(|| gateway.public_key.clone());
        if tunnels.iter().any(|known| known.key == key || known.name == name) {
            return Err(format!("two of its gateways are {name}"));
        }
        let (endpoints, probes) = (gateway.endpoints.clone(), gateway.probes);
        tunnels.push(PlannedTunnel { name, key, endpoints, probes });
    }
    let remaps = network.pod_cidrs.iter().map(|cidr| {
        let (real, seen) =
            cidr.prefixes().ok_or_else(|| format!("{} cannot stand for {}", cidr.seen, cidr.real))?;
        Remap::new(seen, real).map_err(|error| error.to_string())
    });
    Ok(Planned { tunnels, remaps: remaps.collect::<Result<_, _>>()? })
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

    fn config(plan: &Plan) -> Config {
        plan.config(&PrivateKey::new([1; 32]), 1420, |text| text.parse().into_iter().collect())
    }

    #[test]
    fn a_peer_becomes_a_tunnel() {
        let plan = plan(&[peer(
            "b",
            KEY,
            "10.200.0.0/16",
            &["192.0.2.1:1", "192.0.2.2:1", "unknown:1", "192.0.2.1:1"],
        )]);
        let config = config(&plan);
        assert_eq!(config.local, ["10.244.0.0/23".parse::<IpNet>().unwrap()]);
        let peer = &config.peers[0];
        assert_eq!((peer.name.as_str(), peer.tunnels.len()), ("b", 1));
        let endpoints: Vec<SocketAddr> =
            ["192.0.2.1:1", "192.0.2.2:1"].map(|text| text.parse().unwrap()).into();
        assert_eq!(peer.tunnels[0].endpoints, endpoints);
        let remap = peer.remaps[0];
        assert_eq!(
            (remap.view().to_string(), remap.real().to_string()),
            ("10.200.0.0/16".into(), "10.244.0.0/16".into())
        );
    }

    #[test]
    fn each_gateway_of_a_peer_is_a_tunnel_with_a_name_that_outlives_its_key() {
        let (name, mut object) = peer("b", KEY, "10.200.0.0/16", &[]);
        let network = object.status.as_mut().unwrap().network.as_mut().unwrap();
        network.gateways[0].name = Some("g0".to_owned());
        network.gateways[0].probes = true;
        let mut second = network.gateways[0].clone();
        (second.name, second.public_key, second.probes) = (None, OTHER.to_owned(), false);
        network.gateways.push(second.clone());
        let tunnels = config(&plan(&[(name.clone(), object.clone())])).peers.remove(0).tunnels;
        let tunnels: Vec<_> = tunnels.iter().map(|tunnel| (tunnel.name.as_str(), tunnel.probes)).collect();
        assert_eq!(tunnels, [("g0", true), (OTHER, false)]);

        object.status.as_mut().unwrap().network.as_mut().unwrap().gateways.push(second);
        assert!(plan(&[(name.clone(), object)]).refused.contains_key(&name));
    }

    #[test]
    fn a_peer_without_an_address_has_to_call() {
        let config = config(&plan(&[peer("b", KEY, "10.200.0.0/16", &[])]));
        assert_eq!((config.peers.len(), config.peers[0].tunnels[0].endpoints.len()), (1, 0));
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
