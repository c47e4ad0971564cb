//! The status a pod gets at home: what the provider's kubelet reports, seen from here.

mod readiness;
mod restarts;

use kube::api::DynamicObject;
use liquid_crds::vocabulary::{CONDITION_REFUSED, RESTARTS_BEFORE};
use liquid_link::digest::Hash;
use liquid_reflection::digest::{PASSING_CONDITIONS, pod_addresses, pod_status, shared_pod_status};
use liquid_reflection::frame::Refusal;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Fields that vanish from a status when they no longer hold; a merge would keep them.
const CLEARED: [&str; 5] =
    ["reason", "message", "initContainerStatuses", "ephemeralContainerStatuses", "resize"];

/// The strategic merge patch that shows `remote` (a status as the provider's API server has it) on the pod with this UID.
///
/// Conditions are merged by type, so those set at home (by the scheduler, by controllers behind readiness gates) stay.
/// Addresses are those under which the pod is seen here; it has none without a network between the clusters.
pub(crate) fn patch(uid: &str, remote: &Value, node_address: Option<&str>) -> Value {
    let mut status = match shared_pod_status(remote) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for field in CLEARED {
        status.entry(field).or_insert(Value::Null);
    }
    if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            for field in ["reason", "message"] {
                condition.entry(field).or_insert(Value::Null);
            }
        }
        let over = |passing: &&str| !conditions.iter().any(|known| known["type"] == **passing);
        let over: Vec<&str> = PASSING_CONDITIONS.into_iter().filter(over).collect();
        conditions.extend(over.into_iter().map(|type_| json!({ "type": type_, "$patch": "delete" })));
        conditions.push(json!({ "type": CONDITION_REFUSED, "$patch": "delete" }));
    }
    if let Some(address) = node_address {
        status.insert("hostIP".to_owned(), json!(address));
        status.insert("hostIPs".to_owned(), json!([{ "ip": address }, { "$patch": "replace" }]));
    }
    let addresses: Vec<IpAddr> = pod_addresses(remote).collect();
    status.insert("podIP".to_owned(), json!(addresses.first()));
    let all = addresses.iter().map(|address| json!({ "ip": address }));
    status.insert("podIPs".to_owned(), all.chain([json!({ "$patch": "replace" })]).collect());
    json!({ "metadata": { "uid": uid }, "status": status })
}

/// What of a pod at home decides whether it has to be read before a status is shown on it: most statuses are written
/// unread, which is one request instead of two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Start time of the instance that is shown.
    started: Option<Box<str>>,
    /// It has readiness gates, or restarts of earlier instances.
    fitted: bool,
}

impl Seen {
    /// What there is to know of `pod`, as the API server of home has it.
    pub(crate) fn of(pod: &DynamicObject) -> Self {
        let started = pod.data.pointer("/status/startTime").and_then(Value::as_str);
        let fitted = annotation(pod).is_some() || readiness::gated(&pod.data);
        Self { started: started.map(Box::from), fitted }
    }

    /// Whether a patch that shows `remote` needs [`fit`].
    pub(crate) fn needs_fit(&self, remote: &Value) -> bool {
        self.fitted
            || restarts::replaced(
                self.started.as_ref().map(|at| json!({ "startTime": at })).as_ref(),
                Some(remote),
            )
    }
}

/// Fits a patch made by [`patch`] to the pod it is for: its readiness gates, and the restarts of earlier instances.
pub(crate) fn fit(patch: &mut Value, pod: &DynamicObject) {
    restarts::add(patch, pod.data.get("status"), restarts::before(annotation(pod)));
    readiness::decide(patch, &pod.data);
}

/// Digest of the status of a pod at home: that of the status the provider has sent, if it is shown as it should be.
pub(crate) fn digest(pod: &DynamicObject) -> Option<Hash> {
    let status = pod.data.get("status")?;
    let before = restarts::before(annotation(pod));
    if before.is_empty() && !readiness::gated(&pod.data) {
        return pod_status(status);
    }
    let mut status = status.clone();
    restarts::take_off(&mut status, &before);
    readiness::restore(&mut status, &pod.data);
    pod_status(&status)
}

/// The addresses a pod at home is shown with.
pub(crate) fn addresses(pod: &DynamicObject) -> Vec<IpAddr> {
    pod.data.get("status").map(|status| pod_addresses(status).collect()).unwrap_or_default()
}

fn annotation(pod: &DynamicObject) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(RESTARTS_BEFORE).map(String::as_str)
}

/// The patch that tells why a pod does not run; `None` takes that back.
///
/// The condition has no time: a refusal that is repeated is no change of the pod, and the Event has it.
pub(crate) fn refusal_patch(uid: &str, refusal: Option<&Refusal>) -> Value {
    let condition = match refusal {
        Some(refusal) => json!({
            "type": CONDITION_REFUSED, "status": "True", "reason": refusal.reason, "message": refusal.message,
        }),
        None => json!({ "type": CONDITION_REFUSED, "$patch": "delete" }),
    };
    json!({
        "metadata": { "uid": uid },
        "status": {
            "conditions": [condition],
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

    /// Conditions that are not taken away.
    fn lasting(status: &Value) -> Vec<Value> {
        list(status.get("conditions"))
            .filter(|condition| condition.get("$patch").is_none())
            .cloned()
            .collect()
    }

    #[test]
    fn the_node_is_that_of_home() {
        let remote = json!({
            "phase": "Running", "podIP": "100.64.1.7", "podIPs": [{"ip": "100.64.1.7"}], "hostIP": "192.0.2.1",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "c", "restartCount": 2}],
        });
        let patch = patch("u1", &remote, Some("10.244.0.9"));
        let status = &patch["status"];
        assert_eq!(patch["metadata"]["uid"], "u1");
        assert_eq!(status["podIP"], "100.64.1.7");
        assert_eq!(status["podIPs"], json!([{"ip": "100.64.1.7"}, {"$patch": "replace"}]));
        assert_eq!(status["hostIP"], "10.244.0.9");
        assert_eq!(status["containerStatuses"][0]["restartCount"], 2);
        let ready = json!({"type": "Ready", "status": "True", "reason": null, "message": null});
        assert_eq!(lasting(status), [ready]);
    }

    #[test]
    fn a_condition_that_holds_again_loses_the_reason_why_it_did_not() {
        let conditions =
            |fields: Value| patch("u1", &json!({"phase": "Running", "conditions": [fields]}), None);
        let unready =
            json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "x"});
        assert_eq!(conditions(unready.clone())["status"]["conditions"][0], unready);
        let ready = conditions(json!({"type": "Ready", "status": "True"}));
        assert!(ready["status"]["conditions"][0].get("reason").is_some_and(Value::is_null));
    }

    #[test]
    fn a_refusal_is_a_condition_until_the_pod_runs() {
        let refusal = Refusal { reason: "R".to_owned(), message: "m".to_owned() };
        let refused = &refusal_patch("u1", Some(&refusal))["status"];
        assert_eq!((&refused["reason"], &refused["message"]), (&json!("R"), &json!("m")));
        let condition = json!({"type": CONDITION_REFUSED, "status": "True", "reason": "R", "message": "m"});
        assert_eq!(refused["conditions"], json!([condition]));
        for over in [refusal_patch("u1", None), patch("u1", &json!({"phase": "Running"}), None)] {
            let removal = json!({"type": CONDITION_REFUSED, "$patch": "delete"});
            assert!(over["status"]["conditions"].as_array().unwrap().contains(&removal));
            assert!(over["status"]["reason"].is_null());
        }
    }

    fn home(spec: Value, annotations: Value, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {"name": "web-0", "annotations": annotations}, "spec": spec, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn pods_are_read_only_if_a_status_has_to_be_fitted_to_them() {
        let status =
            |second: u32| json!({"phase": "Running", "startTime": format!("2026-01-01T00:00:0{second}Z")});
        let plain = Seen::of(&home(json!({}), json!({}), status(1)));
        assert!(!plain.needs_fit(&status(1)));
        assert!(plain.needs_fit(&status(2)), "another instance");
        assert!(!plain.needs_fit(&json!({"phase": "Pending"})));
        assert!(!Seen::of(&home(json!({}), json!({}), json!({}))).needs_fit(&status(1)));
        let gated = home(json!({"readinessGates": [{"conditionType": "x"}]}), json!({}), status(1));
        assert!(Seen::of(&gated).needs_fit(&status(1)));
        let counted = home(json!({}), json!({RESTARTS_BEFORE: r#"{"c":1}"#}), status(1));
        assert!(Seen::of(&counted).needs_fit(&status(1)));
    }

    #[test]
    fn a_status_that_was_fitted_is_known_as_the_one_that_was_sent() {
        let sent = |second: u32, count: u32| {
            json!({
                "phase": "Running", "startTime": format!("2026-01-01T00:00:0{second}Z"),
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "c", "restartCount": count, "containerID": "x"}],
            })
        };
        let gates = json!({"readinessGates": [{"conditionType": "example.org/gate"}]});
        let earlier = home(gates.clone(), json!({}), sent(1, 4));
        let mut patch = patch("u1", &sent(2, 1), None);
        fit(&mut patch, &earlier);
        let mut shown = patch["status"].clone();
        shown["conditions"].as_array_mut().unwrap().retain(|condition| condition.get("$patch").is_none());
        for condition in shown["conditions"].as_array_mut().unwrap() {
            condition.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        }
        shown.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        assert_eq!(shown["containerStatuses"][0]["restartCount"], 6);
        assert_ne!(pod_status(&shown), pod_status(&sent(2, 1)));
        let after = home(gates, patch["metadata"]["annotations"].clone(), shown);
        assert_eq!(digest(&after), pod_status(&sent(2, 1)));
    }

    #[test]
    fn a_resize_that_is_over_is_not_shown_any_more() {
        let remote =
            json!({"phase": "Running", "conditions": [{"type": "PodResizePending", "status": "True"}]});
        let status = &patch("u1", &remote, None)["status"];
        assert_eq!(lasting(status).iter().map(|it| &it["type"]).collect::<Vec<_>>(), ["PodResizePending"]);
        let over = json!({"type": "PodResizeInProgress", "$patch": "delete"});
        assert!(status["conditions"].as_array().unwrap().contains(&over));
    }

    #[test]
    fn what_no_longer_holds_is_taken_back() {
        let patch = patch("u1", &json!({"phase": "Running"}), None);
        assert!(patch["status"]["reason"].is_null() && patch["status"].get("reason").is_some());
    }
}
