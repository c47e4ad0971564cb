//! What a `NamespaceOffloading` means for each provider. Pure.

use crate::mirror::{RemoteState, WantedNamespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use kube::core::{Selector, SelectorExt as _};
use liquid_crds::{NamespaceOffloading, RemoteNamespace, RemoteNamespaceSpec, RemoteNamespaceStrategy};
use std::collections::BTreeMap;

/// Longest name of a namespace.
const MAX_NAME: usize = 63;

/// A virtual node as offloading sees it.
#[derive(Debug, Clone)]
pub(crate) struct NodeView {
    /// Provider behind it.
    pub(crate) peer: String,
    /// Labels of its Node.
    pub(crate) labels: BTreeMap<String, String>,
}

/// Whether `offloading` selects `node`; an invalid selector selects nothing.
pub(crate) fn selects(selector: &LabelSelector, node: &NodeView) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(&node.labels))
}

/// Name of the namespace in the provider.
pub(crate) fn remote_name(
    namespace: &str,
    own_name: &str,
    spec: &RemoteNamespaceSpec,
) -> Result<String, String> {
    let name = match spec.strategy {
        RemoteNamespaceStrategy::DefaultName => format!("{namespace}-{own_name}"),
        RemoteNamespaceStrategy::EnforceSameName => namespace.to_owned(),
        RemoteNamespaceStrategy::SelectedName => spec.name.clone().unwrap_or_default(),
    };
    if name.len() > MAX_NAME {
        return Err(format!(
            "the remote name {name} has more than {MAX_NAME} characters: choose one with the strategy SelectedName"
        ));
    }
    Ok(name)
}

/// The namespace `peer` shall have for `offloading`, if any. Peers that are no longer selected keep theirs while
/// `in_use`, that is, until the last pod there is gone.
pub(crate) fn wanted(
    offloading: &NamespaceOffloading,
    own_name: &str,
    peer: &str,
    nodes: &[NodeView],
    in_use: bool,
) -> Option<WantedNamespace> {
    let spec = &offloading.spec;
    let selected = nodes.iter().any(|node| node.peer == peer && selects(&spec.virtual_node_selector, node));
    let deleting = offloading.metadata.deletion_timestamp.is_some();
    let remote = remote_name(&offloading.namespace()?, own_name, &spec.remote_namespace).ok()?;
    (selected || in_use).then(|| WantedNamespace {
        uid: offloading.uid().unwrap_or_default(),
        remote,
        reflection: spec.reflection,
        leaving: (deleting || !selected) && !in_use,
    })
}

/// State of the namespace in each of the providers that have it.
pub(crate) fn report(
    states: &BTreeMap<String, (WantedNamespace, Option<RemoteState>)>,
) -> Vec<RemoteNamespace> {
    states
        .iter()
        .map(|(peer, (wanted, state))| {
            let (ready, message) = match state {
                Some(RemoteState::Ready) => (true, String::new()),
                Some(RemoteState::Refused(message)) => (false, message.clone()),
                Some(RemoteState::Pending | RemoteState::Gone) | None => {
                    (false, "waiting for the provider".to_owned())
                }
            };
            RemoteNamespace { peer: peer.clone(), name: wanted.remote.clone(), ready, message }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::NamespaceOffloadingSpec;

    fn node(peer: &str, region: &str) -> NodeView {
        let labels = BTreeMap::from([("region".to_owned(), region.to_owned())]);
        NodeView { peer: peer.to_owned(), labels }
    }

    fn offloading(region: Option<&str>) -> NamespaceOffloading {
        let labels = region.map(|region| BTreeMap::from([("region".to_owned(), region.to_owned())]));
        let spec = NamespaceOffloadingSpec {
            pod_placement: Default::default(),
            virtual_node_selector: LabelSelector { match_labels: labels, ..LabelSelector::default() },
            remote_namespace: RemoteNamespaceSpec::default(),
            reflection: Default::default(),
        };
        let mut offloading = NamespaceOffloading::new("offloading", spec);
        offloading.metadata.namespace = Some("shop".to_owned());
        offloading
    }

    #[test]
    fn an_empty_selector_selects_all_and_a_label_those_that_carry_it() {
        let nodes = [node("milan", "eu"), node("ohio", "us")];
        for (region, peer, expected) in [
            (None, "milan", true),
            (None, "ohio", true),
            (Some("eu"), "milan", true),
            (Some("eu"), "ohio", false),
            (None, "tokyo", false),
        ] {
            let wanted = wanted(&offloading(region), "turin", peer, &nodes, false);
            assert_eq!(wanted.is_some(), expected, "{region:?} {peer}");
        }
    }

    #[test]
    fn a_peer_that_is_no_longer_selected_keeps_the_namespace_while_pods_are_there() {
        let nodes = [node("ohio", "us")];
        let used = wanted(&offloading(Some("eu")), "turin", "ohio", &nodes, true).unwrap();
        assert!(!used.leaving);
        assert_eq!(wanted(&offloading(Some("eu")), "turin", "ohio", &nodes, false), None);
    }

    #[test]
    fn names_follow_the_strategy_and_their_length_is_checked() {
        let spec =
            |strategy, name: Option<&str>| RemoteNamespaceSpec { strategy, name: name.map(str::to_owned) };
        let name = |spec| remote_name("shop", "turin", &spec);
        assert_eq!(name(spec(RemoteNamespaceStrategy::DefaultName, None)).unwrap(), "shop-turin");
        assert_eq!(name(spec(RemoteNamespaceStrategy::EnforceSameName, None)).unwrap(), "shop");
        assert_eq!(name(spec(RemoteNamespaceStrategy::SelectedName, Some("x"))).unwrap(), "x");
        let long = "n".repeat(60);
        assert!(remote_name(&long, "turin", &RemoteNamespaceSpec::default()).is_err());
    }
}
