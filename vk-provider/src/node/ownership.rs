//! Whose a Node is. Pure.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use liquid_crds::VirtualNode;
use liquid_crds::vocabulary::{PEER, TYPE, TYPE_VIRTUAL_NODE};

/// Whose the Node with the name of a virtual node is. Pods are mirrored, and deleted, only while it is [`Ours`].
///
/// [`Ours`]: Ownership::Ours
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Not read yet.
    Unknown,
    /// It is the one of the virtual node, or there is none: what is bound to the name is meant for it.
    Ours,
    /// Another node has the name.
    Foreign,
}

impl Ownership {
    /// Whose `node` is, seen from `virtual_node`. The owner reference makes up for labels that somebody took away.
    pub(super) fn of(node: Option<&Node>, virtual_node: &VirtualNode) -> Self {
        let Some(node) = node else { return Ownership::Ours };
        let labels = node.labels();
        let labelled = labels.get(TYPE).map(String::as_str) == Some(TYPE_VIRTUAL_NODE)
            && labels.get(PEER) == Some(&virtual_node.spec.peer);
        let owned = node.owner_references().iter().any(|owner| {
            owner.kind == "VirtualNode" && Some(&owner.uid) == virtual_node.metadata.uid.as_ref()
        });
        if labelled || owned { Ownership::Ours } else { Ownership::Foreign }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::VirtualNodeSpec;
    use serde_json::{Value, json};

    fn of(metadata: Value) -> Ownership {
        let spec = VirtualNodeSpec { peer: "milan".to_owned(), ..VirtualNodeSpec::default() };
        let mut virtual_node = VirtualNode::new("worker-1", spec);
        virtual_node.metadata.uid = Some("u1".to_owned());
        let node: Node = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        Ownership::of(Some(&node), &virtual_node)
    }

    #[test]
    fn a_real_node_and_the_node_of_another_peer_are_foreign() {
        assert_eq!(of(json!({"name": "worker-1"})), Ownership::Foreign);
        assert_eq!(of(json!({"labels": {PEER: "milan"}})), Ownership::Foreign);
        assert_eq!(of(json!({"labels": {TYPE: TYPE_VIRTUAL_NODE, PEER: "ohio"}})), Ownership::Foreign);
    }

    #[test]
    fn our_labels_or_our_owner_reference_make_it_ours() {
        assert_eq!(of(json!({"labels": {TYPE: TYPE_VIRTUAL_NODE, PEER: "milan"}})), Ownership::Ours);
        let owner = |uid| {
            json!({"ownerReferences": [
                {"apiVersion": "liquid.mesh/v1alpha1", "kind": "VirtualNode", "name": "worker-1", "uid": uid},
            ]})
        };
        assert_eq!(of(owner("u1")), Ownership::Ours);
        assert_eq!(of(owner("u0")), Ownership::Foreign);
    }
}
