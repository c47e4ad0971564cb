//! How reflected objects are named.

use std::fmt;
use std::sync::Arc;

/// Kinds that are reflected, in the order in which they are sent: pods last, for they need the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A namespace of the provider that stands for one at home.
    Namespace,
    /// A ConfigMap that pods refer to.
    ConfigMap,
    /// A Secret that pods refer to.
    Secret,
    /// A Service.
    Service,
    /// Addresses behind a Service: those of pods at home.
    EndpointSlice,
    /// Who may talk to pods, and whom they may talk to.
    NetworkPolicy,
    /// A way in from outside, to a Service.
    Ingress,
    /// A PersistentVolumeClaim whose volume is in the provider.
    PersistentVolumeClaim,
    /// A pod: a stored ShadowPod and the Pod it keeps running.
    Pod,
}

/// What reflected objects are there for: most of what is done with them depends on that alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// To hold others.
    Namespace,
    /// Pods need them beside them: one of [`Kind::COMPANIONS`].
    Companion,
    /// To hold data, which outlives what uses it.
    Claim,
    /// To run.
    Pod,
}

impl Kind {
    /// Kinds of objects that are reflected because pods need them beside them.
    pub const COMPANIONS: [Self; 6] = [
        Self::ConfigMap,
        Self::Secret,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::Ingress,
    ];

    /// What objects of this kind are there for.
    pub fn role(self) -> Role {
        match self {
            Kind::Namespace => Role::Namespace,
            Kind::ConfigMap
            | Kind::Secret
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::NetworkPolicy
            | Kind::Ingress => Role::Companion,
            Kind::PersistentVolumeClaim => Role::Claim,
            Kind::Pod => Role::Pod,
        }
    }

    /// Whether an object of this kind is only a record of something that runs beside it.
    pub fn has_instance(self) -> bool {
        self.role() == Role::Pod
    }

    /// Name of the kind in Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::Ingress => "Ingress",
            Kind::PersistentVolumeClaim => "PersistentVolumeClaim",
        }
    }

    /// API group of the kind in Kubernetes; its version is v1.
    pub fn group(self) -> &'static str {
        match self {
            Kind::Namespace
            | Kind::Pod
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::Service
            | Kind::PersistentVolumeClaim => "",
            Kind::EndpointSlice => "discovery.k8s.io",
            Kind::NetworkPolicy | Kind::Ingress => "networking.k8s.io",
        }
    }

    /// Group and version as objects have them.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }
}

/// A set of desired objects: those of one kind in one scope. Pods are scoped by their virtual node, companions of pods
/// by their namespace; namespaces and claims have one set each per peer, with an empty scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetRef {
    /// Kind of the members.
    pub kind: Kind,
    /// Scope of the set.
    pub scope: Arc<str>,
}

impl SetRef {
    /// The set of namespaces.
    pub fn namespaces() -> Self {
        Self { kind: Kind::Namespace, scope: Arc::from("") }
    }

    /// The set of claims: they outlive the offloading of their namespace.
    pub fn claims() -> Self {
        Self { kind: Kind::PersistentVolumeClaim, scope: Arc::from("") }
    }

    /// The set of companions of one kind in a namespace at home.
    pub fn companions(kind: Kind, namespace: &str) -> Self {
        Self { kind, scope: Arc::from(namespace) }
    }

    /// The set of pods on a virtual node.
    pub fn pods(node: &str) -> Self {
        Self { kind: Kind::Pod, scope: Arc::from(node) }
    }
}

/// An object of a set, by its names at home.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace at home; empty for namespaces themselves.
    pub namespace: Arc<str>,
    /// Name at home.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its two names.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: Arc::from(namespace), name: Arc::from(name) }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// UID of an object at home: tells two objects of the same name, one after the other, apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub Arc<str>);

impl Uid {
    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Uid {
    fn from(uid: &str) -> Self {
        Self(Arc::from(uid))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
