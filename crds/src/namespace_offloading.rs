//! `NamespaceOffloading`: lets the pods of a namespace run in peers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Lets the pods of its namespace run in peers.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "liquid.mesh",
    version = "v1alpha1",
    kind = "NamespaceOffloading",
    plural = "namespaceoffloadings",
    shortname = "nso",
    category = "liquid",
    namespaced,
    status = "NamespaceOffloadingStatus",
    derive = "PartialEq",
    doc = "NamespaceOffloading lets the pods of its namespace run in peers. It must be named \"offloading\".",
    validation = Rule::new("self.metadata.name == 'offloading'")
        .message("a namespace has one NamespaceOffloading, and its name is \"offloading\""),
    printcolumn(name = "Placement", type_ = "string", json_path = ".spec.podPlacement"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceOffloadingSpec {
    /// Where new pods may run.
    #[serde(default)]
    pub pod_placement: PodPlacement,
    /// Which virtual nodes take part; all if empty. Peers behind them get a namespace.
    #[serde(default)]
    pub virtual_node_selector: LabelSelector,
    /// How the namespace is called in the peers. It cannot be changed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the remote namespace cannot be renamed: unoffload the namespace first"))]
    pub remote_namespace: RemoteNamespaceSpec,
    /// What else of the namespace exists in the peers. When that changes, so does what is there.
    #[serde(default)]
    pub reflection: Reflection,
}

impl NamespaceOffloadingSpec {
    /// Whether pods have to be bound to some nodes when they are made, for node affinity cannot be added later.
    #[must_use]
    pub fn binds_pods(&self) -> bool {
        match self.pod_placement {
            PodPlacement::Local => false,
            PodPlacement::Remote => true,
            PodPlacement::LocalAndRemote => self.virtual_node_selector != LabelSelector::default(),
        }
    }
}

/// Where new pods of the namespace may run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodPlacement {
    /// Only on physical nodes; the namespace exists in the peers all the same.
    Local,
    /// Only on virtual nodes.
    Remote,
    /// On either, as the scheduler decides.
    #[default]
    LocalAndRemote,
}

/// What of a namespace, beside its pods, exists in the peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Reflection {
    /// Which ConfigMaps. kube-root-ca.crt is never among them: every cluster has its own.
    pub config_maps: ConfigurationReflection,
    /// Which Secrets. Tokens of service accounts are never among them.
    pub secrets: ConfigurationReflection,
    /// Which Services.
    pub services: ServiceReflection,
    /// Which NetworkPolicies.
    pub network_policies: PolicyReflection,
    /// Which Ingresses.
    pub ingresses: IngressReflection,
    /// Whether pods in the peers have tokens of their service accounts, and reach this cluster's API server.
    pub service_account_tokens: TokenReflection,
}

/// Which ConfigMaps or Secrets of a namespace exist in the peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConfigurationReflection {
    /// In each peer those that pods there refer to.
    #[default]
    Referenced,
    /// All of them.
    All,
    /// None: pods find what somebody else has put into the namespace in the peer.
    None,
}

/// Which Services of a namespace exist in the peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceReflection {
    /// All of them; the ways in from outside the cluster (node ports, load balancers, external addresses) stay at home.
    #[default]
    All,
    /// None.
    None,
}

/// Which NetworkPolicies of a namespace hold in the peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyReflection {
    /// All of them.
    #[default]
    All,
    /// None: whatever is closed at home is open there, unless somebody else has closed it.
    None,
}

/// Which Ingresses of a namespace exist in the peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IngressReflection {
    /// All that the peer takes (spec.lend.ingress of its Peer), with the certificates they refer to.
    All,
    /// None: the way in from outside is at home.
    #[default]
    None,
}

/// Whether pods in the peers have tokens of their service accounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TokenReflection {
    /// They have none. A pod that asks for one runs on physical nodes only; the one that every pod gets unasked is left out.
    #[default]
    None,
    /// They have those they ask for, each bound to its pod. Whoever runs the peer can act as these accounts.
    Bound,
}

/// How the namespace is called in the peers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.strategy == 'SelectedName') == has(self.name)").message("name must be set with the strategy SelectedName, and only then"))]
pub struct RemoteNamespaceSpec {
    /// DefaultName: NAMESPACE-CLUSTER. EnforceSameName: as at home. SelectedName: as given in name.
    #[serde(default)]
    pub strategy: RemoteNamespaceStrategy,
    /// The name for the strategy SelectedName.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: Option<String>,
}

/// How the name of the remote namespace is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RemoteNamespaceStrategy {
    /// `<namespace>-<name of the home cluster>`.
    #[default]
    DefaultName,
    /// The same name as at home.
    EnforceSameName,
    /// A name of the user's choice.
    SelectedName,
}

/// What is known of the offloaded namespace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceOffloadingStatus {
    /// The namespace in each peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["peer"]))]
    pub remote_namespaces: Vec<RemoteNamespace>,
    /// Ready: every selected peer has the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The namespace in one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemoteNamespace {
    /// Name of the Peer.
    pub peer: String,
    /// Name of the namespace there.
    pub name: String,
    /// Whether it exists and takes pods.
    pub ready: bool,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
