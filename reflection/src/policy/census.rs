//! Who is where at home.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Namespaces and pods of home, as far as policies are about them. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Census {
    /// Labels of all namespaces, once they are known.
    pub namespaces: Option<Arc<BTreeMap<Arc<str>, Labels>>>,
    /// Pods, by namespace and name; of a namespace that is not among them nothing is known.
    pub pods: BTreeMap<Arc<str>, Arc<BTreeMap<Arc<str>, CensusPod>>>,
}

/// A pod with addresses of its own, which has not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CensusPod {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports of its containers that have a name.
    pub ports: Vec<NamedPort>,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// Its number.
    pub port: u16,
}
