//! The one task that owns the state machines of all consumers.

use super::claims;
use super::companions::{mixed_terms, terms as terms_of};
use super::events::Warned;
use super::objects::{NamespaceNames, Owned, body_demand, interim_status};
use super::outbox::Outbox;
use super::roster::{Placed, Roster};
use super::steps::{Job, Policy, UNAVAILABLE, read_status};
use super::walls::{Walled, Walls};
use super::watches::{News, Source, watch as watch_all};
use crate::lend::book::{Book, Slices};
use crate::lend::consumers::{Consumer, Consumers};
use crate::lend::quota::{Ledger, Limits};
use crate::metrics::Metrics;
use bytes::Bytes;
use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use liquid_crds::{ClusterId, Placement, SliceState};
use liquid_link::digest::Hash;
use liquid_reflection::digest::{pod_addresses, set_pod_addresses};
use liquid_reflection::frame::{ProviderFrame, Ref, Refusal};
use liquid_reflection::provider::{Action, Deleted, Hold, Instance, Outcome, Record, StatusFound, Step};
use liquid_reflection::warning::Warning;
use liquid_reflection::{ConsumerFrame, Key, Kind, Prefixes, Provider, Role, SetRef, Uid};
use liquid_runtime::backoff::entropy;
use liquid_runtime::health::Part;
use liquid_runtime::storage_classes::StorageClasses;
use liquid_runtime::watch::Change;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tonic::Status;
use tracing::{debug, error, info};

/// Commands that wait for the actor, which takes each in microseconds.
const COMMAND_QUEUE: usize = 1024;

/// Requests to the API server under way at once. The API server serves a client some hundreds a second; more in
/// flight only wait there.
const MAX_REQUESTS: usize = 64;

/// Bodies held for one consumer until they are stored; beyond that its stream is not read.
const MAX_HELD: usize = 16 << 20;

/// How often the numbers of shadows are counted for the metrics: counting 10,000 takes about a millisecond.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Identifies one stream of a consumer.
pub(crate) type StreamId = u64;

/// What exists of a consumer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Pods and ShadowPods.
    pub(crate) pods: usize,
    /// Namespaces, without those that are kept.
    pub(crate) namespaces: usize,
    /// ConfigMaps, Secrets and Services.
    pub(crate) companions: usize,
    /// Claims, also those that are kept.
    pub(crate) claims: usize,
    /// Nothing is known of it, so nothing exists, but for claims that are kept and their namespaces.
    pub(crate) empty: bool,
}

/// Where a pod of a consumer runs.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    /// Its namespace here.
    pub(crate) namespace: Arc<str>,
}

enum Command {
    Connected { cluster: ClusterId, peering: String, stream: StreamId, outbox: Outbox },
    Frame { cluster: ClusterId, stream: StreamId, frame: ConsumerFrame, handled: oneshot::Sender<bool> },
    Disconnected { cluster: ClusterId, stream: StreamId },
    End { cluster: ClusterId },
    Summary { cluster: ClusterId, reply: oneshot::Sender<Summary> },
    Locate { cluster: ClusterId, set: SetRef, pod: Key, reply: oneshot::Sender<Option<Located>> },
    Roster { reply: oneshot::Sender<Roster> },
}

/// What waits for its turn to be asked of the API server. A task for each would hold several kilobytes meanwhile, between
/// which the heap never becomes whole again.
#[derive(Debug)]
enum Due {
    Status { stream: StreamId, namespace: Arc<str>, target: Ref },
    Step { target: Ref, step: Step, held: usize },
}

/// What a spawned request came back with.
enum Answer {
    /// `made_on` is the digest of what this cluster would have put into the object.
    Done {
        cluster: ClusterId,
        target: Ref,
        held: usize,
        made_on: Option<Hash>,
        outcome: Outcome,
    },
    Status {
        cluster: ClusterId,
        stream: StreamId,
        target: Ref,
        status: Option<(StatusFound, Value)>,
    },
}

impl Answer {
    /// That of a step that was not even asked of the API server.
    fn not_begun(cluster: ClusterId, target: Ref, held: usize, outcome: Outcome) -> Self {
        Self::Done { cluster, target, held, made_on: None, outcome }
    }
}

/// The handle to the actor.
#[derive(Debug, Clone)]
pub(crate) struct Shadows {
    commands: mpsc::Sender<Command>,
}

impl Shadows {
    /// Starts the actor.
    pub(crate) fn start(
        client: Client,
        policy: Policy,
        consumers: Arc<Consumers>,
        book: Book,
        classes: watch::Receiver<Option<StorageClasses>>,
        metrics: Metrics,
        ready: Part,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let (answers, answered) = mpsc::unbounded_channel();
        let actor = Actor {
            client,
            policy: Arc::new(policy),
            consumers,
            book,
            classes,
            metrics,
            lent: BTreeMap::new(),
            walls: Walls::default(),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            last_turn: None,
            answers,
            unlisted: Source::all(),
            ready,
        };
        (Self { commands }, actor.run(queue, answered))
    }

    /// A consumer has opened a stream under the peering it was authorized for; an earlier one of it ends.
    pub(crate) async fn connected(
        &self,
        cluster: ClusterId,
        peering: String,
        stream: StreamId,
        outbox: Outbox,
    ) {
        self.send(Command::Connected { cluster, peering, stream, outbox }).await;
    }

    /// A frame has come; returns whether the stream is still the current one. Waits while too many bodies of this
    /// consumer are held.
    pub(crate) async fn frame(&self, cluster: ClusterId, stream: StreamId, frame: ConsumerFrame) -> bool {
        let (handled, done) = oneshot::channel();
        self.send(Command::Frame { cluster, stream, frame, handled }).await;
        done.await.unwrap_or(false)
    }

    /// The stream is lost.
    pub(crate) async fn disconnected(&self, cluster: ClusterId, stream: StreamId) {
        self.send(Command::Disconnected { cluster, stream }).await;
    }

    /// Removes everything of a consumer, on purpose.
    pub(crate) async fn end(&self, cluster: ClusterId) {
        self.send(Command::End { cluster }).await;
    }

    /// What exists of a consumer.
    pub(crate) async fn summary(&self, cluster: &ClusterId) -> Summary {
        let (reply, summary) = oneshot::channel();
        self.send(Command::Summary { cluster: cluster.clone(), reply }).await;
        summary.await.unwrap_or_default()
    }

    /// Where a pod (by its names at home) of the virtual node `set` runs, if it does.
    pub(crate) async fn locate(&self, cluster: ClusterId, set: SetRef, pod: Key) -> Option<Located> {
        let (reply, located) = oneshot::channel();
        self.send(Command::Locate { cluster, set, pod, reply }).await;
        located.await.ok().flatten()
    }

    /// Which pods here are whose, of those that are bound to a node.
    pub(crate) async fn roster(&self) -> Roster {
        let (reply, roster) = oneshot::channel();
        self.send(Command::Roster { reply }).await;
        roster.await.unwrap_or_default()
    }

    async fn send(&self, command: Command) {
        // The actor lives as long as the process; without it there is nothing to be told.
        drop(self.commands.send(command).await);
    }
}

/// What is kept of one consumer.
#[derive(Debug, Default)]
struct Lent {
    provider: Provider,
    stream: Option<(StreamId, Outbox)>,
    /// UID of the `Peer` the stream was opened under.
    peering: String,
    namespaces: NamespaceNames,
    /// Those it has given up, and that are kept for the claims in them.
    kept: NamespaceNames,
    /// What is due, in the order it came.
    due: VecDeque<Due>,
    /// Pods and claims whose status is due or being read, for a stream: what was read for an earlier one is of no use to the next.
    reading: BTreeSet<(StreamId, Ref)>,
    /// Nodes that pods are bound to, by their UIDs here.
    hosts: BTreeMap<Uid, Arc<str>>,
    /// Digests of what this cluster puts into objects of a kind, once they are known.
    terms: BTreeMap<Kind, Hash>,
    /// And of what it has put into those there are.
    made_on: BTreeMap<(SetRef, Key), Hash>,
    /// Where policies of this cluster's own decide, by the names of namespaces at home.
    walled: BTreeMap<Arc<str>, Walled>,
    /// What its pods ask for, and what it may have.
    ledger: Ledger,
    limits: Limits,
    /// What its virtual nodes are offered, if it negotiates.
    slices: Option<Arc<Slices>>,
    /// Bytes of bodies on their way to the API server.
    held: usize,
    /// Frames whose senders wait until less is held.
    waiting: Vec<oneshot::Sender<bool>>,
}

impl Lent {
    /// Name here of the namespace of an object. Claims outlive the offloading of theirs.
    fn namespace(&self, set: &SetRef, home: &str) -> Option<Arc<str>> {
        let kept = || self.kept.get(home).filter(|_| set.kind == Kind::PersistentVolumeClaim);
        self.namespaces.get(home).or_else(kept).cloned()
    }

    /// That for a step. What else is left in a namespace that is kept for its claims is removed from it; nothing new begins there.
    fn namespace_for(&self, set: &SetRef, home: &str, step: &Step) -> Option<Arc<str>> {
        let begins = matches!(step, Step::Store { .. } | Step::Start);
        self.namespace(set, home).or_else(|| self.kept.get(home).filter(|_| !begins).cloned())
    }

    /// Remembers which node a pod is bound to.
    fn host(&mut self, pod: &Result<Instance, Deleted>, node: Option<&str>) {
        match (pod, node) {
            (Ok(instance), Some(node))
                if self.hosts.get(&instance.object).is_none_or(|known| **known != *node) =>
            {
                self.hosts.insert(instance.object.clone(), Arc::from(node));
            }
            (Ok(_), _) => {}
            (Err(gone), _) => drop(self.hosts.remove(&gone.object)),
        }
    }

    /// It may have this from now on.
    fn bound(&mut self, limits: Limits) {
        if self.limits != limits {
            self.limits = limits;
            self.ledger.limits_changed();
        }
    }

    /// Where pods of a virtual node may run.
    fn placement(&self, set: &SetRef) -> Placement {
        let slices = self.slices.as_ref().filter(|_| set.kind == Kind::Pod);
        let slice = slices.and_then(|slices| slices.get(&set.scope));
        slice.map(|slice| slice.request.placement.clone()).unwrap_or_default()
    }

    /// Brings the share of a pod in line with what is known of it.
    fn settle(&mut self, set: &SetRef, key: &Key) {
        let at = (set.clone(), key.clone());
        let Some((record, instance)) = self.provider.get(set, key) else { return self.ledger.forget(&at) };
        let ended = |record: &Record| {
            record.finished || instance.is_some_and(|pod| pod.finished && pod.home == record.home)
        };
        let (record, instance) =
            (record.is_some_and(|r| !ended(r)), instance.is_some_and(|pod| !pod.finished));
        self.ledger.keep(&at, record, instance);
    }

    /// This is put into objects of a kind from now on: those that hold something else are made anew.
    fn renew(&mut self, terms: BTreeMap<Kind, Hash>) {
        if self.terms == terms {
            return;
        }
        let earlier = std::mem::replace(&mut self.terms, terms);
        let terms = self.terms.clone();
        self.remake(|set| earlier.get(&set.kind) != terms.get(&set.kind));
    }

    /// Something else is put into objects of these sets by now.
    fn remake(&mut self, which: impl Fn(&SetRef) -> bool) {
        let outdated: Vec<_> = self
            .provider
            .objects()
            .filter(|(set, key, ..)| which(set) && self.is_outdated(set, key))
            .filter_map(|(set, key, record, _)| Some((set.clone(), key.clone(), record?.clone())))
            .collect();
        for (set, key, mut record) in outdated {
            outdate(&mut record);
            self.provider.record_changed(&set, &key, Ok(record));
        }
        // What was refused before may be taken now.
        self.provider.wake(|set, _| which(set));
    }

    /// Whether something else was put into an object than would be by now.
    fn is_outdated(&self, set: &SetRef, key: &Key) -> bool {
        let Some(terms) = self.terms_of(set) else { return false };
        self.made_on.get(&(set.clone(), key.clone())) != Some(&terms)
    }

    /// Digest of what is put into objects of a set by now, if anything.
    fn terms_of(&self, set: &SetRef) -> Option<Hash> {
        self.terms.get(&set.kind).map(|terms| self.walled(set).mixed(*terms))
    }

    /// Where policies of this cluster's own go before those of this set.
    fn walled(&self, set: &SetRef) -> Walled {
        match set.kind {
            Kind::NetworkPolicy => self.walled.get(&set.scope).copied().unwrap_or_default(),
            _ => Walled::default(),
        }
    }

    /// In this namespace (by its name at home) policies of this cluster's own decide so.
    fn wall(&mut self, namespace: Arc<str>, walled: Walled) {
        if self.walled.insert(namespace.clone(), walled).unwrap_or_default() != walled {
            self.remake(|set| set.kind == Kind::NetworkPolicy && set.scope == namespace);
        }
    }

    /// A companion is there, or not any more; `made_on` is the digest of what was put into it.
    fn companion(&mut self, mut owned: Owned<Result<Record, Deleted>>, made_on: Option<Hash>) {
        let at = (owned.set.clone(), owned.key.clone());
        match made_on.filter(|_| owned.what.is_ok()) {
            Some(made_on) => drop(self.made_on.insert(at, made_on)),
            None => drop(self.made_on.remove(&at)),
        }
        if let Ok(record) = &mut owned.what
            && self.is_outdated(&owned.set, &owned.key)
        {
            outdate(record);
        }
        self.provider.record_changed(&owned.set, &owned.key, owned.what);
    }

    /// Tells the consumer of a policy that opens less here than it says.
    fn tell_of_walls(&self, target: &Ref, outcome: &Outcome) {
        let walled = self.walled(&target.set);
        let (Outcome::Stored(record), Some((_, outbox))) = (outcome, &self.stream) else { return };
        if !walled.any() {
            return;
        }
        let now = Timestamp::now().to_string();
        let warning = Warning {
            reason: "PolicyOverruled".to_owned(),
            message: format!(
                "the provider has NetworkPolicies of its own for the namespace: for {} these alone say who may talk, and this one only closes",
                walled.directions()
            ),
            count: 1,
            first: now.clone(),
            last: now,
            field_path: None,
            component: "liquid-controller".to_owned(),
        };
        let id = Uid::from(walled.mixed(Hash::of(record.object.as_str().as_bytes())).to_string().as_str());
        outbox.push(ProviderFrame::Warning { target: target.clone(), id, warning: Box::new(warning) }.into());
    }

    /// A step of a pod is over.
    fn account(&mut self, target: &Ref, outcome: &Outcome) {
        let at = (target.set.clone(), target.key.clone());
        match outcome {
            Outcome::Stored(_) | Outcome::Found { record: Some(_), .. } => self.ledger.stored(&at),
            // It may have been stored all the same: what was reserved stays so until that is known.
            Outcome::Failed(refusal) if refusal.reason == UNAVAILABLE => {}
            Outcome::Failed(_)
            | Outcome::Found { record: None, .. }
            | Outcome::Done
            | Outcome::Outdated
            | Outcome::Running(_) => {
                self.ledger.released(&at);
            }
        }
    }

    /// Lets pods have another try for which there was no room, and is by now.
    fn make_room(&mut self) {
        let fitting = self.ledger.fitting(&self.limits);
        if !fitting.is_empty() {
            self.provider.wake(|set, key| fitting.contains(&(set.clone(), key.clone())));
        }
    }

    /// Adds its pods that are bound to a node.
    fn enroll(&self, cluster: &ClusterId, roster: &mut Roster) {
        for (set, key, _, instance) in self.provider.objects() {
            let Some(instance) = instance else { continue };
            let (Some(host), Some(namespace)) =
                (self.hosts.get(&instance.object), self.namespaces.get(&key.namespace))
            else {
                continue;
            };
            let placed = Placed {
                cluster: cluster.clone(),
                virtual_node: set.scope.clone(),
                home: key.clone(),
                uid: instance.home.clone(),
                object: instance.object.clone(),
            };
            roster.insert(namespace.clone(), key.name.clone(), placed, host.clone());
        }
    }
}

struct Actor {
    client: Client,
    policy: Arc<Policy>,
    consumers: Arc<Consumers>,
    /// What the virtual nodes of consumers are offered.
    book: Book,
    classes: watch::Receiver<Option<StorageClasses>>,
    metrics: Metrics,
    lent: BTreeMap<ClusterId, Lent>,
    /// NetworkPolicies of this cluster's own.
    walls: Walls,
    requests: Arc<Semaphore>,
    /// Whose turn it was last.
    last_turn: Option<ClusterId>,
    answers: mpsc::UnboundedSender<Answer>,
    /// Lists that have not been read yet; until then the state machines only listen.
    unlisted: BTreeSet<Source>,
    ready: Part,
}

impl Actor {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        mut answered: mpsc::UnboundedReceiver<Answer>,
    ) {
        let mut news = watch_all(&self.client);
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        let mut peers = self.consumers.subscribe();
        let mut offers = self.book.changes();
        loop {
            let timeout = self.lent.values().filter_map(|lent| lent.provider.poll_timeout()).min();
            let loaded = self.unlisted.is_empty();
            tokio::select! {
                biased;
                Some(answer) = answered.recv() => self.answer(answer),
                Some(item) = news.next() => self.news(item),
                Ok(()) = peers.changed() => self.peers_changed(),
                Ok(()) = offers.changed() => self.offers_changed(),
                command = queue.recv(), if loaded => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                _ = report.tick() => {
                    for (cluster, lent) in &self.lent {
                        let name = self.consumers.get(cluster).map(|consumer| consumer.name);
                        self.metrics.shadows(&name.unwrap_or_else(|| cluster.to_string()), summary(lent));
                    }
                }
                () = until(timeout) => {
                    let now = Instant::now();
                    for cluster in self.clusters() {
                        self.with(&cluster, |lent| lent.provider.handle_timeout(now));
                    }
                }
            }
        }
    }

    /// What some of them are offered has changed: for each consumer that is its own affair.
    fn offers_changed(&mut self) {
        for cluster in self.clusters() {
            let Some(consumer) = self.consumers.get(&cluster) else { continue };
            let slices = self.book.slices(&consumer.id, &consumer.peering);
            let known = self.lent.get(&cluster).and_then(|lent| lent.slices.as_ref());
            let same = match (known, &slices) {
                (Some(known), Some(slices)) => Arc::ptr_eq(known, slices),
                (known, slices) => known.is_none() && slices.is_none(),
            };
            if !same {
                let limits = limits(&consumer, slices.as_deref());
                self.with(&cluster, |lent| {
                    lent.slices = slices;
                    lent.bound(limits);
                });
            }
        }
    }

    /// Peers have changed. Ends the streams of peerings that are over: what still comes over them counts for nothing.
    fn peers_changed(&mut self) {
        for cluster in self.clusters() {
            let consumer = self.consumers.get(&cluster);
            let slices = consumer.as_ref().and_then(|known| self.book.slices(&known.id, &known.peering));
            let limits = consumer.as_ref().map(|known| limits(known, slices.as_deref())).unwrap_or_default();
            self.with(&cluster, |lent| {
                lent.slices = slices;
                lent.bound(limits);
                // Of a consumer whose `Peer` is gone or not read yet, nothing is made anew.
                if let Some(consumer) = &consumer {
                    let terms = Kind::COMPANIONS.into_iter();
                    lent.renew(terms.filter_map(|kind| Some((kind, terms_of(kind, consumer)?))).collect());
                }
                let current = consumer.is_some_and(|c| !c.ending && c.peering == lent.peering);
                if !current && let Some((_, outbox)) = lent.stream.take() {
                    outbox.close(Status::permission_denied("the provider has ended the peering"));
                    lent.waiting.clear();
                    lent.provider.disconnected();
                }
            });
        }
    }

    fn clusters(&self) -> Vec<ClusterId> {
        self.lent.keys().cloned().collect()
    }

    /// Changes the state of one consumer and carries out what follows from it.
    fn with<T>(&mut self, cluster: &ClusterId, change: impl FnOnce(&mut Lent) -> T) -> T {
        let lent = self.lent(cluster);
        let result = change(lent);
        lent.make_room();
        self.drain(cluster, None);
        result
    }

    fn lent(&mut self, cluster: &ClusterId) -> &mut Lent {
        let loaded = self.unlisted.is_empty();
        if !self.lent.contains_key(cluster) {
            let consumer = self.consumers.get(cluster);
            let slices = consumer.as_ref().and_then(|known| self.book.slices(&known.id, &known.peering));
            let lent = Lent {
                provider: if loaded { Provider::default() } else { Provider::paused() },
                limits: consumer.map(|known| limits(&known, slices.as_deref())).unwrap_or_default(),
                slices,
                ..Lent::default()
            };
            self.lent.insert(cluster.clone(), lent);
        }
        self.lent.entry(cluster.clone()).or_default()
    }

    fn news(&mut self, news: News) {
        match news {
            News::Namespace(owned, name) => {
                let home = owned.key.name.clone();
                let walled = self.walls.of(&name);
                let kept = owned.what.as_ref().is_ok_and(|record| record.hold == Hold::Retired);
                let usable = !kept && owned.what.as_ref().is_ok_and(|record| !record.terminating);
                self.with(&owned.cluster, |lent| {
                    lent.namespaces.remove(&home);
                    lent.kept.remove(&home);
                    if owned.what.is_ok() {
                        let names = if kept { &mut lent.kept } else { &mut lent.namespaces };
                        names.insert(home.clone(), name);
                    }
                    if owned.what.is_ok() && !kept {
                        lent.wall(home.clone(), walled);
                    } else {
                        lent.walled.remove(&home);
                    }
                    lent.provider.record_changed(&owned.set, &owned.key, owned.what);
                    if usable {
                        lent.provider.wake(|set, key| set.kind != Kind::Namespace && key.namespace == home);
                    }
                });
            }
            News::Companion(owned, made_on) => {
                let cluster = owned.cluster.clone();
                self.with(&cluster, |lent| lent.companion(owned, made_on));
            }
            News::Shadow(owned, demand) => {
                self.with(&owned.cluster, |lent| {
                    if owned.what.is_ok() {
                        lent.ledger.recorded(&(owned.set.clone(), owned.key.clone()), demand);
                    }
                    lent.provider.record_changed(&owned.set, &owned.key, owned.what);
                    lent.settle(&owned.set, &owned.key);
                });
            }
            News::Pod(owned, seen) => {
                let lent = self.lent(&owned.cluster);
                lent.host(&owned.what, seen.as_ref().and_then(|seen| seen.host.as_deref()));
                let demand = seen.as_ref().map(|seen| seen.demand.clone());
                if let Some(demand) = demand.filter(|_| owned.what.is_ok()) {
                    lent.ledger.running(&(owned.set.clone(), owned.key.clone()), demand);
                }
                let fresh = match (&owned.what, seen.and_then(|seen| seen.status)) {
                    (Ok(instance), Some(status)) => Some((owned.key.clone(), instance.clone(), status)),
                    _ => None,
                };
                lent.provider.instance_changed(&owned.set, &owned.key, owned.what);
                lent.settle(&owned.set, &owned.key);
                lent.make_room();
                self.drain(&owned.cluster, fresh);
            }
            News::Claim(owned, demand) => {
                self.with(&owned.cluster, |lent| {
                    if owned.what.is_ok() {
                        lent.ledger.recorded(&(owned.set.clone(), owned.key.clone()), demand);
                    }
                    lent.provider.record_changed(&owned.set, &owned.key, owned.what);
                    lent.settle(&owned.set, &owned.key);
                });
            }
            News::Warned(warned) => self.warn(warned),
            News::Wall(change) => {
                let listed = matches!(change, Change::Listed(_));
                for namespace in self.walls.learn(change) {
                    self.wall(&namespace);
                }
                if listed && self.unlisted.remove(&Source::Walls) && self.unlisted.is_empty() {
                    self.loaded();
                }
            }
            News::Listed(source, seen) if self.unlisted.is_empty() => self.relisted(source, &seen),
            News::Listed(source, _) => {
                self.unlisted.remove(&source);
                if self.unlisted.is_empty() {
                    self.loaded();
                }
            }
        }
    }

    /// This cluster's own policies in a namespace (by its name here) have changed.
    fn wall(&mut self, namespace: &str) {
        let walled = self.walls.of(namespace);
        for cluster in self.clusters() {
            self.with(&cluster, |lent| {
                let home = lent.namespaces.iter().find(|(_, here)| ***here == *namespace);
                if let Some(home) = home.map(|(home, _)| home.clone()) {
                    lent.wall(home, walled);
                }
            });
        }
    }

    /// Passes a warning about a pod or a claim on to the consumer it belongs to.
    fn warn(&mut self, warned: Warned) {
        let found = self.lent.values().find_map(|lent| {
            let (_, outbox) = lent.stream.as_ref()?;
            let home = lent.namespaces.iter().find(|(_, here)| ***here == *warned.namespace)?.0;
            let key = Key::new(home, &warned.name);
            let (set, object, uid) = match warned.kind {
                Kind::PersistentVolumeClaim => {
                    let set = SetRef::claims();
                    let record = lent.provider.get(&set, &key)?.0?;
                    (set, &record.object, &record.home)
                }
                _ => {
                    let (set, instance) = lent.provider.instance(&key)?;
                    (set.clone(), &instance.object, &instance.home)
                }
            };
            let target = Ref { set, uid: uid.clone(), key };
            (*object == warned.object).then_some((outbox, target))
        });
        if let Some((outbox, target)) = found {
            let Warned { id, warning, .. } = warned;
            outbox.push(ProviderFrame::Warning { target, id, warning: Box::new(warning) }.into());
        }
    }

    /// All lists have been read: what runs is judged now.
    fn loaded(&mut self) {
        info!(consumers = self.lent.len(), "shadows loaded");
        for cluster in self.clusters() {
            self.with(&cluster, |lent| lent.provider.resume());
        }
        self.ready.ready();
    }

    /// A list was read anew after an interruption: what is known and not in it is looked at.
    fn relisted(&mut self, source: Source, seen: &BTreeSet<(String, String)>) {
        for cluster in self.clusters() {
            let lent = self.lent(&cluster);
            let (names, kept) = (lent.namespaces.clone(), lent.kept.clone());
            let name_of = |home: &Arc<str>| names.get(home).or_else(|| kept.get(home));
            let listed = |set: &SetRef, key: &Key| {
                let here = match set.kind.role() {
                    Role::Namespace => name_of(&key.name).map(|name| (String::new(), name.to_string())),
                    Role::Pod | Role::Companion | Role::Claim => {
                        name_of(&key.namespace).map(|ns| (ns.to_string(), key.name.to_string()))
                    }
                };
                here.is_some_and(|here| seen.contains(&here))
            };
            let missing: Vec<_> = lent
                .provider
                .objects()
                .filter(|(set, key, record, instance)| {
                    let known = match source {
                        Source::Namespaces => set.kind == Kind::Namespace && record.is_some(),
                        Source::Shadows => set.kind == Kind::Pod && record.is_some(),
                        Source::Pods => instance.is_some(),
                        Source::Claims => set.kind == Kind::PersistentVolumeClaim && record.is_some(),
                        Source::Companions(kind) => set.kind == kind && record.is_some(),
                        Source::Walls => false,
                    };
                    known && !listed(set, key)
                })
                .map(|(set, key, _, _)| (set.clone(), key.clone()))
                .collect();
            if source == Source::Pods {
                let known: BTreeSet<&Uid> = lent
                    .provider
                    .objects()
                    .filter_map(|(_, _, _, instance)| Some(&instance?.object))
                    .collect();
                lent.hosts.retain(|pod, _| known.contains(pod));
            }
            if !missing.is_empty() {
                debug!(%cluster, ?source, objects = missing.len(), "not in the list; looking at them");
            }
            lent.provider.relisted(missing);
            self.drain(&cluster, None);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Connected { cluster, peering, stream, outbox } => {
                self.with(&cluster, |lent| {
                    if let Some((_, earlier)) = lent.stream.take() {
                        earlier.close(Status::aborted("a newer stream of this cluster took over"));
                    }
                    lent.stream = Some((stream, outbox));
                    lent.peering = peering;
                    lent.provider.connected();
                });
                // It may have ended between its authorization and now.
                self.peers_changed();
            }
            Command::Frame { cluster, stream, frame, handled } => self.with(&cluster, |lent| {
                let current = lent.stream.as_ref().is_some_and(|(id, _)| *id == stream);
                if !current {
                    let _ = handled.send(false);
                    return;
                }
                lent.provider.received(frame);
                // The stream is read on when this frame's sender is answered.
                lent.waiting.push(handled);
            }),
            Command::Disconnected { cluster, stream } => self.with(&cluster, |lent| {
                if lent.stream.as_ref().is_some_and(|(id, _)| *id == stream) {
                    lent.stream = None;
                    lent.provider.disconnected();
                }
            }),
            Command::End { cluster } => self.with(&cluster, |lent| lent.provider.end()),
            Command::Summary { cluster, reply } => {
                let summary = self.lent.get(&cluster).map(summary);
                let _ = reply.send(summary.unwrap_or(Summary { empty: true, ..Summary::default() }));
            }
            Command::Locate { cluster, set, pod, reply } => {
                drop(reply.send(self.lent.get(&cluster).and_then(|lent| locate(lent, &set, &pod))));
            }
            Command::Roster { reply } => {
                let mut roster = Roster::default();
                for (cluster, lent) in &self.lent {
                    lent.enroll(cluster, &mut roster);
                }
                let _ = reply.send(roster);
            }
        }
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Done { cluster, target, held, made_on, mut outcome } => {
                if let Outcome::Failed(refusal) = &outcome {
                    self.metrics.steps_failed(&refusal.reason);
                    debug!(%cluster, key = %target.key, reason = %refusal.reason, message = %refusal.message, "step failed");
                }
                let entropy = entropy();
                self.with(&cluster, |lent| {
                    lent.held = lent.held.saturating_sub(held);
                    lent.tell_of_walls(&target, &outcome);
                    // Terms may have changed while it was made; the watch may have said so before this answer.
                    if let (Outcome::Stored(record), Some(terms)) = (&mut outcome, lent.terms_of(&target.set))
                        && made_on != Some(terms)
                    {
                        outdate(record);
                    }
                    if counts(target.set.kind) {
                        lent.account(&target, &outcome);
                    }
                    lent.provider.done(&target, outcome, Instant::now(), entropy);
                    if counts(target.set.kind) {
                        lent.settle(&target.set, &target.key);
                    }
                });
            }
            Answer::Status { cluster, stream, target, status } => self.with(&cluster, |lent| {
                lent.reading.remove(&(stream, target.clone()));
                let Some((_, outbox)) = lent.stream.clone().filter(|(id, _)| *id == stream) else { return };
                let Some((found, status)) = status else {
                    // A stream begins with what the consumer has, so nothing is lost.
                    outbox.close(Status::unavailable("the API server does not answer"));
                    return;
                };
                if let Some((hash, interim)) = lent.provider.status_read(&target, found) {
                    let shown = shown(&target.set, &status, interim, lent.provider.prefixes());
                    send_status(&outbox, target, hash, &shown);
                }
            }),
        }
    }

    /// Carries out what the state machine asks for. `fresh` is the status of the pod this was about, at hand.
    fn drain(&mut self, cluster: &ClusterId, fresh: Option<(Key, Instance, Value)>) {
        let Some(lent) = self.lent.get_mut(cluster) else { return };
        while let Some(action) = lent.provider.poll_action() {
            match action {
                Action::Send(frame) => {
                    if let Some((_, outbox)) = &lent.stream {
                        outbox.push(frame.into());
                    }
                }
                Action::SendStatus { target, hash, interim } => {
                    let Some((stream, outbox)) = lent.stream.clone() else { continue };
                    let prefixes = lent.provider.prefixes();
                    let at_hand = fresh.as_ref().filter(|(key, instance, _)| {
                        let shown = if interim { instance.interim } else { instance.status };
                        target.set.kind.has_instance()
                            && *key == target.key
                            && shown.map(|status| status.seen(prefixes)) == Some(hash)
                    });
                    match at_hand {
                        Some((_, _, status)) => {
                            let shown = shown(&target.set, status, interim, prefixes);
                            send_status(&outbox, target, hash, &shown);
                        }
                        None => {
                            let namespace = lent.namespace(&target.set, &target.key.namespace);
                            let Some(namespace) = namespace else { continue };
                            // What is read is compared with what is known by then.
                            if lent.reading.insert((stream, target.clone())) {
                                lent.due.push_back(Due::Status { stream, namespace, target });
                            }
                        }
                    }
                }
                Action::Run { target, step } => {
                    if answerable(&self.consumers, cluster, &target, &step).is_none() {
                        let cluster = cluster.clone();
                        drop(self.answers.send(Answer::not_begun(cluster, target, 0, no_peer())));
                        continue;
                    }
                    let held = if let Step::Store { body, .. } = &step { body.len() } else { 0 };
                    let demand = match (&step, target.set.kind) {
                        (Step::Store { body, .. }, Kind::Pod) => Some(body_demand(body)),
                        (Step::Store { body, .. }, Kind::PersistentVolumeClaim) => {
                            Some(claims::body_demand(body))
                        }
                        _ => None,
                    };
                    let refused = match demand {
                        None => None,
                        Some(Err(refusal)) => Some(refusal),
                        Some(Ok(demand)) => {
                            let at = (target.set.clone(), target.key.clone());
                            let short = lent.ledger.admit(&at, demand, &lent.limits).err();
                            short.map(|short| Refusal {
                                reason: short.reason().to_owned(),
                                message: short.to_string(),
                            })
                        }
                    };
                    if let Some(refusal) = refused {
                        let (cluster, outcome) = (cluster.clone(), Outcome::Failed(refusal));
                        drop(self.answers.send(Answer::not_begun(cluster, target, 0, outcome)));
                        continue;
                    }
                    lent.held += held;
                    lent.due.push_back(Due::Step { target, step, held });
                }
            }
        }
        if lent.held <= MAX_HELD {
            for sender in lent.waiting.drain(..) {
                let _ = sender.send(true);
            }
        }
        self.begin();
    }

    /// Begins what is due, as far as requests may be under way: of each consumer one, in turn.
    fn begin(&mut self) {
        while let Ok(permit) = self.requests.clone().try_acquire_owned() {
            let after = self.last_turn.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut others = self.lent.range::<ClusterId, _>((after, Bound::Unbounded)).chain(&self.lent);
            let next = others.find(|(_, lent)| !lent.due.is_empty()).map(|(cluster, _)| cluster.clone());
            let Some(cluster) = next else { return };
            let Some(lent) = self.lent.get_mut(&cluster) else { return };
            let Some(due) = lent.due.pop_front() else { return };
            self.last_turn = Some(cluster.clone());
            let (client, answers) = (self.client.clone(), self.answers.clone());
            match due {
                Due::Status { stream, namespace, target } => {
                    if lent.stream.as_ref().is_none_or(|(id, _)| *id != stream) {
                        lent.reading.remove(&(stream, target));
                        continue;
                    }
                    tokio::spawn(async move {
                        let status = read_status(&client, &namespace, &target).await;
                        drop(permit);
                        // The actor is gone only when the process ends.
                        drop(answers.send(Answer::Status { cluster, stream, target, status }));
                    });
                }
                Due::Step { target, step, held } => {
                    let Some(consumer) = answerable(&self.consumers, &cluster, &target, &step) else {
                        drop(answers.send(Answer::not_begun(cluster, target, held, no_peer())));
                        continue;
                    };
                    let walled = lent.walled(&target.set);
                    let made_on = mixed_terms(target.set.kind, &consumer, walled);
                    let job = Job {
                        client,
                        policy: self.policy.clone(),
                        classes: self.classes.clone(),
                        placement: lent.placement(&target.set),
                        consumer,
                        namespace: lent.namespace_for(&target.set, &target.key.namespace, &step),
                        walled,
                        target: target.clone(),
                        step,
                    };
                    tokio::spawn(async move {
                        let outcome = job.run().await;
                        drop(permit);
                        drop(answers.send(Answer::Done { cluster, target, held, made_on, outcome }));
                    });
                }
            }
        }
    }
}

/// For whom a step is carried out; for nobody, if its `Peer` is gone by force, or not read yet: what runs keeps running, and
/// nothing is begun. A namespace that was kept, and in which nothing is left, waits for nobody.
fn answerable(consumers: &Consumers, cluster: &ClusterId, target: &Ref, step: &Step) -> Option<Consumer> {
    let nobody = matches!((target.set.kind, step), (Kind::Namespace, Step::Reclaim { .. }));
    consumers.get(cluster).or_else(|| nobody.then(|| Consumer::gone(cluster)))
}

fn no_peer() -> Outcome {
    let message = "there is no Peer for this consumer".to_owned();
    Outcome::Failed(Refusal { reason: "NoPeer".to_owned(), message })
}

/// Whether objects of this kind take a share of what is lent.
fn counts(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::PersistentVolumeClaim)
}

/// What is stored is not what would be stored by now: the body is asked for, and stored anew.
fn outdate(record: &mut Record) {
    record.hash = Hash::of(b"made on other terms");
}

fn summary(lent: &Lent) -> Summary {
    let mut summary = Summary { empty: lent.provider.is_empty(), ..Summary::default() };
    for (set, key, record, instance) in lent.provider.objects() {
        let exists = usize::from(record.is_some() || instance.is_some());
        match set.kind.role() {
            Role::Namespace if lent.provider.is_kept(set, key) => {}
            Role::Namespace => summary.namespaces += exists,
            Role::Pod => summary.pods += exists,
            Role::Claim => summary.claims += exists,
            Role::Companion => summary.companions += exists,
        }
    }
    summary
}

/// What a consumer may have now.
fn limits(consumer: &Consumer, slices: Option<&Slices>) -> Limits {
    let nodes = slices.map(|slices| {
        let accepted = slices.iter().filter(|(_, slice)| slice.state == SliceState::Accepted);
        accepted.map(|(name, slice)| (name.clone(), slice.limits())).collect()
    });
    Limits { whole: consumer.limits(), nodes }
}

fn locate(lent: &Lent, set: &SetRef, pod: &Key) -> Option<Located> {
    let namespace = lent.namespaces.get(&pod.namespace)?.clone();
    lent.provider.runs(set, pod).then_some(Located { namespace })
}

/// What the consumer is shown of a status: its own view of the pod's addresses, and that the pod has not ended if another
/// one takes its place. That of a claim has neither.
fn shown(set: &SetRef, status: &Value, interim: bool, prefixes: &Prefixes) -> Value {
    if !set.kind.has_instance() {
        return status.clone();
    }
    let mut shown = if interim { interim_status(status) } else { status.clone() };
    let seen: Vec<_> = pod_addresses(status).filter_map(|address| prefixes.seen(address)).collect();
    set_pod_addresses(&mut shown, &seen);
    shown
}

fn send_status(outbox: &Outbox, target: Ref, hash: Hash, status: &Value) {
    match serde_json::to_vec(status) {
        Ok(body) => {
            let frame = ProviderFrame::Status { target, hash, body: Bytes::from(body) };
            outbox.push(frame.into());
        }
        Err(error) => error!(%error, "a status cannot be written as JSON"),
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a peering retires a namespace while its pods are still ending.
    #[test]
    fn what_is_left_in_a_namespace_that_is_kept_is_removed_and_nothing_begins_there() {
        let mut lent = Lent::default();
        lent.kept.insert("shop".into(), "shop-turin".into());
        let (pods, uid) = (SetRef::pods("liquid-milan"), Uid::from("u1"));
        let stop = Step::Stop { object: uid.clone(), grace: None };
        for step in [Step::Erase(uid), stop, Step::Look] {
            assert_eq!(lent.namespace_for(&pods, "shop", &step).as_deref(), Some("shop-turin"), "{step:?}");
        }
        assert_eq!(lent.namespace_for(&pods, "shop", &Step::Start), None);
        assert!(lent.namespace_for(&SetRef::claims(), "shop", &Step::Start).is_some());
        assert_eq!(lent.namespace_for(&pods, "bank", &Step::Look), None);
    }
}
