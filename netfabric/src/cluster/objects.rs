//! The few fields of objects that are read. What is not named here is not even kept while an object is decoded: a Node
//! lists all its images, and changes every few minutes.

use crate::access::{Access, Pod};
use crate::topology::{Gateway, GatewayState, Node, Peer};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use kube::Resource;
use kube::api::ObjectMeta;
use liquid_crds::{AccessSpec, PodCidr};
use serde::Deserialize;
use std::net::IpAddr;

/// A Node.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = "core::Node")]
pub(super) struct NodeObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl From<NodeObject> for Node {
    fn from(object: NodeObject) -> Self {
        let internal = object.status.addresses.into_iter().filter(|address| address.kind == "InternalIP");
        Self {
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
            pod_cidrs: object.spec.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            ready: is_ready(&object.status.conditions),
        }
    }
}

/// A Pod.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = "core::Pod")]
pub(super) struct PodObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    host_network: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    #[serde(default)]
    phase: String,
    #[serde(default)]
    conditions: Vec<Condition>,
    #[serde(default, rename = "podIPs")]
    pod_ips: Vec<Address>,
    #[serde(default, rename = "hostIPs")]
    host_ips: Vec<Address>,
    #[serde(default, rename = "hostIP")]
    host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Address {
    ip: IpAddr,
}

fn is_ready(conditions: &[Condition]) -> bool {
    conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
}

impl PodObject {
    /// The gateway it is; none before it has an address, and after it has ended.
    pub(super) fn gateway(self) -> Option<Gateway> {
        let status = self.status;
        if status.phase != "Running" || status.pod_ips.is_empty() {
            return None;
        }
        let state = match (self.metadata.deletion_timestamp, is_ready(&status.conditions)) {
            (Some(_), _) => GatewayState::Leaving,
            (None, true) => GatewayState::Ready,
            (None, false) => GatewayState::Doubtful,
        };
        let mut hosts: Vec<_> = status.host_ips.into_iter().map(|host| host.ip).collect();
        if hosts.is_empty() {
            hosts.extend(status.host_ip);
        }
        Some(Gateway { addresses: status.pod_ips.into_iter().map(|it| it.ip).collect(), hosts, state })
    }

    /// The pod it is; none while it has no address of its own, and after it has ended, when others may get its address.
    pub(super) fn pod(self) -> Option<Pod> {
        let PodStatus { phase, pod_ips, .. } = self.status;
        let ended = phase == "Succeeded" || phase == "Failed";
        if ended || pod_ips.is_empty() || self.spec.host_network {
            return None;
        }
        let labels = self.metadata.labels.unwrap_or_default();
        let created = self.metadata.creation_timestamp.map(|time| time.0);
        Some(Pod { labels, created, addresses: pod_ips.into_iter().map(|address| address.ip).collect() })
    }
}

/// A Peer.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = "liquid_crds::Peer")]
pub(super) struct PeerObject {
    metadata: ObjectMeta,
    spec: Option<PeerSpec>,
    status: Option<PeerStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct PeerSpec {
    network: Option<NetworkSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NetworkSpec {
    access: Option<AccessSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct PeerStatus {
    network: Option<Network>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Network {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<PodCidr>,
    #[serde(default, rename = "ourExternalCIDRs")]
    our_external_cidrs: Vec<String>,
    #[serde(default)]
    tunnels: Vec<Tunnel>,
}

/// What a gateway says of its ways to the peer.
#[derive(Debug, Clone, Deserialize)]
struct Tunnel {
    gateway: String,
    up: bool,
}

impl From<PeerObject> for Peer {
    fn from(object: PeerObject) -> Self {
        let network = object.status.and_then(|status| status.network).unwrap_or_default();
        let Network { pod_cidrs, our_external_cidrs, tunnels } = network;
        let seen = |(_, seen): (IpNet, IpNet)| seen;
        let access = object.spec.and_then(|spec| spec.network).and_then(|network| network.access);
        let down = tunnels.into_iter().filter(|tunnel| !tunnel.up);
        Self {
            prefixes: pod_cidrs.iter().filter_map(PodCidr::prefixes).map(seen).collect(),
            pods: pod_cidrs
                .iter()
                .filter(|cidr| cidr.is_own())
                .filter_map(PodCidr::prefixes)
                .map(seen)
                .collect(),
            external: our_external_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            unreached_by: down.map(|tunnel| tunnel.gateway).collect(),
            uid: object.metadata.uid,
            access: access.as_ref().and_then(Access::read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value, deleted: bool) -> Option<Gateway> {
        let mut pod = json!({"metadata": {"name": "g"}, "status": status});
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value::<PodObject>(pod).unwrap().gateway()
    }

    #[test]
    fn a_gateway_is_used_by_what_its_pod_says() {
        let running = json!({
            "phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "hostIP": "192.0.2.1",
            "conditions": [{"type": "Ready", "status": "True"}]
        });
        let gateway = pod(running.clone(), false).unwrap();
        assert_eq!(gateway.state, GatewayState::Ready);
        assert_eq!(gateway.hosts, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(pod(running.clone(), true).unwrap().state, GatewayState::Leaving);
        let mut unready = running;
        unready["conditions"][0]["status"] = json!("False");
        assert_eq!(pod(unready, false).unwrap().state, GatewayState::Doubtful);
        assert!(pod(json!({"phase": "Pending"}), false).is_none());
    }

    #[test]
    fn a_node_has_internal_addresses_and_all_its_pod_cidrs() {
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"}]
            }
        }))
        .unwrap();
        let node = Node::from(node);
        assert!(node.ready);
        assert_eq!(node.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.pod_cidrs.len(), 2);
    }

    #[test]
    fn a_peer_is_seen_where_its_status_says() {
        let peer = json!({
            "metadata": {"name": "p"}, "spec": {},
            "status": {"network": {
                "podCIDRs": [
                    {"real": "10.244.0.0/16", "seen": "10.201.0.0/16"},
                    {"real": "10.9.0.0/16", "seen": "10.9.0.0/16", "transit": true},
                    {"real": "203.0.113.9/32", "seen": "10.255.0.0/32", "external": true},
                ],
                "ourExternalCIDRs": ["198.51.100.0/24"],
                "tunnels": [{"gateway": "g-0", "up": true}, {"gateway": "g-1", "up": false}]
            }}
        });
        let peer = Peer::from(serde_json::from_value::<PeerObject>(peer).unwrap());
        assert_eq!(peer.prefixes.len(), 3);
        assert_eq!(peer.pods, ["10.201.0.0/16".parse().unwrap()].into());
        assert_eq!(peer.external, ["198.51.100.0/24".parse().unwrap()].into());
        assert_eq!(peer.unreached_by, ["g-1".to_owned()].into());
        let new: PeerObject = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        assert_eq!(Peer::from(new), Peer::default());
    }
}
