//! The provider half for one consumer: keeps stored objects and what runs behind them as the consumer wants
//! them, and keeps them alive on its own while the consumer is out of reach.
//!
//! Level-triggered: [`Provider`] holds, per object, what is wanted, what is stored (the *record*: a ShadowPod, or
//! a namespace) and what runs (the *instance*: a pod), and derives the one next [`Step`] from these. A step is
//! carried out by the shell; its result and the watches of the API server update the picture.

mod claims;
mod decide;
mod member;
mod state;

pub use state::{Action, Deleted, Hold, Instance, Outcome, Record, StatusFound, Step};

use crate::addresses::Prefixes;
use crate::frame::{ConsumerFrame, ProviderFrame, Ref, Refusal, Wanted};
use crate::key::{Key, Kind, SetRef};
use claims::Within;
use decide::{Decision, decide};
use liquid_link::digest::Hash;
use liquid_runtime::backoff::Backoff;
use member::{Answer, Generation, Member, Running, Wait, Wish};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First and longest wait before a failed step is tried again. It never stops.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_CAP: Duration = Duration::from_secs(60);

/// Objects kept for one consumer: Kubernetes itself is specified for 150,000 pods per cluster, and at about
/// 600 bytes each this bounds what a consumer can make the provider remember to 120 MB.
pub const MAX_OBJECTS: usize = 200_000;

/// Sets of one consumer: its virtual nodes, and a few per offloaded namespace. At about 40 bytes each they fit a frame.
pub const MAX_SETS: usize = 20_000;

/// How the consumer has come not to want objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivenUp {
    /// It has named all there are in a set, and not these.
    NotNamed,
    /// The set, or the peering, has ended.
    WithItsSet,
}

/// The provider half for one consumer.
#[derive(Debug, Default)]
pub struct Provider {
    members: BTreeMap<(SetRef, Key), Member>,
    connected: bool,
    /// How the consumer sees the addresses of pods, as it has said in this stream.
    prefixes: Prefixes,
    paused: bool,
    /// The sets of this stream.
    named: BTreeSet<SetRef>,
    /// Inventories of this stream whose last part has not come yet.
    inventories: BTreeMap<SetRef, BTreeSet<Key>>,
    /// Sets whose inventory of this stream is complete: what turns up in them unmentioned is not wanted. It was
    /// made by a request of an earlier process that took effect late.
    complete: BTreeSet<SetRef>,
    generation: Generation,
    /// Objects that wait, by time.
    waits: BTreeSet<(Instant, SetRef, Key)>,
    actions: VecDeque<Action>,
}

impl Provider {
    /// A half that only listens until [`Provider::resume`]: what runs must not be judged before both the records and
    /// the instances have been read.
    pub fn paused() -> Self {
        Self { paused: true, ..Self::default() }
    }

    /// Everything that exists has been passed on: begin.
    pub fn resume(&mut self) {
        self.paused = false;
        self.wake(|_, _| true);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Provider::handle_timeout`] wants to be called: a failed step is tried again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waits.first().map(|(at, _, _)| *at)
    }

    /// Whether nothing is known of the consumer, so that nothing of it exists, but for what is kept for its data.
    pub fn is_empty(&self) -> bool {
        self.members.iter().all(|((set, _), member)| member.is_kept(set.kind))
    }

    /// Whether an object only stays for the data of the consumer's users.
    pub fn is_kept(&self, set: &SetRef, key: &Key) -> bool {
        self.members.get(&(set.clone(), key.clone())).is_some_and(|member| member.is_kept(set.kind))
    }

    /// Whether an object is stored or runs.
    pub fn exists(&self, set: &SetRef, key: &Key) -> bool {
        let member = self.members.get(&(set.clone(), key.clone()));
        member.is_some_and(|member| member.record.is_some() || member.instance.is_some())
    }

    /// Whether something runs for an object.
    pub fn runs(&self, set: &SetRef, key: &Key) -> bool {
        let member = self.members.get(&(set.clone(), key.clone()));
        member.is_some_and(|member| member.instance.is_some())
    }

    /// The record and the instance of an object; `None` if nothing is known of it.
    pub fn get(&self, set: &SetRef, key: &Key) -> Option<(Option<&Record>, Option<&Instance>)> {
        let member = self.members.get(&(set.clone(), key.clone()))?;
        Some((member.record.as_ref(), member.instance.as_ref()))
    }

    /// What runs under this name, in the sets of this stream.
    pub fn instance(&self, key: &Key) -> Option<(&SetRef, &Instance)> {
        self.named.iter().filter(|set| set.kind.has_instance()).find_map(|set| {
            let member = self.members.get(&(set.clone(), key.clone()))?;
            Some((set, member.instance.as_ref()?))
        })
    }

    /// How the consumer sees the addresses of pods.
    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    /// Every object that is known, with its record and its instance.
    pub fn objects(&self) -> impl Iterator<Item = (&SetRef, &Key, Option<&Record>, Option<&Instance>)> {
        self.members
            .iter()
            .map(|((set, key), member)| (set, key, member.record.as_ref(), member.instance.as_ref()))
    }

    /// A stream from the consumer is open.
    pub fn connected(&mut self) {
        self.disconnected();
        self.connected = true;
    }

    /// The stream is lost. Everything goes on as it was wanted last.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.prefixes = Prefixes::default();
        self.named.clear();
        self.inventories.clear();
        self.complete.clear();
        self.actions.retain(|action| matches!(action, Action::Run { .. }));
        for member in self.members.values_mut() {
            member.asked = false;
            member.answered = None;
            member.status = None;
        }
    }

    /// The consumer said something.
    pub fn received(&mut self, frame: ConsumerFrame) {
        match frame {
            ConsumerFrame::Sets(sets) => {
                let named: BTreeSet<SetRef> = sets.into_iter().take(MAX_SETS).collect();
                self.inventories.retain(|set, _| named.contains(set));
                self.complete.retain(|set| named.contains(set));
                self.give_up(|set, _| !named.contains(set), GivenUp::WithItsSet);
                self.named = named;
            }
            ConsumerFrame::Addresses(prefixes) => {
                if std::mem::replace(&mut self.prefixes, prefixes) != self.prefixes {
                    let members: Vec<_> = self.members.keys().cloned().collect();
                    for (set, key) in members {
                        self.offer_status(&set, &key);
                    }
                }
            }
            // Only a Delete may be about a set that is not named: one that has ended.
            ConsumerFrame::Inventory { set, .. } if !self.named.contains(&set) => {}
            ConsumerFrame::Upsert { target, hash, .. } if !self.named.contains(&target.set) => {
                let message = format!("the consumer has not named its set, or more than {MAX_SETS}");
                let refusal = Refusal { reason: "UnknownSet".to_owned(), message };
                self.actions.push_back(Action::Send(ProviderFrame::Nack { target, hash, refusal }));
            }
            ConsumerFrame::Inventory { set, entries, complete } => {
                if !complete && self.complete.contains(&set) {
                    for entry in entries {
                        self.on_restated(&set, entry);
                    }
                    return;
                }
                for entry in entries {
                    if self.full(&set, &entry.key) {
                        continue;
                    }
                    let key = entry.key.clone();
                    self.inventories.entry(set.clone()).or_default().insert(key.clone());
                    self.on_entry(&set, entry);
                    self.drop_heard(&set, &key);
                }
                if complete {
                    let named = self.inventories.remove(&set).unwrap_or_default();
                    self.give_up(|other, key| *other == set && !named.contains(key), GivenUp::NotNamed);
                    self.complete.insert(set);
                }
            }
            ConsumerFrame::Upsert { target, hash, .. } if self.full(&target.set, &target.key) => {
                let message = format!("the provider keeps at most {MAX_OBJECTS} objects of one consumer");
                let refusal = Refusal { reason: "TooManyObjects".to_owned(), message };
                self.actions.push_back(Action::Send(ProviderFrame::Nack { target, hash, refusal }));
            }
            ConsumerFrame::Upsert { target, hash, body } => {
                let Ref { set, key, uid } = target;
                let member = self.member(&set, &key);
                let same =
                    matches!(&member.wish, Wish::Present { uid: u, hash: h, .. } if *u == uid && *h == hash);
                member.wish = Wish::Present { uid, hash, body: Some(body) };
                member.asked = false;
                member.answered = None;
                if !same {
                    self.start_over(&set, &key);
                }
                self.advance(&set, &key);
                // What cannot be stored at once would only pin memory: it is asked for when it is its turn.
                if let Some(Member { wish: Wish::Present { body, .. }, .. }) =
                    self.members.get_mut(&(set, key))
                {
                    *body = None;
                }
            }
            ConsumerFrame::Delete { target, grace } => {
                let Ref { set, key, uid } = target;
                if self.named.contains(&set) && !self.complete.contains(&set) {
                    self.inventories.entry(set.clone()).or_default().insert(key.clone());
                }
                self.member(&set, &key).wish = Wish::Absent { uid, grace };
                self.start_over(&set, &key);
                self.advance(&set, &key);
                self.drop_heard(&set, &key);
            }
        }
    }

    /// The watch of records: the record of `key` is now this, or gone.
    pub fn record_changed(&mut self, set: &SetRef, key: &Key, news: Result<Record, Deleted>) {
        if news.is_err() && !self.members.contains_key(&(set.clone(), key.clone())) {
            return;
        }
        let unwanted = self.complete.contains(set) && !self.members.contains_key(&(set.clone(), key.clone()));
        let member = self.member(set, key);
        match news {
            Ok(record) => {
                if unwanted {
                    let uid = record.home.clone();
                    member.wish = match set.kind {
                        Kind::PersistentVolumeClaim => Wish::Omitted { uid },
                        _ => Wish::Absent { uid, grace: None },
                    };
                }
                member.learn_record(record);
            }
            Err(Deleted { object, version }) => {
                member.record_seen = member.record_seen.max(version);
                if member.record.as_ref().is_some_and(|known| known.object == object) {
                    member.record = None;
                }
            }
        }
        self.news(set, key);
    }

    /// The watch of instances: the instance of `key` is now this, or gone.
    pub fn instance_changed(&mut self, set: &SetRef, key: &Key, news: Result<Instance, Deleted>) {
        if news.is_err() && !self.members.contains_key(&(set.clone(), key.clone())) {
            return;
        }
        let member = self.member(set, key);
        match news {
            Ok(instance) => member.learn_instance(instance),
            Err(Deleted { object, version }) => {
                member.instance_seen = member.instance_seen.max(version);
                if member.instance.as_ref().is_some_and(|known| known.object == object) {
                    member.instance = None;
                }
            }
        }
        self.news(set, key);
    }

    /// A watch was interrupted and its list has been read anew; what the list holds was passed on. `missing` are
    /// known objects it does not hold: each is looked at, for it may be younger than the list.
    pub fn relisted(&mut self, missing: impl IntoIterator<Item = (SetRef, Key)>) {
        self.generation += 1;
        for (set, key) in missing {
            if let Some(member) = self.members.get_mut(&(set.clone(), key.clone())) {
                member.outdated = true;
                self.advance(&set, &key);
            }
        }
    }

    /// A step has ended. `entropy` spreads retries.
    pub fn done(&mut self, target: &Ref, outcome: Outcome, now: Instant, entropy: u64) {
        let Ref { set, key, .. } = target;
        let Some(member) = self.members.get_mut(&(set.clone(), key.clone())) else {
            return;
        };
        let Some((ran, issued)) = member.running.take() else {
            return;
        };
        let late = issued != self.generation;
        let done = outcome == Outcome::Done;
        match outcome {
            Outcome::Failed(refusal) => {
                if ran == Running::Make {
                    member.uncertain = Some(target.uid.clone());
                }
                self.wait(set, key, now, entropy, false);
                self.report_refusal(set, key, refusal);
                return;
            }
            Outcome::Stored(_) | Outcome::Running(_) | Outcome::Found { .. } if late => {
                member.outdated = true;
            }
            Outcome::Outdated => {
                self.wait(set, key, now, entropy, true);
                return;
            }
            Outcome::Stored(record) => member.learn_record(record),
            Outcome::Running(instance) => member.learn_instance(instance),
            Outcome::Found { record, instance } => {
                let (record_seen, instance_seen) = match ran {
                    Running::Look { record_seen, instance_seen } => (record_seen, instance_seen),
                    Running::Make | Running::Stop(..) | Running::Erase(_) => (u64::MAX, u64::MAX),
                };
                match record {
                    Some(record) => member.learn_record(record),
                    None if member.record_seen <= record_seen => {
                        member.record = None;
                        member.orphaned = true;
                    }
                    // Made in the meantime, by a request of an earlier process.
                    None => {}
                }
                match instance {
                    Some(instance) => member.learn_instance(instance),
                    None if member.instance_seen <= instance_seen => member.instance = None,
                    None => {}
                }
                member.uncertain = None;
                member.outdated = false;
            }
            Outcome::Done => {}
        }
        match ran {
            Running::Stop(object, grace) => member.stopped = Some((object, grace)),
            // Until the watch says so itself: the record is on its way out, and erasing it twice is of no use.
            Running::Erase(object) if done => {
                if let Some(record) = member.record.as_mut().filter(|record| record.object == object) {
                    record.terminating = true;
                    member.outdated |= late;
                }
            }
            Running::Make if done => {
                self.wait(set, key, now, entropy, true);
                return;
            }
            Running::Make | Running::Erase(_) | Running::Look { .. } => {}
        }
        member.backoff = None;
        self.advance(set, key);
    }

    /// The status of a [`Action::SendStatus`] was read. Returns the digest of what is to be sent, and whether that is
    /// the [`Instance::interim`] one; `None` if nothing is.
    pub fn status_read(&mut self, target: &Ref, found: StatusFound) -> Option<(Hash, bool)> {
        let Ref { set, key, uid } = target;
        let prefixes = &self.prefixes;
        let member = self.members.get_mut(&(set.clone(), key.clone()))?;
        let shown = match &found {
            StatusFound::Running(instance) if instance.home == *uid => {
                if member.instance.as_ref().is_some_and(|known| known.version > instance.version) {
                    // There was newer news in the meantime.
                    member.status = None;
                    self.offer_status(set, key);
                    return None;
                }
                let (status, interim) = member.shown(instance);
                status.map(|status| (status.seen(prefixes), interim))
            }
            StatusFound::Kept(status) => Some((status.seen(prefixes), false)),
            StatusFound::Running(_) | StatusFound::Nothing => None,
        };
        member.status = shown.map(|(status, _)| status);
        shown
    }

    fn wait(&mut self, set: &SetRef, key: &Key, now: Instant, entropy: u64, outdated: bool) {
        let member = self.member(set, key);
        let backoff = member.backoff.get_or_insert_with(|| Backoff::new(RETRY_FIRST, RETRY_CAP));
        let until = now + backoff.next(entropy);
        member.wait = Some(Wait { until, outdated });
        self.waits.insert((until, set.clone(), key.clone()));
    }

    /// News of an object has come: a wait for it is over.
    fn news(&mut self, set: &SetRef, key: &Key) {
        let member = self.members.get(&(set.clone(), key.clone()));
        if member.and_then(|member| member.wait.as_ref()).is_some_and(|wait| wait.outdated) {
            self.end_wait(set, key);
        }
        self.advance(set, key);
    }

    /// Time has passed: failed steps whose wait is over are tried again.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((until, set, key)) = self.waits.first().cloned() {
            if until > now {
                return;
            }
            self.end_wait(&set, &key);
            self.advance(&set, &key);
        }
    }

    /// What held up these objects is gone: their next step is taken at once.
    pub fn wake(&mut self, which: impl Fn(&SetRef, &Key) -> bool) {
        let woken: Vec<_> = self.members.keys().filter(|(set, key)| which(set, key)).cloned().collect();
        for (set, key) in woken {
            self.end_wait(&set, &key);
            self.advance(&set, &key);
        }
    }

    /// Ends everything of this consumer on purpose: the peering is over.
    pub fn end(&mut self) {
        self.give_up(|_, _| true, GivenUp::WithItsSet);
    }

    /// Whether an object that is not known yet would be one too many.
    fn full(&self, set: &SetRef, key: &Key) -> bool {
        self.members.len() >= MAX_OBJECTS && !self.members.contains_key(&(set.clone(), key.clone()))
    }

    fn member(&mut self, set: &SetRef, key: &Key) -> &mut Member {
        self.members.entry((set.clone(), key.clone())).or_insert_with(Member::new)
    }

    /// A part that comes after the whole inventory: somebody at home has changed the status.
    fn on_restated(&mut self, set: &SetRef, entry: crate::frame::Entry) {
        let member = self.members.get_mut(&(set.clone(), entry.key.clone()));
        if let Some(member) = member.filter(|member| member.home() == Some(&entry.uid)) {
            member.status = entry.status;
            self.offer_status(set, &entry.key);
        }
    }

    fn on_entry(&mut self, set: &SetRef, entry: crate::frame::Entry) {
        let crate::frame::Entry { key, uid, wanted, status } = entry;
        let member = self.member(set, &key);
        member.status = status;
        let wish = match wanted {
            Wanted::Present(hash) => Wish::Present { uid, hash, body: None },
            Wanted::Deleting { grace } => Wish::Absent { uid, grace },
        };
        // The consumer takes a pod of an inventory as agreed unless it is asked for the body. The others are few, and
        // it waits to hear that they are there.
        member.answered = match wanted {
            Wanted::Present(hash) if set.kind.has_instance() => Some(Answer::Stored(hash)),
            Wanted::Present(_) | Wanted::Deleting { .. } => None,
        };
        if member.wish != wish {
            member.wish = wish;
            self.start_over(set, &key);
        }
        self.advance(set, &key);
    }

    /// The consumer has stated that it does not want these objects.
    fn give_up(&mut self, which: impl Fn(&SetRef, &Key) -> bool, how: GivenUp) {
        let given_up: Vec<_> = self.members.keys().filter(|(set, key)| which(set, key)).cloned().collect();
        for (set, key) in given_up {
            let member = self.member(&set, &key);
            let Some(uid) = member.home().cloned() else {
                continue;
            };
            let wish = match (set.kind, how) {
                // What it has said of a claim before holds.
                _ if matches!(member.wish, Wish::Absent { .. }) => None,
                (Kind::PersistentVolumeClaim, GivenUp::WithItsSet) => Some(Wish::Unspoken),
                (Kind::PersistentVolumeClaim, GivenUp::NotNamed) => Some(Wish::Omitted { uid }),
                _ => Some(Wish::Absent { uid, grace: None }),
            };
            if let Some(wish) = wish.filter(|wish| *wish != member.wish) {
                member.wish = wish;
                self.start_over(&set, &key);
            }
            self.advance(&set, &key);
        }
    }

    fn end_wait(&mut self, set: &SetRef, key: &Key) {
        if let Some(member) = self.members.get_mut(&(set.clone(), key.clone()))
            && let Some(wait) = member.wait.take()
        {
            self.waits.remove(&(wait.until, set.clone(), key.clone()));
        }
    }

    /// Something else is wished: earlier failures do not matter any more.
    fn start_over(&mut self, set: &SetRef, key: &Key) {
        self.end_wait(set, key);
        let member = self.member(set, key);
        member.backoff = None;
        member.asked = false;
    }

    fn report_refusal(&mut self, set: &SetRef, key: &Key, refusal: Refusal) {
        if !self.connected {
            return;
        }
        let member = self.member(set, key);
        let Wish::Present { uid, hash, .. } = &member.wish else {
            return;
        };
        let target = Ref { set: set.clone(), key: key.clone(), uid: uid.clone() };
        let hash = *hash;
        member.answered = Some(Answer::Refused(hash));
        self.actions.push_back(Action::Send(ProviderFrame::Nack { target, hash, refusal }));
    }

    /// Takes the next step of an object unless it waits after a failure.
    fn advance(&mut self, set: &SetRef, key: &Key) {
        if self.paused {
            return;
        }
        self.advance_alone(set, key);
        // A namespace waits for its claims, and new claims for their namespace.
        match set.kind {
            Kind::PersistentVolumeClaim => {
                let namespace = Key { namespace: Arc::from(""), name: key.namespace.clone() };
                self.advance_alone(&SetRef::namespaces(), &namespace);
            }
            Kind::Namespace => {
                let claims: Vec<Key> = self.claims_in(&key.name).map(|(claim, _)| claim.clone()).collect();
                for claim in claims {
                    self.advance_alone(&SetRef::claims(), &claim);
                }
            }
            _ => {}
        }
    }

    fn advance_alone(&mut self, set: &SetRef, key: &Key) {
        let member = self.members.get(&(set.clone(), key.clone()));
        if member.is_some_and(|member| member.wait.is_none()) {
            self.advance_now(set, key);
        }
        self.offer_status(set, key);
    }

    /// The claims in a namespace of the consumer.
    fn claims_in(&self, namespace: &str) -> impl Iterator<Item = (&Key, &Member)> {
        let first = (SetRef::claims(), Key::new(namespace, ""));
        let claims = self.members.range(first..).map(|((set, key), member)| (set, key, member));
        let inside = move |(set, key, _): &(&SetRef, &Key, &Member)| {
            set.kind == Kind::PersistentVolumeClaim && *key.namespace == *namespace
        };
        claims.take_while(inside).map(|(_, key, member)| (key, member))
    }

    /// Whether the consumer has said in this stream what it wants of an object. Before that, what an earlier stream or the end
    /// of a peering has asked for is not to be answered: the object may be wanted again.
    fn is_heard(&self, set: &SetRef, key: &Key) -> bool {
        let unnamed = !self.named.is_empty() && !self.named.contains(set);
        unnamed
            || self.complete.contains(set)
            || self.inventories.get(set).is_some_and(|keys| keys.contains(key))
    }

    /// What does not exist needs no place among what an inventory has named.
    fn drop_heard(&mut self, set: &SetRef, key: &Key) {
        if !self.members.contains_key(&(set.clone(), key.clone()))
            && let Some(keys) = self.inventories.get_mut(set)
        {
            keys.remove(key);
        }
    }

    /// Whether new claims may be made in a namespace: it is there and shall stay.
    fn is_open(&self, namespace: &str) -> bool {
        let member = self.members.get(&(SetRef::namespaces(), Key::new("", namespace)));
        let Some((member, record)) = member.and_then(|member| Some((member, member.record.as_ref()?))) else {
            return false;
        };
        let wanted = match &member.wish {
            Wish::Present { uid, .. } => *uid == record.home,
            Wish::Unspoken => true,
            Wish::Absent { .. } | Wish::Omitted { .. } => false,
        };
        wanted && !record.terminating && record.hold != Hold::Retired
    }

    fn decide(&self, set: &SetRef, key: &Key, member: &Member) -> Decision {
        match set.kind {
            Kind::PersistentVolumeClaim => claims::decide(member, self.is_open(&key.namespace)),
            Kind::Namespace => {
                let claims = self.claims_in(&key.name).map(|(_, claim)| Within::of(claim));
                claims::decide_namespace(member, claims.fold(Within::Nothing, Within::and))
            }
            _ => decide(member, set.kind.has_instance()),
        }
    }

    fn advance_now(&mut self, set: &SetRef, key: &Key) {
        let (connected, generation) = (self.connected, self.generation);
        let at = (set.clone(), key.clone());
        let Some(member) = self.members.get(&at).filter(|member| member.running.is_none()) else {
            return;
        };
        let Some(uid) = member.home().cloned() else {
            self.forget(set, key);
            return;
        };
        let decision = self.decide(set, key, member);
        let heard = connected && self.is_heard(set, key);
        let Some(member) = self.members.get_mut(&at) else { return };
        let target = Ref { set: set.clone(), key: key.clone(), uid };
        // Stored is durable: say so before what belongs to it is started.
        if connected
            && member.answered.is_none()
            && let Some(hash) = member.stored_as_wished()
        {
            member.answered = Some(Answer::Stored(hash));
            self.actions.push_back(Action::Send(ProviderFrame::Ack { target: target.clone(), hash }));
        }
        match decision {
            Decision::Run(step) => {
                let running = match &step {
                    Step::Stop { object, grace } => Running::Stop(object.clone(), *grace),
                    Step::Erase(object) | Step::Reclaim { object, .. } => Running::Erase(object.clone()),
                    Step::Store { .. } | Step::Start | Step::Adjust(_) | Step::Finish | Step::Retire(_) => {
                        Running::Make
                    }
                    Step::Look => {
                        Running::Look { record_seen: member.record_seen, instance_seen: member.instance_seen }
                    }
                };
                member.running = Some((running, generation));
                // The body is not needed here any more; should storing it fail, it is asked for again.
                if let (Step::Store { .. }, Wish::Present { body, .. }) = (&step, &mut member.wish) {
                    *body = None;
                }
                self.actions.push_back(Action::Run { target, step });
            }
            Decision::AskForBody if connected && !member.asked => {
                member.asked = true;
                self.actions.push_back(Action::Send(ProviderFrame::Want(target)));
            }
            Decision::Settled(hash) if connected && matches!(member.answered, Some(Answer::Refused(_))) => {
                member.answered = Some(Answer::Stored(hash));
                self.actions.push_back(Action::Send(ProviderFrame::Ack { target, hash }));
            }
            Decision::ReportGone => {
                if heard {
                    self.actions.push_back(Action::Send(ProviderFrame::Gone(target)));
                }
                self.forget(set, key);
            }
            Decision::ReportKept => {
                member.wish = Wish::Unspoken;
                if heard {
                    self.actions.push_back(Action::Send(ProviderFrame::Gone(target)));
                }
                self.advance_now(set, key);
            }
            Decision::Refuse(reason, message) => {
                let Wish::Present { hash, .. } = member.wish else { return };
                if connected && member.answered != Some(Answer::Refused(hash)) {
                    member.answered = Some(Answer::Refused(hash));
                    let refusal = Refusal { reason: reason.to_owned(), message };
                    self.actions.push_back(Action::Send(ProviderFrame::Nack { target, hash, refusal }));
                }
            }
            Decision::Forget => self.forget(set, key),
            Decision::Nothing | Decision::AskForBody | Decision::Settled(_) => {}
        }
    }

    fn forget(&mut self, set: &SetRef, key: &Key) {
        let removed = self.members.remove(&(set.clone(), key.clone()));
        if let Some(wait) = removed.and_then(|member| member.wait) {
            self.waits.remove(&(wait.until, set.clone(), key.clone()));
        }
    }

    /// Offers the status of an instance if the consumer has another one.
    fn offer_status(&mut self, set: &SetRef, key: &Key) {
        if !self.connected {
            return;
        }
        let Some(member) = self.members.get_mut(&(set.clone(), key.clone())) else {
            return;
        };
        let (home, status, interim) = match (&member.instance, &member.record) {
            // Of one that has taken the place of another the consumer has to know.
            (Some(instance), _) if instance.fresh && member.status.is_none() => return,
            (Some(instance), _) => {
                let (status, interim) = member.shown(instance);
                (&instance.home, status, interim)
            }
            // What has ended may be gone; how it ended is kept.
            (None, Some(record)) => (&record.home, record.status, false),
            (None, None) => return,
        };
        let Some(hash) = status.map(|status| status.seen(&self.prefixes)) else { return };
        // Before the consumer has spoken of the object in this stream it is not known what status it has.
        let spoken = match &member.wish {
            Wish::Present { uid, .. } | Wish::Absent { uid, .. } => uid == home,
            Wish::Unspoken | Wish::Omitted { .. } => false,
        };
        if !spoken || member.status == Some(hash) {
            return;
        }
        let target = Ref { set: set.clone(), key: key.clone(), uid: home.clone() };
        member.status = Some(hash);
        self.actions.push_back(Action::SendStatus { target, hash, interim });
    }
}
