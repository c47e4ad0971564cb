//! Digests of JSON, computed alike on both sides.

use liquid_link::digest::Hash;
use serde_json::{Map, Value};

/// Digest of a JSON value. Objects are compared by content, not by the order of their fields: serde_json keeps
/// them sorted.
pub fn json(value: &Value) -> Hash {
    Hash::of(value.to_string().as_bytes())
}

/// Fields of a pod's status that the provider's kubelet decides and the consumer shows as they are. What a side
/// has of its own (addresses, node names, conditions of other controllers) does not count.
const STATUS_FIELDS: [&str; 11] = [
    "phase",
    "reason",
    "message",
    "startTime",
    "qosClass",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "nominatedNodeName",
    "resize",
    "resourceClaimStatuses",
];

/// Conditions the provider's kubelet decides.
pub const STATUS_CONDITIONS: [&str; 6] = [
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
    PASSING_CONDITIONS[0],
    PASSING_CONDITIONS[1],
];

/// Of these, conditions that are there while something is under way (KEP-1287), and then are not.
pub const PASSING_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The part of a pod's status that both sides share.
pub fn shared_pod_status(status: &Value) -> Value {
    let mut shared = Map::new();
    for field in STATUS_FIELDS {
        if let Some(value) = status.get(field).filter(|value| !value.is_null()) {
            shared.insert(field.to_owned(), value.clone());
        }
    }
    let conditions = status.get("conditions").and_then(Value::as_array);
    let mut conditions: Vec<Value> = conditions
        .into_iter()
        .flatten()
        .filter(|c| c.get("type").and_then(Value::as_str).is_some_and(|t| STATUS_CONDITIONS.contains(&t)))
        .map(shared_condition)
        .collect();
    conditions.sort_by(|a, b| a["type"].as_str().cmp(&b["type"].as_str()));
    shared.insert("conditions".to_owned(), Value::Array(conditions));
    Value::Object(shared)
}

/// A condition without its generation, which counts changes of another object on each side.
fn shared_condition(condition: &Value) -> Value {
    let mut condition = condition.clone();
    if let Some(fields) = condition.as_object_mut() {
        fields.remove("observedGeneration");
        fields.remove("lastProbeTime");
    }
    condition
}

/// Digest of the shared part of a pod's status; `None` if nothing was reported yet.
pub fn pod_status(status: &Value) -> Option<Hash> {
    let shared = shared_pod_status(status);
    shared.get("phase").is_some().then(|| json(&shared))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn own_addresses_and_foreign_conditions_do_not_count() {
        let remote = json!({
            "phase": "Running", "podIP": "10.244.1.7", "hostIP": "192.0.2.1", "observedGeneration": 2,
            "conditions": [
                {"type": "Ready", "status": "True", "observedGeneration": 2},
                {"type": "PodScheduled", "status": "True"},
            ],
        });
        let home = json!({
            "phase": "Running", "podIP": "100.64.1.7", "hostIP": "198.51.100.1",
            "conditions": [
                {"type": "example.org/gate", "status": "True"},
                {"type": "Ready", "status": "True", "observedGeneration": 1, "lastProbeTime": null},
            ],
        });
        assert_eq!(pod_status(&remote), pod_status(&home));
    }

    #[test]
    fn what_the_kubelet_reports_counts() {
        let running = json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 0}]});
        let restarted = json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 1}]});
        assert_ne!(pod_status(&running), pod_status(&restarted));
        assert_eq!(pod_status(&json!({})), None);
    }
}
