//! The status a pod gets at home: what the provider's kubelet reports, seen from here.

use liquid_reflection::digest::shared_pod_status;
use liquid_reflection::frame::Refusal;
use serde_json::{Map, Value, json};

/// Fields that vanish from a status when they no longer hold; a merge would keep them.
const CLEARED: [&str; 5] =
    ["reason", "message", "initContainerStatuses", "ephemeralContainerStatuses", "resize"];

/// The strategic merge patch that shows `remote` (a status as the provider's API server has it) on the pod with this UID.
///
/// Conditions are merged by type, so those set at home (by the scheduler, by controllers behind readiness gates) stay.
/// Addresses of the pod are left out: without a network between the clusters the provider's address would lead to
/// another pod here, or nowhere.
pub(crate) fn patch(uid: &str, remote: &Value, node_address: Option<&str>) -> Value {
    let mut status = match shared_pod_status(remote) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for field in CLEARED {
        status.entry(field).or_insert(Value::Null);
    }
    if let Some(address) = node_address {
        status.insert("hostIP".to_owned(), json!(address));
        status.insert("hostIPs".to_owned(), json!([{ "ip": address }, { "$patch": "replace" }]));
    }
    json!({ "metadata": { "uid": uid }, "status": status })
}

/// The patch that tells why a pod does not run; `None` takes that back.
pub(crate) fn refusal_patch(uid: &str, refusal: Option<&Refusal>) -> Value {
    json!({
        "metadata": { "uid": uid },
        "status": {
            "reason": refusal.map(|refusal| &refusal.reason),
            "message": refusal.map(|refusal| &refusal.message),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_provider_are_not_shown() {
        let remote = json!({
            "phase": "Running", "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}], "hostIP": "192.0.2.1",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "c", "restartCount": 2}],
        });
        let patch = patch("u1", &remote, Some("10.244.0.9"));
        let status = &patch["status"];
        assert_eq!(patch["metadata"]["uid"], "u1");
        assert!(status.get("podIP").is_none() && status.get("podIPs").is_none());
        assert_eq!(status["hostIP"], "10.244.0.9");
        assert_eq!(status["containerStatuses"][0]["restartCount"], 2);
        assert_eq!(status["conditions"], json!([{"type": "Ready", "status": "True"}]));
    }

    #[test]
    fn what_no_longer_holds_is_taken_back() {
        let patch = patch("u1", &json!({"phase": "Running"}), None);
        assert!(patch["status"]["reason"].is_null() && patch["status"].get("reason").is_some());
    }
}
