//! Pods that are measured: how they are made and unmade, and when a watch has shown what of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DeleteParams, Object, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use liquid_crds::vocabulary::VIRTUAL_NODE_TAINT;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Image of the pods; nobody pulls it.
const IMAGE: &str = "lab.local/pause:1";

/// A pod as people write them: one container with requests, limits, a port, two variables and a probe. On a node that is
/// named it tolerates what virtual nodes are tainted with: pods that are bound are left as they are by the webhook.
pub(crate) fn pod(name: &str, node: Option<&str>) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "app": "web", "tier": "frontend", "release": "stable" } },
        "spec": {
            "nodeName": node,
            "tolerations": [{ "key": VIRTUAL_NODE_TAINT, "operator": "Exists" }],
            "containers": [{
                "name": "web",
                "image": IMAGE,
                "args": ["--listen", ":8080", "--log-level", "info"],
                "env": [
                    { "name": "DATABASE_HOST", "value": "database.shop.svc" },
                    { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                ],
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "resources": {
                    "requests": { "cpu": "10m", "memory": "16Mi" },
                    "limits": { "memory": "64Mi" },
                },
                "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" }, "periodSeconds": 5 },
            }],
        },
    }))?)
}

/// Names of `count` pods.
pub(crate) fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// Creates pods, `clients` of them at a time; returns when the first request was sent.
pub(crate) async fn create(
    client: &Client,
    namespace: &str,
    node: Option<&str>,
    names: &[String],
    clients: usize,
) -> anyhow::Result<Instant> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = names.iter().map(|name| pod(name, node)).collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    stream::iter(pods)
        .map(|pod| {
            let api = api.clone();
            // On its own task, so that what is answered is read while others are sent.
            tokio::spawn(async move { api.create(&PostParams::default(), &pod).await })
        })
        .buffer_unordered(clients)
        .map(|done| done?.context("a pod was not created"))
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(begun)
}

/// Deletes pods, `clients` of them at a time; returns when the first request was sent.
pub(crate) async fn delete(
    client: &Client,
    namespace: &str,
    names: &[String],
    clients: usize,
) -> anyhow::Result<Instant> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let begun = Instant::now();
    stream::iter(names.to_owned())
        .map(|name| {
            let api = api.clone();
            tokio::spawn(async move { api.delete(&name, &DeleteParams::default()).await })
        })
        .buffer_unordered(clients)
        .map(|done| done?.context("a pod was not deleted"))
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(begun)
}

/// A step in the life of a pod that a watch shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It exists.
    Exists,
    /// Its phase is Running.
    Running,
    /// It is being deleted.
    Deleting,
    /// It is gone.
    Gone,
}

const STEPS: usize = 4;

/// The little that is read of a pod: what measures should not be what is measured.
type View = Object<Nothing, Phase>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Nothing {}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Phase {
    #[serde(default)]
    phase: String,
}

#[derive(Debug, Default)]
struct Seen {
    /// When each pod was first seen in each step.
    pods: HashMap<String, [Option<Instant>; STEPS]>,
    /// The same by step, in their order.
    steps: [Vec<Instant>; STEPS],
}

/// What a watch has shown of the pods of a namespace, and when by this process' clock.
#[derive(Debug)]
pub(crate) struct Sightings {
    shared: Arc<(Mutex<Seen>, Notify)>,
    watch: JoinHandle<()>,
}

impl Sightings {
    /// Begins to watch, and returns when the watch is open.
    pub(crate) async fn start(client: &Client, namespace: &str) -> anyhow::Result<Self> {
        let resource = ApiResource::erase::<Pod>(&());
        let api: Api<View> = Api::namespaced_with(client.clone(), namespace, &resource);
        let shared = Arc::new((Mutex::default(), Notify::new()));
        let (open, opened) = tokio::sync::oneshot::channel();
        let watch = tokio::spawn(follow(api, shared.clone(), open));
        let limit = Duration::from_secs(30);
        timeout(limit, opened).await.context("the watch of pods does not open")??;
        Ok(Self { shared, watch })
    }

    /// When a pod was seen in a step.
    pub(crate) async fn when(&self, name: &str, step: Step, limit: Duration) -> anyhow::Result<Instant> {
        let found = self.wait(limit, |seen| seen.pods.get(name)?[step as usize]).await;
        found.with_context(|| format!("pod {name}: not {step:?} within {} s", limit.as_secs()))
    }

    /// When the `count`th pod was seen in a step.
    pub(crate) async fn all(&self, count: usize, step: Step, limit: Duration) -> anyhow::Result<Instant> {
        let of = |seen: &Seen| seen.steps[step as usize].get(count.checked_sub(1)?).copied();
        if let Some(when) = self.wait(limit, of).await {
            return Ok(when);
        }
        let seen = lock(&self.shared).steps[step as usize].len();
        bail!("{seen} of {count} pods {step:?} after {} s", limit.as_secs())
    }

    async fn wait<T>(&self, limit: Duration, look: impl Fn(&Seen) -> Option<T>) -> Option<T> {
        let wait = async {
            loop {
                let changed = self.shared.1.notified();
                if let Some(found) = look(&lock(&self.shared)) {
                    return found;
                }
                changed.await;
            }
        };
        timeout(limit, wait).await.ok()
    }
}

impl Drop for Sightings {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

fn lock(shared: &Arc<(Mutex<Seen>, Notify)>) -> MutexGuard<'_, Seen> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(api: Api<View>, shared: Arc<(Mutex<Seen>, Notify)>, open: tokio::sync::oneshot::Sender<()>) {
    let mut open = Some(open);
    let mut events = Box::pin(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        let now = Instant::now();
        match event {
            Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                let running = pod.status.as_ref().is_some_and(|status| status.phase == "Running");
                let deleting = pod.metadata.deletion_timestamp.is_some();
                let mut seen = lock(&shared);
                seen.note(&pod.name_any(), Step::Exists, now);
                if running {
                    seen.note(&pod.name_any(), Step::Running, now);
                }
                if deleting {
                    seen.note(&pod.name_any(), Step::Deleting, now);
                }
            }
            Ok(Event::Delete(pod)) => {
                let mut seen = lock(&shared);
                // A deletion that is over at once is shown as one event.
                seen.note(&pod.name_any(), Step::Deleting, now);
                seen.note(&pod.name_any(), Step::Gone, now);
            }
            Ok(Event::InitDone) => drop(open.take().map(|open| open.send(()))),
            // A watch that breaks is opened again by itself.
            Ok(Event::Init) | Err(_) => {}
        }
        shared.1.notify_waiters();
    }
}

impl Seen {
    fn note(&mut self, name: &str, step: Step, now: Instant) {
        let pod = self.pods.entry(name.to_owned()).or_default();
        if pod[step as usize].is_none() {
            pod[step as usize] = Some(now);
            self.steps[step as usize].push(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_when_it_is_first_seen() {
        let mut seen = Seen::default();
        let first = Instant::now();
        seen.note("a", Step::Running, first);
        seen.note("a", Step::Running, first + Duration::from_secs(1));
        assert_eq!(seen.steps[Step::Running as usize], [first]);
        assert_eq!(seen.pods["a"][Step::Exists as usize], None);
    }
}
