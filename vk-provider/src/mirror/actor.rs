//! The task that owns the state machine of one provider.

use super::claims::{Claims, Unresolved};
use super::companions::{self, Asked, Companions, Effect, Network};
use super::home::{Finished, Home};
use super::link::{Dialing, Link, LinkEvent, Provider, keep};
use super::warnings::Warnings;
use crate::api_server::Callers;
use crate::metrics::Metrics;
use crate::neighbours::Neighbours;
use crate::request::within;
use crate::status::{self, Seen};
use crate::translate::{self, Access};
use crate::volumes::Volumes;
use bytes::Bytes;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::runtime::events::Recorder;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::Reflection;
use liquid_link::digest::Hash;
use liquid_link::proto;
use liquid_reflection::consumer::Action;
use liquid_reflection::frame::{ConsumerFrame, Ref, Refusal, Wanted};
use liquid_reflection::{Consumer, Key, Kind, Role, SetRef, Uid};
use liquid_runtime::backoff::{Backoff, entropy};
use liquid_runtime::watch::{Change, changes_of};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

/// Commands that wait for the actor.
const COMMAND_QUEUE: usize = 64;
/// Changes of pods that wait for the actor; beyond that the watch waits, and the API server with it.
const CHANGE_QUEUE: usize = 256;
/// Pause after a pod could not be read. At most [`liquid_reflection::consumer::WINDOW`] of them wait for it.
const READ_RETRY: Duration = Duration::from_millis(200);
const READ_RETRY_CAP: Duration = Duration::from_secs(30);
/// How often the numbers of objects are counted for the metrics.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Longest time until the clock is looked at again: it may be set, and the timer does not know.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// A namespace the provider shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedNamespace {
    /// UID of the `NamespaceOffloading`: a namespace offloaded anew is another one.
    pub(crate) uid: String,
    /// Its name in the provider.
    pub(crate) remote: String,
    /// What else of it the provider shall have.
    pub(crate) reflection: Reflection,
    /// It is to be given up, as soon as no pod of it is left.
    pub(crate) leaving: bool,
}

/// What is known of namespaces in the provider, by their names at home.
pub(crate) type RemoteNamespaces = BTreeMap<String, RemoteState>;

/// How far the provider is with a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RemoteState {
    /// Asked for.
    Pending,
    /// It exists.
    Ready,
    /// The provider refuses it.
    Refused(String),
    /// It was given up, and nothing of it is left.
    Gone,
}

enum Command {
    AddNode(String),
    FollowPods(String),
    IgnorePods(String),
    RemoveNode(String, oneshot::Sender<()>),
    Namespaces(BTreeMap<String, WantedNamespace>),
    Pods(String, oneshot::Sender<HomePods>),
}

/// UIDs of the pods of a virtual node, by namespace and name.
pub(crate) type HomePods = HashMap<Arc<str>, HashMap<Arc<str>, Uid>>;

/// What all mirrors share.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) client: Client,
    /// What links to providers are made with.
    pub(crate) dialing: Dialing,
    pub(crate) recorder: Recorder,
    /// Address of the virtual nodes.
    pub(crate) node_address: watch::Receiver<Option<String>>,
    pub(crate) metrics: Metrics,
    /// All virtual nodes and offloaded namespaces are known.
    pub(crate) sets_known: watch::Receiver<bool>,
    /// Who is where at home.
    pub(crate) neighbours: Neighbours,
    /// Where pods in providers reach this cluster's API server, and which may.
    pub(crate) api_server: SocketAddr,
    pub(crate) callers: Arc<Callers>,
    pub(crate) volumes: Volumes,
}

/// The handle to the actor.
pub(crate) struct Mirror {
    commands: mpsc::Sender<Command>,
    provider: watch::Sender<Provider>,
    /// State of the connection.
    pub(crate) link: watch::Receiver<Link>,
    /// Namespaces in the provider.
    pub(crate) namespaces: watch::Receiver<RemoteNamespaces>,
    tasks: Vec<JoinHandle<()>>,
}

impl Mirror {
    /// Starts mirroring to `provider`: with inventories when all sets are known, for before that they would be incomplete.
    pub(crate) fn start(common: Common, provider: Provider) -> Self {
        let Common {
            client,
            dialing,
            recorder,
            node_address,
            metrics,
            mut sets_known,
            neighbours,
            api_server,
            callers,
            volumes,
        } = common;
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let name = provider.name.clone();
        let (provider, watched) = watch::channel(provider);
        let (link_events, link, keeper) = keep(client.clone(), dialing, watched.clone());
        let (namespaces, known) = watch::channel(RemoteNamespaces::new());
        let (home, written) = Home::new(client.clone(), recorder, node_address, watched.clone());
        let (changes, changed) = mpsc::channel(CHANGE_QUEUE);
        let (companions, learned) = Companions::new(client.clone(), name.clone(), neighbours, api_server);
        let warnings = Warnings::new(client.clone(), name.clone());
        let (claims, teller) = volumes.mirror(&name);
        let mut consumer = Consumer::default();
        consumer.add_set(SetRef::namespaces());
        consumer.add_set(SetRef::claims());
        consumer.see_addresses(watched.borrow().prefixes.clone());
        let actor = Actor {
            name,
            client,
            consumer,
            home,
            companions,
            callers,
            claims: Claims::new(claims, teller),
            warnings,
            frames: None,
            nodes: BTreeMap::new(),
            watches: BTreeMap::new(),
            changes,
            wanted: None,
            namespaces,
            provider: watched,
            metrics,
            held: BTreeMap::new(),
            seen: BTreeMap::new(),
            unread: None,
            ahead: BTreeSet::new(),
        };
        let keeper = async move {
            if sets_known.wait_for(|known| *known).await.is_ok() {
                keeper.await;
            }
        };
        let tasks = vec![
            tokio::spawn(keeper),
            tokio::spawn(actor.run(queue, link_events, changed, learned, written)),
        ];
        Self { commands, provider, link, namespaces: known, tasks }
    }

    /// What is known of the provider.
    pub(crate) fn provider(&self) -> Provider {
        self.provider.borrow().clone()
    }

    /// The `Peer` has changed.
    pub(crate) fn update(&self, provider: Provider) {
        self.provider.send_if_modified(|known| {
            let changed = *known != provider;
            *known = provider;
            changed
        });
    }

    /// There is such a virtual node: what the provider has of it is kept. Its pods count from
    /// [`Mirror::follow_pods`] on.
    pub(crate) async fn add_node(&self, node: String) {
        self.send(Command::AddNode(node)).await;
    }

    /// Mirrors the pods of a virtual node: the Node of that name is ours.
    pub(crate) async fn follow_pods(&self, node: String) {
        self.send(Command::FollowPods(node)).await;
    }

    /// Leaves the pods of that node alone: the Node of that name is somebody else's.
    pub(crate) async fn ignore_pods(&self, node: String) {
        self.send(Command::IgnorePods(node)).await;
    }

    /// Gives up a virtual node, with everything that is left of it in the provider.
    pub(crate) async fn remove_node(&self, node: String) {
        let (done, removed) = oneshot::channel();
        self.send(Command::RemoveNode(node, done)).await;
        drop(removed.await);
    }

    /// The namespaces the provider shall have.
    pub(crate) async fn wanted_namespaces(&self, namespaces: BTreeMap<String, WantedNamespace>) {
        self.send(Command::Namespaces(namespaces)).await;
    }

    /// The pods that are mirrored of a virtual node.
    pub(crate) async fn pods(&self, node: String) -> HomePods {
        let (reply, pods) = oneshot::channel();
        self.send(Command::Pods(node, reply)).await;
        pods.await.unwrap_or_default()
    }

    async fn send(&self, command: Command) {
        // The actor ends only with this handle.
        drop(self.commands.send(command).await);
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Of the pods on a virtual node.
struct PodChange {
    node: String,
    change: Change<DynamicObject>,
    /// It was read because something else had changed: the watch knows whether there still is such a pod.
    again: bool,
}

/// A body, should it be asked for at once.
struct AtHand {
    target: Ref,
    hash: Hash,
    body: Bytes,
}

struct Actor {
    name: String,
    client: Client,
    consumer: Consumer,
    home: Home,
    companions: Companions,
    callers: Arc<Callers>,
    claims: Claims,
    warnings: Warnings,
    frames: Option<mpsc::Sender<proto::ConsumerFrame>>,
    /// Virtual nodes, and whether all pods on them are known.
    nodes: BTreeMap<String, bool>,
    /// Watches of pods, by node.
    watches: BTreeMap<String, JoinHandle<()>>,
    changes: mpsc::Sender<PodChange>,
    /// Namespaces the provider shall have; until they are known no pod is judged.
    wanted: Option<BTreeMap<String, WantedNamespace>>,
    namespaces: watch::Sender<RemoteNamespaces>,
    provider: watch::Receiver<Provider>,
    metrics: Metrics,
    /// Pods that cannot go to the provider as things are, by namespace: they are looked at again when that changes.
    held: BTreeMap<String, BTreeSet<(String, String)>>,
    /// What there is to know of the pods at home before a status is shown on them.
    seen: BTreeMap<SetRef, BTreeMap<Key, Seen>>,
    /// Pods whose body could not be read, and when they take their turn again.
    unread: Option<(Instant, Vec<Ref>)>,
    /// Pods that take their turn again when what they would wait for over there is on its way.
    ahead: BTreeSet<Ref>,
}

impl Actor {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        mut link: mpsc::Receiver<LinkEvent>,
        mut changed: mpsc::Receiver<PodChange>,
        mut learned: mpsc::Receiver<companions::News>,
        mut written: mpsc::UnboundedReceiver<Finished>,
    ) {
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        let mut census = self.companions.census();
        loop {
            let again = self.unread.as_ref().map(|(at, _)| *at);
            let due = self.companions.poll_timeout().map(until);
            let mut at_hand = tokio::select! {
                biased;
                command = queue.recv() => match command {
                    Some(command) => {
                        self.command(command);
                        None
                    }
                    None => return,
                },
                Some(finished) = written.recv() => {
                    self.home.finished(finished);
                    None
                }
                Some(event) = link.recv() => {
                    self.link_event(event);
                    None
                }
                Some(change) = changed.recv(), if self.wanted.is_some() => self.pod_change(change),
                Some(news) = learned.recv() => {
                    self.companions.learn(news, now(), &mut self.consumer);
                    None
                }
                Ok(()) = census.changed() => {
                    let census = census.borrow_and_update().clone();
                    self.companions.learn_census(census, &mut self.consumer);
                    None
                }
                () = sleep(due.unwrap_or_default()), if due.is_some() => {
                    self.companions.handle_timeout(now(), &mut self.consumer);
                    None
                }
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    for target in self.unread.take().into_iter().flat_map(|(_, targets)| targets) {
                        self.consumer.not_sent(&target);
                    }
                    None
                }
                Ok(()) = self.claims.changed() => {
                    for (node, pod) in self.claims.learn(&mut self.consumer) {
                        self.read_pod_again(node, pod);
                    }
                    None
                }
                _ = report.tick() => {
                    for (target, refusal) in self.claims.overdue() {
                        self.home.refusal(target, Some(refusal));
                    }
                    self.metrics.mirrored(&self.name, self.consumer.len(), self.consumer.unsettled().len());
                    None
                }
                changed = self.provider.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let prefixes = self.provider.borrow_and_update().prefixes.clone();
                    self.consumer.see_addresses(prefixes);
                    let others = self.keep_companions();
                    self.read_again(others);
                    self.finish_if_gone();
                    None
                }
            };
            for effect in self.companions.effects() {
                at_hand = self.effect(effect).await.or(at_hand);
            }
            self.drain(at_hand).await;
        }
    }

    /// Does what follows for companions; returns a body, should it be asked for at once.
    async fn effect(&mut self, effect: Effect) -> Option<AtHand> {
        match effect {
            Effect::AtHand { target, hash, body, owed } => {
                if owed {
                    self.send(ConsumerFrame::Upsert { target, hash, body }).await;
                    return None;
                }
                return Some(AtHand { target, hash, body });
            }
            Effect::Told(target, what) => self.home.tell(target, what),
            Effect::Served(pod) => self.let_go(&pod),
            Effect::Closed(namespace) => {
                let of_it = self.ahead.iter().filter(|pod| pod.key.namespace == namespace);
                for pod in of_it.cloned().collect::<Vec<_>>() {
                    self.let_go(&pod);
                }
            }
        }
        None
    }

    /// A pod that was ahead takes its turn again, unless it still is.
    fn let_go(&mut self, pod: &Ref) {
        if !self.companions.is_ahead(pod) && self.ahead.remove(pod) {
            self.consumer.not_sent(pod);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::AddNode(node) => {
                self.consumer.add_set(SetRef::pods(&node));
                self.nodes.entry(node).or_default();
            }
            Command::FollowPods(node) => {
                let (client, changes) = (self.client.clone(), self.changes.clone());
                let watch = || tokio::spawn(watch_pods(client, node.clone(), changes));
                self.watches.entry(node.clone()).or_insert_with(watch);
            }
            Command::IgnorePods(node) => {
                self.unwatch(&node);
                self.nodes.insert(node, true);
            }
            Command::RemoveNode(node, done) => {
                self.unwatch(&node);
                self.nodes.remove(&node);
                self.consumer.remove_set(&SetRef::pods(&node));
                let _ = done.send(());
            }
            Command::Namespaces(wanted) => self.want_namespaces(wanted),
            Command::Pods(node, reply) => {
                let mut pods = HomePods::new();
                for (key, uid) in self.consumer.members(&SetRef::pods(&node)) {
                    pods.entry(key.namespace.clone()).or_default().insert(key.name.clone(), uid.clone());
                }
                let _ = reply.send(pods);
            }
        }
        self.report_pods_known();
    }

    fn report_pods_known(&mut self) {
        let known = self.wanted.is_some() && self.nodes.values().all(|known| *known);
        self.companions.pods_known(known, &mut self.consumer);
    }

    /// Ends the watch; what it has put into the queue is passed over.
    fn unwatch(&mut self, node: &str) {
        if let Some(watch) = self.watches.remove(node) {
            watch.abort();
        }
        for held in self.held.values_mut() {
            held.retain(|(on, _)| on != node);
        }
        self.companions.retain_pods(node, |_| false, &mut self.consumer);
        self.callers.retain(node, |_| false);
        self.claims.forget_node(node);
        self.seen.remove(&SetRef::pods(node));
    }

    fn want_namespaces(&mut self, wanted: BTreeMap<String, WantedNamespace>) {
        let set = SetRef::namespaces();
        for (name, namespace) in &wanted {
            let target =
                Ref { set: set.clone(), key: Key::new("", name), uid: Uid::from(namespace.uid.as_str()) };
            let body = namespace_body(namespace);
            let state = if namespace.leaving {
                Wanted::Deleting { grace: None }
            } else {
                Wanted::Present(Hash::of(&body))
            };
            self.consumer.observe(target, state, None);
            self.namespaces.send_if_modified(|known| {
                let fresh = match known.get(name) {
                    None => true,
                    Some(state) => *state == RemoteState::Gone && !namespace.leaving,
                };
                if fresh {
                    known.insert(name.clone(), RemoteState::Pending);
                }
                fresh
            });
        }
        for (name, namespace) in self.wanted.iter().flatten().filter(|(name, _)| !wanted.contains_key(*name))
        {
            let uid = Uid::from(namespace.uid.as_str());
            self.consumer.removed(&set, &Key::new("", name), &uid, None);
            self.namespaces.send_if_modified(|known| known.remove(name).is_some());
        }
        let fresh: Vec<_> = wanted.keys().filter(|name| !self.offloaded(name)).cloned().collect();
        self.wanted = Some(wanted);
        let others = self.keep_companions();
        self.consumer.synced(&set);
        self.read_again(others);
        // Pods that waited for their namespace are read again.
        for (node, name, namespace) in fresh
            .iter()
            .flat_map(|ns| {
                self.held.remove(ns).into_iter().flatten().map(move |(node, name)| (node, name, ns.clone()))
            })
            .collect::<Vec<_>>()
        {
            self.read_pod_again(node, Key::new(&namespace, &name));
        }
    }

    /// Looks at a pod again that could not go to the provider as things were.
    fn read_pod_again(&self, node: String, pod: Key) {
        tokio::spawn(read_pod(self.client.clone(), node, pod, self.changes.clone()));
    }

    /// Returns the namespaces whose pods have another access to this cluster's API server than before.
    fn keep_companions(&mut self) -> Vec<String> {
        let Some(wanted) = &self.wanted else { return Vec::new() };
        let network = {
            let provider = self.provider.borrow();
            Network {
                own: provider.own_prefixes.clone(),
                outside: provider.outside_prefixes.clone(),
                transit: provider.transit_prefixes.clone(),
                seen: provider.prefixes.clone(),
            }
        };
        self.companions.keep(wanted, network, &mut self.consumer)
    }

    /// What pods of these namespaces are over there is another matter by now: they are read again.
    fn read_again(&mut self, namespaces: Vec<String>) {
        for namespace in namespaces {
            // Those that could not go may go now, and are told if not.
            self.held.remove(&namespace);
            for node in self.watches.keys() {
                let (client, changes) = (self.client.clone(), self.changes.clone());
                tokio::spawn(read_pods(client, node.clone(), namespace.clone(), changes));
            }
        }
    }

    fn offloaded(&self, namespace: &str) -> bool {
        self.wanted
            .as_ref()
            .and_then(|wanted| wanted.get(namespace))
            .is_some_and(|namespace| !namespace.leaving)
    }

    fn link_event(&mut self, event: LinkEvent) {
        // With the stream goes what was under way in it.
        if !matches!(event, LinkEvent::Frame(_)) {
            self.unread = None;
            self.ahead.clear();
            self.companions.disconnected();
        }
        match event {
            LinkEvent::Up(frames) => {
                self.frames = Some(frames);
                self.consumer.connected();
            }
            LinkEvent::Down => {
                self.frames = None;
                self.consumer.disconnected();
            }
            LinkEvent::Frame(frame) => self.consumer.received(frame),
        }
    }

    /// Passes a change on to the state machine; returns the body of the pod, should it be asked for at once.
    fn pod_change(&mut self, PodChange { node, change, again }: PodChange) -> Option<AtHand> {
        let node = node.as_str();
        if !self.watches.contains_key(node) {
            return None;
        }
        let set = SetRef::pods(node);
        if let Change::Applied(pod) = &change
            && again
            && !self.seen.get(&set).is_some_and(|seen| seen.contains_key(&target(set.clone(), pod).key))
        {
            return None;
        }
        match change {
            Change::Applied(pod) => self.pod_applied(node, set, pod),
            Change::Deleted(pod) => {
                let target = target(set, &pod);
                if let Some(held) = self.held.get_mut(&*target.key.namespace) {
                    held.remove(&(node.to_owned(), target.key.name.to_string()));
                }
                self.companions.pod(node, &target.key, BTreeSet::new(), None, now(), &mut self.consumer);
                self.claims.forget(node, &target.key);
                self.callers.set(node, &target.key, Vec::new());
                self.ahead.remove(&target);
                if let Some(seen) = self.seen.get_mut(&target.set) {
                    seen.remove(&target.key);
                }
                let grace = grace(&pod);
                self.consumer.removed(&target.set, &target.key, &target.uid, grace);
                None
            }
            Change::Listed(seen) => {
                let seen: BTreeSet<Key> =
                    seen.iter().map(|(namespace, name)| Key::new(namespace, name)).collect();
                if let Some(known) = self.seen.get_mut(&set) {
                    known.retain(|key, _| seen.contains(key));
                }
                self.companions.retain_pods(node, |pod| seen.contains(pod), &mut self.consumer);
                self.callers.retain(node, |pod| seen.contains(pod));
                self.consumer.resynced(&set, &seen);
                self.nodes.insert(node.to_owned(), true);
                self.report_pods_known();
                None
            }
        }
    }

    fn pod_applied(&mut self, node: &str, set: SetRef, pod: DynamicObject) -> Option<AtHand> {
        let target = target(set, &pod);
        let deleting = pod.metadata.deletion_timestamp.is_some();
        let grace = grace(&pod);
        let status = status::digest(&pod);
        self.seen.entry(target.set.clone()).or_default().insert(target.key.clone(), Seen::of(&pod));
        if deleting {
            self.consumer.observe(target.clone(), Wanted::Deleting { grace }, status);
            if self.provider.borrow().gone {
                self.home.finish(target);
            }
            return None;
        }
        let namespace = target.key.namespace.to_string();
        // What runs there already goes on until it is deleted.
        if !self.offloaded(&namespace) && !self.consumer.knows(&target) {
            let message = format!("namespace {namespace} is not offloaded to {}", self.name);
            self.hold(node, &target, refusal("NamespaceNotOffloaded", message));
            return None;
        }
        let access = self.companions.access(&namespace);
        let spec = pod.data.get("spec").unwrap_or(&Value::Null);
        let references = translate::references(&target.key.name, spec, access);
        let claims = self.claims.of_pod(&target.key, &references);
        let runs = !has_ended(&pod);
        let asked = (access != Access::None && runs).then(|| asked(&pod)).flatten();
        self.companions.pod(node, &target.key, references, asked, now(), &mut self.consumer);
        // Addresses of a pod that has ended are somebody else's soon.
        let addresses = if access == Access::Server && runs { status::addresses(&pod) } else { Vec::new() };
        self.callers.set(node, &target.key, addresses);
        let claims = match claims {
            Ok(claims) => claims,
            Err(Unresolved { claim, refusal }) => {
                // The provider's kubelet sets the time; before that nothing runs.
                let started = pod.data.pointer("/status/startTime").is_some();
                let listed = self.nodes.get(node).copied().unwrap_or(false);
                match (meanwhile(self.consumer.knows(&target), started, listed, refusal.is_some()), refusal) {
                    (Meanwhile::Hold, Some(refusal)) => self.hold(node, &target, refusal),
                    (next, _) => {
                        if next == Meanwhile::NameAndWait {
                            self.consumer.observe(target.clone(), Wanted::Present(unresolved()), status);
                        }
                        self.claims.wait(claim, node, target, started);
                    }
                }
                return None;
            }
        };
        let body = match body_of(pod, access, |name| claims.get(name).cloned()) {
            Ok(body) => body,
            Err(refusal) => {
                self.hold(node, &target, refusal);
                return None;
            }
        };
        let hash = Hash::of(&body);
        self.consumer.observe(target.clone(), Wanted::Present(hash), status);
        Some(AtHand { target, hash, body })
    }

    /// Keeps a pod at home, and tells why.
    fn hold(&mut self, node: &str, target: &Ref, refusal: Refusal) {
        let held = self.held.entry(target.key.namespace.to_string()).or_default();
        if held.insert((node.to_owned(), target.key.name.to_string())) {
            info!(pod = %target.key, reason = %refusal.reason, message = %refusal.message, "pod not offloaded");
            self.home.refusal(target.clone(), Some(refusal));
        }
    }

    /// What is being deleted needs no word of a provider that is gone.
    fn finish_if_gone(&mut self) {
        if self.provider.borrow().gone {
            for target in self.consumer.deleting() {
                match target.set.kind.role() {
                    Role::Pod => self.home.finish(target),
                    Role::Namespace => self.namespace_gone(&target.key.name),
                    // Nothing at home waits for them, and no data is given up unheard.
                    Role::Companion | Role::Claim => {}
                }
            }
        }
    }

    fn namespace_gone(&self, name: &str) {
        self.namespaces.send_modify(|known| {
            known.insert(name.to_owned(), RemoteState::Gone);
        });
    }

    /// Carries out what the state machine asks for.
    async fn drain(&mut self, at_hand: Option<AtHand>) {
        for (claim, referred) in self.companions.take_claims() {
            self.claims.follow(claim, referred).await;
        }
        while let Some(action) = self.consumer.poll_action() {
            match action {
                Action::Send(frame) => self.send(frame).await,
                // It counts as under way until what it needs is.
                Action::SendBody { target, .. } if self.companions.is_ahead(&target) => {
                    self.ahead.insert(target);
                }
                Action::SendBody { target, hash } => match &at_hand {
                    Some(known) if known.target == target && known.hash == hash => {
                        let body = known.body.clone();
                        self.send(ConsumerFrame::Upsert { target, hash, body }).await;
                    }
                    _ => match target.set.kind.role() {
                        Role::Namespace => self.send_namespace(target, hash).await,
                        Role::Pod => self.send_pod(target, hash).await,
                        Role::Claim => {
                            if let Some(body) = self.claims.body(&target, hash) {
                                self.send(ConsumerFrame::Upsert { target, hash, body }).await;
                            }
                        }
                        Role::Companion => {
                            if let Some(body) = self.companions.owe(target.clone(), hash) {
                                self.send(ConsumerFrame::Upsert { target, hash, body }).await;
                            }
                        }
                    },
                },
                Action::ApplyStatus { target, body, .. } if target.set == SetRef::claims() => {
                    self.claims.report(target, &body).await;
                }
                Action::ApplyStatus { target, body, .. } => {
                    let seen = self.seen.get(&target.set).and_then(|pods| pods.get(&target.key));
                    let seen = seen.cloned().unwrap_or_default();
                    self.home.status(target, body, seen);
                }
                Action::FinishDeletion(target) => match target.set.kind.role() {
                    Role::Pod => self.home.finish(target),
                    Role::Namespace => self.namespace_gone(&target.key.name),
                    Role::Claim => self.claims.gone(target).await,
                    Role::Companion => {}
                },
                Action::Refused { target, refusal } => {
                    debug!(key = %target.key, reason = %refusal.reason, message = %refusal.message, "refused by the provider");
                    match target.set.kind.role() {
                        Role::Pod => self.home.refusal(target, Some(refusal)),
                        Role::Companion => {
                            self.companions.answered(&target);
                            self.home.tell(self.companions.known_as(target), refusal);
                            for effect in self.companions.effects() {
                                self.effect(effect).await;
                            }
                        }
                        Role::Claim => self.claims.refused(target, refusal).await,
                        Role::Namespace => {
                            let state = RemoteState::Refused(refusal.message);
                            self.namespaces.send_modify(|known| {
                                known.insert(target.key.name.to_string(), state);
                            });
                        }
                    }
                }
                // Every namespace is settled in its time, a pod has news of its own: its status.
                Action::Recovered(target) if target.set.kind == Kind::Pod => self.home.refusal(target, None),
                Action::Settled(target) if target.set.kind == Kind::Namespace => {
                    self.namespace_ready(&target.key.name);
                }
                Action::Settled(target) if target.set == SetRef::claims() => {
                    self.claims.settled(target).await;
                }
                Action::Settled(target) => {
                    self.companions.settled(&target);
                    for effect in self.companions.effects() {
                        self.effect(effect).await;
                    }
                }
                Action::Recovered(_) => {}
                Action::Warned { target, id, warning } => {
                    if let Some(target) = self.claims.at_home(target) {
                        self.warnings.show(target, id, warning);
                    }
                }
            }
        }
    }

    fn namespace_ready(&self, name: &str) {
        self.namespaces.send_if_modified(|known| {
            known.insert(name.to_owned(), RemoteState::Ready) != Some(RemoteState::Ready)
        });
    }

    async fn send(&mut self, frame: ConsumerFrame) {
        if let Some(frames) = &self.frames
            && frames.send(frame.into()).await.is_err()
        {
            // The stream is gone; the link says so in a moment, and everything starts over with the next one.
            self.frames = None;
        }
    }

    async fn send_namespace(&mut self, target: Ref, hash: Hash) {
        let namespace = self.wanted.as_ref().and_then(|wanted| wanted.get(&*target.key.name));
        let body = namespace.map(namespace_body);
        if let Some(body) = body {
            self.send(ConsumerFrame::Upsert { target, hash, body }).await;
        }
    }

    /// Reads a pod anew to send it. The state machine counts it as under way until it is told something.
    async fn send_pod(&mut self, target: Ref, hash: Hash) {
        // One read that fails is enough: the others wait with it, or each would take up to its deadline.
        if let Some((_, waiting)) = &mut self.unread {
            waiting.push(target);
            return;
        }
        let pods: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &target.key.namespace, &pod_resource());
        match within(pods.get_opt(&target.key.name)).await {
            Ok(Some(pod)) if pod.uid().as_deref() == Some(target.uid.as_str()) => {
                let node = target.set.scope.to_string();
                let read = self.pod_applied(&node, target.set.clone(), pod);
                // If it has changed in between, it is asked for anew.
                if let Some(AtHand { target, body, .. }) = read.filter(|read| read.hash == hash) {
                    self.send(ConsumerFrame::Upsert { target, hash, body }).await;
                }
            }
            Ok(_) => self.consumer.removed(&target.set, &target.key, &target.uid, Some(0)),
            Err(error) => {
                warn!(pod = %target.key, %error, "pod not read; trying again");
                self.unread = Some((Instant::now() + READ_RETRY, vec![target]));
            }
        }
    }
}

/// Follows the pods of a virtual node.
async fn watch_pods(client: Client, node: String, changes: mpsc::Sender<PodChange>) {
    let pods: Api<DynamicObject> = Api::all_with(client, &pod_resource());
    let of_node = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut news = changes_of(pods, "Pod", of_node).boxed();
    while let Some(change) = news.next().await {
        let change = PodChange { node: node.clone(), change, again: false };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

/// What is done with a pod until it is known what its claims are called in the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    /// It stays at home.
    Hold,
    /// It waits, and is named as it was, if it was: what runs there goes on until it is deleted.
    Wait,
    /// It may run there: the provider keeps what it has of it, and is told the rest later.
    NameAndWait,
}

/// `known` to the provider; `started` as its status says; all pods of its node were `listed`; a claim is `refused`.
fn meanwhile(known: bool, started: bool, listed: bool, refused: bool) -> Meanwhile {
    match (known, started) {
        (true, _) => Meanwhile::Wait,
        (false, true) => Meanwhile::NameAndWait,
        (false, false) if refused => Meanwhile::Hold,
        (false, false) if listed => Meanwhile::Wait,
        (false, false) => Meanwhile::NameAndWait,
    }
}

/// Reads a pod, as if it had changed. It is waited for: nothing else may ever happen to it.
async fn read_pod(client: Client, node: String, pod: Key, changes: mpsc::Sender<PodChange>) {
    let pods: Api<DynamicObject> = Api::namespaced_with(client, &pod.namespace, &pod_resource());
    let mut backoff = Backoff::new(READ_RETRY, READ_RETRY_CAP);
    while !changes.is_closed() {
        match within(pods.get_opt(&pod.name)).await {
            Ok(found) => {
                let on_node = |pod: &DynamicObject| {
                    pod.data.pointer("/spec/nodeName").and_then(Value::as_str) == Some(&node)
                };
                if let Some(pod) = found.filter(on_node) {
                    drop(changes.send(PodChange { node, change: Change::Applied(pod), again: true }).await);
                }
                return;
            }
            Err(error) => {
                debug!(%pod, %error, "pod not read; trying again");
                sleep(backoff.next(entropy())).await;
            }
        }
    }
}

/// Reads the pods of a namespace on a virtual node, as if they had changed.
async fn read_pods(client: Client, node: String, namespace: String, changes: mpsc::Sender<PodChange>) {
    let pods: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &pod_resource());
    let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let mut backoff = Backoff::new(READ_RETRY, READ_RETRY_CAP);
    let found = loop {
        match within(pods.list(&of_node)).await {
            Ok(found) => break found,
            Err(error) => warn!(%namespace, %node, %error, "pods not read; trying again"),
        }
        sleep(backoff.next(entropy())).await;
    };
    for pod in found {
        let change = PodChange { node: node.clone(), change: Change::Applied(pod), again: true };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

fn has_ended(pod: &DynamicObject) -> bool {
    let phase = pod.data.pointer("/status/phase").and_then(Value::as_str);
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The tokens a pod asks for.
fn asked(pod: &DynamicObject) -> Option<Asked> {
    let spec = pod.data.get("spec")?;
    Some(Asked {
        uid: Uid::from(pod.metadata.uid.as_deref()?),
        account: spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or("default").to_owned(),
        created: pod.metadata.creation_timestamp.as_ref()?.0.as_second(),
        sources: translate::tokens(spec),
    })
}

/// Seconds since 1970.
fn now() -> i64 {
    Timestamp::now().as_second()
}

/// How long to wait until then.
fn until(when: i64) -> Duration {
    Duration::from_secs(u64::try_from(when - now()).unwrap_or(0)).min(CLOCK_CHECK)
}

fn pod_resource() -> ApiResource {
    ApiResource::erase::<Pod>(&())
}

fn target(set: SetRef, pod: &DynamicObject) -> Ref {
    let key = Key::new(&pod.namespace().unwrap_or_default(), &pod.name_any());
    Ref { set, key, uid: Uid::from(pod.metadata.uid.as_deref().unwrap_or_default()) }
}

fn grace(pod: &DynamicObject) -> Option<u32> {
    pod.metadata.deletion_grace_period_seconds.and_then(|seconds| u32::try_from(seconds).ok())
}

/// Stands for the digest of a pod whose claims are not known: no body has it.
fn unresolved() -> Hash {
    Hash::of(b"claims not known")
}

fn body_of(
    pod: DynamicObject,
    access: Access,
    claims: impl Fn(&str) -> Option<String>,
) -> Result<Bytes, Refusal> {
    let DynamicObject { metadata, mut data, .. } = pod;
    let spec = data.get_mut("spec").map(Value::take).unwrap_or_default();
    let whole = json!({
        "metadata": {
            "name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid,
            "labels": metadata.labels, "annotations": metadata.annotations,
        },
        "spec": spec,
    });
    Ok(Bytes::from(translate::pod(&whole, access, claims)?.to_string()))
}

fn namespace_body(namespace: &WantedNamespace) -> Bytes {
    Bytes::from(json!({ "name": namespace.remote }).to_string())
}

fn refusal(reason: &str, message: String) -> Refusal {
    Refusal { reason: reason.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_pod_that_waited_is_read_until_the_api_server_answers() {
        let asked = Arc::new(AtomicU32::new(0));
        let counted = asked.clone();
        let service = tower::service_fn(move |_: Request<Body>| {
            let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
            let answer = if first {
                (503, json!({"kind": "Status", "status": "Failure", "code": 503, "message": "later"}))
            } else {
                (
                    200,
                    json!({
                        "apiVersion": "v1", "kind": "Pod",
                        "metadata": {"name": "web", "namespace": "shop", "uid": "u1"}, "spec": {"nodeName": "liquid-milan"},
                    }),
                )
            };
            let answer =
                Response::builder().status(answer.0).body(Body::from(answer.1.to_string().into_bytes()));
            async move { Ok::<_, std::convert::Infallible>(answer.unwrap()) }
        });
        let client = Client::new(service, "default");
        let (changes, mut changed) = mpsc::channel(1);
        let node = "liquid-milan".to_owned();
        read_pod(client.clone(), node.clone(), Key::new("shop", "web"), changes.clone()).await;
        let change = changed.try_recv().unwrap();
        assert!(change.again && matches!(change.change, Change::Applied(pod) if pod.name_any() == "web"));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        read_pod(client, "liquid-ohio".to_owned(), Key::new("shop", "web"), changes).await;
        assert!(changed.try_recv().is_err(), "another pod of that name");
    }

    #[test]
    fn what_may_run_is_named_and_waits_until_its_claims_are_known() {
        for (known, started, listed, refused, next) in [
            (false, true, true, true, Meanwhile::NameAndWait),
            (false, false, false, false, Meanwhile::NameAndWait),
            (false, false, true, false, Meanwhile::Wait),
            (false, false, false, true, Meanwhile::Hold),
            // Forgotten, it would be named without a body for ever.
            (true, false, true, false, Meanwhile::Wait),
            (true, true, true, true, Meanwhile::Wait),
        ] {
            assert_eq!(
                meanwhile(known, started, listed, refused),
                next,
                "{known} {started} {listed} {refused}"
            );
        }
    }
}
