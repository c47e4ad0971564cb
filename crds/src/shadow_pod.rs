//! `ShadowPod`: a pod of a consumer, as the provider keeps it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A pod of a consumer. The provider runs a Pod of the same name for as long as the ShadowPod exists, also
/// when the consumer is out of reach.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "liquid.mesh",
    version = "v1alpha1",
    kind = "ShadowPod",
    plural = "shadowpods",
    shortname = "sp",
    category = "liquid",
    namespaced,
    status = "ShadowPodStatus",
    derive = "PartialEq",
    doc = "ShadowPod is a pod of a consumer. The provider runs a Pod of the same name for as long as the ShadowPod exists, also when the consumer is out of reach. While its consumer is connected, deleting it by hand restarts the pod.",
    printcolumn(name = "Origin", type_ = "string", json_path = ".spec.home.cluster"),
    printcolumn(name = "Home namespace", type_ = "string", json_path = ".spec.home.namespace"),
    printcolumn(name = "Virtual node", type_ = "string", json_path = ".spec.home.node", priority = "1"),
    printcolumn(name = "Finished", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ShadowPodSpec {
    /// The pod at home this one stands for.
    pub home: HomePod,
    /// Digest of `pod`, 32 hexadecimal digits; equal digests mean that nothing has to be sent again.
    #[schemars(regex(pattern = r"^[0-9a-f]{32}$"))]
    pub hash: String,
    /// The wanted pod (labels, annotations, spec), kept as it came so that fields newer than this version survive.
    #[schemars(schema_with = "raw_object")]
    pub pod: Value,
    /// On which nodes the pod may run: what its virtual node stood for when the pod was made.
    #[serde(default, skip_serializing_if = "Placement::is_anywhere")]
    pub placement: Placement,
}

/// On which nodes of this cluster a pod may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Labels they have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The one it is, if it has to be that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl Placement {
    /// Whether it may run on any.
    #[must_use]
    pub fn is_anywhere(&self) -> bool {
        self.node.is_none() && self.node_selector.is_empty()
    }
}

/// The pod at home a shadow stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HomePod {
    /// Name of the consumer.
    pub cluster: String,
    /// Namespace of the pod at home.
    pub namespace: String,
    /// UID of the pod at home.
    pub uid: String,
    /// Virtual node it is bound to.
    pub node: String,
}

/// What the provider remembers of the pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShadowPodStatus {
    /// Final phase of the pod, Succeeded or Failed, once it has one. A finished pod is never started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The final status of the pod, kept so that it survives the deletion of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "raw_object")]
    pub pod_status: Option<Value>,
}

fn raw_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
