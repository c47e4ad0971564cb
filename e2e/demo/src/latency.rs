//! From a pod created at home to its twin in the provider.
//!
//! Both clusters are on this machine, and everything is timed by this process' own monotonic clock: the create request
//! when it is sent and answered, the twin when a watch of the provider's API server shows it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use liquid_crds::vocabulary;
use liquid_lab::images;
use liquid_scenarios::{Cluster, Look, wait};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// On the pods of a measurement.
const LABEL: &str = "liquid-demo/measured";
/// Longest wait for one pod.
const LIMIT: Duration = Duration::from_secs(60);

/// One pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// The create request of an equal pod in a namespace of home that is not offloaded.
    pub(crate) local: Duration,
    /// From the create request of the pod until home's scheduler has bound it to the virtual node.
    pub(crate) bound: Duration,
    /// From the same until the provider's API server shows the twin.
    pub(crate) twin: Duration,
    /// From the same until home's API server shows the pod as Ready: its containers run in the provider.
    pub(crate) ready: Duration,
}

/// Namespaces of home that a measurement needs; they exist.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Namespaces<'a> {
    /// Offloaded.
    pub(crate) offloaded: &'a str,
    /// Not offloaded.
    pub(crate) plain: &'a str,
}

/// Creates pods one after the other, each when the one before is Ready, and deletes them all in the end.
///
/// # Errors
/// If a pod does not get where it should within a minute.
pub(crate) async fn measure(
    home: &Cluster,
    provider: &Cluster,
    namespaces: Namespaces<'_>,
    count: usize,
) -> anyhow::Result<Vec<Sample>> {
    let mut at_home = Sightings::start(Api::namespaced(home.client.clone(), namespaces.offloaded));
    let mut remote = Sightings::start(Api::all(provider.client.clone()));
    let result = measure_all(home, namespaces, count, &mut at_home, &mut remote).await;
    // Also after a failure: what is measured next must find nothing.
    let removed = remove(home, provider, namespaces.offloaded).await;
    let samples = result?;
    removed?;
    Ok(samples)
}

async fn measure_all(
    home: &Cluster,
    namespaces: Namespaces<'_>,
    count: usize,
    at_home: &mut Sightings,
    remote: &mut Sightings,
) -> anyhow::Result<Vec<Sample>> {
    let offloaded: Api<Pod> = Api::namespaced(home.client.clone(), namespaces.offloaded);
    let mut samples = Vec::with_capacity(count);
    // The first is not counted: it may be created before the watches run, and opens connections.
    for number in 0..=count {
        let name = format!("measured-{number}");
        let pod = pod(&name)?;
        let local = local_write(&home.client, namespaces.plain, &pod).await?;

        let sent = Instant::now();
        offloaded
            .create(&PostParams::default(), &pod)
            .await
            .with_context(|| format!("cannot create pod {name}"))?;
        let twin = remote.first(&name, |_| true).await.context("in the provider")?;
        let bound = at_home.first(&name, is_bound).await.context("bound at home")?;
        let ready = at_home.first(&name, is_ready).await.context("Ready at home")?;
        if number > 0 {
            samples.push(Sample { local, bound: bound - sent, twin: twin - sent, ready: ready - sent });
        }
    }
    Ok(samples)
}

/// How long a create request takes that nothing follows from: the pod is not bound to any node, and deleted at once.
async fn local_write(client: &Client, namespace: &str, pod: &Pod) -> anyhow::Result<Duration> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let sent = Instant::now();
    api.create(&PostParams::default(), pod).await?;
    let took = sent.elapsed();
    api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
    Ok(took)
}

async fn remove(home: &Cluster, provider: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let measured = ListParams::default().labels(LABEL);
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), namespace);
    let everywhere: Api<Pod> = Api::all(provider.client.clone());
    pods.delete_collection(&DeleteParams::default(), &measured).await?;
    wait("measured pods gone", LIMIT, || async {
        let left = pods.list(&measured).await?.items.len() + everywhere.list(&measured).await?.items.len();
        Ok(if left == 0 { Look::Done(()) } else { Look::NotYet(format!("{left} left")) })
    })
    .await
}

/// A pod for a virtual node that does nothing.
fn pod(name: &str) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { (LABEL): "" } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "nodeSelector": { (vocabulary::TYPE): vocabulary::TYPE_VIRTUAL_NODE },
            "containers": [{ "name": "main", "image": images::PAUSE, "imagePullPolicy": "IfNotPresent" }],
        },
    }))?)
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What a watch has shown of each pod, and when.
struct Sightings {
    events: UnboundedReceiver<(Instant, Pod)>,
    /// At most a hundred pods, for a node takes no more, with a handful of changes each.
    seen: HashMap<String, Vec<(Instant, Pod)>>,
    watch: JoinHandle<()>,
}

impl Sightings {
    /// Begins to watch.
    fn start(api: Api<Pod>) -> Self {
        let (sender, events) = unbounded_channel();
        let watch = tokio::spawn(async move {
            let watched = watcher(api, watcher::Config::default().labels(LABEL)).default_backoff();
            let mut pods = Box::pin(watched.applied_objects());
            while let Some(event) = pods.next().await {
                let now = Instant::now();
                // A watch that breaks is opened again by itself.
                let Ok(pod) = event else { continue };
                if sender.send((now, pod)).is_err() {
                    return;
                }
            }
        });
        Self { events, seen: HashMap::new(), watch }
    }

    /// When a pod was first seen like that.
    async fn first(&mut self, name: &str, like: impl Fn(&Pod) -> bool) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = self.seen.get(name).into_iter().flatten();
            if let Some((when, _)) = seen.clone().find(|(_, pod)| like(pod)) {
                return Ok(*when);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.events.recv()).await {
                Ok(Some((when, pod))) => self.seen.entry(pod.name_any()).or_default().push((when, pod)),
                Ok(None) => bail!("the watch has ended"),
                Err(_) => {
                    let status = seen.last().and_then(|(_, pod)| pod.status.clone()).unwrap_or_default();
                    let status = serde_json::to_string(&status)?;
                    bail!("pod {name}: not within {} s; its status: {status}", LIMIT.as_secs())
                }
            }
        }
    }
}

impl Drop for Sightings {
    fn drop(&mut self) {
        self.watch.abort();
    }
}
