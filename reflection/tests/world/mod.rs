//! A small world: a home cluster, a link, and a provider cluster, all driven by one random number generator.

use bytes::Bytes;
use liquid_link::digest::Hash;
use liquid_reflection::consumer::{self, Consumer};
use liquid_reflection::frame::{ConsumerFrame, ProviderFrame, Ref, Refusal, Wanted};
use liquid_reflection::key::{Key, Kind, SetRef, Uid};
use liquid_reflection::provider::{self, Deleted, Instance, Outcome, Provider, Record, StatusFound, Step};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

const NAMES: u64 = 6;
/// More requests than any of these small worlds needs to settle.
const MOST_REQUESTS: u32 = 10_000;
const NODES: [&str; 2] = ["liquid-a", "liquid-b"];

/// What happened, to see that histories are interesting.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) steps: u64,
    pub(crate) created: u64,
    pub(crate) reused_names: u64,
    pub(crate) link_losses: u64,
    pub(crate) consumer_restarts: u64,
    pub(crate) provider_restarts: u64,
    pub(crate) watch_gaps: u64,
    pub(crate) failed_requests: u64,
    pub(crate) owner_deletions: u64,
    pub(crate) finished: u64,
    pub(crate) agreements: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.created += other.created;
        self.reused_names += other.reused_names;
        self.link_losses += other.link_losses;
        self.consumer_restarts += other.consumer_restarts;
        self.provider_restarts += other.provider_restarts;
        self.watch_gaps += other.watch_gaps;
        self.failed_requests += other.failed_requests;
        self.owner_deletions += other.owner_deletions;
        self.finished += other.finished;
        self.agreements += other.agreements;
    }

    pub(crate) fn every_kind_happened(&self) -> bool {
        [
            self.created,
            self.reused_names,
            self.link_losses,
            self.consumer_restarts,
            self.provider_restarts,
            self.watch_gaps,
            self.failed_requests,
            self.owner_deletions,
            self.finished,
            self.agreements,
        ]
        .iter()
        .all(|count| *count > 10)
    }
}

#[derive(Debug, Clone)]
struct HomeObject {
    set: SetRef,
    uid: Uid,
    hash: Hash,
    deleting: Option<Option<u32>>,
    status: Option<Hash>,
}

#[derive(Debug, Clone)]
enum HomeEvent {
    Changed(Key),
    Removed { set: SetRef, key: Key, uid: Uid, grace: Option<u32> },
}

#[derive(Debug, Clone)]
struct Pod {
    set: SetRef,
    owner: Uid,
    instance: Instance,
}

type StoredAt = (Kind, Key);

/// A request on its way to the API server, or answered.
#[derive(Debug)]
struct Request {
    target: Ref,
    step: Step,
    answer: Option<Outcome>,
}

pub(crate) struct World {
    random: u64,
    seed: u64,
    telling: bool,
    now: Instant,
    serial: u64,
    pub(crate) counts: Counts,

    home: BTreeMap<(Kind, Key), HomeObject>,
    /// UIDs at home that are deleted, being deleted, or given up: the only ones that may be destroyed.
    released: BTreeSet<Uid>,
    home_events: VecDeque<HomeEvent>,
    consumer: Consumer,
    consumer_todo: VecDeque<consumer::Action>,
    /// Namespaces the shell of the consumer was told of: pods wait for them.
    settled: BTreeSet<Uid>,

    link: bool,
    to_provider: VecDeque<ConsumerFrame>,
    to_consumer: VecDeque<ProviderFrame>,

    records: BTreeMap<StoredAt, (SetRef, Record)>,
    pods: BTreeMap<Key, Pod>,
    /// Statuses being read, with what was found.
    reads: Vec<(Ref, Option<StatusFound>)>,
    record_events: VecDeque<(SetRef, Key, Result<Record, Deleted>)>,
    pod_events: VecDeque<(SetRef, Key, Result<Instance, Deleted>)>,
    provider: Provider,
    requests: Vec<Request>,
    /// Requests of a process that has ended; they may still take effect.
    ghosts: Vec<(Ref, Step)>,
    /// UIDs at home for which that has happened: what they made must go away, but nobody can know it in time.
    haunted: BTreeSet<Uid>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            seed,
            telling: std::env::var_os("LIQUID_SIM_SEED").is_some(),
            now: Instant::now(),
            serial: 0,
            counts: Counts::default(),
            home: BTreeMap::new(),
            released: BTreeSet::new(),
            home_events: VecDeque::new(),
            consumer: Consumer::default(),
            consumer_todo: VecDeque::new(),
            settled: BTreeSet::new(),
            link: false,
            to_provider: VecDeque::new(),
            to_consumer: VecDeque::new(),
            records: BTreeMap::new(),
            pods: BTreeMap::new(),
            reads: Vec::new(),
            record_events: VecDeque::new(),
            pod_events: VecDeque::new(),
            provider: Provider::default(),
            requests: Vec::new(),
            ghosts: Vec::new(),
            haunted: BTreeSet::new(),
        };
        world.restart_consumer();
        world
    }

    fn next(&mut self) -> u64 {
        // xorshift64*: repeatable everywhere.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    pub(crate) fn chance(&mut self, one: u64, of: u64) -> bool {
        self.below(of) < one
    }

    /// Says what happens, if only one history is run.
    fn tell(&self, what: std::fmt::Arguments<'_>) {
        if self.telling {
            println!("{:>5} {what}", self.counts.steps);
        }
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn fresh_uid(&mut self, what: &str) -> Uid {
        Uid::from(format!("{what}{}", self.serial()).as_str())
    }

    fn fresh_hash(&mut self) -> Hash {
        Hash::of(&self.serial().to_be_bytes())
    }

    pub(crate) fn random_step(&mut self) {
        self.counts.steps += 1;
        let pause = self.below(300);
        self.now += Duration::from_millis(pause);
        match self.below(100) {
            0..12 => self.user_step(),
            12..14 => self.cut_or_join(),
            14..15 => self.rare_step(),
            15..17 => self.owner_step(),
            17..30 => self.kubelet_step(),
            30..45 => self.deliver_home_event(),
            45..55 => self.consumer_step(),
            55..68 => self.deliver_frame(),
            68..80 => self.request_step(),
            80..95 => self.deliver_watch_event(),
            95 => self.ghost_step(),
            96 => self.foreign_step(),
            97 | 98 => self.read_step(),
            _ => self.provider.handle_timeout(self.now),
        }
        self.drain();
    }

    // --- the user at home ---

    /// Somebody else writes the status of a pod at home.
    fn foreign_step(&mut self) {
        let status = self.fresh_hash();
        let pods: Vec<_> = self.home.keys().filter(|(kind, _)| *kind == Kind::Pod).cloned().collect();
        if pods.is_empty() {
            return;
        }
        let at = pods[self.index(pods.len())].clone();
        let object = self.home.get_mut(&at).unwrap();
        if object.status.is_some() {
            object.status = Some(status);
            self.home_events.push_back(HomeEvent::Changed(at.1));
        }
    }

    fn user_step(&mut self) {
        let name = format!("n{}", self.below(NAMES));
        let at = if self.chance(1, 6) {
            (Kind::Namespace, Key::new("", &name))
        } else {
            (Kind::Pod, Key::new("shop", &name))
        };
        let Some(object) = self.home.get(&at).cloned() else {
            self.create_at_home(at);
            return;
        };
        match self.below(6) {
            0..3 if object.deleting.is_none() => {
                let hash = self.fresh_hash();
                self.home.get_mut(&at).unwrap().hash = hash;
                self.home_events.push_back(HomeEvent::Changed(at.1));
            }
            3 | 4 => {
                let grace = match self.below(3) {
                    0 => None,
                    1 => Some(5),
                    _ => Some(30),
                };
                let entry = self.home.get_mut(&at).unwrap();
                if entry.deleting.is_none() {
                    entry.deleting = Some(grace);
                    self.released.insert(object.uid);
                    self.home_events.push_back(HomeEvent::Changed(at.1));
                }
            }
            _ => self.remove_at_home(&at, Some(0)),
        }
    }

    fn create_at_home(&mut self, at: (Kind, Key)) {
        let set = match at.0 {
            Kind::Namespace => SetRef::namespaces(),
            Kind::Pod => SetRef::pods(NODES[self.index(NODES.len())]),
        };
        let uid = self.fresh_uid("home-");
        let hash = self.fresh_hash();
        self.counts.created += 1;
        if self.records.contains_key(&at) {
            self.counts.reused_names += 1;
        }
        self.home.insert(at.clone(), HomeObject { set, uid, hash, deleting: None, status: None });
        self.home_events.push_back(HomeEvent::Changed(at.1));
    }

    fn remove_at_home(&mut self, at: &(Kind, Key), grace: Option<u32>) {
        let Some(object) = self.home.remove(at) else {
            return;
        };
        self.released.insert(object.uid.clone());
        let event = HomeEvent::Removed { set: object.set, key: at.1.clone(), uid: object.uid, grace };
        self.home_events.push_back(event);
    }

    fn deliver_home_event(&mut self) {
        if let Some(event) = self.home_events.front() {
            self.tell(format_args!("watch at home {event:?}"));
        }
        match self.home_events.pop_front() {
            None => {}
            Some(HomeEvent::Removed { set, key, uid, grace }) => {
                self.consumer.removed(&set, &key, &uid, grace);
            }
            // The newest state stands for all changes that led to it, as a watch cache may do.
            Some(HomeEvent::Changed(key)) => {
                for kind in [Kind::Namespace, Kind::Pod] {
                    if let Some(object) = self.home.get(&(kind, key.clone())) {
                        observe(&mut self.consumer, &key, object);
                    }
                }
            }
        }
    }

    fn sets() -> Vec<SetRef> {
        let mut sets = vec![SetRef::namespaces()];
        sets.extend(NODES.map(SetRef::pods));
        sets
    }

    fn restart_consumer(&mut self) {
        self.tell(format_args!("consumer restarts"));
        self.lose_link();
        self.consumer = Consumer::default();
        self.consumer_todo.clear();
        self.settled.clear();
        for set in Self::sets() {
            self.consumer.add_set(set);
        }
        self.relist_home();
    }

    fn relist_home(&mut self) {
        self.home_events.clear();
        for set in Self::sets() {
            let mut seen = BTreeSet::new();
            for ((_, key), object) in self.home.iter().filter(|(_, object)| object.set == set) {
                observe(&mut self.consumer, key, object);
                seen.insert(key.clone());
            }
            self.consumer.resynced(&set, &seen);
        }
    }

    /// Carries out one thing the consumer asked for at home; it may fail and be tried again.
    fn consumer_step(&mut self) {
        let Some(action) = self.consumer_todo.pop_front() else {
            return;
        };
        if self.chance(1, 10) {
            self.counts.failed_requests += 1;
            self.consumer_todo.push_back(action);
            return;
        }
        match action {
            consumer::Action::FinishDeletion(target) => {
                let at = (target.set.kind, target.key.clone());
                if self.home.get(&at).is_some_and(|object| object.uid == target.uid) {
                    self.nothing_is_left_of(&target);
                    self.remove_at_home(&at, None);
                }
            }
            consumer::Action::ApplyStatus { target, hash, .. } => {
                let at = (target.set.kind, target.key.clone());
                if let Some(object) = self.home.get_mut(&at).filter(|object| object.uid == target.uid) {
                    object.status = Some(hash);
                    self.home_events.push_back(HomeEvent::Changed(target.key));
                }
            }
            consumer::Action::Settled(target) => {
                self.settled.insert(target.uid);
            }
            consumer::Action::Refused { .. }
            | consumer::Action::Recovered(_)
            | consumer::Action::Send(_)
            | consumer::Action::SendBody { .. } => {}
        }
    }

    fn nothing_is_left_of(&self, target: &Ref) {
        if self.haunted.contains(&target.uid) {
            return;
        }
        let record = self.records.get(&(target.set.kind, target.key.clone()));
        assert!(
            record.is_none_or(|(_, record)| record.home != target.uid),
            "seed {}: {target:?} was finished off at home while its record is still there",
            self.seed
        );
        let pod = self.pods.get(&target.key).filter(|_| target.set.kind == Kind::Pod);
        assert!(
            pod.is_none_or(|pod| pod.instance.home != target.uid),
            "seed {}: {target:?} was finished off at home while its pod is still there",
            self.seed
        );
    }

    // --- the link ---

    fn cut_or_join(&mut self) {
        if self.link {
            self.counts.link_losses += 1;
            self.lose_link();
        } else {
            self.open_link();
        }
    }

    fn lose_link(&mut self) {
        if self.link {
            self.link = false;
            // What is in flight is lost; what arrived before the cut may still be read by either side.
            while self.chance(1, 2) && !self.to_provider.is_empty() {
                self.deliver_to_provider();
            }
            self.to_provider.clear();
            self.to_consumer.clear();
            self.reads.clear();
            self.consumer.disconnected();
            self.provider.disconnected();
        }
    }

    fn open_link(&mut self) {
        if !self.link {
            self.tell(format_args!("link up"));
            self.link = true;
            self.provider.connected();
            self.consumer.connected();
        }
    }

    fn deliver_frame(&mut self) {
        if self.chance(1, 2) {
            self.deliver_to_provider();
        } else {
            self.deliver_to_consumer();
        }
    }

    fn deliver_to_consumer(&mut self) {
        if let Some(frame) = self.to_consumer.pop_front() {
            self.tell(format_args!("frame to consumer {frame:?}"));
            self.consumer.received(frame);
        }
    }

    fn deliver_to_provider(&mut self) {
        if let Some(frame) = self.to_provider.pop_front() {
            self.tell(format_args!("frame to provider {frame:?}"));
            self.provider.received(frame);
        }
    }

    // --- the provider ---

    fn rare_step(&mut self) {
        match self.below(5) {
            0 => {
                self.counts.consumer_restarts += 1;
                self.restart_consumer();
            }
            1 | 2 => {
                self.counts.provider_restarts += 1;
                self.restart_provider();
            }
            3 => {
                self.counts.watch_gaps += 1;
                self.relist_home();
            }
            _ => {
                self.counts.watch_gaps += 1;
                self.relist_provider();
            }
        }
    }

    fn restart_provider(&mut self) {
        self.tell(format_args!("provider restarts"));
        self.lose_link();
        // Requests on their way may still take effect; nobody waits for the answers.
        let requests = std::mem::take(&mut self.requests);
        for request in requests {
            if request.answer.is_none() {
                match self.below(3) {
                    0 => {}
                    1 => drop(self.carry_out(&request.target, &request.step)),
                    _ => self.ghosts.push((request.target, request.step)),
                }
            }
        }
        self.provider = Provider::paused();
        self.record_events.clear();
        self.pod_events.clear();
        for ((_, key), (set, record)) in &self.records {
            self.provider.record_changed(set, key, Ok(record.clone()));
        }
        for (key, pod) in &self.pods {
            self.provider.instance_changed(&pod.set, key, Ok(pod.instance.clone()));
        }
        self.provider.resume();
    }

    fn relist_provider(&mut self) {
        self.tell(format_args!("provider lists anew"));
        self.record_events.clear();
        self.pod_events.clear();
        for ((_, key), (set, record)) in &self.records {
            self.provider.record_changed(set, key, Ok(record.clone()));
        }
        for (key, pod) in &self.pods {
            self.provider.instance_changed(&pod.set, key, Ok(pod.instance.clone()));
        }
        let mut missing = Vec::new();
        for (set, key, record, instance) in self.provider.objects() {
            let stored = self.records.get(&(set.kind, key.clone()));
            let stored = record.is_none_or(|known| stored.is_some_and(|(_, r)| r.object == known.object));
            let runs = self.pods.get(key);
            let runs =
                instance.is_none_or(|known| runs.is_some_and(|pod| pod.instance.object == known.object));
            if !stored || !runs {
                missing.push((set.clone(), key.clone()));
            }
        }
        self.provider.relisted(missing);
    }

    fn deliver_watch_event(&mut self) {
        if self.chance(1, 2) {
            self.deliver_record_event();
        } else {
            self.deliver_pod_event();
        }
    }

    fn deliver_record_event(&mut self) {
        if let Some((set, key, news)) = self.record_events.pop_front() {
            self.tell(format_args!("watch of records {key} {news:?}"));
            self.provider.record_changed(&set, &key, news);
        }
    }

    fn deliver_pod_event(&mut self) {
        if let Some((set, key, news)) = self.pod_events.pop_front() {
            self.tell(format_args!("watch of pods {key} {news:?}"));
            self.provider.instance_changed(&set, &key, news);
        }
    }

    /// The owner of the provider deletes a pod, or even a record.
    fn owner_step(&mut self) {
        if self.chance(1, 3) {
            let keys: Vec<_> = self.records.keys().filter(|(kind, _)| *kind == Kind::Pod).cloned().collect();
            if !keys.is_empty() {
                self.counts.owner_deletions += 1;
                let at = keys[self.index(keys.len())].clone();
                self.delete_record(&at);
            }
        } else {
            let keys: Vec<_> = self.pods.keys().cloned().collect();
            if !keys.is_empty() {
                self.counts.owner_deletions += 1;
                let key = keys[self.index(keys.len())].clone();
                self.terminate(&key);
            }
        }
    }

    /// Pods start, change, end, and go away; orphans are collected.
    fn kubelet_step(&mut self) {
        let keys: Vec<_> = self.pods.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[self.index(keys.len())].clone();
        let pod = &self.pods[&key];
        let orphan = !self.records.values().any(|(_, record)| record.object == pod.owner);
        if orphan && self.chance(1, 3) {
            self.terminate(&key);
        } else if self.pods[&key].instance.terminating {
            if self.chance(1, 2) {
                self.delete_pod(&key);
            }
        } else if !self.pods[&key].instance.finished {
            let status = self.fresh_hash();
            let ends = self.chance(1, 12);
            self.counts.finished += u64::from(ends);
            self.change_pod(&key, |instance| {
                instance.status = Some(status);
                instance.finished = ends;
            });
        }
    }

    fn change_pod(&mut self, key: &Key, change: impl FnOnce(&mut Instance)) -> Instance {
        let version = self.serial();
        let pod = self.pods.get_mut(key).unwrap();
        change(&mut pod.instance);
        pod.instance.version = version;
        let (set, instance) = (pod.set.clone(), pod.instance.clone());
        self.pod_events.push_back((set, key.clone(), Ok(instance.clone())));
        instance
    }

    fn terminate(&mut self, key: &Key) {
        if !self.pods[key].instance.terminating {
            let (status, interim) = (self.fresh_hash(), self.fresh_hash());
            self.change_pod(key, |instance| {
                instance.terminating = true;
                instance.status = Some(status);
                instance.interim = Some(interim);
            });
        }
    }

    fn delete_pod(&mut self, key: &Key) {
        let version = self.serial();
        let Some(pod) = self.pods.remove(key) else { return };
        let gone = Deleted { object: pod.instance.object, version };
        self.pod_events.push_back((pod.set, key.clone(), Err(gone)));
    }

    fn delete_record(&mut self, at: &StoredAt) {
        let version = self.serial();
        let Some((set, record)) = self.records.remove(at) else {
            return;
        };
        let gone = Deleted { object: record.object, version };
        self.record_events.push_back((set, at.1.clone(), Err(gone)));
    }

    /// One request reaches the API server, or its answer comes back.
    fn request_step(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let index = self.index(self.requests.len());
        let Some(request) = self.requests.get(index) else {
            return;
        };
        if request.answer.is_some() {
            let Request { target, answer, .. } = self.requests.swap_remove(index);
            let entropy = self.next();
            self.tell(format_args!("answer {} {} {answer:?}", target.key, target.uid));
            self.provider.done(&target, answer.unwrap(), self.now, entropy);
            return;
        }
        let (target, step) = (request.target.clone(), request.step.clone());
        let fault = self.below(12);
        let answer = match fault {
            0 => failed("the request was lost"),
            1 => {
                self.carry_out(&target, &step);
                failed("the answer was lost")
            }
            _ => self.carry_out(&target, &step),
        };
        self.counts.failed_requests += u64::from(fault < 2);
        self.requests[index].answer = Some(answer);
    }

    fn ghost_step(&mut self) {
        if let Some((target, step)) = self.ghosts.pop() {
            self.tell(format_args!("late effect of an earlier process"));
            self.haunted.insert(target.uid.clone());
            self.carry_out(&target, &step);
        }
    }

    fn may_destroy(&self, home: &Uid, what: &str) {
        assert!(
            self.released.contains(home) || self.haunted.contains(home),
            "seed {}: {what} of {home} is destroyed, but nobody gave it up",
            self.seed
        );
    }

    fn carry_out(&mut self, target: &Ref, step: &Step) -> Outcome {
        self.tell(format_args!("request {} {} {step:?}", target.key, target.uid));
        let at = (target.set.kind, target.key.clone());
        match step {
            Step::Store { hash, replaces, .. } => {
                let existing = self.records.get(&at).map(|(_, record)| record.clone());
                let object = match (&existing, replaces) {
                    (None, None) => self.fresh_uid("record-"),
                    (Some(existing), Some(replaces)) if existing.object == *replaces => replaces.clone(),
                    _ => return failed("the record is another one by now"),
                };
                let record = Record {
                    object,
                    version: self.serial(),
                    home: target.uid.clone(),
                    hash: *hash,
                    terminating: false,
                    finished: existing.as_ref().is_some_and(|existing| existing.finished),
                    status: existing.and_then(|existing| existing.status),
                };
                self.write_record(&at, target.set.clone(), record)
            }
            Step::Start => {
                let Some((set, record)) = self.record_of(target) else {
                    return Outcome::Done;
                };
                // The shell reads the record before it starts what it describes.
                if record.finished {
                    return Outcome::Stored(record);
                }
                match self.pods.get(&target.key) {
                    Some(pod) if pod.instance.home == record.home => Outcome::Running(pod.instance.clone()),
                    Some(_) => failed("another pod has that name"),
                    None => {
                        let instance = Instance {
                            object: self.fresh_uid("pod-"),
                            version: self.serial(),
                            home: record.home,
                            hash: record.hash,
                            terminating: false,
                            finished: false,
                            status: None,
                            interim: None,
                        };
                        let pod = Pod { set: set.clone(), owner: record.object, instance: instance.clone() };
                        self.pods.insert(target.key.clone(), pod);
                        self.pod_events.push_back((set, target.key.clone(), Ok(instance.clone())));
                        Outcome::Running(instance)
                    }
                }
            }
            Step::Adjust(object) => {
                let Some((_, record)) = self.record_of(target) else {
                    return Outcome::Done;
                };
                match self.pods.get(&target.key) {
                    Some(pod) if pod.instance.object == *object => {
                        let hash = record.hash;
                        Outcome::Running(self.change_pod(&target.key, |instance| instance.hash = hash))
                    }
                    _ => Outcome::Done,
                }
            }
            Step::Stop { object, .. } => {
                let pod = self.pods.get(&target.key).cloned();
                if let Some(pod) = pod.filter(|pod| pod.instance.object == *object) {
                    let kept = self.records.values().any(|(_, r)| r.home == pod.instance.home);
                    if kept {
                        self.may_destroy(&pod.instance.home, "the pod");
                    }
                    self.terminate(&target.key);
                }
                Outcome::Done
            }
            Step::Finish => {
                let Some((set, mut record)) = self.record_of(target) else {
                    return Outcome::Done;
                };
                let pod = self.pods.get(&target.key).filter(|pod| pod.instance.home == target.uid);
                let Some(pod) = pod.filter(|pod| pod.instance.finished) else {
                    return Outcome::Done;
                };
                record.finished = true;
                record.status = pod.instance.status;
                record.version = self.serial();
                self.write_record(&at, set, record)
            }
            Step::Look => {
                // The same name may be taken by another set by now: that is not an answer for this one.
                let record = self.records.get(&at).filter(|(set, _)| *set == target.set);
                let record = record.map(|(_, record)| record.clone());
                let pod = self.pods.get(&target.key).filter(|pod| pod.set == target.set);
                Outcome::Found { record, instance: pod.map(|pod| pod.instance.clone()) }
            }
            Step::Erase(object) => {
                let record = self.records.get(&at).map(|(_, record)| record.clone());
                if let Some(record) = record.filter(|record| record.object == *object) {
                    self.may_destroy(&record.home, "the record");
                    self.delete_record(&at);
                }
                Outcome::Done
            }
        }
    }

    /// The record a step is about; one of that name may stand for another object by now.
    fn record_of(&self, target: &Ref) -> Option<(SetRef, Record)> {
        let (set, record) = self.records.get(&(target.set.kind, target.key.clone()))?;
        (*set == target.set && record.home == target.uid).then(|| (set.clone(), record.clone()))
    }

    fn write_record(&mut self, at: &StoredAt, set: SetRef, record: Record) -> Outcome {
        self.records.insert(at.clone(), (set.clone(), record.clone()));
        self.record_events.push_back((set, at.1.clone(), Ok(record.clone())));
        Outcome::Stored(record)
    }

    // --- running it ---

    /// Moves what the halves ask for to where it is carried out.
    fn drain(&mut self) {
        while let Some(action) = self.consumer.poll_action() {
            match action {
                consumer::Action::Send(frame) => self.to_provider.push_back(frame),
                consumer::Action::SendBody { target, .. } => self.send_body(target),
                consumer::Action::ApplyStatus { ref target, .. } => {
                    // A newer status takes the place of one that is still to be written.
                    let same = |other: &consumer::Action| matches!(other, consumer::Action::ApplyStatus { target: t, .. } if t == target);
                    self.consumer_todo.retain(|other| !same(other));
                    self.consumer_todo.push_back(action);
                }
                consumer::Action::FinishDeletion(_)
                | consumer::Action::Refused { .. }
                | consumer::Action::Recovered(_)
                | consumer::Action::Settled(_) => self.consumer_todo.push_back(action),
            }
        }
        while let Some(action) = self.provider.poll_action() {
            match action {
                provider::Action::Send(frame) => self.to_consumer.push_back(frame),
                provider::Action::Run { target, step } => {
                    self.requests.push(Request { target, step, answer: None });
                }
                provider::Action::SendStatus { target, hash, interim } => {
                    let at_hand = self.pods.get(&target.key).map(|pod| &pod.instance);
                    let at_hand = at_hand.filter(|instance| instance.home == target.uid);
                    let shown = at_hand.and_then(|i| if interim { i.interim } else { i.status });
                    if shown == Some(hash) && self.chance(1, 2) {
                        self.send_status(target, hash);
                    } else {
                        self.reads.push((target, None));
                    }
                }
            }
        }
    }

    fn send_status(&mut self, target: Ref, hash: Hash) {
        self.to_consumer.push_back(ProviderFrame::Status { target, hash, body: Bytes::new() });
    }

    /// A status is read, or what was read comes back.
    fn read_step(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let index = self.index(self.reads.len());
        let (target, found) = self.reads[index].clone();
        if let Some(found) = found {
            self.reads.swap_remove(index);
            self.tell(format_args!("status of {} read: {found:?}", target.key));
            if let Some((hash, _)) = self.provider.status_read(&target, found) {
                self.send_status(target, hash);
            }
            return;
        }
        let kept = self.record_of(&target).and_then(|(_, record)| record.status);
        self.reads[index].1 = Some(match (self.pods.get(&target.key), kept) {
            (Some(pod), _) => StatusFound::Running(pod.instance.clone()),
            (None, Some(status)) => StatusFound::Kept(status),
            (None, None) => StatusFound::Nothing,
        });
    }

    /// Reads the object anew, as a shell does, and sends its body.
    fn send_body(&mut self, target: Ref) {
        let at = (target.set.kind, target.key.clone());
        match self.home.get(&at) {
            Some(object) if object.uid == target.uid && object.deleting.is_none() => {
                let hash = object.hash;
                let body = Bytes::copy_from_slice(hash.as_bytes());
                self.to_provider.push_back(ConsumerFrame::Upsert { target, hash, body });
                let object = object.clone();
                observe(&mut self.consumer, &at.1, &object);
            }
            Some(object) => {
                let object = object.clone();
                observe(&mut self.consumer, &at.1, &object);
            }
            None => self.consumer.removed(&target.set, &target.key, &target.uid, Some(0)),
        }
    }

    /// Lets everything settle without faults, and compares the two sides.
    pub(crate) fn calm_down(&mut self) {
        self.open_link();
        while !self.ghosts.is_empty() {
            self.ghost_step();
        }
        let mut requests = 0;
        for round in 0..20_000 {
            self.now += Duration::from_secs(1);
            self.drain();
            self.provider.handle_timeout(self.now);
            self.drain();
            while !self.home_events.is_empty() {
                self.deliver_home_event();
                self.drain();
            }
            while !self.to_provider.is_empty() {
                self.deliver_to_provider();
                self.drain();
            }
            while !self.to_consumer.is_empty() {
                self.deliver_to_consumer();
                self.drain();
            }
            while let Some(Request { target, step, answer }) = self.requests.pop() {
                requests += 1;
                assert!(
                    requests < MOST_REQUESTS,
                    "seed {}: requests without end, the last for {target:?}: {step:?}",
                    self.seed
                );
                let outcome = answer.unwrap_or_else(|| self.carry_out(&target, &step));
                self.provider.done(&target, outcome, self.now, 0);
                self.drain();
            }
            while !self.reads.is_empty() {
                self.read_step();
                self.drain();
            }
            while !self.record_events.is_empty() {
                self.deliver_record_event();
                self.drain();
            }
            while !self.pod_events.is_empty() {
                self.deliver_pod_event();
                self.drain();
            }
            while !self.consumer_todo.is_empty() {
                self.consumer_step();
            }
            let pods: Vec<_> = self.pods.keys().cloned().collect();
            for key in pods {
                let orphan = !self.records.values().any(|(_, r)| r.object == self.pods[&key].owner);
                if self.pods[&key].instance.terminating {
                    self.delete_pod(&key);
                } else if orphan {
                    self.terminate(&key);
                }
            }
            let quiet = self.home_events.is_empty()
                && self.to_provider.is_empty()
                && self.to_consumer.is_empty()
                && self.requests.is_empty()
                && self.reads.is_empty()
                && self.record_events.is_empty()
                && self.pod_events.is_empty()
                && self.consumer_todo.is_empty();
            // A retry may still be pending: two minutes of silence are more than the longest wait.
            if quiet && self.provider.poll_timeout().is_none() {
                self.compare();
                return;
            }
            assert!(round < 19_999, "seed {}: no agreement", self.seed);
        }
    }

    fn compare(&mut self) {
        self.counts.agreements += 1;
        let seed = self.seed;
        for ((kind, key), object) in &self.home {
            assert!(object.deleting.is_none(), "seed {seed}: {key} is still being deleted at home");
            let Some((set, record)) = self.records.get(&(*kind, key.clone())) else {
                panic!("seed {seed}: {kind:?} {key} ({}) was lost: {:?}", object.uid, self.provider);
            };
            assert_eq!(
                (set, &record.home, record.hash),
                (&object.set, &object.uid, object.hash),
                "seed {seed}: {key}"
            );
            if *kind == Kind::Namespace {
                assert!(
                    self.settled.contains(&object.uid),
                    "seed {seed}: nobody was told that {key} is there"
                );
            }
            if *kind == Kind::Pod {
                match self.pods.get(key) {
                    None => {
                        assert!(record.finished, "seed {seed}: {key} does not run");
                        assert_eq!(record.status, object.status, "seed {seed}: how {key} ended");
                    }
                    Some(pod) => {
                        assert_eq!(pod.instance.home, object.uid, "seed {seed}: {key}");
                        let current = pod.instance.hash == object.hash || pod.instance.finished;
                        assert!(current, "seed {seed}: {key} runs an old body");
                        if pod.instance.status.is_some() {
                            assert_eq!(pod.instance.status, object.status, "seed {seed}: status of {key}");
                        }
                    }
                }
            }
        }
        assert_eq!(
            self.records.len(),
            self.home.len(),
            "seed {seed}: records nobody wants: {:?}",
            self.records
        );
        let pods = self.home.keys().filter(|(kind, _)| *kind == Kind::Pod).count();
        assert!(self.pods.len() <= pods, "seed {seed}: pods nobody wants: {:?}", self.pods);
        assert_eq!(
            self.consumer.unsettled(),
            [],
            "seed {seed}: the consumer waits for something of {:?}",
            self.provider
        );
        assert_eq!(self.consumer.len(), self.home.len(), "seed {seed}: the consumer remembers too much");
    }
}

fn observe(consumer: &mut Consumer, key: &Key, object: &HomeObject) {
    let target = Ref { set: object.set.clone(), key: key.clone(), uid: object.uid.clone() };
    let wanted = match object.deleting {
        None => Wanted::Present(object.hash),
        Some(grace) => Wanted::Deleting { grace },
    };
    consumer.observe(target, wanted, object.status);
}

fn failed(message: &str) -> Outcome {
    Outcome::Failed(Refusal { reason: "Test".to_owned(), message: message.to_owned() })
}
