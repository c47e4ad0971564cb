//! The network part of a `Peer`'s status: what the pods of two clusters need to reach each other.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The network between this cluster and the peer. There is one, whichever of the two borrows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Prefixes that are reached through the peer: those of its pods; of pods in further clusters, if it lets pods of its own that run
    /// in several reach each other; and of hosts outside that it offers to its pods here.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<PodCidr>,
    /// Prefixes of this cluster's pods, which the peer may reach.
    #[serde(default, rename = "ourPodCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub our_pod_cidrs: Vec<String>,
    /// Prefixes of hosts outside of this cluster that pods of the peer reach through it.
    #[serde(default, rename = "ourExternalCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub our_external_cidrs: Vec<String>,
    /// Prefixes of pods in other peers that this peer is told of: pods of this cluster that run in both reach each other
    /// through the gateways here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transit: Vec<TransitCidr>,
    /// Gateways of the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<PeerGateway>,
    /// Present until this cluster has joined the peer through a tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStatus>,
    /// What each gateway of this cluster says of its ways to the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["gateway"]))]
    pub tunnels: Vec<TunnelStatus>,
}

impl NetworkStatus {
    /// How many of the ways that gateways of this cluster tell of are up, and how many there are.
    #[must_use]
    pub fn ways(&self) -> (usize, usize) {
        let ways = || self.tunnels.iter().flat_map(|tunnel| &tunnel.ways);
        (ways().filter(|way| way.up).count(), ways().count())
    }

    /// The prefixes of the peer's own pods.
    pub fn own_pods(&self) -> impl Iterator<Item = &PodCidr> {
        self.pod_cidrs.iter().filter(|cidr| cidr.is_own())
    }

    /// Why no gateway of this cluster has a tunnel to the peer, as far as the status tells.
    #[must_use]
    pub fn missing_tunnel(&self) -> String {
        if self.gateways.is_empty() {
            return "no gateway of the peer is known (yet)".to_owned();
        }
        if self.tunnels.is_empty() {
            return "no gateway of this cluster works on a tunnel to the peer (yet): see the pods of liquid-gateway"
                .to_owned();
        }
        let ours: Vec<&str> = self.tunnels.iter().map(|tunnel| tunnel.gateway.as_str()).collect();
        let ours = ours.join(", ");
        if self.tunnels.iter().any(|tunnel| tunnel.up) {
            return format!("{ours} does not relay the link: is it of an earlier version?");
        }
        let endpoints = self.gateways.iter().flat_map(|gateway| &gateway.endpoints).map(String::as_str);
        let endpoints: Vec<&str> = endpoints.collect();
        let way = if endpoints.is_empty() {
            format!("the gateways of the peer have to call {ours}, and do not")
        } else {
            format!("UDP must pass from {ours} to {}", endpoints.join(" or "))
        };
        let guest = match self.guest {
            Some(_) => "; the key of a join token that was used or revoked, or has expired, is not answered",
            None => "",
        };
        format!("no tunnel to the peer is up: {way}{guest}")
    }
}

/// A prefix of the peer's pods. Both prefixes are of the same family and length; an address keeps its host part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodCidr {
    /// As the peer has it.
    pub real: String,
    /// As pods of this cluster see it: the same, unless it is taken here.
    pub seen: String,
    /// Whether these pods are in other clusters, and the peer passes on what is sent to them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transit: bool,
    /// Whether these are no pods, but hosts outside of the peer that are reached through it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub external: bool,
    /// Present if the cluster with these pods is a peer as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<DirectCidr>,
}

impl PodCidr {
    /// A prefix of the peer's own pods.
    #[must_use]
    pub fn own(real: impl ToString, seen: impl ToString) -> Self {
        Self { real: real.to_string(), seen: seen.to_string(), transit: false, external: false, direct: None }
    }

    /// Whether it is a prefix of the peer's own pods.
    #[must_use]
    pub fn is_own(&self) -> bool {
        !self.transit && !self.external
    }

    /// A prefix of pods in a further cluster, reached through the peer.
    #[must_use]
    pub fn transit(real: impl ToString, seen: impl ToString) -> Self {
        Self { transit: true, ..Self::own(real, seen) }
    }

    /// A prefix of hosts outside of the peer, reached through it.
    #[must_use]
    pub fn external(real: impl ToString, seen: impl ToString) -> Self {
        Self { external: true, ..Self::own(real, seen) }
    }

    /// Both prefixes, real and seen; none if they do not stand for each other, which Liquid does not write.
    #[must_use]
    pub fn prefixes(&self) -> Option<(IpNet, IpNet)> {
        pair(&self.real, &self.seen)
    }

    /// Where endpoints are listed instead.
    #[must_use]
    pub fn used_direct(&self) -> Option<&DirectCidr> {
        self.direct.as_ref().filter(|direct| direct.used)
    }

    /// The real prefix, and the one of the other peer.
    #[must_use]
    pub fn direct_prefixes(&self) -> Option<(IpNet, IpNet)> {
        pair(&self.real, &self.direct.as_ref()?.seen)
    }
}

fn pair(real: &str, seen: &str) -> Option<(IpNet, IpNet)> {
    let (real, seen): (IpNet, IpNet) = (real.parse().ok()?, seen.parse().ok()?);
    let same = real.max_prefix_len() == seen.max_prefix_len() && real.prefix_len() == seen.prefix_len();
    same.then_some((real.trunc(), seen.trunc()))
}

/// Where pods in a further cluster are besides: it is a peer, too. Policies list them under both prefixes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectCidr {
    /// Name of the Peer for that cluster.
    pub peer: String,
    /// As pods of this cluster see the prefix there.
    pub seen: String,
    /// Endpoints are listed under this prefix: pods of both clusters reach each other. Otherwise it is the one through the
    /// peer, which also serves connections that began there.
    pub used: bool,
}

/// A prefix of pods in another peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransitCidr {
    /// As pods of this cluster see it.
    pub seen: String,
    /// Name of the other Peer.
    pub peer: String,
    /// Both peers have said that they know of each other's pods: endpoints in one are listed in the other.
    #[serde(default)]
    pub ready: bool,
}

/// A gateway of the peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerGateway {
    /// Its name in the peer. None: the peer is of a version that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its WireGuard public key, base64.
    pub public_key: String,
    /// UDP addresses (host:port) at which it can be reached. None: it calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Whether it answers probes inside the tunnel, so that it is left within a second when it fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probes: bool,
}

/// How this cluster is known to the gateways of a peer that it has not joined yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestStatus {
    /// WireGuard public key that the join token is for, base64. The private one is in Secret liquid-gateway-keys.
    pub public_key: String,
    /// Name of the gateway's pod that uses it: of several with one key, peers would hear only the last.
    pub gateway: String,
}

/// Whom the gateways let in, or call, so that a join token can be used: an entry of ConfigMap liquid-gateway-guests, under
/// the identifier of the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guests {
    /// Until when, seconds since 1970.
    pub expires: u64,
    /// Their keys, and where they are called.
    pub gateways: Vec<PeerGateway>,
}

/// What a gateway of this cluster says of its ways to the peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// Name of the gateway's pod.
    pub gateway: String,
    /// Whether any gateway of the peer answers.
    pub up: bool,
    /// The ways, one to each gateway of the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ways: Vec<WayStatus>,
    /// Address (host:port) in this cluster at which the gateway relays the peer link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// When `up` last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// The way to one gateway of the peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WayStatus {
    /// Name of the peer's gateway; its public key, if the peer does not tell its name.
    pub gateway: String,
    /// Whether it answers.
    pub up: bool,
    /// UDP address from which it last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_tunnel_from_being_is_named() {
        let tunnel = |up: bool| TunnelStatus {
            gateway: "liquid-gateway-0".to_owned(),
            up,
            ways: Vec::new(),
            relay: None,
            since: None,
        };
        let with = |endpoints: &[&str], tunnels: Vec<TunnelStatus>, guest: bool| {
            let endpoints = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
            let gateways =
                vec![PeerGateway { name: None, public_key: "k".to_owned(), endpoints, probes: false }];
            let guest = guest
                .then(|| GuestStatus { public_key: "g".to_owned(), gateway: "liquid-gateway-0".to_owned() });
            NetworkStatus { gateways, tunnels, guest, ..NetworkStatus::default() }.missing_tunnel()
        };
        assert!(NetworkStatus::default().missing_tunnel().contains("no gateway of the peer is known"));
        assert!(with(&[], Vec::new(), false).contains("see the pods of liquid-gateway"));
        let blocked = with(&["192.0.2.1:1", "192.0.2.2:1"], vec![tunnel(false)], true);
        assert!(
            blocked.contains("UDP must pass from liquid-gateway-0 to 192.0.2.1:1 or 192.0.2.2:1"),
            "{blocked}"
        );
        assert!(blocked.contains("revoked"), "{blocked}");
        let called = with(&[], vec![tunnel(false)], false);
        assert!(called.contains("have to call liquid-gateway-0") && !called.contains("revoked"), "{called}");
        assert!(with(&[], vec![tunnel(true)], false).contains("earlier version"));
    }

    #[test]
    fn prefixes_stand_for_each_other_only_if_of_one_kind_and_length() {
        let pair = |real: &str, seen: &str| PodCidr::own(real, seen).prefixes();
        assert!(pair("10.244.0.0/16", "10.200.0.0/16").is_some());
        for (real, seen) in
            [("10.0.0.0/16", "10.0.0.0/17"), ("10.0.0.0/32", "fd00::/32"), ("", "10.0.0.0/16")]
        {
            assert_eq!(pair(real, seen), None, "{real} {seen}");
        }
    }
}
