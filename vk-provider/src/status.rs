//! The status a pod gets at home: what the provider's kubelet reports, seen from here.

use liquid_reflection::digest::{PASSING_CONDITIONS, shared_pod_status};
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
    if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        let over = |passing: &&str| !conditions.iter().any(|known| known["type"] == **passing);
        let over: Vec<&str> = PASSING_CONDITIONS.into_iter().filter(over).collect();
        conditions.extend(over.into_iter().map(|type_| json!({ "type": type_, "$patch": "delete" })));
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

/// Keeps, in a patch made by [`patch`], the state at home of containers that have ended there and may not start again:
/// the API server does not accept that they run once more, and all of the patch with it. The provider shows them so
/// when it has had to make the pod anew. `pod` is the pod at home. Returns whether anything was kept.
pub(crate) fn keep_ended(patch: &mut Value, pod: &Value) -> bool {
    let policy = pod.pointer("/spec/restartPolicy").and_then(Value::as_str).unwrap_or("Always");
    if policy == "Always" {
        return false;
    }
    let mut kept = false;
    for (containers, statuses) in
        [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")]
    {
        // Sidecars have a policy of their own.
        let restarts = |name: &Value| {
            let mut containers = list(pod.pointer(&format!("/spec/{containers}")));
            containers.any(|c| c["name"] == *name && c["restartPolicy"] == "Always")
        };
        let ended: Vec<Value> = list(pod.pointer(&format!("/status/{statuses}")))
            .filter(|status| !restarts(&status["name"]))
            .filter(|status| {
                let code = status.pointer("/state/terminated").map(|ended| ended["exitCode"].as_i64());
                code.is_some_and(|code| policy == "Never" || code == Some(0))
            })
            .cloned()
            .collect();
        let shown = patch.pointer_mut(&format!("/status/{statuses}")).and_then(Value::as_array_mut);
        for status in shown.into_iter().flatten() {
            let known = ended.iter().find(|known| known["name"] == status["name"]);
            if let Some(known) = known
                && status.pointer("/state/terminated").is_none()
            {
                *status = known.clone();
                kept = true;
            }
        }
    }
    kept
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_that_have_ended_for_good_do_not_come_back_to_life() {
        let running = json!({"name": "c", "state": {"running": {}}});
        let ended = |code| json!({"name": "c", "state": {"terminated": {"exitCode": code}}});
        for (policy, code, expected) in [
            ("Never", 1, true),
            ("Never", 0, true),
            ("OnFailure", 0, true),
            ("OnFailure", 1, false),
            ("Always", 0, false),
        ] {
            let pod = json!({
                "spec": {"restartPolicy": policy, "containers": [{"name": "c"}]},
                "status": {"containerStatuses": [ended(code)]},
            });
            let mut patch = patch("u1", &json!({"phase": "Running", "containerStatuses": [running]}), None);
            assert_eq!(keep_ended(&mut patch, &pod), expected, "{policy} {code}");
            let shown = &patch["status"]["containerStatuses"][0];
            assert_eq!(*shown, if expected { ended(code) } else { running.clone() });
        }
    }

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
        assert_eq!(status["conditions"][0], json!({"type": "Ready", "status": "True"}));
        assert!(status["conditions"].as_array().unwrap().iter().all(|c| c["type"] != "PodScheduled"));
    }

    #[test]
    fn a_resize_that_is_over_is_not_shown_any_more() {
        let remote =
            json!({"phase": "Running", "conditions": [{"type": "PodResizePending", "status": "True"}]});
        assert_eq!(
            patch("u1", &remote, None)["status"]["conditions"],
            json!([
                {"type": "PodResizePending", "status": "True"},
                {"type": "PodResizeInProgress", "$patch": "delete"},
            ])
        );
    }

    #[test]
    fn what_no_longer_holds_is_taken_back() {
        let patch = patch("u1", &json!({"phase": "Running"}), None);
        assert!(patch["status"]["reason"].is_null() && patch["status"].get("reason").is_some());
    }
}
