//! The network part of a `Peer`'s status: what the pods of two clusters need to reach each other.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The network between this cluster and the peer. There is one, whichever of the two borrows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Prefixes of the peer's pods.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<PodCidr>,
    /// Prefixes of this cluster's pods, which the peer may reach.
    #[serde(default, rename = "ourPodCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub our_pod_cidrs: Vec<String>,
    /// Gateways of the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<PeerGateway>,
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
}

/// A prefix of the peer's pods. Both prefixes are of the same family and length; an address keeps its host part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodCidr {
    /// As the peer has it.
    pub real: String,
    /// As pods of this cluster see it: the same, unless it is taken here.
    pub seen: String,
}

impl PodCidr {
    /// Both prefixes, real and seen; none if they do not stand for each other, which Liquid does not write.
    #[must_use]
    pub fn prefixes(&self) -> Option<(IpNet, IpNet)> {
        let (real, seen): (IpNet, IpNet) = (self.real.parse().ok()?, self.seen.parse().ok()?);
        let same = real.max_prefix_len() == seen.max_prefix_len() && real.prefix_len() == seen.prefix_len();
        same.then_some((real.trunc(), seen.trunc()))
    }
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
    fn prefixes_stand_for_each_other_only_if_of_one_kind_and_length() {
        let pair =
            |real: &str, seen: &str| PodCidr { real: real.to_owned(), seen: seen.to_owned() }.prefixes();
        assert!(pair("10.244.0.0/16", "10.200.0.0/16").is_some());
        for (real, seen) in
            [("10.0.0.0/16", "10.0.0.0/17"), ("10.0.0.0/32", "fd00::/32"), ("", "10.0.0.0/16")]
        {
            assert_eq!(pair(real, seen), None, "{real} {seen}");
        }
    }
}
