//! Writes to objects at home: one at a time per object, in order, the newest status winning. What fails is tried again
//! for ever, together with what has come in the meantime; what the API server does not accept is dropped.

use super::link::Provider;
use crate::request::within;
use crate::status::{Seen, fit, keep_ended, patch, refusal_patch};
use bytes::Bytes;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client};
use liquid_reflection::Prefixes;
use liquid_reflection::digest::pod_addresses;
use liquid_reflection::frame::{Ref, Refusal};
use liquid_runtime::backoff::{Backoff, entropy};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tracing::{debug, warn};

/// Requests under way at once.
const MAX_REQUESTS: usize = 32;
/// First and longest pause after a failed request.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(30);

/// What is to be written to one pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Status as it came from the provider, and what was known of the pod at home then.
    status: Option<(Bytes, Seen)>,
    /// Why it does not run, or (inner `None`) that this is over; shown after that status.
    refusal: Option<Option<Refusal>>,
    /// Why it did not run, until something else came: only to be told.
    told: Option<Refusal>,
    /// Nothing of it exists any more: delete it for good.
    finish: bool,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.status.is_none() && self.refusal.is_none() && self.told.is_none() && !self.finish
    }

    /// A status says more than why there was none.
    fn show(&mut self, status: (Bytes, Seen)) {
        self.told = self.refusal.take().flatten().or(self.told.take());
        self.status = Some(status);
    }

    fn refuse(&mut self, refusal: Option<Refusal>) {
        let before = self.refusal.take().flatten().filter(|_| refusal.is_none());
        self.told = before.or(self.told.take());
        self.refusal = Some(refusal);
    }

    /// What is to be done if `self` failed and `newer` came in the meantime.
    fn followed_by(mut self, newer: Work) -> Work {
        if let Some(status) = newer.status {
            self.show(status);
        }
        if let Some(refusal) = newer.refusal {
            self.refuse(refusal);
        }
        self.told = newer.told.or(self.told);
        self.finish |= newer.finish;
        self
    }
}

/// Pods with work to do, and whether somebody is at it.
#[derive(Debug)]
struct Slot {
    work: Work,
    busy: bool,
    backoff: Backoff,
}

impl Default for Slot {
    fn default() -> Self {
        Self { work: Work::default(), busy: false, backoff: Backoff::new(RETRY_FIRST, RETRY_CAP) }
    }
}

/// What waits for its turn.
#[derive(Debug)]
enum Due {
    /// A round for an object, whose slot is busy: what comes until it begins is part of it.
    Round(Ref),
    /// An Event about one.
    Event(Ref, Refusal),
}

/// What goes back to [`Home::finished`].
#[derive(Debug)]
pub(super) enum Finished {
    /// A round for this object is over; that is what failed.
    Round(Ref, Work),
    /// The pause after a failure is over.
    Pause(Ref),
    /// An Event is written.
    Told,
}

/// The writer.
pub(super) struct Home {
    client: Client,
    recorder: Recorder,
    node_address: watch::Receiver<Option<String>>,
    provider: watch::Receiver<Provider>,
    slots: BTreeMap<Ref, Slot>,
    due: VecDeque<Due>,
    requests: Arc<Semaphore>,
    done: mpsc::UnboundedSender<Finished>,
}

impl Home {
    /// A writer; what comes out of the receiver is for [`Home::finished`].
    pub(super) fn new(
        client: Client,
        recorder: Recorder,
        node_address: watch::Receiver<Option<String>>,
        provider: watch::Receiver<Provider>,
    ) -> (Self, mpsc::UnboundedReceiver<Finished>) {
        let (done, finished) = mpsc::unbounded_channel();
        let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
        (
            Self {
                client,
                recorder,
                node_address,
                provider,
                slots: BTreeMap::new(),
                due: VecDeque::new(),
                requests,
                done,
            },
            finished,
        )
    }

    /// Shows a status on a pod of which this is known.
    pub(super) fn status(&mut self, target: Ref, body: Bytes, seen: Seen) {
        self.add(target, |work| work.show((body, seen)));
    }

    /// Tells why a pod does not run, or that it does again.
    pub(super) fn refusal(&mut self, target: Ref, refusal: Option<Refusal>) {
        self.add(target, |work| work.refuse(refusal));
    }

    /// Tells something about an object that changes nothing of it: an Event.
    pub(super) fn tell(&mut self, target: Ref, what: Refusal) {
        self.due.push_back(Due::Event(target, what));
        self.begin();
    }

    /// Deletes a pod for good.
    pub(super) fn finish(&mut self, target: Ref) {
        self.add(target, |work| work.finish = true);
    }

    /// Goes on with an object.
    pub(super) fn finished(&mut self, what: Finished) {
        let target = match what {
            Finished::Round(target, left) => {
                let Some(slot) = self.slots.get_mut(&target) else { return };
                if !left.is_empty() {
                    slot.work = left.followed_by(std::mem::take(&mut slot.work));
                    let pause = slot.backoff.next(entropy());
                    let done = self.done.clone();
                    tokio::spawn(async move {
                        sleep(pause).await;
                        // The actor is gone only when the process ends.
                        drop(done.send(Finished::Pause(target)));
                    });
                    return self.begin();
                }
                slot.backoff.reset();
                target
            }
            Finished::Pause(target) => target,
            Finished::Told => return self.begin(),
        };
        match self.slots.get(&target) {
            Some(slot) if slot.work.is_empty() => drop(self.slots.remove(&target)),
            Some(_) => self.due.push_back(Due::Round(target)),
            None => {}
        }
        self.begin();
    }

    fn add(&mut self, target: Ref, change: impl FnOnce(&mut Work)) {
        let slot = self.slots.entry(target.clone()).or_default();
        change(&mut slot.work);
        if !slot.busy {
            slot.busy = true;
            self.due.push_back(Due::Round(target));
            self.begin();
        }
    }

    /// Begins with what is due, as far as requests may be under way.
    fn begin(&mut self) {
        while !self.due.is_empty()
            && let Ok(permit) = self.requests.clone().try_acquire_owned()
            && let Some(due) = self.due.pop_front()
        {
            let done = self.done.clone();
            let target = match due {
                Due::Round(target) => target,
                Due::Event(target, what) => {
                    let recorder = self.recorder.clone();
                    tokio::spawn(async move {
                        publish(&recorder, &target, &what).await;
                        drop(permit);
                        // The actor is gone only when the process ends.
                        drop(done.send(Finished::Told));
                    });
                    continue;
                }
            };
            let Some(slot) = self.slots.get_mut(&target) else { continue };
            let work = std::mem::take(&mut slot.work);
            let round = Round {
                client: self.client.clone(),
                recorder: self.recorder.clone(),
                node_address: self.node_address.borrow().clone(),
                prefixes: self.provider.borrow().prefixes.clone(),
                target: target.clone(),
            };
            tokio::spawn(async move {
                let left = round.run(work).await;
                drop(permit);
                drop(done.send(Finished::Round(target, left)));
            });
        }
    }
}

struct Round {
    client: Client,
    recorder: Recorder,
    node_address: Option<String>,
    /// Where addresses of the provider's pods are.
    prefixes: Prefixes,
    target: Ref,
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Done,
    /// The object is gone or another one by now: nothing more is to be done for this one.
    Moot,
    /// The API server does not accept it, and would not the next time.
    Rejected(String),
    /// Worth another try.
    Failed(String),
    /// It has an address that none of the provider's pods can have. It comes again as it should be if the prefixes have just
    /// changed; another address is not shown, whoever says it.
    Foreign(String),
}

impl Round {
    /// Does what it can of `work`; returns what failed.
    async fn run(&self, mut work: Work) -> Work {
        if let Some(told) = work.told.take() {
            publish(&self.recorder, &self.target, &told).await;
        }
        if let Some((body, seen)) = &work.status {
            match self.show(body, seen).await {
                Ended::Done => {}
                Ended::Moot => return Work::default(),
                Ended::Rejected(message) => self.rejected(&message).await,
                // Nothing comes again of what is gone in the provider.
                Ended::Foreign(why) if work.finish => {
                    debug!(pod = %self.target.key, %why, "last status not shown")
                }
                Ended::Failed(error) | Ended::Foreign(error) => return self.failed(work, &error),
            }
            work.status = None;
        }
        if let Some(refusal) = &work.refusal {
            let written = self.write(&refusal_patch(self.target.uid.as_str(), refusal.as_ref())).await;
            match written {
                Ended::Done => {}
                Ended::Moot => return Work::default(),
                Ended::Rejected(message) => warn!(pod = %self.target.key, %message, "reason not shown"),
                Ended::Failed(error) | Ended::Foreign(error) => return self.failed(work, &error),
            }
            if let Some(refusal) = refusal {
                publish(&self.recorder, &self.target, refusal).await;
            }
            work.refusal = None;
        }
        if work.finish {
            match self.delete().await {
                Ended::Done | Ended::Moot => {}
                // There is no deletion that would do instead.
                Ended::Rejected(error) | Ended::Failed(error) | Ended::Foreign(error) => {
                    return self.failed(work, &error);
                }
            }
        }
        Work::default()
    }

    fn failed(&self, work: Work, error: &str) -> Work {
        debug!(pod = %self.target.key, %error, "not written; trying again");
        work
    }

    /// Shows a status. If it is not accepted, it is tried once more without containers that come back to life.
    async fn show(&self, body: &[u8], seen: &Seen) -> Ended {
        let remote = match serde_json::from_slice::<Value>(body) {
            Ok(remote) => remote,
            Err(error) => return Ended::Rejected(format!("it is not JSON: {error}")),
        };
        if let Some(address) = pod_addresses(&remote).find(|address| !self.prefixes.is_seen(*address)) {
            return Ended::Foreign(format!("{address} is not among the addresses of the provider's pods"));
        }
        let mut patch = patch(self.target.uid.as_str(), &remote, self.node_address.as_deref());
        if seen.needs_fit(&remote) {
            match self.read().await {
                Ok(pod) => fit(&mut patch, &pod),
                Err(ended) => return ended,
            }
        }
        let ended = self.write(&patch).await;
        if !matches!(ended, Ended::Rejected(_)) {
            return ended;
        }
        match self.read().await {
            Ok(pod) if keep_ended(&mut patch, &pod.data) => self.write(&patch).await,
            Ok(_) => ended,
            Err(ended) => ended,
        }
    }

    /// The pod as it is now.
    async fn read(&self) -> Result<DynamicObject, Ended> {
        let resource = ApiResource::erase::<Pod>(&());
        let pods: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.target.key.namespace, &resource);
        match within(pods.get_opt(&self.target.key.name)).await {
            Ok(Some(pod)) if pod.metadata.uid.as_deref() == Some(self.target.uid.as_str()) => Ok(pod),
            Ok(_) => Err(Ended::Moot),
            Err(error) => Err(Ended::Failed(error.to_string())),
        }
    }

    /// Tells that a status of the provider is not shown. Repeated events become a series.
    async fn rejected(&self, message: &str) {
        warn!(pod = %self.target.key, %message, "status of the provider not accepted at home");
        let message = format!("a status of the provider is not accepted here: {message}");
        let refusal = Refusal { reason: "StatusRejected".to_owned(), message };
        publish(&self.recorder, &self.target, &refusal).await;
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.target.key.namespace)
    }

    async fn write(&self, patch: &Value) -> Ended {
        let pods = self.pods();
        let params = PatchParams::default();
        ended(within(pods.patch_status(&self.target.key.name, &params, &Patch::Strategic(patch))).await)
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
        ended(within(pods.delete(&self.target.key.name, &params)).await)
    }
}

/// Writes an Event about an object. Repeated ones become a series.
async fn publish(recorder: &Recorder, target: &Ref, refusal: &Refusal) {
    let event = Event {
        type_: EventType::Warning,
        reason: refusal.reason.clone(),
        note: Some(refusal.message.chars().take(1024).collect()),
        action: "Offload".to_owned(),
        secondary: None,
    };
    let about = ObjectReference {
        api_version: Some(target.set.kind.api_version()),
        kind: Some(target.set.kind.as_str().to_owned()),
        namespace: Some(target.key.namespace.to_string()),
        name: Some(target.key.name.to_string()),
        uid: Some(target.uid.to_string()),
        ..ObjectReference::default()
    };
    if let Err(error) = within(recorder.publish(&event, &about)).await {
        debug!(key = %target.key, %error, "event not written");
    }
}

fn ended<T>(answer: kube::Result<T>) -> Ended {
    match answer {
        Ok(_) => Ended::Done,
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ended::Moot,
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
            Ended::Rejected(status.message.clone())
        }
        Err(error) => Ended::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn only_what_may_work_later_is_tried_again() {
        let answer = |code| {
            ended::<()>(Err(kube::Error::Api(Status::failure("because", "Reason").with_code(code).boxed())))
        };
        assert_eq!(answer(422), Ended::Rejected("because".to_owned()));
        assert_eq!(answer(400), Ended::Rejected("because".to_owned()));
        assert!(matches!(answer(500), Ended::Failed(_)) && matches!(answer(429), Ended::Failed(_)));
        assert!(matches!(answer(403), Ended::Failed(_)));
    }

    #[test]
    fn what_failed_goes_on_with_what_came_in_the_meantime() {
        let status = |text: &'static str| Work {
            status: Some((Bytes::from(text), Seen::default())),
            ..Work::default()
        };
        let finish = Work { finish: true, ..Work::default() };
        assert_eq!(status("old").followed_by(status("new")), status("new"));
        assert_eq!(status("old").followed_by(finish), Work { finish: true, ..status("old") });
    }

    #[test]
    fn what_came_last_is_shown_last_and_every_reason_is_told() {
        let status = || (Bytes::from("running"), Seen::default());
        let why = || Refusal { reason: "NoRoom".to_owned(), message: "wait".to_owned() };
        let mut work = Work::default();
        work.refuse(Some(why()));
        work.show(status());
        let shown = Work { status: Some(status()), told: Some(why()), ..Work::default() };
        assert_eq!(work, shown, "it runs by now");
        work.refuse(Some(why()));
        assert_eq!(work.refusal, Some(Some(why())), "it runs no more");
        work.refuse(None);
        assert_eq!((&work.refusal, &work.told), (&Some(None), &Some(why())));
        let newer = Work { status: Some(status()), ..Work::default() };
        let refused = Work { refusal: Some(Some(why())), ..Work::default() };
        assert_eq!(refused.followed_by(newer), shown);
    }
}
