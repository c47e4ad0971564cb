//! Roll-outs of workloads, judged as `kubectl rollout status` does and explained by their pods.

use crate::failure::Failure;
use crate::wait::{Look, until};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::{Api, Client};
use std::cmp::Reverse;
use std::fmt::Debug;
use std::time::Duration;

/// How far a roll-out is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The controller has seen the spec as it is.
    noticed: bool,
    wanted: i32,
    total: i32,
    updated: i32,
    available: i32,
    /// Why no pods can be made (a quota, say).
    refused: Option<String>,
    selector: String,
}

/// What has pods that are rolled out.
pub(crate) trait Workload:
    kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
    + Clone
    + Debug
    + serde::de::DeserializeOwned
{
    /// How far its roll-out is.
    fn progress(&self) -> Progress;
}

impl Workload for Deployment {
    fn progress(&self) -> Progress {
        let status = self.status.clone().unwrap_or_default();
        let spec = self.spec.as_ref();
        let failure = |c: &&k8s_openapi::api::apps::v1::DeploymentCondition| {
            c.type_ == "ReplicaFailure" && c.status == "True"
        };
        Progress {
            noticed: status.observed_generation >= self.metadata.generation,
            wanted: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            total: status.replicas.unwrap_or(0),
            updated: status.updated_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            refused: status.conditions.iter().flatten().find(failure).and_then(|c| c.message.clone()),
            selector: spec.map(|spec| selector(&spec.selector)).unwrap_or_default(),
        }
    }
}

impl Workload for StatefulSet {
    fn progress(&self) -> Progress {
        let status = self.status.clone().unwrap_or_default();
        let spec = self.spec.as_ref();
        Progress {
            noticed: status.observed_generation >= self.metadata.generation,
            wanted: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            total: status.replicas,
            updated: status.updated_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            refused: None,
            selector: spec.map(|spec| selector(&spec.selector)).unwrap_or_default(),
        }
    }
}

impl Workload for DaemonSet {
    fn progress(&self) -> Progress {
        let status = self.status.clone().unwrap_or_default();
        Progress {
            noticed: status.observed_generation >= self.metadata.generation,
            wanted: status.desired_number_scheduled,
            total: status.current_number_scheduled,
            updated: status.updated_number_scheduled.unwrap_or(0),
            available: status.number_available.unwrap_or(0),
            refused: None,
            selector: self.spec.as_ref().map(|spec| selector(&spec.selector)).unwrap_or_default(),
        }
    }
}

/// Waits until the workload `name` runs what its spec says, and nothing else.
///
/// # Errors
/// If it does not within `timeout`; the failure says what keeps the newest pod from running.
pub(crate) async fn wait<W: Workload>(
    client: &Client,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    let workloads: Api<W> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    until(name, timeout, || async {
        let progress = workloads.get(name).await?.progress();
        let Some(missing) = progress.missing() else { return Ok(Look::Done(())) };
        let why = match progress.refused {
            Some(why) => Some(why),
            None => trouble(&pods.list(&ListParams::default().labels(&progress.selector)).await?.items),
        };
        Ok(Look::NotYet(why.map_or(missing.clone(), |why| format!("{missing}; {why}"))))
    })
    .await
    .map_err(|failure| Failure::failed(format!("{failure}; see also `kubectl -n {namespace} describe pods`")))
}

/// As [`wait`], if there is such a workload.
///
/// # Errors
/// As [`wait`].
pub(crate) async fn wait_if_there<W: Workload>(
    client: &Client,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    match Api::<W>::namespaced(client.clone(), namespace).get_metadata_opt(name).await? {
        Some(_) => wait::<W>(client, namespace, name, timeout).await,
        None => Ok(()),
    }
}

impl Progress {
    /// What the roll-out lacks; `None` when it is finished.
    fn missing(&self) -> Option<String> {
        let Self { noticed, wanted, total, updated, available, .. } = self;
        if !noticed {
            return Some("the change has not been noticed yet".to_owned());
        }
        if updated != wanted {
            return Some(format!("{updated} of {wanted} new pods exist"));
        }
        if total != updated {
            return Some(format!("{} old pods are left", total.saturating_sub(*updated)));
        }
        (available < wanted).then(|| format!("{available} of {wanted} new pods are ready"))
    }
}

fn selector(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten();
    labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
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
            deployment(json!({
                "observedGeneration": observed, "replicas": total, "updatedReplicas": updated,
                "availableReplicas": available, "readyReplicas": 1,
            }))
            .progress()
            .missing()
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
        assert!(deployment(json!({})).progress().missing().is_some(), "nothing is known yet");
    }

    #[test]
    fn a_daemon_set_is_finished_when_each_node_has_its_new_pod() {
        let status = |nodes: i32, updated: i32, available: i32| {
            let object = json!({
                "metadata": {"generation": 1},
                "status": {
                    "observedGeneration": 1, "desiredNumberScheduled": nodes, "currentNumberScheduled": nodes,
                    "updatedNumberScheduled": updated, "numberAvailable": available,
                    "numberMisscheduled": 0, "numberReady": available,
                },
            });
            serde_json::from_value::<DaemonSet>(object).unwrap().progress().missing()
        };
        assert_eq!(status(2, 2, 2), None);
        assert_eq!(status(2, 1, 2).unwrap(), "1 of 2 new pods exist");
        assert_eq!(status(2, 2, 1).unwrap(), "1 of 2 new pods are ready");
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
        assert_eq!(
            deployment(json!({"conditions": conditions})).progress().refused.unwrap(),
            "exceeded quota"
        );
    }

    #[test]
    fn pods_are_found_by_the_selector() {
        assert_eq!(deployment(json!({})).progress().selector, "a=b,c=d");
    }
}
