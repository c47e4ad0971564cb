//! Readiness gates. Their conditions are set at home, where the provider does not see them, so the readiness of a pod that
//! has them is decided here. What the provider says of it is a condition of its own: whatever changes, both can be told apart.

use super::list;
use liquid_crds::vocabulary::CONDITION_READY_THERE;
use serde_json::{Value, json};

/// Whether the pod has readiness gates.
pub(super) fn gated(pod: &Value) -> bool {
    list(pod.pointer("/spec/readinessGates")).next().is_some()
}

/// Decides `Ready` in a patch that shows a status of the provider. `pod` is the pod at home.
pub(super) fn decide(patch: &mut Value, pod: &Value) {
    if !gated(pod) {
        return;
    }
    let Some(conditions) = patch.pointer_mut("/status/conditions").and_then(Value::as_array_mut) else {
        return;
    };
    let Some(ready) = conditions.iter_mut().find(|condition| condition["type"] == "Ready") else { return };
    let mut there = ready.clone();
    there["type"] = json!(CONDITION_READY_THERE);
    *ready = decided(ready, pod);
    conditions.push(there);
}

/// Puts into `status`, that of `pod` at home, what the provider said of its readiness. If it is not what is to be shown any
/// more, because a gate has opened or somebody else has written it, none is left: that is no status the provider has.
pub(super) fn restore(status: &mut Value, pod: &Value) {
    if !gated(pod) {
        return;
    }
    let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) else { return };
    let there = conditions.iter().find(|condition| condition["type"] == CONDITION_READY_THERE);
    let Some(mut there) = there.cloned() else { return };
    there["type"] = json!("Ready");
    let decided = decided(&there, pod);
    conditions.retain_mut(|condition| {
        if condition["type"] != "Ready" {
            return true;
        }
        let shown = ["status", "reason", "message"].iter().all(|field| condition[*field] == decided[*field]);
        *condition = there.clone();
        shown
    });
}

/// The condition `Ready` that is true at home, given the provider's: as a kubelet would have it.
fn decided(there: &Value, pod: &Value) -> Value {
    if there["status"] != "True" {
        return there.clone();
    }
    let (mut closed, mut since) = (Vec::new(), there["lastTransitionTime"].as_str().unwrap_or_default());
    for gate in list(pod.pointer("/spec/readinessGates")).filter_map(|gate| gate["conditionType"].as_str()) {
        let condition = list(pod.pointer("/status/conditions")).find(|condition| condition["type"] == gate);
        // Times of the API server are all of one form, which sorts by age.
        since = since.max(condition.and_then(|it| it["lastTransitionTime"].as_str()).unwrap_or_default());
        match condition.map(|condition| condition["status"].as_str().unwrap_or_default()) {
            Some("True") => {}
            Some(other) => {
                closed
                    .push(format!("the status of pod readiness gate {gate:?} is not \"True\", but {other}"));
            }
            None => {
                closed.push(format!("corresponding condition of pod readiness gate {gate:?} does not exist."))
            }
        }
    }
    let mut ready = there.clone();
    if !since.is_empty() {
        ready["lastTransitionTime"] = json!(since);
    }
    if !closed.is_empty() {
        ready["status"] = json!("False");
        ready["reason"] = json!("ReadinessGatesNotReady");
        ready["message"] = json!(closed.join(", "));
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATE: &str = "example.org/gate";

    fn pod(conditions: Value) -> Value {
        json!({"spec": {"readinessGates": [{"conditionType": GATE}]}, "status": {"conditions": conditions}})
    }

    fn condition(name: &str, status: &str, second: u32) -> Value {
        json!({"type": name, "status": status, "lastTransitionTime": format!("2026-01-01T00:00:{second:02}Z")})
    }

    /// `Ready` as it is shown.
    fn shown(provider: &str, gate: Option<&str>) -> Value {
        let gate: Vec<_> = gate.into_iter().map(|status| condition(GATE, status, 9)).collect();
        let mut patch = json!({"status": {"conditions": [condition("Ready", provider, 5)]}});
        decide(&mut patch, &pod(json!(gate)));
        let conditions = &patch["status"]["conditions"];
        assert_eq!(conditions[1], condition(CONDITION_READY_THERE, provider, 5));
        conditions[0].clone()
    }

    #[test]
    fn a_pod_is_ready_when_the_provider_and_its_gates_say_so() {
        assert_eq!(shown("True", Some("True")), condition("Ready", "True", 9));
        assert_eq!(shown("False", Some("True")), condition("Ready", "False", 5));
        let closed = shown("True", Some("False"));
        assert_eq!(
            (&closed["status"], &closed["reason"]),
            (&json!("False"), &json!("ReadinessGatesNotReady"))
        );
        assert!(closed["message"].as_str().unwrap().contains("is not \"True\", but False"));
        assert!(shown("True", None)["message"].as_str().unwrap().contains("does not exist"));
    }

    #[test]
    fn what_is_shown_is_known_as_what_the_provider_sent_until_a_gate_changes() {
        let sent = json!({"conditions": [condition("Ready", "True", 5)]});
        for (gate, later) in [("False", "True"), ("True", "False")] {
            let mut patch = json!({ "status": sent });
            let home = pod(json!([condition(GATE, gate, 9)]));
            decide(&mut patch, &home);
            let after = |gate: &str| {
                let mut conditions = patch["status"]["conditions"].as_array().unwrap().clone();
                conditions.push(condition(GATE, gate, 9));
                let home = pod(json!(conditions));
                let mut status = home["status"].clone();
                restore(&mut status, &home);
                let is_ready = |condition: &&Value| condition["type"] == "Ready";
                status["conditions"].as_array().unwrap().iter().find(is_ready).cloned()
            };
            assert_eq!(after(gate), Some(condition("Ready", "True", 5)));
            assert_eq!(
                after(later),
                None,
                "the provider is asked to say it again, and Ready is decided anew"
            );
        }
    }

    #[test]
    fn a_pod_marked_unready_with_its_node_is_not_taken_for_as_it_was_sent() {
        let home = pod(json!([
            condition("Ready", "False", 7),
            condition(CONDITION_READY_THERE, "True", 5),
            condition(GATE, "True", 6),
        ]));
        let mut status = home["status"].clone();
        restore(&mut status, &home);
        assert!(list(status.get("conditions")).all(|condition| condition["type"] != "Ready"));
    }

    #[test]
    fn pods_without_gates_are_as_the_provider_says() {
        let mut patch = json!({"status": {"conditions": [condition("Ready", "True", 5)]}});
        let before = patch.clone();
        decide(&mut patch, &json!({"spec": {}}));
        assert_eq!(patch, before);
    }
}
