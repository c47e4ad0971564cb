//! What a `NamespaceOffloading` means for a pod: a toleration, and node affinity. Pure.

use k8s_openapi::api::core::v1::{Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use liquid_crds::vocabulary::{TYPE, TYPE_VIRTUAL_NODE, VIRTUAL_NODE_TAINT};
use liquid_crds::{NamespaceOffloadingSpec, PodPlacement};
use serde_json::{Value, json};

/// Changes `pod` (as JSON) so that it may run where `offloading` lets it; returns whether anything changed.
pub(super) fn place(pod: &mut Value, offloading: &NamespaceOffloadingSpec) -> bool {
    let before = pod.clone();
    // A pod bound already (by a DaemonSet or by hand) is past scheduling.
    let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
    if bound || !pod["spec"].is_object() {
        return false;
    }
    match offloading.pod_placement {
        PodPlacement::Local => {}
        PodPlacement::Remote => {
            tolerate(pod);
            require(pod, &[requirements(&offloading.virtual_node_selector, true)]);
        }
        PodPlacement::LocalAndRemote => {
            tolerate(pod);
            let selected = requirements(&offloading.virtual_node_selector, false);
            if !selected.is_empty() {
                let mut remote = requirements(&LabelSelector::default(), true);
                remote.extend(selected);
                let local = vec![json!({"key": TYPE, "operator": "NotIn", "values": [TYPE_VIRTUAL_NODE]})];
                require(pod, &[local, remote]);
            }
        }
    }
    *pod != before
}

/// The patch that lets a pod that waits for a node run on virtual nodes, if that is all it takes: node affinity cannot be
/// added to an existing pod.
pub(super) fn late_toleration(pod: &Pod, offloading: &NamespaceOffloadingSpec) -> Option<json_patch::Patch> {
    let spec = pod.spec.as_ref()?;
    let any_virtual_node = offloading.virtual_node_selector == LabelSelector::default();
    let bound = spec.node_name.as_ref().is_some_and(|node| !node.is_empty());
    if bound || offloading.pod_placement == PodPlacement::Local || !any_virtual_node {
        return None;
    }
    let tolerated = |toleration: &Toleration| {
        toleration.key.as_deref() == Some(VIRTUAL_NODE_TAINT)
            || (toleration.key.is_none() && toleration.operator.as_deref() == Some("Exists"))
    };
    if spec.tolerations.iter().flatten().any(tolerated) {
        return None;
    }
    let (path, value) = match &spec.tolerations {
        Some(_) => ("/spec/tolerations/-", toleration()),
        None => ("/spec/tolerations", json!([toleration()])),
    };
    serde_json::from_value(json!([{"op": "add", "path": path, "value": value}])).ok()
}

fn toleration() -> Value {
    json!({"key": VIRTUAL_NODE_TAINT, "operator": "Exists"})
}

fn tolerate(pod: &mut Value) {
    let toleration = toleration();
    let tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    if !tolerations.contains(&toleration) {
        pod["spec"]["tolerations"] = tolerations.into_iter().chain([toleration]).collect();
    }
}

/// Node selector requirements for a label selector, with the mark of virtual nodes if wanted.
fn requirements(selector: &LabelSelector, virtual_node: bool) -> Vec<Value> {
    let mut requirements = Vec::new();
    if virtual_node {
        requirements.push(json!({"key": TYPE, "operator": "In", "values": [TYPE_VIRTUAL_NODE]}));
    }
    for (key, value) in selector.match_labels.iter().flatten() {
        requirements.push(json!({"key": key, "operator": "In", "values": [value]}));
    }
    for expression in selector.match_expressions.iter().flatten() {
        let mut requirement = json!({"key": expression.key, "operator": expression.operator});
        if let Some(values) = &expression.values {
            requirement["values"] = json!(values);
        }
        requirements.push(requirement);
    }
    requirements
}

/// Demands that the node meets one of `alternatives`, on top of what the pod demands already. Terms of a node selector
/// are alternatives, so each of the pod's is combined with each of ours.
fn require(pod: &mut Value, alternatives: &[Vec<Value>]) {
    let affinity =
        &mut pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let own = affinity["nodeSelectorTerms"].as_array().cloned().unwrap_or_default();
    let own = if own.is_empty() { vec![json!({})] } else { own };
    let mut terms = Vec::new();
    for term in &own {
        for alternative in alternatives {
            let mut combined = term.clone();
            let mut expressions = term["matchExpressions"].as_array().cloned().unwrap_or_default();
            expressions.extend(
                alternative.iter().filter(|one| !expressions.contains(one)).cloned().collect::<Vec<_>>(),
            );
            combined["matchExpressions"] = Value::Array(expressions);
            terms.push(combined);
        }
    }
    affinity["nodeSelectorTerms"] = Value::Array(terms);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn offloading(placement: PodPlacement, region: Option<&str>) -> NamespaceOffloadingSpec {
        let labels = region.map(|region| BTreeMap::from([("region".to_owned(), region.to_owned())]));
        NamespaceOffloadingSpec {
            pod_placement: placement,
            virtual_node_selector: LabelSelector { match_labels: labels, ..LabelSelector::default() },
            remote_namespace: Default::default(),
            reflection: Default::default(),
        }
    }

    fn terms(pod: &Value) -> &Value {
        &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    }

    fn virtual_node() -> Value {
        json!({"key": TYPE, "operator": "In", "values": [TYPE_VIRTUAL_NODE]})
    }

    #[test]
    fn local_pods_are_left_alone() {
        let mut pod = json!({"spec": {"containers": []}});
        assert!(!place(&mut pod, &offloading(PodPlacement::Local, Some("eu"))));
    }

    #[test]
    fn without_a_selector_both_placements_only_tolerate() {
        let mut pod = json!({"spec": {"tolerations": [{"key": "gpu"}]}});
        assert!(place(&mut pod, &offloading(PodPlacement::LocalAndRemote, None)));
        assert_eq!(
            pod["spec"],
            json!({"tolerations": [{"key": "gpu"}, {"key": VIRTUAL_NODE_TAINT, "operator": "Exists"}]})
        );
        assert!(
            !place(&mut pod, &offloading(PodPlacement::LocalAndRemote, None)),
            "a second time changes nothing"
        );
    }

    #[test]
    fn remote_pods_must_go_to_a_selected_virtual_node() {
        let mut pod = json!({"spec": {}});
        place(&mut pod, &offloading(PodPlacement::Remote, Some("eu")));
        let region = json!({"key": "region", "operator": "In", "values": ["eu"]});
        assert_eq!(*terms(&pod), json!([{"matchExpressions": [virtual_node(), region]}]));
        assert!(
            !place(&mut pod, &offloading(PodPlacement::Remote, Some("eu"))),
            "a second time changes nothing"
        );
    }

    #[test]
    fn the_terms_of_the_user_are_kept_with_each_alternative() {
        let own = |value: &str| json!({"key": "disk", "operator": "In", "values": [value]});
        let mut pod = json!({"spec": {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [own("ssd")]}, {"matchFields": [own("hdd")]},
            ]},
        }}}});
        place(&mut pod, &offloading(PodPlacement::LocalAndRemote, Some("eu")));
        let local = json!({"key": TYPE, "operator": "NotIn", "values": [TYPE_VIRTUAL_NODE]});
        let region = json!({"key": "region", "operator": "In", "values": ["eu"]});
        assert_eq!(
            *terms(&pod),
            json!([
                {"matchExpressions": [own("ssd"), local]},
                {"matchExpressions": [own("ssd"), virtual_node(), region]},
                {"matchFields": [own("hdd")], "matchExpressions": [local]},
                {"matchFields": [own("hdd")], "matchExpressions": [virtual_node(), region]},
            ])
        );
    }

    #[test]
    fn a_waiting_pod_gets_its_toleration_late_if_that_is_all_it_takes() {
        let waiting: Pod = serde_json::from_value(json!({
            "spec": {"containers": [], "tolerations": [{"key": "gpu"}]},
        }))
        .unwrap();
        for placement in [PodPlacement::Remote, PodPlacement::LocalAndRemote] {
            let patch = late_toleration(&waiting, &offloading(placement, None)).unwrap();
            let mut patched = serde_json::to_value(&waiting).unwrap();
            json_patch::patch(&mut patched, &patch).unwrap();
            assert_eq!(
                patched["spec"]["tolerations"],
                json!([{"key": "gpu"}, {"key": VIRTUAL_NODE_TAINT, "operator": "Exists"}])
            );
            let patched: Pod = serde_json::from_value(patched).unwrap();
            assert!(late_toleration(&patched, &offloading(placement, None)).is_none(), "once is enough");
        }
        assert!(late_toleration(&waiting, &offloading(PodPlacement::Local, None)).is_none());
        let selected = offloading(PodPlacement::LocalAndRemote, Some("eu"));
        assert!(late_toleration(&waiting, &selected).is_none(), "it might go to a node that is not selected");
        let bare: Pod = serde_json::from_value(json!({"spec": {"containers": []}})).unwrap();
        assert!(late_toleration(&bare, &offloading(PodPlacement::Remote, None)).is_some());
        let bound: Pod =
            serde_json::from_value(json!({"spec": {"containers": [], "nodeName": "n"}})).unwrap();
        assert!(late_toleration(&bound, &offloading(PodPlacement::Remote, None)).is_none());
    }

    #[test]
    fn a_bound_pod_is_past_placement() {
        let mut pod = json!({"spec": {"nodeName": "n1"}});
        assert!(!place(&mut pod, &offloading(PodPlacement::Remote, None)));
    }
}
