//! The task that owns the [`Picture`], and carries out its steps: one at a time per claim, tried again until they are done.

use super::objects::{Claim, Volume};
use super::picture::{Behind, ClaimNews, Picture, Provider, ProviderClaims, Step, Stuck};
use crate::request::within;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::FINALIZER_VOLUME;
use liquid_reflection::claim::deselect;
use liquid_reflection::frame::Refusal;
use liquid_reflection::{Key, Uid};
use liquid_runtime::backoff::{Backoff, entropy};
use liquid_runtime::request::json_patch;
use liquid_runtime::storage_classes::{self, StorageClasses};
use liquid_runtime::watch::{Change, Renewable, changes};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

/// What waits for the actor; it does everything in microseconds.
const QUEUE: usize = 256;
/// Requests under way at once.
const MAX_REQUESTS: usize = 16;
/// First and longest pause after a failed request.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(30);
/// How long a claim that is refused waits for the provider before the scheduler may choose another node: at first, and at most.
const PATIENCE_FIRST: Duration = Duration::from_secs(2);
const PATIENCE_CAP: Duration = Duration::from_secs(60);
/// How long a claim waits at least for a provider that says nothing: by then its nodes are not Ready if the link is down, and the
/// scheduler knows better than to choose them again.
const SILENCE: Duration = Duration::from_secs(15);
/// Longest text of an Event.
const MAX_NOTE: usize = 1024;

enum Command {
    Nodes(BTreeMap<String, Behind>),
    Provider(String, Provider),
    Forget(String),
    Mirror(String, watch::Sender<ProviderClaims>),
}

/// The handle to the actor.
#[derive(Clone)]
pub(crate) struct Volumes {
    commands: mpsc::Sender<Command>,
    news: mpsc::Sender<(String, ClaimNews)>,
}

impl Volumes {
    /// There are these virtual nodes.
    pub(crate) async fn nodes(&self, nodes: BTreeMap<String, Behind>) {
        self.send(Command::Nodes(nodes)).await;
    }

    /// There is this provider.
    pub(crate) async fn provider(&self, peer: String, cluster: String, gone: bool) {
        self.send(Command::Provider(peer, Provider { cluster, gone })).await;
    }

    /// There is no such provider any more.
    pub(crate) async fn forget(&self, peer: String) {
        self.send(Command::Forget(peer)).await;
    }

    /// What the mirror of `peer` needs: what that shall have, and where to tell what it says.
    pub(crate) fn mirror(&self, peer: &str) -> (watch::Receiver<ProviderClaims>, Teller) {
        let (sender, claims) = watch::channel(ProviderClaims::default());
        let (commands, name) = (self.commands.clone(), peer.to_owned());
        tokio::spawn(async move { drop(commands.send(Command::Mirror(name, sender)).await) });
        (claims, Teller { peer: peer.to_owned(), news: self.news.clone() })
    }

    async fn send(&self, command: Command) {
        // The actor lives as long as the process.
        drop(self.commands.send(command).await);
    }
}

/// Where a mirror tells what its provider says.
#[derive(Clone)]
pub(crate) struct Teller {
    peer: String,
    news: mpsc::Sender<(String, ClaimNews)>,
}

impl Teller {
    #[cfg(test)]
    pub(crate) fn to_nobody() -> Self {
        Self { peer: String::new(), news: mpsc::channel(1).0 }
    }

    /// Tells something.
    pub(crate) async fn tell(&self, news: ClaimNews) {
        drop(self.news.send((self.peer.clone(), news)).await);
    }
}

/// Starts following claims and volumes.
pub(crate) fn follow(client: Client, recorder: Recorder) -> (Volumes, impl Future<Output = ()> + Send) {
    let (commands, command_queue) = mpsc::channel(QUEUE);
    let (news, news_queue) = mpsc::channel(QUEUE);
    let (finished, finished_queue) = mpsc::unbounded_channel();
    let (watched, watched_queue) = mpsc::channel(QUEUE);
    let actor = Actor {
        client,
        recorder,
        picture: Picture::default(),
        mirrors: BTreeMap::new(),
        published: BTreeMap::new(),
        slots: BTreeMap::new(),
        patience: BTreeMap::new(),
        finished,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        watched,
        claims_watch: Renewable::default(),
    };
    let queues = Queues {
        commands: command_queue,
        news: news_queue,
        finished: finished_queue,
        watched: watched_queue,
    };
    (Volumes { commands, news }, actor.run(queues))
}

struct Queues {
    commands: mpsc::Receiver<Command>,
    news: mpsc::Receiver<(String, ClaimNews)>,
    finished: mpsc::UnboundedReceiver<(Uid, Ended)>,
    watched: mpsc::Receiver<(u64, Watched)>,
}

enum Watched {
    Claim(Box<Change<PersistentVolumeClaim>>),
    /// One that pods refer to was read, or is not there.
    Read(Key, Box<Option<PersistentVolumeClaim>>),
}

/// How a step ended.
enum Ended {
    /// Done, or there was nothing to do it to; what follows comes over the watches.
    Done,
    /// Somebody was told something.
    Told,
    /// There is this volume.
    Found(Box<Volume>),
    /// There is no volume.
    NoVolume,
    /// It is not known whether there is.
    Unknown(String),
    /// There is none, because the API server does not take it.
    Rejected(String),
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
}

struct Actor {
    client: Client,
    recorder: Recorder,
    picture: Picture,
    mirrors: BTreeMap<String, watch::Sender<ProviderClaims>>,
    /// Names under which each provider was told of a claim.
    published: BTreeMap<(String, Uid), Key>,
    slots: BTreeMap<Uid, Slot>,
    /// Claims that are refused, or not answered: until when they wait, and how long the next time.
    patience: BTreeMap<Uid, (Option<Instant>, Backoff)>,
    finished: mpsc::UnboundedSender<(Uid, Ended)>,
    requests: Arc<Semaphore>,
    watched: mpsc::Sender<(u64, Watched)>,
    claims_watch: Renewable,
}

impl Actor {
    async fn run(mut self, mut queues: Queues) {
        let (classes_sender, mut classes) = watch::channel(None::<StorageClasses>);
        let mut observing = std::pin::pin!(storage_classes::observe(self.client.clone(), classes_sender));
        let all: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut volumes = changes(all, watcher::Config::default()).boxed();
        loop {
            let waits = self.slots.values().filter_map(|slot| slot.until);
            let waits = waits.chain(self.patience.values().filter_map(|(until, _)| *until));
            let wake = waits.min();
            tokio::select! {
                biased;
                command = queues.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some((uid, ended)) = queues.finished.recv() => self.ended(&uid, ended),
                Some((peer, news)) = queues.news.recv() => self.told(&peer, news),
                Some((number, watched)) = queues.watched.recv() => self.claim_changed(number, watched),
                Some(change) = volumes.next() => self.volume_changed(change),
                () = &mut observing => return,
                changed = classes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let known = classes.borrow_and_update().clone().unwrap_or_default();
                    // Claims of a class that was not ours were passed over.
                    if self.picture.set_classes(&known) {
                        self.watch_claims();
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.awake(Instant::now()),
            }
            self.work();
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Nodes(nodes) => self.picture.set_nodes(nodes),
            Command::Provider(peer, provider) => self.picture.set_provider(&peer, Some(provider)),
            Command::Forget(peer) => {
                self.mirrors.remove(&peer);
                self.published.retain(|(at, _), _| *at != peer);
                self.picture.set_provider(&peer, None);
            }
            Command::Mirror(peer, sender) => {
                self.published.retain(|(at, _), _| *at != peer);
                self.mirrors.insert(peer, sender);
                self.picture.look_at_all();
            }
        }
    }

    fn told(&mut self, peer: &str, news: ClaimNews) {
        if let ClaimNews::Follow(key) = &news
            && self.picture.is_unknown(key)
        {
            let (client, watched, key) = (self.client.clone(), self.watched.clone(), key.clone());
            let number = self.claims_watch.current().unwrap_or_default();
            tokio::spawn(async move {
                let claims: Api<PersistentVolumeClaim> = Api::namespaced(client, &key.namespace);
                let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
                while !watched.is_closed() {
                    match within(claims.get_opt(&key.name)).await {
                        Ok(found) => {
                            drop(watched.send((number, Watched::Read(key, Box::new(found)))).await);
                            return;
                        }
                        Err(error) => {
                            debug!(claim = %key, %error, "claim not read; trying again");
                            sleep(backoff.next(entropy())).await;
                        }
                    }
                }
            });
        }
        self.picture.told(peer, news);
    }

    /// Watches all claims, from the beginning.
    fn watch_claims(&mut self) {
        let claims: Api<PersistentVolumeClaim> = Api::all(self.client.clone());
        let told = |change| Watched::Claim(Box::new(change));
        self.claims_watch.begin(claims, self.watched.clone(), told);
    }

    fn claim_changed(&mut self, number: u64, watched: Watched) {
        if self.claims_watch.current() != Some(number) {
            return;
        }
        match watched {
            Watched::Claim(change) => match *change {
                Change::Applied(claim) => {
                    if let Some(claim) = Claim::read(&claim).filter(|claim| self.picture.concerns(claim)) {
                        self.picture.claim_applied(claim);
                    }
                }
                Change::Deleted(claim) => {
                    if let Some(claim) = Claim::read(&claim) {
                        self.picture.claim_deleted(&claim.key, &claim.uid);
                    }
                }
                Change::Listed(seen) => self
                    .picture
                    .claims_listed(|key| seen.contains(&(key.namespace.to_string(), key.name.to_string()))),
            },
            Watched::Read(key, found) => {
                let claim = found.as_ref().as_ref().and_then(Claim::read);
                if let Some(claim) =
                    claim.filter(|claim| self.picture.is_unknown(&key) && self.picture.concerns(claim))
                {
                    self.picture.claim_applied(claim);
                }
            }
        }
    }

    fn volume_changed(&mut self, change: Change<PersistentVolume>) {
        match change {
            Change::Applied(volume) => match Volume::read(&volume) {
                Some(volume) => self.picture.volume_applied(volume),
                // It is not ours.
                None => self.picture.volume_deleted(&volume.name_any()),
            },
            Change::Deleted(volume) => self.picture.volume_deleted(&volume.name_any()),
            Change::Listed(seen) => {
                self.picture.volumes_listed(|name| seen.contains(&(String::new(), name.to_owned())));
            }
        }
    }

    fn ended(&mut self, uid: &Uid, ended: Ended) {
        let slot = self.slots.entry(uid.clone()).or_default();
        slot.busy = false;
        if std::mem::take(&mut slot.stale) {
            self.picture.look_again(uid);
        }
        let failed = match ended {
            Ended::Done => None,
            Ended::Told => {
                self.picture.look_again(uid);
                None
            }
            Ended::Found(volume) => {
                info!(claim = %volume.claim, volume = %volume.name, peer = %volume.peer, "volume in the provider");
                self.picture.volume_applied(*volume);
                None
            }
            Ended::NoVolume => {
                self.picture.not_created(uid);
                // It is made anew at once, but not again and again: what failed before counts.
                return;
            }
            Ended::Rejected(message) => {
                self.picture.create_refused(uid, message);
                None
            }
            Ended::Unknown(error) => {
                self.picture.created_unknown(uid);
                Some(error)
            }
            Ended::Failed(error) => Some(error),
        };
        match failed {
            None => {
                self.slots.remove(uid);
            }
            Some(error) => {
                debug!(claim = %uid, %error, "not done; trying again");
                let backoff = slot.backoff.get_or_insert_with(|| Backoff::new(RETRY_FIRST, RETRY_CAP));
                slot.until = Some(Instant::now() + backoff.next(entropy()));
            }
        }
    }

    fn awake(&mut self, now: Instant) {
        let due: Vec<Uid> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.until.is_some_and(|at| at <= now))
            .map(|(u, _)| u.clone())
            .collect();
        for uid in due {
            if let Some(slot) = self.slots.get_mut(&uid) {
                slot.until = None;
            }
            self.picture.look_again(&uid);
        }
        for (uid, (until, _)) in &mut self.patience {
            if until.is_some_and(|at| at <= now) {
                *until = None;
                self.picture.give_up_waiting(uid);
            }
        }
    }

    /// Does what follows from what has changed.
    fn work(&mut self) {
        let changed = self.picture.take_changes();
        let complete = self.picture.is_known();
        for (peer, sender) in &self.mirrors {
            sender.send_if_modified(|claims| {
                let mut modified = std::mem::replace(&mut claims.complete, complete) != complete;
                for uid in &changed.uids {
                    let at = (peer.clone(), uid.clone());
                    let wish = self.picture.wish(peer, uid);
                    let known = match &wish {
                        Some((key, _)) => self.published.insert(at, key.clone()),
                        None => self.published.remove(&at),
                    };
                    if let Some(key) = known.filter(|key| wish.as_ref().is_none_or(|(now, _)| now != key)) {
                        modified |= claims.wanted.remove(&key).is_some();
                    }
                    if let Some((key, wish)) = wish {
                        modified |= claims.wanted.get(&key) != Some(&wish);
                        claims.wanted.insert(key, wish);
                    }
                }
                for key in &changed.names {
                    let now = self.picture.resolution(peer, key);
                    let known = match now.clone() {
                        Some(now) => claims.resolved.insert(key.clone(), now),
                        None => claims.resolved.remove(key),
                    };
                    modified |= known != now;
                }
                modified
            });
        }
        for uid in changed.uids {
            self.wait_or_not(&uid);
            match self.slots.get_mut(&uid) {
                Some(slot) if slot.busy => slot.stale = true,
                // After a failure it is looked at again in its time.
                Some(slot) if slot.until.is_some() => {}
                _ => match self.picture.next_step(&uid) {
                    Some(step) => self.begin(uid, step),
                    None if !self.picture.is_waiting(&uid) => drop(self.slots.remove(&uid)),
                    None => {}
                },
            }
        }
    }

    /// A claim that is refused, or not answered, waits for a while before the scheduler may choose another node for it.
    fn wait_or_not(&mut self, uid: &Uid) {
        if let Some(stuck) = self.picture.stuck(uid) {
            let (until, backoff) = self
                .patience
                .entry(uid.clone())
                .or_insert_with(|| (None, Backoff::new(PATIENCE_FIRST, PATIENCE_CAP)));
            if until.is_none() && !self.picture.is_impatient(uid) {
                let least = if stuck == Stuck::Silent { SILENCE } else { Duration::ZERO };
                *until = Some(Instant::now() + backoff.next(entropy()).max(least));
            }
        } else if !self.picture.is_waiting(uid) {
            self.patience.remove(uid);
        } else if let Some((until, _)) = self.patience.get_mut(uid) {
            *until = None;
        }
    }

    fn begin(&mut self, uid: Uid, step: Step) {
        self.picture.begun(&uid, &step);
        self.slots.entry(uid.clone()).or_default().busy = true;
        let work = Work { client: self.client.clone(), recorder: self.recorder.clone() };
        let (requests, finished) = (self.requests.clone(), self.finished.clone());
        tokio::spawn(async move {
            let permit = requests.acquire_owned().await;
            let ended = work.run(step).await;
            drop(permit);
            // The actor is gone only when the process ends.
            drop(finished.send((uid, ended)));
        });
    }
}

struct Work {
    client: Client,
    recorder: Recorder,
}

impl Work {
    async fn run(&self, step: Step) -> Ended {
        match step {
            Step::Create(volume) => self.create(volume).await,
            Step::Find(name) => self.find(&name).await,
            Step::Hold(volume) => self.hold(&volume).await,
            Step::Delete(volume) => self.delete(&volume).await,
            Step::LetGo(volume) => self.let_go(&volume).await,
            Step::Grow(volume, capacity) => {
                let patch = json!({
                    "metadata": { "uid": volume.object }, "spec": { "capacity": { "storage": capacity } },
                });
                let (volumes, params) = (self.volumes(), PatchParams::default());
                ended(within(volumes.patch(&volume.name, &params, &Patch::Merge(&patch))).await)
            }
            Step::Show(claim, status) => {
                let patch = json!({ "metadata": { "uid": claim.uid.as_str() }, "status": status });
                let claims = self.claims(&claim.key);
                let params = PatchParams::default();
                ended(within(claims.patch_status(&claim.key.name, &params, &Patch::Merge(&patch))).await)
            }
            Step::Reschedule(claim) => self.reschedule(&claim).await,
            Step::Explain(claim, refusal) => self.explain(&claim, &refusal).await,
        }
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    fn claims(&self, key: &Key) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    async fn create(&self, volume: Value) -> Ended {
        let name = volume["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let volume: PersistentVolume = match serde_json::from_value(volume) {
            Ok(volume) => volume,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        match within(self.volumes().create(&PostParams::default(), &volume)).await {
            Ok(made) => match Volume::read(&made) {
                Some(made) => Ended::Found(Box::new(made)),
                None => Ended::Unknown(format!("PersistentVolume {name} is not as it was made")),
            },
            Err(kube::Error::Api(status)) if status.is_already_exists() => self.find(&name).await,
            Err(kube::Error::Api(status)) if is_refusal(status.code) => {
                warn!(volume = %name, message = %status.message, "PersistentVolume not made");
                Ended::Rejected(format!("PersistentVolume not made: {}", status.message))
            }
            Err(error) => Ended::Unknown(error.to_string()),
        }
    }

    async fn find(&self, name: &str) -> Ended {
        match within(self.volumes().get_opt(name)).await {
            Ok(None) => Ended::NoVolume,
            Ok(Some(volume)) => match Volume::read(&volume) {
                Some(volume) => Ended::Found(Box::new(volume)),
                None => Ended::Unknown(format!("PersistentVolume {name} is somebody else's")),
            },
            Err(error) => Ended::Unknown(error.to_string()),
        }
    }

    async fn delete(&self, volume: &Volume) -> Ended {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(volume.object.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        if !volume.deleting {
            match ended(within(self.volumes().delete(&volume.name, &params)).await) {
                Ended::Done => {
                    info!(claim = %volume.claim, volume = %volume.name, "volume deleted, and its data")
                }
                other => return other,
            }
        }
        self.release(volume).await
    }

    async fn let_go(&self, volume: &Volume) -> Ended {
        let Volume { peer, namespace, remote, .. } = volume;
        let note = format!("the data stays in cluster {peer}: claim {remote} of namespace {namespace} there");
        info!(volume = %volume.name, %note, "volume given up");
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolume".to_owned()),
            name: Some(volume.name.clone()),
            uid: Some(volume.object.clone()),
            ..ObjectReference::default()
        };
        self.publish(&about, EventType::Normal, "VolumeKept", &note).await;
        self.release(volume).await
    }

    /// Puts our finalizer on.
    async fn hold(&self, volume: &Volume) -> Ended {
        let mut patch = vec![json!({ "op": "test", "path": "/metadata/uid", "value": volume.object })];
        if volume.finalizers.is_empty() {
            patch.push(json!({ "op": "add", "path": "/metadata/finalizers", "value": [FINALIZER_VOLUME] }));
        } else {
            patch.push(json!({ "op": "test", "path": "/metadata/finalizers", "value": volume.finalizers }));
            patch.push(json!({ "op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER_VOLUME }));
        }
        let patch = json_patch(json!(patch));
        ended(within(self.volumes().patch(&volume.name, &PatchParams::default(), &patch)).await)
    }

    /// Takes our finalizer off.
    async fn release(&self, volume: &Volume) -> Ended {
        let left: Vec<&String> = volume.finalizers.iter().filter(|name| *name != FINALIZER_VOLUME).collect();
        let patch = json!([
            { "op": "test", "path": "/metadata/uid", "value": volume.object },
            { "op": "test", "path": "/metadata/finalizers", "value": volume.finalizers },
            { "op": "replace", "path": "/metadata/finalizers", "value": left },
        ]);
        ended(within(self.volumes().patch(&volume.name, &PatchParams::default(), &json_patch(patch))).await)
    }

    /// Lets the scheduler choose again: it sees that its choice was taken back, and says so on the pod.
    async fn reschedule(&self, claim: &Claim) -> Ended {
        let patch = deselect(claim.uid.as_str(), claim.selected_node.as_deref());
        let claims = self.claims(&claim.key);
        ended(within(claims.patch(&claim.key.name, &PatchParams::default(), &json_patch(patch))).await)
    }

    /// Tells why a claim gets no volume: on the claim, and on pods that wait for it.
    async fn explain(&self, claim: &Claim, refusal: &Refusal) -> Ended {
        let about = |kind: &str, name: &str, uid: &str| ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: Some(claim.key.namespace.to_string()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let (reason, message) = (&refusal.reason, &refusal.message);
        let claim_itself = about("PersistentVolumeClaim", &claim.key.name, claim.uid.as_str());
        self.publish(&claim_itself, EventType::Warning, reason, message).await;
        if claim.volume.is_some() {
            return Ended::Told;
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &claim.key.namespace);
        let waiting = ListParams::default().fields("spec.nodeName=");
        match within(pods.list(&waiting)).await {
            Ok(pods) => {
                for pod in pods.iter().filter(|pod| refers_to(pod, &claim.key.name)) {
                    let note = format!("PersistentVolumeClaim {}: {message}", claim.key.name);
                    let pod = about("Pod", &pod.name_any(), &pod.uid().unwrap_or_default());
                    self.publish(&pod, EventType::Warning, reason, &note).await;
                }
            }
            Err(error) => debug!(claim = %claim.key, %error, "pods not read"),
        }
        Ended::Told
    }

    async fn publish(&self, about: &ObjectReference, type_: EventType, reason: &str, note: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: "Provision".to_owned(),
            secondary: None,
        };
        if let Err(error) = within(self.recorder.publish(&event, about)).await {
            debug!(?about, %error, "event not written");
        }
    }
}

/// Whether an API server that answers so has not done what was asked, and would not a moment later.
fn is_refusal(code: u16) -> bool {
    (400..500).contains(&code) && ![408, 409, 429].contains(&code)
}

/// Whether a pod uses the claim of that name.
fn refers_to(pod: &Pod, claim: &str) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().any(|volume| {
        let named = volume.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == claim);
        let made = volume.ephemeral.is_some() && format!("{}-{}", pod.name_any(), volume.name) == claim;
        named || made
    })
}

fn ended<T>(answer: kube::Result<T>) -> Ended {
    match answer {
        Ok(_) => Ended::Done,
        // Gone, or another one by now.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ended::Done,
        Err(error) => Ended::Failed(error.to_string()),
    }
}
