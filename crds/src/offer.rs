//! What a provider offers to a consumer.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a provider offers at this moment; it becomes the capacity of the consumer's virtual node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// Amounts by resource name (cpu, memory, pods, ephemeral-storage, extended resources).
    #[serde(default)]
    pub resources: BTreeMap<String, Quantity>,
    /// CPU architectures of the nodes behind the offer, most common first (for example amd64, arm64).
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Labels of the provider cluster, put on the virtual node (for example topology.kubernetes.io/region).
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
}
