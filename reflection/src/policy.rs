//! NetworkPolicies: who may talk to whom at home may do so in the provider, and nobody else.
//!
//! Both sides take one step each, and both are pure. The consumer says what a policy means ([`resolve()`]): which pods at
//! home, which namespaces, and which addresses it is about, for labels of namespaces and pods at home are known there
//! alone. The provider puts that in its own terms ([`translate()`]): under which addresses pods of the consumer are seen
//! there, and how its namespaces are called there.
//!
//! What cannot be said in the provider's terms is left out of what is *allowed*, never of what is closed: a peer that is not
//! understood is dropped from its rule, a rule from its policy, and a policy that cannot be read closes all pods. Each
//! such case is a note for the user.

mod block;
mod census;
mod resolve;
mod translate;

pub use block::Block;
pub use census::{Census, CensusPod, Labels, NamedPort};
pub use resolve::{Needs, Resolved, View, needs, resolve};
pub use translate::{Marks, translate};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube_core::Selector;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Labels of this prefix are each cluster's own: pods in the provider do not have those of home.
const OWN_LABELS: &str = "liquid.mesh/";

/// A policy as it travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Which pods it is about.
    pub pod_selector: LabelSelector,
    /// Which directions it closes for them: Ingress, Egress.
    pub policy_types: Vec<String>,
    /// Who may come in all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<Rule>,
    /// Whereto they may go all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Rule>,
}

/// What is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// By which ports, as Kubernetes has them; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// For whom; for everybody if there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Peers>,
}

/// Ports of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// TCP if there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// A number, or the name of a container's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Value>,
    /// The last of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i32>,
}

impl Port {
    /// Whether it is meant by its name.
    fn is_named(&self) -> bool {
        self.port.as_ref().is_some_and(Value::is_string)
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Peers {
    /// Pods of the consumer that run in the provider.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodPeer>,
    /// Pods that run at home, by their addresses there.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub home_pods: BTreeSet<IpAddr>,
    /// Addresses among those of pods at home, as they are there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub home_blocks: Vec<Block>,
    /// Addresses as the provider has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
    /// The servers that resolve names: each cluster has its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cluster_dns: bool,
}

/// Pods of a namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodPeer {
    /// Name of the namespace at home.
    pub namespace: String,
    /// Which pods of it.
    pub selector: LabelSelector,
}

/// Whether a selector means the same for a pod in the provider as for the one at home.
fn is_portable(selector: &LabelSelector) -> bool {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| key);
    let expressions = selector.match_expressions.iter().flatten().map(|expression| &expression.key);
    !labels.chain(expressions).any(|key| key.starts_with(OWN_LABELS))
}

/// What a selector selects; nothing if it cannot be read.
fn parsed(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}
