//! `Peer`: one foreign cluster, what we borrow from it and what we lend to it.

use crate::vocabulary::{ENDED_BY_PROVIDER, FORGET};
use crate::{NetworkStatus, Offer, condition};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
}

impl Peer {
    /// Where the peer may be reached: as configured, then as it has announced itself.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsumeSpec {
    /// Addresses (host:port) of the peer's link endpoint, tried in order.
    #[schemars(length(min = 1, max = 16), inner(length(min = 3, max = 261)))]
    pub endpoints: Vec<String>,
    /// SHA-256 of the peer's CA certificate (DER), 64 hexadecimal digits. Nobody else is talked to.
    #[serde(rename = "caSHA256")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub ca_sha256: String,
    /// Secret in Liquid's namespace with the join token, key `token`. It is deleted once it has been redeemed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_secret: Option<String>,
    /// Whether a virtual node liquid-NAME is kept for the peer. Without it, make VirtualNodes of your own.
    #[serde(default = "yes")]
    pub create_virtual_node: bool,
}

fn yes() -> bool {
    true
}

/// What this cluster lends to the peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LendSpec {
    /// Active: pods are taken. Cordoned: those that run go on, new ones are refused.
    #[serde(default)]
    pub state: LendState,
    /// What its pods may request together, by resource name (cpu, memory, pods, extended resources); also the upper bound
    /// of the offer. Pods that run go on when a limit is lowered. A resource not named here is not limited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
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
    /// Joined and LinkUp tell of borrowing, ConsumerConnected of lending, NetworkReady of the network between the pods.
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
    /// The offer last sent to the consumer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
}
