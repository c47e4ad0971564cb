//! `VirtualNode`: a node at home that stands for a peer.

use crate::Offer;
use crate::schema::label_value;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A node of this cluster whose pods run in a peer.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "liquid.mesh",
    version = "v1alpha1",
    kind = "VirtualNode",
    plural = "virtualnodes",
    shortname = "vn",
    category = "liquid",
    status = "VirtualNodeStatus",
    derive = "PartialEq",
    doc = "VirtualNode is a node of this cluster whose pods run in a peer. The Node it makes has the same name.",
    validation = Rule::new("self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')")
        .message("a VirtualNode becomes a Node of the same name and must be a DNS label of at most 63 characters"),
    printcolumn(name = "Peer", type_ = "string", json_path = ".spec.peer"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Offer", type_ = "string", json_path = ".status.conditions[?(@.type=='OfferAccepted')].reason", description = "Whether the offer of the peer is accepted"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.offer.resources.cpu", description = "CPU the peer offers"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.offer.resources.memory", description = "Memory the peer offers"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node", priority = "1", description = "The one node of the peer behind it"),
    printcolumn(name = "Kubelet", type_ = "string", json_path = ".status.kubeletEndpoint", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.node) || !has(self.nodeSelector)")
    .message("node names one node of the peer, nodeSelector chooses among all: only one of them may be set"))]
#[x_kube(validation = Rule::new("has(self.node) == has(oldSelf.node) && (!has(self.node) || self.node == oldSelf.node)")
    .message("a VirtualNode cannot move to another node of the peer: make a new one"))]
pub struct VirtualNodeSpec {
    /// Name of the Peer the pods run in. It cannot be changed.
    #[schemars(length(min = 1, max = 42))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a VirtualNode cannot move to another peer: make a new one"))]
    pub peer: String,
    /// What is asked of the peer at most, by resource name (cpu, memory, pods, extended resources). What is named here is
    /// served first; of the rest the peer's virtual nodes get equal shares. Zero asks for none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub resources: BTreeMap<String, Quantity>,
    /// Labels of the nodes in the peer on which pods of this VirtualNode run; the peer says which may be used. Pods that
    /// run stay where they are when it changes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = label_value()))]
    pub node_selector: BTreeMap<String, String>,
    /// The one node in the peer on which pods of this VirtualNode run, if the peer tells of its nodes. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub node: Option<String>,
    /// The offer that is approved, by status.offer.terms: `liquidctl accept` writes it. Needed where the Peer's
    /// spec.consume.acceptance does not accept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub accepted_offer: Option<String>,
    /// Labels for the Node, on top of those of the offer; they win over them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = label_value()))]
    pub labels: BTreeMap<String, String>,
    /// Taints for the Node, on top of liquid.mesh/virtual-node; each key once for every effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["key", "effect"])
    )]
    pub taints: Vec<NodeTaint>,
    /// Seconds for which the removal of this VirtualNode heeds PodDisruptionBudgets, 120 by default. Pods that are still
    /// there by then are deleted all the same, with the time each of them asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800))]
    pub drain_timeout_seconds: Option<i64>,
}

/// Shorter than the time after which `liquidctl unpeer` gives up waiting.
const DRAIN_TIMEOUT_SECONDS: i64 = 120;

impl VirtualNodeSpec {
    /// How long a removal heeds PodDisruptionBudgets, in seconds.
    #[must_use]
    pub fn drain_timeout_seconds(&self) -> i64 {
        self.drain_timeout_seconds.unwrap_or(DRAIN_TIMEOUT_SECONDS)
    }
}

/// A taint of the virtual node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTaint {
    /// Key of the taint.
    #[schemars(
        length(min = 1, max = 317),
        regex(
            pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$"
        )
    )]
    pub key: String,
    /// Value of the taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"))]
    pub value: Option<String>,
    /// What happens to pods that do not tolerate it.
    pub effect: TaintEffect,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// They are not scheduled there.
    NoSchedule,
    /// The scheduler avoids the node for them.
    PreferNoSchedule,
    /// They are not scheduled there, and evicted if they run there.
    NoExecute,
}

impl TaintEffect {
    /// As Kubernetes has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }

    /// The effect of this name, if it keeps pods off.
    #[must_use]
    pub fn keeping_off(name: &str) -> Option<Self> {
        [Self::NoSchedule, Self::NoExecute].into_iter().find(|effect| effect.as_str() == name)
    }
}

/// What is known of the virtual node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNodeStatus {
    /// Address and port (host:port) of the node's kubelet API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet_endpoint: Option<String>,
    /// What the peer offers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
    /// OfferAccepted: whether the offer of the peer is accepted; there is no Node without. Ready: the node takes pods; with
    /// reason Removing, how far its pods are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
