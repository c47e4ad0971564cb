//! Which pod of this cluster is which pod of whom.

use liquid_crds::ClusterId;
use liquid_reflection::{Key, Uid};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A pod here, and what it stands for.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    /// The consumer.
    pub(crate) cluster: ClusterId,
    /// Its virtual node.
    pub(crate) virtual_node: Arc<str>,
    /// Names at home.
    pub(crate) home: Key,
    /// UID at home.
    pub(crate) uid: Uid,
    /// UID here.
    pub(crate) object: Uid,
}

impl Placed {
    /// Consumer and virtual node.
    pub(crate) fn owner(&self) -> (ClusterId, Arc<str>) {
        (self.cluster.clone(), self.virtual_node.clone())
    }
}

/// The pods of all consumers that are bound to a node, by their names here.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    pods: HashMap<Arc<str>, HashMap<Arc<str>, Placed>>,
    nodes: BTreeSet<Arc<str>>,
}

impl Roster {
    /// Adds a pod, and the node it is bound to.
    pub(crate) fn insert(&mut self, namespace: Arc<str>, name: Arc<str>, placed: Placed, node: Arc<str>) {
        self.pods.entry(namespace).or_default().insert(name, placed);
        self.nodes.insert(node);
    }

    /// The pod of these names here.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<&Placed> {
        self.pods.get(namespace)?.get(name)
    }

    /// Nodes with pods of consumers.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter()
    }
}
