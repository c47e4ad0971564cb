//! What the Peers of the cluster ask of the gateway. Pure.

use ipnet::IpNet;
use liquid_crds::{ClusterId, Guests, NetworkStatus, Peer, PeerGateway};
use liquid_gateway::control::Views;
use liquid_gateway::gateway::Config;
use liquid_gateway::nat::Remap;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::transit::{Pods, Transit};
use liquid_gateway::tunnel::TunnelConfig;
use liquid_gateway::wireguard::key::{PrivateKey, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Both ends send at least this often: NATs between them stay open, and three that are missing tell that the way is
/// broken.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Not heard of for so long, a gateway is not there.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

/// What the names of guests begin with; those of peers have no colon.
pub(crate) const GUEST: &str = "guest:";

/// What the Peers ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Prefixes of this cluster's pods.
    pub(super) local: Vec<IpNet>,
    /// The peers, by name.
    pub(super) peers: BTreeMap<String, Planned>,
    /// Prefixes of hosts outside of this cluster that its pods in peers may reach.
    pub(super) outside: Vec<IpNet>,
    /// Pairs of peers between which pods of this cluster talk.
    pub(super) between: BTreeSet<(String, String)>,
    /// Peers that cannot be served, and why.
    pub(super) refused: BTreeMap<String, String>,
}

/// What is asked for one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) tunnels: Vec<PlannedTunnel>,
    /// Its prefixes.
    remaps: Vec<Remap>,
    /// Which cluster it is; unknown of a guest.
    pub(super) cluster: Option<ClusterId>,
    /// The key by which it knows this gateway, if that is another than the gateway's.
    own_key: Option<PrivateKey>,
}

/// What a plan depends on besides the Peers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here<'a> {
    /// Name of this gateway's pod.
    pub(super) gateway: &'a str,
    /// Private keys by which this cluster is known to peers that it has not joined, by the names of the peers.
    pub(super) guest_keys: &'a BTreeMap<String, PrivateKey>,
    /// Whom this cluster lets in, by the identifiers of their tokens.
    pub(super) guests: &'a BTreeMap<String, Guests>,
    /// Seconds since 1970.
    pub(super) now: u64,
}

/// A gateway of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedTunnel {
    pub(super) name: String,
    pub(super) key: PublicKey,
    /// Addresses (host:port); without any it has to call.
    endpoints: Vec<String>,
    probes: bool,
}

impl Plan {
    /// What these Peers ask. What is wrong with one does not concern the others.
    pub(super) fn new<'a>(peers: impl Iterator<Item = (&'a String, &'a Peer)>, here: Here<'_>) -> Self {
        let mut plan = Self::default();
        let (mut keys, mut views) = (BTreeMap::new(), Vec::<(IpNet, String)>::new());
        let (mut local, mut outside) = (BTreeSet::new(), BTreeSet::new());
        let mut told = BTreeSet::new();
        for (name, peer) in peers {
            let Some(network) = peer.status.as_ref().and_then(|status| status.network.as_ref()) else {
                continue;
            };
            local.extend(network.our_pod_cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()));
            outside.extend(network.our_external_cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()));
            told.extend(network.transit.iter().map(|cidr| (name.as_str(), cidr.peer.as_str())));
            // Also before its pods are known: what there is to be told of them comes through a tunnel, perhaps.
            if network.gateways.is_empty() {
                continue;
            }
            let own_key = match own_key(name, network, here) {
                Ok(own_key) => own_key,
                Err(Elsewhere) => continue,
            };
            match planned(network) {
                Ok(planned) => {
                    let cluster = peer.spec.cluster_id.parse().ok();
                    let planned = Planned { own_key, cluster, ..planned };
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
        plan.outside = outside.into_iter().collect();
        // Each is told of the other, or there is no way back.
        let mutual = told.iter().filter(|(one, other)| one < other && told.contains(&(*other, *one)));
        plan.between = mutual.map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect();
        for (token, guests) in here.guests.iter().filter(|(_, guests)| guests.expires > here.now) {
            // A peer that joins again, or has just joined, is known already.
            let unknown = |gateway: &&PeerGateway| {
                gateway.public_key.parse::<PublicKey>().is_ok_and(|key| !keys.contains_key(&key.0))
            };
            let tunnels: Result<Vec<_>, _> = guests.gateways.iter().filter(unknown).map(tunnel).collect();
            let Ok(tunnels) = tunnels else { continue };
            let name = format!("{GUEST}{token}");
            keys.extend(tunnels.iter().map(|tunnel| (tunnel.key.0, name.clone())));
            if !tunnels.is_empty() {
                let guest = Planned { tunnels, remaps: Vec::new(), cluster: None, own_key: None };
                plan.peers.insert(name, guest);
            }
        }
        plan
    }

    /// The other ends of all tunnels, by their keys.
    pub(super) fn keys(&self) -> BTreeSet<[u8; 32]> {
        self.peers.values().flat_map(|peer| &peer.tunnels).map(|tunnel| tunnel.key.0).collect()
    }

    /// The configuration of the data path, with the addresses that names have `resolved` to, and those under which gateways
    /// are seen.
    pub(super) fn config(
        &self,
        private_key: &PrivateKey,
        mtu: u16,
        resolved: impl Fn(&str) -> Vec<SocketAddr>,
        views: &Views<[u8; 32]>,
        pods: Arc<Pods>,
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
        let tunnel = |planned: &PlannedTunnel, own_key: &Option<PrivateKey>, guest: bool| TunnelConfig {
            name: planned.name.clone(),
            public_key: planned.key,
            preshared_key: None,
            endpoints: addresses(&planned.endpoints),
            keepalive: Some(KEEPALIVE),
            probes: planned.probes,
            // One that is a guest has no lanes: the other end does not know the keys.
            tells_lanes: planned.probes && own_key.is_none() && !guest,
            own_key: own_key.clone(),
            control: views.get(&planned.key.0),
        };
        let peers = self.peers.iter().map(|(name, planned)| PeerConfig {
            name: name.clone(),
            remaps: planned.remaps.clone(),
            mtu,
            tunnels: planned
                .tunnels
                .iter()
                .map(|known| tunnel(known, &planned.own_key, name.starts_with(GUEST)))
                .collect(),
        });
        Config {
            private_key: private_key.clone(),
            local: self.local.clone(),
            peers: peers.collect(),
            transit: Transit { between: self.between.clone(), outside: self.outside.clone(), pods },
        }
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
        let tunnel = tunnel(gateway)?;
        if tunnels.iter().any(|known| known.key == tunnel.key || known.name == tunnel.name) {
            return Err(format!("two of its gateways are {}", tunnel.name));
        }
        tunnels.push(tunnel);
    }
    let remaps = network.pod_cidrs.iter().map(|cidr| {
        let (real, seen) =
            cidr.prefixes().ok_or_else(|| format!("{} cannot stand for {}", cidr.seen, cidr.real))?;
        Remap::new(seen, real).map_err(|error| error.to_string())
    });
    Ok(Planned { tunnels, remaps: remaps.collect::<Result<_, _>>()?, cluster: None, own_key: None })
}

fn tunnel(gateway: &PeerGateway) -> Result<PlannedTunnel, String> {
    let key: PublicKey = gateway.public_key.parse().map_err(|error| format!("public key: {error}"))?;
    // A tunnel is known by the name of its gateway, so that it goes on when the key changes; peers of earlier versions tell
    // none.
    let name = gateway.name.clone().unwrap_or_else(|| gateway.public_key.clone());
    let (endpoints, probes) = (gateway.endpoints.clone(), gateway.probes);
    Ok(PlannedTunnel { name, key, endpoints, probes })
}

/// Another gateway is the guest of the peer, or the key for it has not come yet.
struct Elsewhere;

/// The key by which a peer knows this gateway, if that is another than the gateway's.
fn own_key(name: &str, network: &NetworkStatus, here: Here<'_>) -> Result<Option<PrivateKey>, Elsewhere> {
    let Some(guest) = &network.guest else { return Ok(None) };
    let key = here.guest_keys.get(name).filter(|key| key.public().to_string() == guest.public_key);
    key.filter(|_| guest.gateway == here.gateway).cloned().map(Some).ok_or(Elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::{GuestStatus, TransitCidr};
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
        plan_as("g0", peers, &BTreeMap::new(), &BTreeMap::new())
    }

    fn plan_as(
        gateway: &str,
        peers: &[(String, Peer)],
        guest_keys: &BTreeMap<String, PrivateKey>,
        guests: &BTreeMap<String, Guests>,
    ) -> Plan {
        let here = Here { gateway, guest_keys, guests, now: 100 };
        Plan::new(peers.iter().map(|(name, peer)| (name, peer)), here)
    }

    fn config(plan: &Plan) -> Config {
        let resolved = |text: &str| text.parse().into_iter().collect();
        plan.config(&PrivateKey::new([1; 32]), 1420, resolved, &Views::default(), Arc::default())
    }

    fn guests(expires: u64, keys: &[&str]) -> BTreeMap<String, Guests> {
        let gateway = |key: &&str| PeerGateway {
            name: None,
            public_key: (*key).to_owned(),
            endpoints: Vec::new(),
            probes: true,
        };
        BTreeMap::from([("aa".to_owned(), Guests { expires, gateways: keys.iter().map(gateway).collect() })])
    }

    #[test]
    fn a_guest_is_let_in_until_its_token_expires_and_as_a_peer_once_it_is_one() {
        let tunnels = |peers: &[(String, Peer)], guests: &BTreeMap<String, Guests>| {
            let plan = plan_as("g0", peers, &BTreeMap::new(), guests);
            plan.peers.into_iter().map(|(name, peer)| (name, peer.tunnels.len())).collect::<Vec<_>>()
        };
        let of = |name: &str, count: usize| (name.to_owned(), count);
        assert_eq!(tunnels(&[], &guests(101, &[KEY, OTHER])), [of("guest:aa", 2)]);
        assert!(tunnels(&[], &guests(100, &[KEY])).is_empty());
        let peers = [peer("b", KEY, "10.200.0.0/16", &[])];
        assert_eq!(tunnels(&peers, &guests(101, &[KEY, OTHER])), [of("b", 1), of("guest:aa", 1)]);
        assert_eq!(tunnels(&peers, &guests(101, &[KEY])), [of("b", 1)]);
    }

    #[test]
    fn one_gateway_is_the_guest_of_a_peer_with_the_key_that_the_peer_knows() {
        let private = PrivateKey::new([9; 32]);
        let (name, mut object) = peer("b", KEY, "10.200.0.0/16", &[]);
        let guest = GuestStatus { public_key: private.public().to_string(), gateway: "g0".to_owned() };
        object.status.as_mut().unwrap().network.as_mut().unwrap().guest = Some(guest);
        let peers = [(name, object)];
        let keys = |private: PrivateKey| BTreeMap::from([("b".to_owned(), private)]);
        let none = BTreeMap::new();
        let plan = plan_as("g0", &peers, &keys(private.clone()), &none);
        assert_eq!(config(&plan).peers[0].tunnels[0].own_key, Some(private.clone()));
        assert!(plan_as("g1", &peers, &keys(private), &none).peers.is_empty());
        assert!(plan_as("g0", &peers, &BTreeMap::new(), &none).peers.is_empty());
        assert!(plan_as("g0", &peers, &keys(PrivateKey::new([8; 32])), &none).peers.is_empty());
    }

    #[test]
    fn a_peer_whose_pods_are_not_known_yet_is_reached_nevertheless() {
        let (name, mut object) = peer("b", KEY, "10.200.0.0/16", &[]);
        object.status.as_mut().unwrap().network.as_mut().unwrap().pod_cidrs.clear();
        let config = config(&plan(&[(name, object)]));
        assert!(config.peers[0].remaps.is_empty() && config.peers[0].tunnels.len() == 1);
    }

    #[test]
    fn packets_are_passed_on_between_peers_that_are_told_of_each_other() {
        let told = |name: &str, key: &str, seen: &str, of: &[&str]| {
            let (name, mut object) = peer(name, key, seen, &[]);
            let network = object.status.as_mut().unwrap().network.as_mut().unwrap();
            let cidr = |of: &&str| TransitCidr { seen: String::new(), peer: (*of).to_owned(), ready: false };
            network.transit = of.iter().map(cidr).collect();
            (name, object)
        };
        let between = |of_c: &[&str]| {
            let peers = [told("b", KEY, "10.200.0.0/16", &["c"]), told("c", OTHER, "10.201.0.0/16", of_c)];
            config(&plan(&peers)).transit.between
        };
        assert_eq!(between(&["b"]), BTreeSet::from([("b".to_owned(), "c".to_owned())]));
        assert_eq!(between(&[]), BTreeSet::new(), "there is no way back");
    }

    #[test]
    fn hosts_outside_are_no_pods_of_this_cluster() {
        let (name, mut object) = peer("b", KEY, "10.200.0.0/16", &[]);
        let network = object.status.as_mut().unwrap().network.as_mut().unwrap();
        network.our_external_cidrs = vec!["198.51.100.0/24".to_owned()];
        let config = config(&plan(&[(name, object), peer("c", OTHER, "10.201.0.0/16", &[])]));
        assert_eq!(config.local, ["10.244.0.0/23".parse::<IpNet>().unwrap()]);
        assert_eq!(config.transit.outside, ["198.51.100.0/24".parse::<IpNet>().unwrap()]);
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
