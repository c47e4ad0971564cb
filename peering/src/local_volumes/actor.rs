//! The task that owns the [`Picture`], and carries out its steps: one at a time per claim, tried again until they are done.

use super::picture::{Beside, Claim, Name, Picture, Step, Volume, growth};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, ListParams, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event as Told, EventType, Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{RECLAIM_POLICY, TYPE, TYPE_VIRTUAL_NODE};
use liquid_reflection::claim::deselect;
use liquid_runtime::backoff::{Backoff, entropy};
use liquid_runtime::request::{self, annotation_path, json_patch};
use liquid_runtime::storage_classes::StorageClasses;
use liquid_runtime::watch::{Change, Renewable, changes};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

/// What waits for the actor.
const QUEUE: usize = 256;
/// No request may take longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// First and longest pause after a failed request.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(30);
/// How often it is looked again whether the node of a claim that is not ours has become one of this cluster, or is gone.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(30);
/// After how long, and how seldom at last, the owner of a claim is told what the provisioner of the local class says.
const PATIENCE_FIRST: Duration = Duration::from_secs(5);
const PATIENCE_CAP: Duration = Duration::from_secs(300);
/// Longest text of an Event.
const MAX_NOTE: usize = 1024;

/// Provides volumes on nodes of this cluster, for ever.
pub(crate) async fn provide(
    client: Client,
    own_namespace: String,
    pod_name: String,
    mut classes: watch::Receiver<Option<StorageClasses>>,
) {
    let reporter = Reporter { controller: "liquid-controller".to_owned(), instance: Some(pod_name) };
    let (finished, mut finished_queue) = mpsc::unbounded_channel();
    let (watched, mut watched_queue) = mpsc::channel(QUEUE);
    let all: Api<PersistentVolume> = Api::all(client.clone());
    let mut volumes = changes(all, watcher::Config::default()).boxed();
    let mut actor = Actor {
        work: Work { recorder: Recorder::new(client.clone(), reporter), client, own_namespace },
        picture: Picture::default(),
        slots: BTreeMap::new(),
        finished,
        watched,
        claims_watch: Renewable::default(),
    };
    loop {
        let wake = actor.slots.values().filter_map(Slot::next).min();
        tokio::select! {
            biased;
            Some((uid, ended)) = finished_queue.recv() => actor.ended(uid, ended),
            Some((number, change)) = watched_queue.recv() => actor.claim_changed(number, *change),
            Some(change) = volumes.next() => actor.volume_changed(change),
            changed = classes.changed() => {
                if changed.is_err() {
                    return;
                }
                let known = classes.borrow_and_update().clone();
                // Claims of a class that was not ours were passed over.
                if known.is_some_and(|known| actor.picture.set_classes(known)) || actor.claims_watch.current().is_none() {
                    actor.watch_claims();
                }
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => actor.awake(Instant::now()),
        }
        actor.begin_steps();
    }
}

type Watched = (u64, Box<Change<PersistentVolumeClaim>>);

/// How a step ended.
enum Ended {
    /// Done, or there was nothing to do it to; what follows comes over the watches.
    Done,
    /// The node of the claim is not one of this cluster.
    Elsewhere(Box<Claim>),
    /// Its node does not exist.
    NoNode(Box<Claim>),
    /// Its owner was told this.
    Told(String),
    /// Worth another try.
    Failed(String),
}

#[derive(Default)]
struct Slot {
    busy: bool,
    /// There was news meanwhile.
    stale: bool,
    until: Option<Instant>,
    backoff: Option<Backoff>,
    /// When the owner is told that there is still no volume, and how long until the next time.
    notice: Option<(Instant, Backoff)>,
    /// When it is looked again where the node is.
    elsewhere: Option<Instant>,
}

impl Slot {
    fn next(&self) -> Option<Instant> {
        let notice = self.notice.as_ref().map(|(at, _)| *at);
        [self.until, notice, self.elsewhere].into_iter().flatten().min()
    }

    fn is_idle(&self) -> bool {
        !self.busy && self.next().is_none()
    }
}

struct Actor {
    work: Work,
    picture: Picture,
    slots: BTreeMap<String, Slot>,
    finished: mpsc::UnboundedSender<(String, Ended)>,
    watched: mpsc::Sender<Watched>,
    claims_watch: Renewable,
}

impl Actor {
    /// Watches all claims, from the beginning.
    fn watch_claims(&mut self) {
        let claims: Api<PersistentVolumeClaim> = Api::all(self.work.client.clone());
        self.claims_watch.begin(claims, self.watched.clone(), Box::new);
    }

    fn claim_changed(&mut self, number: u64, change: Change<PersistentVolumeClaim>) {
        if self.claims_watch.current() != Some(number) {
            return;
        }
        match change {
            Change::Applied(claim) => {
                if let Some(beside) = self.beside(&claim) {
                    self.picture.beside_applied(beside);
                } else if let Some(claim) = Claim::read(&claim).filter(|claim| self.picture.concerns(claim)) {
                    self.picture.claim_applied(claim);
                }
            }
            Change::Deleted(claim) => match (self.beside(&claim), claim.uid()) {
                (Some(beside), _) => self.picture.beside_deleted(&beside),
                (None, Some(uid)) => self.picture.claim_deleted(&uid),
                (None, None) => {}
            },
            Change::Listed(seen) => {
                let own = self.work.own_namespace.clone();
                self.picture.claims_listed(|name| seen.contains(name), &own);
            }
        }
    }

    /// The claim, if it is one of those beside others.
    fn beside(&self, claim: &PersistentVolumeClaim) -> Option<Beside> {
        let ours = claim.namespace().as_deref() == Some(&self.work.own_namespace);
        ours.then(|| Beside::read(claim)).flatten()
    }

    fn volume_changed(&mut self, change: Change<PersistentVolume>) {
        match change {
            Change::Applied(volume) => {
                let read = Volume::read(&volume, &self.work.own_namespace);
                self.picture.volume_applied(&volume.name_any(), read);
            }
            Change::Deleted(volume) => self.picture.volume_applied(&volume.name_any(), None),
            Change::Listed(seen) => {
                self.picture.volumes_listed(|name| seen.contains(&(String::new(), name.to_owned())));
            }
        }
    }

    fn ended(&mut self, uid: String, ended: Ended) {
        let slot = self.slots.entry(uid.clone()).or_default();
        slot.busy = false;
        if std::mem::take(&mut slot.stale) {
            self.picture.look_again(&uid);
        }
        match ended {
            Ended::Failed(error) => {
                debug!(claim = %uid, %error, "not done; trying again");
                let backoff = slot.backoff.get_or_insert_with(|| Backoff::new(RETRY_FIRST, RETRY_CAP));
                slot.until = Some(Instant::now() + backoff.next(entropy()));
                return;
            }
            Ended::Done => {}
            Ended::Elsewhere(claim) => {
                slot.elsewhere = Some(Instant::now() + LOOK_ELSEWHERE);
                self.picture.is_elsewhere(&claim);
            }
            Ended::NoNode(claim) => {
                self.begin(uid, Step::Reschedule(claim));
                return;
            }
            Ended::Told(why) => {
                self.picture.explained(&uid, &why);
                self.picture.look_again(&uid);
            }
        }
        if let Some(slot) = self.slots.get_mut(&uid) {
            slot.backoff = None;
        }
    }

    fn awake(&mut self, now: Instant) {
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        let mut notices = Vec::new();
        for (uid, slot) in &mut self.slots {
            if due(&mut slot.until) {
                self.picture.look_again(uid);
            }
            if due(&mut slot.elsewhere) {
                self.picture.look_elsewhere_again(uid);
            }
            if let Some((at, backoff)) = slot.notice.as_mut().filter(|(at, _)| *at <= now) {
                *at = now + backoff.next(entropy());
                notices.push(uid.clone());
            }
        }
        for uid in notices {
            match self.picture.unfulfilled(&uid) {
                Some((claim, beside)) => {
                    let (work, claim, beside) = (self.work.clone(), claim.clone(), beside.clone());
                    tokio::spawn(async move { work.pass_on(&claim, &beside).await });
                }
                None => {
                    if let Some(slot) = self.slots.get_mut(&uid) {
                        slot.notice = None;
                    }
                }
            }
        }
        self.slots.retain(|_, slot| !slot.is_idle());
    }

    fn begin_steps(&mut self) {
        for uid in self.picture.take_changed() {
            match self.slots.get_mut(&uid) {
                Some(slot) if slot.busy => slot.stale = true,
                // After a failure it is looked at again in its time.
                Some(slot) if slot.until.is_some() => {}
                _ => {
                    if let Some(step) = self.picture.next_step(&uid) {
                        self.begin(uid, step);
                    }
                }
            }
        }
    }

    fn begin(&mut self, uid: String, step: Step) {
        let slot = self.slots.entry(uid.clone()).or_default();
        slot.busy = true;
        if matches!(step, Step::Ask { beside: Ok(_), .. }) {
            let mut backoff = Backoff::new(PATIENCE_FIRST, PATIENCE_CAP);
            slot.notice = Some((Instant::now() + backoff.next(entropy()), backoff));
        }
        let (work, finished) = (self.work.clone(), self.finished.clone());
        tokio::spawn(async move {
            let ended = work.run(step).await;
            // The actor is gone only when the process ends.
            drop(finished.send((uid, ended)));
        });
    }
}

#[derive(Clone)]
struct Work {
    client: Client,
    recorder: Recorder,
    own_namespace: String,
}

impl Work {
    async fn run(&self, step: Step) -> Ended {
        match step {
            Step::Ask { claim, beside } => self.ask(claim, beside).await,
            Step::HandOver { claim, volume, policy } => self.hand_over(&claim, &volume, &policy).await,
            Step::Discard(beside) => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid: Some(beside.uid), resource_version: None }),
                    ..DeleteParams::default()
                };
                done(within(self.claims(&self.own_namespace).delete(&beside.name, &params)).await)
            }
            Step::Settle(volume, policy) => {
                let annotation = annotation_path(RECLAIM_POLICY);
                let patch = json!([
                    { "op": "test", "path": "/metadata/uid", "value": volume.uid },
                    { "op": "test", "path": annotation, "value": policy },
                    { "op": "remove", "path": annotation },
                    { "op": "replace", "path": "/spec/persistentVolumeReclaimPolicy", "value": policy },
                ]);
                done(
                    within(self.volumes().patch(&volume.name, &PatchParams::default(), &json_patch(patch)))
                        .await,
                )
            }
            Step::Reschedule(claim) => {
                let patch = deselect(&claim.uid, claim.node.as_deref());
                let claims = self.claims(&claim.name.0);
                done(within(claims.patch(&claim.name.1, &PatchParams::default(), &json_patch(patch))).await)
            }
            Step::CheckGrowth(claim) => self.check_growth(&claim).await,
        }
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Asks for a volume on the node of the claim, if that is one of this cluster.
    async fn ask(&self, claim: Box<Claim>, beside: Result<Value, String>) -> Ended {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = match within(nodes.get_metadata_opt(claim.node.as_deref().unwrap_or_default())).await {
            Ok(node) => node,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        match node {
            None => return Ended::NoNode(claim),
            Some(node) if node.labels().get(TYPE).is_some_and(|type_| type_ == TYPE_VIRTUAL_NODE) => {
                return Ended::Elsewhere(claim);
            }
            Some(_) => {}
        }
        let beside = match beside {
            Ok(beside) => beside,
            Err(why) => {
                self.publish(&claim, "ProvisioningFailed", &why).await;
                return Ended::Told(why);
            }
        };
        let beside: PersistentVolumeClaim = match serde_json::from_value(beside) {
            Ok(beside) => beside,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        match within(self.claims(&self.own_namespace).create(&PostParams::default(), &beside)).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ended::Done,
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
                self.publish(&claim, "ProvisioningFailed", &status.message).await;
                Ended::Failed(status.message.clone())
            }
            other => done(other),
        }
    }

    /// Hands the volume over to the claim, as it is now. It is retained until all is over.
    async fn hand_over(&self, claim: &Claim, volume: &Volume, policy: &str) -> Ended {
        let now = match within(self.claims(&claim.name.0).get_opt(&claim.name.1)).await {
            Ok(now) => now.as_ref().and_then(Claim::read),
            Err(error) => return Ended::Failed(error.to_string()),
        };
        // If it has changed, news of that is on its way.
        if now.is_none_or(|now| now.uid != claim.uid || now.volume.is_some() || now.deleting) {
            return Ended::Failed("the claim is another one by now".to_owned());
        }
        let volumes = self.volumes();
        let there = match within(volumes.get_opt(&volume.name)).await {
            Ok(Some(there)) => there,
            Ok(None) => return Ended::Done,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        let mut annotations = json!(there.metadata.annotations.clone().unwrap_or_default());
        annotations[RECLAIM_POLICY] = json!(policy);
        let patch = json!([
            { "op": "test", "path": "/metadata/uid", "value": volume.uid },
            { "op": "test", "path": "/metadata/resourceVersion", "value": there.metadata.resource_version },
            { "op": "test", "path": "/spec/claimRef/uid", "value": volume.owner },
            { "op": "add", "path": "/metadata/annotations", "value": annotations },
            { "op": "replace", "path": "/spec/persistentVolumeReclaimPolicy", "value": "Retain" },
            { "op": "replace", "path": "/spec/claimRef", "value": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.name.0,
                "name": claim.name.1,
                "uid": claim.uid,
            }},
        ]);
        let handed =
            done(within(volumes.patch(&volume.name, &PatchParams::default(), &json_patch(patch))).await);
        if matches!(handed, Ended::Done) {
            info!(claim = %format!("{}/{}", claim.name.0, claim.name.1), volume = %volume.name, "volume handed over");
        }
        handed
    }

    /// Tells the owner of a claim whose volume cannot grow; whose can is grown by its driver.
    async fn check_growth(&self, claim: &Claim) -> Ended {
        let volume = match within(self.volumes().get_opt(claim.volume.as_deref().unwrap_or_default())).await {
            Ok(volume) => volume,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        let spec = volume.and_then(|volume| volume.spec).unwrap_or_default();
        // A volume in a provider grows there.
        let elsewhere = spec.csi.is_some_and(|csi| csi.driver == liquid_crds::vocabulary::STORAGE_DRIVER);
        let class = spec.storage_class_name.unwrap_or_default();
        let why = growth(claim);
        if !elsewhere && !self.expands(&class).await {
            self.publish(claim, "VolumeResizeFailed", &why).await;
        }
        Ended::Told(why)
    }

    async fn expands(&self, class: &str) -> bool {
        let classes: Api<k8s_openapi::api::storage::v1::StorageClass> = Api::all(self.client.clone());
        // What cannot be read now is taken for one that grows: nobody is told anything wrong.
        match within(classes.get_opt(class)).await {
            Ok(class) => class.is_none_or(|class| class.allow_volume_expansion.unwrap_or(false)),
            Err(_) => true,
        }
    }

    /// Tells the owner of a claim what was said last against the one beside it.
    async fn pass_on(&self, claim: &Claim, beside: &Beside) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.own_namespace);
        let about = ListParams::default().fields(&format!("type=Warning,involvedObject.uid={}", beside.uid));
        match within(events.list(&about)).await {
            Ok(events) => {
                let last =
                    events.items.into_iter().max_by_key(|event| event.last_timestamp.as_ref().map(|at| at.0));
                if let Some(event) = last {
                    let reason = event.reason.unwrap_or("ProvisioningFailed".to_owned());
                    self.publish(claim, &reason, &event.message.unwrap_or_default()).await;
                }
            }
            Err(error) => debug!(claim = %beside.name, %error, "events not read"),
        }
    }

    async fn publish(&self, claim: &Claim, reason: &str, note: &str) {
        let event = Told {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: "Provision".to_owned(),
            secondary: None,
        };
        let (namespace, name): Name = claim.name.clone();
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: Some(namespace),
            name: Some(name),
            uid: Some(claim.uid.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = within(self.recorder.publish(&event, &about)).await {
            debug!(claim = %claim.name.1, %error, "event not written");
        }
    }
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    request::within(REQUEST_TIMEOUT, request).await
}

fn done<T>(answer: kube::Result<T>) -> Ended {
    match answer {
        Ok(_) => Ended::Done,
        // Gone, or another one by now.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ended::Done,
        Err(error) => Ended::Failed(error.to_string()),
    }
}
