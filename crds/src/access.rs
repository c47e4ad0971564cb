//! What of this cluster the pods of a peer may reach.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The network between the pods of both clusters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// What pods of the peer may reach here. Without it that is every pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessSpec>,
    /// Whether pods of one cluster that run in several others reach each other through it. Where they run, that is whether
    /// prefixes of the others are taken from this peer (they are, if unset). At home it is whether pods that run in this
    /// peer take part (they do, if unset, unless access denies something: its rules are about what is reached here).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<TransitPolicy>,
}

impl NetworkSpec {
    /// What a peering begins with; nothing is said if everything is let in.
    #[must_use]
    pub fn at_first(access: Verdict) -> Option<Self> {
        let access = AccessSpec { default: access, ..AccessSpec::default() };
        access.restricts().then(|| Self { access: Some(access), ..Self::default() })
    }

    /// Whether pods of this cluster that run in the peer, and those in other peers, reach each other through it.
    #[must_use]
    pub fn passes_on(&self) -> bool {
        self.transit.map_or(self.is_open(), |transit| transit == TransitPolicy::OffloadedPods)
    }

    /// Whether pods of the peer reach all pods of this cluster.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.access.as_ref().is_some_and(AccessSpec::restricts)
    }

    /// Whether what the peer tells of its pods in further clusters, and of hosts outside, is taken: its access is about these,
    /// too.
    #[must_use]
    pub fn takes_transit(&self) -> bool {
        self.transit != Some(TransitPolicy::None)
    }
}

/// What passes through a cluster from one peer to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransitPolicy {
    /// What pods of the cluster in one peer and in the other send to each other, if a namespace is offloaded to both.
    OffloadedPods,
    /// Nothing.
    None,
}

/// Which connections from the peer are let in. The first rule that fits decides; connections that exist go on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessSpec {
    /// What becomes of connections for which there is no rule.
    #[serde(default)]
    pub default: Verdict,
    /// The rules, in the order in which they are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub rules: Vec<AccessRule>,
}

impl AccessSpec {
    /// Whether it keeps anything out.
    #[must_use]
    pub fn restricts(&self) -> bool {
        let denies = |verdict| verdict == Verdict::Deny;
        denies(self.default) || self.rules.iter().any(|rule| denies(rule.verdict))
    }
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// It is let in.
    #[default]
    Allow,
    /// Its packets are dropped, and counted.
    Deny,
}

/// A rule about connections to certain pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessRule {
    /// What becomes of them.
    #[serde(rename = "action")]
    pub verdict: Verdict,
    /// Labels of the namespaces whose pods it is about; all if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the pods it is about; all if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Ports it is about; without any, all ports of all protocols.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ports: Vec<AccessPort>,
}

/// Ports of pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.endPort) || self.endPort >= self.port")
    .message("endPort must not be smaller than port"))]
pub struct AccessPort {
    /// The protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port of the pod, or the first of several.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The last of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<u16>,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}
