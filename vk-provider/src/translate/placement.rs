//! Wishes about the place. At home they have chosen the virtual node; what also says something about the machines behind
//! it goes with the pod.

use super::list_mut;
use liquid_crds::vocabulary::MACHINE_KIND;
use serde_json::{Map, Value, json};

/// The machine: the one topology every cluster has.
const MACHINE: &str = "kubernetes.io/hostname";
/// Topologies that clusters may have. A provider without them must not keep the pod waiting for ever.
const PERHAPS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Takes out of `spec` what only nodes at home can fulfil. `labels` are those of the pod.
pub(super) fn keep_portable(spec: &mut Map<String, Value>, labels: Option<&Value>) {
    if let Some(selector) = spec.get_mut("nodeSelector").and_then(Value::as_object_mut) {
        selector.retain(|key, _| MACHINE_KIND.contains(&key.as_str()));
    }
    if let Some(affinity) = spec.get_mut("affinity") {
        node_affinity(affinity);
        for kind in ["podAffinity", "podAntiAffinity"] {
            pod_affinity(affinity, kind);
        }
        prune(affinity);
    }
    if let Some(constraints) = spec.get_mut("topologySpreadConstraints").and_then(Value::as_array_mut) {
        constraints.retain_mut(|constraint| spread(constraint, labels));
    }
    for field in ["nodeSelector", "affinity", "topologySpreadConstraints"] {
        if spec.get(field).is_some_and(is_empty) {
            spec.remove(field);
        }
    }
}

/// One of the terms has to match, and all expressions in it: a term of which nothing is left matches everything, and the
/// others do not matter any more.
fn node_affinity(affinity: &mut Value) {
    let Some(node) = affinity.get_mut("nodeAffinity").and_then(Value::as_object_mut) else { return };
    node.remove(PREFERRED);
    let Some(selector) = node.get_mut(REQUIRED) else { return };
    let mut unconditional = false;
    for term in list_mut(selector, "/nodeSelectorTerms") {
        if let Some(fields) = term.as_object_mut() {
            fields.remove("matchFields");
        }
        if let Some(expressions) = term.get_mut("matchExpressions").and_then(Value::as_array_mut) {
            let portable = |key: &Value| key.as_str().is_some_and(|key| MACHINE_KIND.contains(&key));
            expressions.retain(|expression| portable(&expression["key"]));
        }
        unconditional |= term.get("matchExpressions").is_none_or(is_empty);
    }
    if unconditional {
        node.remove(REQUIRED);
    }
}

/// "On the machine of", or not, goes with the pod, as far as it speaks of pods of the same namespace: names and labels of
/// namespaces are others there. The API server of home has put `matchLabelKeys` into the selectors already, and another
/// would refuse to see them in both places.
fn pod_affinity(affinity: &mut Value, kind: &str) {
    let Some(affinity) = affinity.get_mut(kind) else { return };
    let kept = |term: &mut Value| {
        let Some(fields) = term.as_object_mut() else { return false };
        fields.remove("matchLabelKeys");
        fields.remove("mismatchLabelKeys");
        let elsewhere = ["namespaces", "namespaceSelector"];
        let elsewhere =
            elsewhere.iter().any(|field| fields.get(*field).is_some_and(|value| !value.is_null()));
        fields.get("topologyKey").is_some_and(|key| key == MACHINE) && !elsewhere
    };
    if let Some(terms) = affinity.get_mut(REQUIRED).and_then(Value::as_array_mut) {
        terms.retain_mut(kept);
    }
    if let Some(terms) = affinity.get_mut(PREFERRED).and_then(Value::as_array_mut) {
        terms.retain_mut(|weighted| weighted.get_mut("podAffinityTerm").is_some_and(kept));
    }
}

/// Whether a constraint goes with the pod, and how.
fn spread(constraint: &mut Value, labels: Option<&Value>) -> bool {
    let Some(fields) = constraint.as_object_mut() else { return false };
    let key = fields.get("topologyKey").and_then(Value::as_str).unwrap_or_default().to_owned();
    if PERHAPS.contains(&key.as_str()) {
        fields.insert("whenUnsatisfiable".to_owned(), json!("ScheduleAnyway"));
    } else if key != MACHINE {
        return false;
    }
    // It counts domains of home, of which the provider is one.
    fields.remove("minDomains");
    let keys = fields.remove("matchLabelKeys");
    let keys = keys.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
    let own = keys.filter_map(|key| Some((key, labels?.get(key)?)));
    let added: Vec<_> =
        own.map(|(key, value)| json!({"key": key, "operator": "In", "values": [value]})).collect();
    let selector = fields.get_mut("labelSelector").and_then(Value::as_object_mut);
    if let Some(selector) = selector.filter(|_| !added.is_empty()) {
        let expressions = selector.entry("matchExpressions").or_insert_with(|| json!([]));
        if let Some(expressions) = expressions.as_array_mut() {
            // API servers from 1.34 on have done so already.
            let missing = added.into_iter().filter(|expression| !expressions.contains(expression));
            let missing: Vec<_> = missing.collect();
            expressions.extend(missing);
        }
    }
    true
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Takes out what has become empty, below the selectors: an empty selector means something.
fn prune(affinity: &mut Value) {
    let Some(kinds) = affinity.as_object_mut() else { return };
    for kind in kinds.values_mut().filter_map(Value::as_object_mut) {
        kind.retain(|_, terms| !is_empty(terms));
    }
    kinds.retain(|_, kind| !is_empty(kind));
}

#[cfg(test)]
mod tests {
    use super::super::{Access, pod_without_claims as pod};
    use super::*;

    fn translated(spec: Value) -> Value {
        let home = json!({"metadata": {"labels": {"app": "web", "hash": "h1"}}, "spec": spec});
        pod(&home, Access::None).unwrap()["spec"].take()
    }

    #[test]
    fn the_kind_of_machine_goes_with_the_pod_and_nodes_of_home_do_not() {
        let expression = |key: &str| json!({"key": key, "operator": "In", "values": ["x"]});
        let terms =
            |terms: Value| json!({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}});
        let both =
            json!({"matchExpressions": [expression("kubernetes.io/arch"), expression("liquid.mesh/type")]});
        let arch = json!({"matchExpressions": [expression("kubernetes.io/arch")]});
        let other = json!({"matchExpressions": [expression("liquid.mesh/type")]});
        let fields =
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["liquid-milan"]}]});
        assert_eq!(translated(terms(json!([both, both]))), terms(json!([arch, arch])));
        assert_eq!(
            translated(terms(json!([both, other]))),
            json!({}),
            "the other term asks for nothing there"
        );
        assert_eq!(translated(terms(json!([fields]))), json!({}));
        let preferred =
            json!({"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 1, "preference": arch}]}}});
        assert_eq!(translated(preferred), json!({}));
        let selector = json!({"nodeSelector": {"kubernetes.io/os": "linux", "disk": "ssd"}});
        assert_eq!(translated(selector), json!({"nodeSelector": {"kubernetes.io/os": "linux"}}));
        assert_eq!(translated(json!({"nodeSelector": {"disk": "ssd"}})), json!({}));
    }

    #[test]
    fn pods_keep_together_and_apart_on_machines() {
        let web = json!({"matchLabels": {"app": "web"}});
        let machine = json!({"topologyKey": MACHINE, "labelSelector": web});
        let zone = json!({"topologyKey": "topology.kubernetes.io/zone", "labelSelector": web});
        let foreign = json!({"topologyKey": MACHINE, "labelSelector": web, "namespaces": ["db"]});
        let everywhere = json!({"topologyKey": MACHINE, "labelSelector": web, "namespaceSelector": {}});
        let keys = json!({"topologyKey": MACHINE, "labelSelector": web, "matchLabelKeys": ["hash"]});
        for kind in ["podAffinity", "podAntiAffinity"] {
            let affinity = |required: Value, preferred: Value| {
                let weighted = |terms: &Value| -> Value {
                    let terms = terms.as_array().unwrap().iter();
                    terms.map(|term| json!({"weight": 7, "podAffinityTerm": term})).collect()
                };
                json!({"affinity": {kind: {REQUIRED: required, PREFERRED: weighted(&preferred)}}})
            };
            let all = json!([machine, zone, foreign, everywhere, keys]);
            let kept = json!([machine, machine]);
            assert_eq!(translated(affinity(all.clone(), all)), affinity(kept.clone(), kept));
            assert_eq!(translated(affinity(json!([zone]), json!([zone]))), json!({}));
        }
    }

    #[test]
    fn pods_spread_over_machines_and_never_wait_for_a_topology_that_is_not_there() {
        let constraint = |key: &str, when: &str, selector: Value| json!({"topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": when, "labelSelector": selector});
        let web = json!({"matchLabels": {"app": "web"}});
        let hash = json!({"key": "hash", "operator": "In", "values": ["h1"]});
        let merged = json!({"matchLabels": {"app": "web"}, "matchExpressions": [hash]});
        let with = |mut constraint: Value, field: &str, value: Value| {
            constraint[field] = value;
            constraint
        };
        let strict = constraint(MACHINE, "DoNotSchedule", web.clone());
        let keys = json!(["hash", "not-on-the-pod"]);
        for (given, kept) in [
            (strict.clone(), json!([strict])),
            (with(strict.clone(), "minDomains", json!(3)), json!([strict])),
            (
                with(strict, "matchLabelKeys", keys.clone()),
                json!([constraint(MACHINE, "DoNotSchedule", merged.clone())]),
            ),
            (
                with(constraint(MACHINE, "DoNotSchedule", merged.clone()), "matchLabelKeys", keys),
                json!([constraint(MACHINE, "DoNotSchedule", merged)]),
            ),
            (
                constraint("topology.kubernetes.io/zone", "DoNotSchedule", web.clone()),
                json!([constraint("topology.kubernetes.io/zone", "ScheduleAnyway", web.clone())]),
            ),
            (constraint("liquid.mesh/peer", "DoNotSchedule", web), Value::Null),
        ] {
            let spec = translated(json!({"topologySpreadConstraints": [given]}));
            assert_eq!(spec.get("topologySpreadConstraints").cloned().unwrap_or_default(), kept);
        }
    }
}
