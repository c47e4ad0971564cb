//! Roll-outs of Deployments, judged as `kubectl rollout status` does and explained by their pods.

use crate::failure::Failure;
use crate::wait::{Look, until};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use std::cmp::Reverse;
use std::time::Duration;

/// Waits until Deployment `name` runs what its spec says, and nothing else.
///
/// # Errors
/// If it does not within `timeout`; the failure says what keeps the newest pod from running.
pub(crate) async fn wait(
    client: &Client,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    until(name, timeout, || async {
        let deployment = deployments.get(name).await?;
        let Some(missing) = missing(&deployment) else { return Ok(Look::Done(())) };
        let why = match refused(&deployment) {
            Some(why) => Some(why),
            None => trouble(&pods.list(&ListParams::default().labels(&selector(&deployment))).await?.items),
        };
        Ok(Look::NotYet(why.map_or(missing.clone(), |why| format!("{missing}; {why}"))))
    })
    .await
    .map_err(|failure| Failure::failed(format!("{failure}; see also `kubectl -n {namespace} describe pods`")))
}

/// What the roll-out lacks; `None` when it is finished.
fn missing(deployment: &Deployment) -> Option<String> {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        return Some("the change has not been noticed yet".to_owned());
    }
    let total = status.replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    if updated != wanted {
        return Some(format!("{updated} of {wanted} new pods exist"));
    }
    if total != updated {
        return Some(format!("{} old pods are left", total.saturating_sub(updated)));
    }
    (available < wanted).then(|| format!("{available} of {wanted} new pods are ready"))
}

/// Why no pods can be made (a quota, say).
fn refused(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions.iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True");
    failure?.message.clone()
}

fn selector(deployment: &Deployment) -> String {
    let labels = deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.as_ref());
    let terms: Vec<_> = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    terms.join(",")
}

/// What keeps the newest pod that has a trouble from running. Pods of before the change run, or are older.
fn trouble(pods: &[Pod]) -> Option<String> {
    let mut alive: Vec<&Pod> = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    alive.sort_by_key(|pod| Reverse(pod.metadata.creation_timestamp.clone()));
    alive.into_iter().find_map(|pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        trouble_of(pod).map(|why| format!("pod {name}: {why}"))
    })
}

fn trouble_of(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let unscheduled =
        status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        return condition.message.clone().or_else(|| condition.reason.clone());
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers.filter_map(trouble_of_container).next()
}

fn trouble_of_container(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let words = |reason: Option<&String>, message: Option<&String>| {
        let words: Vec<&str> = reason.into_iter().chain(message).map(|word| word.trim()).collect();
        words.join(": ")
    };
    let ended = |state: &ContainerState| {
        let ended = state.terminated.as_ref()?;
        let why = words(ended.reason.as_ref(), ended.message.as_ref());
        Some(format!("it ended with exit code {} ({why})", ended.exit_code))
    };
    if let Some(waiting) = &state.waiting {
        let mut text = words(waiting.reason.as_ref(), waiting.message.as_ref());
        if let Some(before) = container.last_state.as_ref().and_then(ended) {
            text = format!("{text}; {before}");
        }
        return Some(text);
    }
    if state.running.is_some() && !container.ready {
        return Some(format!("container {} runs and is not ready", container.name));
    }
    ended(state).filter(|_| !container.ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(status: Value) -> Deployment {
        let object = json!({
            "metadata": {"generation": 2},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b", "c": "d"}}, "template": {}},
            "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn pod(name: &str, created: &str, extra: Value) -> Pod {
        let mut object = json!({"metadata": {"name": name, "creationTimestamp": created}});
        object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_rollout_is_finished_when_only_new_pods_are_left_and_available() {
        let status = |observed: i64, total: i32, updated: i32, available: i32| {
            missing(&deployment(json!({
                "observedGeneration": observed, "replicas": total, "updatedReplicas": updated,
                "availableReplicas": available, "readyReplicas": 1,
            })))
        };
        assert_eq!(status(2, 1, 1, 1), None);
        assert_eq!(status(1, 1, 1, 1).unwrap(), "the change has not been noticed yet");
        assert_eq!(status(2, 1, 0, 1).unwrap(), "0 of 1 new pods exist");
        assert_eq!(
            status(2, 2, 1, 1).unwrap(),
            "1 old pods are left",
            "the old one is the one that is ready"
        );
        assert_eq!(status(2, 1, 1, 0).unwrap(), "0 of 1 new pods are ready");
        assert!(missing(&deployment(json!({}))).is_some(), "nothing is known yet");
    }

    #[test]
    fn the_newest_pod_says_what_keeps_it_from_running() {
        let waiting = |reason: &str| {
            let state = json!({"waiting": {"reason": reason, "message": "told so"}});
            json!({"status": {"containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state},
            ]}})
        };
        let pods = [
            pod("old", "2026-01-01T00:00:00Z", waiting("CrashLoopBackOff")),
            pod("new", "2026-01-02T00:00:00Z", waiting("ImagePullBackOff")),
            pod("fine", "2026-01-03T00:00:00Z", json!({"status": {}})),
        ];
        assert_eq!(trouble(&pods).unwrap(), "pod new: ImagePullBackOff: told so");
        let unscheduled = json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"},
        ]}});
        assert_eq!(trouble(&[pod("p", "2026-01-01T00:00:00Z", unscheduled)]).unwrap(), "pod p: no room");
    }

    #[test]
    fn a_container_that_keeps_ending_is_quoted() {
        let container = json!({
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 2, "reason": "Error"}},
        });
        let text = trouble_of_container(&serde_json::from_value(container).unwrap());
        assert_eq!(text.unwrap(), "CrashLoopBackOff; it ended with exit code 2 (Error)");
    }

    #[test]
    fn pods_that_cannot_be_made_are_explained_by_the_deployment() {
        let conditions = json!([{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]);
        assert_eq!(refused(&deployment(json!({"conditions": conditions}))).unwrap(), "exceeded quota");
    }

    #[test]
    fn pods_are_found_by_the_selector() {
        assert_eq!(selector(&deployment(json!({}))), "a=b,c=d");
    }
}
