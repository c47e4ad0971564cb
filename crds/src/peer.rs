//! `Peer`: one foreign cluster, what we borrow from it and what we lend to it.

use crate::schema::label_value;
use crate::vocabulary::{ENDED_BY_PROVIDER, FORGET};
use crate::{NetworkSpec, NetworkStatus, Offer, Price, Verdict, condition};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// One foreign cluster, named as that cluster calls itself.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "liquid.mesh",
    version = "v1alpha1",
    kind = "Peer",
    plural = "peers",
    category = "liquid",
    status = "PeerStatus",
    derive = "PartialEq",
    doc = "Peer is one foreign cluster: what this cluster borrows from it (consume) and lends to it (lend). It is named as the foreign cluster calls itself.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$')")
        .message("a Peer is named after its cluster: 1 to 42 lower-case letters, digits or '-', starting and ending with a letter or digit"),
    printcolumn(name = "Consume", type_ = "string", json_path = ".status.conditions[?(@.type=='LinkUp')].reason", description = "State of the link over which this cluster borrows"),
    printcolumn(name = "Lend", type_ = "string", json_path = ".status.conditions[?(@.type=='ConsumerConnected')].reason", description = "State of the link over which the peer borrows from this cluster"),
    printcolumn(name = "Network", type_ = "string", json_path = ".status.conditions[?(@.type=='NetworkReady')].reason", description = "State of the network between the pods of both clusters"),
    printcolumn(name = "Transport", type_ = "string", json_path = ".spec.consume.transport", priority = "1", description = "How this cluster reaches the peer from which it borrows"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.consume.offer.resources.cpu", description = "CPU the peer offers"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.consume.offer.resources.memory", description = "Memory the peer offers"),
    printcolumn(name = "Cluster ID", type_ = "string", json_path = ".spec.clusterID", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PeerSpec {
    /// Identity of the foreign cluster: the UID of its namespace kube-system. It cannot be changed.
    #[serde(rename = "clusterID")]
    #[schemars(regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a Peer cannot become another cluster: delete it and peer again"))]
    pub cluster_id: String,
    /// Present if this cluster borrows from the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consume: Option<ConsumeSpec>,
    /// Present if this cluster lends to the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lend: Option<LendSpec>,
    /// The network between the pods of both clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSpec>,
}

impl PeerSpec {
    /// Whether it says what pods of the peer may reach.
    #[must_use]
    pub fn has_access(&self) -> bool {
        self.network.as_ref().is_some_and(|network| network.access.is_some())
    }

    /// What has to be added so that a further peering begins with this access. Rules that there are stay.
    #[must_use]
    pub fn restriction(&self, access: Verdict) -> Option<NetworkSpec> {
        NetworkSpec::at_first(access).filter(|_| !self.has_access())
    }
}

/// No gateway of this cluster has a tunnel to the peer now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct NoTunnel(String);

impl Peer {
    /// Where the peer's link may be dialled: as configured, then as it has announced itself; in band, at this cluster's
    /// gateways that have a tunnel to it.
    ///
    /// # Errors
    /// In band, if none has, with what keeps them from it.
    pub fn dial(&self, consume: &ConsumeSpec) -> Result<Vec<String>, NoTunnel> {
        match consume.transport {
            Transport::Direct => Ok(self.endpoints(consume)),
            Transport::InBand => self.relays(),
        }
    }

    /// Addresses (host:port) of the peer's link endpoint: as configured, then as it has announced itself.
    #[must_use]
    pub fn endpoints(&self, consume: &ConsumeSpec) -> Vec<String> {
        let mut endpoints = consume.endpoints.clone();
        let announced = self.status.as_ref().and_then(|status| status.consume.as_ref());
        for endpoint in announced.iter().flat_map(|consume| &consume.endpoints) {
            if !endpoints.contains(endpoint) {
                endpoints.push(endpoint.clone());
            }
        }
        endpoints
    }

    /// Addresses (host:port) of this cluster's gateways that have a tunnel to the peer.
    ///
    /// # Errors
    /// If none has, with what keeps them from it.
    pub fn relays(&self) -> Result<Vec<String>, NoTunnel> {
        let unknown = NetworkStatus::default();
        let network = self.status.as_ref().and_then(|status| status.network.as_ref()).unwrap_or(&unknown);
        let up = network.tunnels.iter().filter(|tunnel| tunnel.up);
        let relays: Vec<String> = up.filter_map(|tunnel| tunnel.relay.clone()).collect();
        if relays.is_empty() { Err(NoTunnel(network.missing_tunnel())) } else { Ok(relays) }
    }

    /// The user has given it up: its word is not waited for any more.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        let forget = self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(FORGET));
        forget.is_some() && forget == self.metadata.uid.as_ref()
    }

    /// As a provider, it has ended the peering on purpose.
    #[must_use]
    pub fn ended_by_provider(&self) -> bool {
        let conditions = self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        condition(conditions, "LinkUp").is_some_and(|link| link.reason == ENDED_BY_PROVIDER)
    }
}

/// How this cluster reaches the peer it borrows from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.nodeSelector) || self.virtualNodes == 'PerNode'")
        .message("nodeSelector chooses among the nodes of the peer: it needs virtualNodes PerNode"),
    validation = Rule::new("(has(self.transport) && self.transport == 'InBand') || (has(self.endpoints) && self.endpoints.size() > 0)")
        .message("without endpoints of the peer's link, transport must be InBand"),
)]
pub struct ConsumeSpec {
    /// Direct: at the peer's link endpoint. InBand: through the tunnel between the gateways, so that nothing of the peer has
    /// to be reachable but a UDP port of a gateway, of either side.
    #[serde(default)]
    pub transport: Transport,
    /// Addresses (host:port) of the peer's link endpoint, tried in order; not used in band.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 3, max = 261)))]
    pub endpoints: Vec<String>,
    /// SHA-256 of the peer's CA certificate (DER), 64 hexadecimal digits. Nobody else is talked to.
    #[serde(rename = "caSHA256")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub ca_sha256: String,
    /// Secret in Liquid's namespace with the join token, key `token`. It is deleted once it has been redeemed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_secret: Option<String>,
    /// Which virtual nodes are kept for the peer. PerPeer: one, liquid-NAME. PerNode: one for each of its nodes,
    /// liquid-NAME-NODE. None: none; make VirtualNodes of your own. When it changes, those of the other way are drained.
    #[serde(default)]
    pub virtual_nodes: VirtualNodes,
    /// With virtualNodes PerNode: labels of the peer's nodes that get a virtual node; all nodes if empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = label_value()))]
    pub node_selector: BTreeMap<String, String>,
    /// Which offers of the peer are accepted. Only an accepted offer becomes a node.
    #[serde(default)]
    pub acceptance: Acceptance,
}

/// Which virtual nodes are kept for a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VirtualNodes {
    /// One for the whole peer.
    #[default]
    PerPeer,
    /// One for each of its nodes.
    PerNode,
    /// None: users make their own.
    None,
}

/// Which offers are accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Acceptance {
    /// Automatic: offers that cost nothing, or at most maximumPrice. Manual: only those that are approved one by one
    /// (liquidctl accept, or spec.acceptedOffer of the VirtualNode). An approved offer is accepted in either case.
    pub approval: Approval,
    /// The most that is paid without being asked, per hour and unit. What is not named must cost nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum_price: Option<Price>,
}

/// Who accepts offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Approval {
    /// They are accepted if they cost nothing, or no more than the maximum.
    #[default]
    Automatic,
    /// Somebody has to approve each of them.
    Manual,
}

/// How a peer's link is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Transport {
    /// At the peer's link endpoint.
    #[default]
    Direct,
    /// Through the tunnel between the gateways.
    InBand,
}

/// What this cluster lends to the peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LendSpec {
    /// Active: pods are taken. Cordoned: those that run go on, new ones are refused.
    #[serde(default)]
    pub state: LendState,
    /// What its pods may request together, by resource name (cpu, memory, pods, extended resources); also the upper bound
    /// of the offer. Its claims count as requests.storage and persistentvolumeclaims, those kept for it too. Pods that run
    /// go on when a limit is lowered. A resource not named here is not limited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
    /// How much of what there is may be promised to its virtual nodes together, in percent: 100 by default, which promises
    /// nothing twice. No virtual node is ever offered more than there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 10_000))]
    pub overcommit_percent: Option<u16>,
    /// What it is asked to pay. Liquid tells it the price, and meters and bills nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// What it may know of this cluster's nodes, and choose.
    #[serde(default)]
    pub nodes: NodeExposure,
    /// Which Ingresses of its namespaces exist here; none if this is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<LendIngress>,
    /// Storage classes its claims may have. Without it they have the default class of this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<LendStorage>,
}

/// Labels by which every consumer may choose nodes, and which it sees: they tell the kind of a machine and where it is,
/// and mean the same in every cluster. All others may be how a provider keeps nodes for somebody.
pub const SELECTABLE_LABELS: [&str; 5] = [
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

impl LendSpec {
    /// Whether the consumer may choose nodes by this label, and see it.
    #[must_use]
    pub fn may_select(&self, label: &str) -> bool {
        SELECTABLE_LABELS.contains(&label) || self.nodes.labels.iter().any(|allowed| allowed == label)
    }

    /// How much may be promised, in percent of what there is.
    #[must_use]
    pub fn overcommit_percent(&self) -> u16 {
        self.overcommit_percent.unwrap_or(100).max(100)
    }
}

/// What a consumer may know of the nodes of this cluster, and choose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeExposure {
    /// Whether it is told of each node (name, state, capacity, versions, images), and may make virtual nodes of single
    /// ones. Otherwise it sees sums.
    pub exposed: bool,
    /// Keys of labels by which it may choose nodes, and which it sees, beside those of architecture, operating system,
    /// instance type, region and zone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 317)))]
    pub labels: Vec<String>,
}

/// Which Ingresses of the peer exist here, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LendIngress {
    /// The IngressClass they get, whichever they have at home.
    #[schemars(length(min = 1, max = 253))]
    pub class_name: String,
    /// Hosts they may be for: a name, *.DOMAIN for all names below that domain, or * for any and for none.
    #[schemars(
        length(min = 1, max = 64),
        inner(regex(pattern = r"^(\*|(\*\.)?[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?)$"))
    )]
    pub hosts: Vec<String>,
    /// Annotations they keep. All others are left out: to a controller here they might mean what the peer must not decide.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 317)))]
    pub annotations: Vec<String>,
}

/// Which storage classes are lent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LendStorage {
    /// The classes; the first one is for claims that ask for none. None at all: claims are refused.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub classes: Vec<LentClass>,
}

/// A storage class that is lent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LentClass {
    /// What the peer calls it.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"))]
    pub name: String,
    /// The class of this cluster; the one of that name if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// Whether new pods of the peer are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LendState {
    /// Pods are taken.
    #[default]
    Active,
    /// New pods are refused.
    Cordoned,
}

/// What is known of the peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// State of what this cluster borrows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consume: Option<ConsumeStatus>,
    /// State of what this cluster lends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lend: Option<LendStatus>,
    /// The network between the pods of both clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStatus>,
    /// Joined, LinkUp and VirtualNodesMade tell of borrowing, ConsumerConnected of lending, NetworkReady of the network
    /// between the pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// State of what this cluster borrows from the peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsumeStatus {
    /// Secret in Liquid's namespace with the client certificate for the peer link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<String>,
    /// End of validity of that certificate; it is renewed after two thirds of its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_not_after: Option<Time>,
    /// Addresses (host:port) the peer has announced since; tried after those of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// The latest offer of the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
}

/// State of what this cluster lends to the peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LendStatus {
    /// Version of Liquid the consumer speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_version: Option<String>,
    /// All that is offered to the consumer, as it was last told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
    /// What its virtual nodes ask for, and what each of them is offered. Absent if the consumer does not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub slices: Option<Vec<LentSlice>>,
}

/// A part of what is lent: what a virtual node of the consumer asks for and is offered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LentSlice {
    /// Name of the virtual node at the consumer.
    pub name: String,
    /// What it asks for at most, by resource name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requested: BTreeMap<String, Quantity>,
    /// Labels of the nodes its pods are to run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The one node its pods are to run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it is offered, and what its pods may request together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub offered: BTreeMap<String, Quantity>,
    /// What that costs, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// How far the negotiation is.
    pub state: SliceState,
    /// Why it is refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How far the negotiation about a slice is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SliceState {
    /// This cluster offers nothing for what is asked.
    Refused,
    /// There is an offer, and the consumer has not accepted it; no new pods are taken.
    #[default]
    Offered,
    /// The consumer has accepted the offer.
    Accepted,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn peer(tunnels: serde_json::Value) -> Peer {
        serde_json::from_value(json!({
            "apiVersion": "liquid.mesh/v1alpha1", "kind": "Peer", "metadata": {"name": "milan"},
            "spec": {"clusterID": "id"},
            "status": {"network": {"gateways": [{"publicKey": "k"}], "tunnels": tunnels}},
        }))
        .unwrap()
    }

    fn consume(text: serde_json::Value) -> ConsumeSpec {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn in_band_the_gateways_with_a_tunnel_are_dialled_and_nobody_else() {
        let peer = peer(json!([
            {"gateway": "liquid-gateway-0", "up": false, "relay": "10.1.0.1:7444"},
            {"gateway": "liquid-gateway-1", "up": true, "relay": "10.1.0.2:7444"},
        ]));
        let in_band = consume(json!({"transport": "InBand", "caSHA256": "ab", "endpoints": ["milan:7443"]}));
        assert_eq!(peer.dial(&in_band), Ok(vec!["10.1.0.2:7444".to_owned()]));
        let direct = consume(json!({"caSHA256": "ab", "endpoints": ["milan:7443"]}));
        assert_eq!(peer.dial(&direct), Ok(vec!["milan:7443".to_owned()]));
    }

    #[test]
    fn without_a_tunnel_there_is_nobody_to_dial_in_band() {
        let in_band = consume(json!({"transport": "InBand", "caSHA256": "ab"}));
        for tunnels in [json!([]), json!([{"gateway": "g", "up": false, "relay": "10.1.0.1:7444"}])] {
            assert!(peer(tunnels).dial(&in_band).is_err());
        }
    }
}
