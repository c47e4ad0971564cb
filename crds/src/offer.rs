//! What a provider offers to a consumer.

use crate::{NodeTaint, Price};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a provider offers at this moment: on a Peer all it lends, on a VirtualNode the part that becomes the node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// Amounts by resource name (cpu, memory, pods, ephemeral-storage, extended resources).
    #[serde(default)]
    pub resources: BTreeMap<String, Quantity>,
    /// CPU architectures of the nodes behind the offer, most common first (for example amd64, arm64).
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Labels of the provider cluster and those its nodes have in common, put on the virtual node (for example
    /// topology.kubernetes.io/region).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Kubernetes version of the provider.
    #[serde(default)]
    pub kubernetes_version: String,
    /// The provider takes no new pods for now; those that run go on.
    #[serde(default)]
    pub cordoned: bool,
    /// Conditions (MemoryPressure, DiskPressure, PIDPressure) that hold on every node behind the offer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pressures: Vec<String>,
    /// What it costs, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// Identifies what was asked for and what it costs. It changes with these, and not with the amounts; approving an
    /// offer (spec.acceptedOffer) means this.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub terms: String,
    /// Taints that every node behind the offer has: pods have to tolerate them there, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<NodeTaint>,
    /// Images that are on nodes behind the offer already, the largest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<OfferedImage>,
    /// Operating system of the nodes behind the offer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub operating_system: String,
    /// The one node of the provider behind the offer, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<OfferedNode>,
    /// Storage classes of the provider, as claims may ask for them; the first one is for claims that ask for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storage_classes: Vec<String>,
}

/// An image on nodes of the provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferedImage {
    /// Names it is known by.
    #[serde(default)]
    pub names: Vec<String>,
    /// Its size in bytes.
    #[serde(default)]
    pub size_bytes: i64,
}

/// A node of the provider, as its kubelet reports it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferedNode {
    /// Its name there.
    pub name: String,
    /// Whether it is there and Ready.
    #[serde(default)]
    pub ready: bool,
    /// Why it is not ready, in the words of its condition.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// It takes no new pods (kubectl cordon).
    #[serde(default)]
    pub unschedulable: bool,
    /// All it has, by resource name; what is offered is a part of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, Quantity>,
    /// Version of its kubelet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kubelet_version: String,
    /// Its kernel.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel_version: String,
    /// Its operating system, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub os_image: String,
    /// Its container runtime.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container_runtime_version: String,
}
