//! Writes to objects at home: one at a time per object, in order, the newest status winning, never giving up.

use crate::status::{patch, refusal_patch};
use bytes::Bytes;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client};
use liquid_reflection::frame::{Ref, Refusal};
use liquid_runtime::backoff::Backoff;
use serde_json::Value;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Requests under way at once.
const MAX_REQUESTS: usize = 32;
/// No request may take longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// First and longest pause after a failed request.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(30);

/// What is to be written to one pod.
#[derive(Debug, Default)]
struct Work {
    /// Status as it came from the provider.
    status: Option<Bytes>,
    /// Why it does not run, or (inner `None`) that this is over.
    refusal: Option<Option<Refusal>>,
    /// Nothing of it exists any more: delete it for good.
    finish: bool,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.status.is_none() && self.refusal.is_none() && !self.finish
    }
}

/// Pods with work to do, and whether somebody is at it.
#[derive(Debug, Default)]
struct Slot {
    work: Work,
    busy: bool,
}

/// The writer.
pub(super) struct Home {
    client: Client,
    recorder: Recorder,
    node_address: watch::Receiver<Option<String>>,
    slots: BTreeMap<Ref, Slot>,
    requests: Arc<Semaphore>,
    done: mpsc::UnboundedSender<Ref>,
}

impl Home {
    /// A writer; objects it has finished one round for come out of the receiver, for [`Home::finished`].
    pub(super) fn new(
        client: Client,
        recorder: Recorder,
        node_address: watch::Receiver<Option<String>>,
    ) -> (Self, mpsc::UnboundedReceiver<Ref>) {
        let (done, finished) = mpsc::unbounded_channel();
        let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
        (Self { client, recorder, node_address, slots: BTreeMap::new(), requests, done }, finished)
    }

    /// Shows a status.
    pub(super) fn status(&mut self, target: Ref, body: Bytes) {
        self.add(target, |work| work.status = Some(body));
    }

    /// Tells why a pod does not run, or that it does again.
    pub(super) fn refusal(&mut self, target: Ref, refusal: Option<Refusal>) {
        self.add(target, |work| work.refusal = Some(refusal));
    }

    /// Deletes a pod for good.
    pub(super) fn finish(&mut self, target: Ref) {
        self.add(target, |work| work.finish = true);
    }

    /// A round for this object is over.
    pub(super) fn finished(&mut self, target: &Ref) {
        let Some(slot) = self.slots.get_mut(target) else { return };
        slot.busy = false;
        if slot.work.is_empty() {
            self.slots.remove(target);
        } else {
            self.begin(target);
        }
    }

    fn add(&mut self, target: Ref, change: impl FnOnce(&mut Work)) {
        let slot = self.slots.entry(target.clone()).or_default();
        change(&mut slot.work);
        if !slot.busy {
            self.begin(&target);
        }
    }

    fn begin(&mut self, target: &Ref) {
        let Some(slot) = self.slots.get_mut(target) else { return };
        slot.busy = true;
        let round = Round {
            client: self.client.clone(),
            recorder: self.recorder.clone(),
            node_address: self.node_address.borrow().clone(),
            target: target.clone(),
        };
        let work = std::mem::take(&mut slot.work);
        let (requests, done, target) = (self.requests.clone(), self.done.clone(), target.clone());
        tokio::spawn(async move {
            let permit = requests.acquire_owned().await;
            round.run(work).await;
            drop(permit);
            // The actor is gone only when the process ends.
            drop(done.send(target));
        });
    }
}

struct Round {
    client: Client,
    recorder: Recorder,
    node_address: Option<String>,
    target: Ref,
}

/// How a request ended.
enum Ended {
    Done,
    /// The object is gone or another one by now: nothing more is to be done for this one.
    Moot,
    /// Worth another try.
    Failed(String),
}

impl Round {
    async fn run(&self, work: Work) {
        let mut todo = Vec::new();
        let uid = self.target.uid.as_str();
        match work.status.as_deref().map(serde_json::from_slice::<Value>) {
            Some(Ok(remote)) => todo.push(patch(uid, &remote, self.node_address.as_deref())),
            Some(Err(error)) => {
                warn!(pod = %self.target.key, %error, "status of the provider cannot be read")
            }
            None => {}
        }
        if let Some(refusal) = &work.refusal {
            todo.push(refusal_patch(uid, refusal.as_ref()));
            if let Some(refusal) = refusal {
                self.publish(refusal).await;
            }
        }
        for patch in todo {
            if !self.until_done(|| self.write(&patch)).await {
                return;
            }
        }
        if work.finish {
            self.until_done(|| self.delete()).await;
        }
    }

    /// Repeats a request until it is done or moot; returns whether the object is still there.
    async fn until_done<F: Future<Output = Ended>>(&self, request: impl Fn() -> F) -> bool {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        loop {
            match request().await {
                Ended::Done => return true,
                Ended::Moot => return false,
                Ended::Failed(error) => {
                    debug!(pod = %self.target.key, %error, "not written; trying again");
                    sleep(backoff.next(RandomState::new().build_hasher().finish())).await;
                }
            }
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.target.key.namespace)
    }

    async fn write(&self, patch: &Value) -> Ended {
        let pods = self.pods();
        let params = PatchParams::default();
        ended(pods.patch_status(&self.target.key.name, &params, &Patch::Strategic(patch))).await
    }

    async fn delete(&self) -> Ended {
        let pods = self.pods();
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.target.uid.to_string()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        ended(pods.delete(&self.target.key.name, &params)).await
    }

    async fn publish(&self, refusal: &Refusal) {
        let event = Event {
            type_: EventType::Warning,
            reason: refusal.reason.clone(),
            note: Some(refusal.message.chars().take(1024).collect()),
            action: "Offload".to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(self.target.key.namespace.to_string()),
            name: Some(self.target.key.name.to_string()),
            uid: Some(self.target.uid.to_string()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            debug!(pod = %self.target.key, %error, "event not written");
        }
    }
}

async fn ended<T>(request: impl Future<Output = kube::Result<T>>) -> Ended {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(_)) => Ended::Done,
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => Ended::Moot,
        Ok(Err(error)) => Ended::Failed(error.to_string()),
        Err(_) => Ended::Failed("the API server did not answer in time".to_owned()),
    }
}
