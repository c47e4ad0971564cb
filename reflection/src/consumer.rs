//! The consumer half: knows what is wanted, and how far the provider is with it.

use crate::addresses::Prefixes;
use crate::frame::{self, ConsumerFrame, ProviderFrame, Ref, Refusal, Wanted};
use crate::key::{Key, SetRef, Uid};
use crate::warning::Warning;
use bytes::Bytes;
use liquid_link::digest::Hash;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bodies under way without an answer. What is sent beyond what the provider takes in waits in the windows of HTTP/2,
/// and with it the sender; this only bounds what is lost with a stream, and has to be asked for and read again.
pub const WINDOW: usize = 4096;

/// Members per inventory frame: about 130 bytes each keep a frame near 64 kB.
pub const INVENTORY_PART: usize = 500;

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this frame.
    Send(ConsumerFrame),
    /// Send an `Upsert` with the body of this object. If its digest is another one by now, call
    /// [`Consumer::observe`] instead; if it is gone, [`Consumer::removed`].
    SendBody {
        /// Which object.
        target: Ref,
        /// Digest the body had.
        hash: Hash,
    },
    /// Write this status to the object at home.
    ApplyStatus {
        /// Which object.
        target: Ref,
        /// Digest of the status.
        hash: Hash,
        /// JSON as it came.
        body: Bytes,
    },
    /// The provider has nothing of this object any more: finish its deletion at home.
    FinishDeletion(Ref),
    /// The provider refuses the object, for now: tell the user. It tries again on its own.
    Refused {
        /// Which object.
        target: Ref,
        /// Why.
        refusal: Refusal,
    },
    /// The provider took the object after it had refused it.
    Recovered(Ref),
    /// The provider has stored the object as it is wanted.
    Settled(Ref),
    /// Somebody in the provider warns of the object: tell the user.
    Warned {
        /// Which object.
        target: Ref,
        /// The same for a warning that is repeated.
        id: Uid,
        /// What it says.
        warning: Box<Warning>,
    },
}

/// State of one object.
#[derive(Debug, Clone)]
struct Member {
    uid: Uid,
    wanted: Wanted,
    /// The object at home is gone already; only the provider has to follow.
    gone_at_home: bool,
    /// Digest of the status at home.
    status: Option<Hash>,
    /// Digest of the status that is being written there, until it is seen.
    writing: Option<Hash>,
    /// Digests of the last status the provider has sent, and of the one before, which may be written still.
    sent: Option<Hash>,
    sent_before: Option<Hash>,
    /// Digest somebody else has put in its place, which the provider was told of.
    restated: Option<Hash>,
    progress: Progress,
    /// The user was told that the provider refuses it.
    refused: bool,
}

/// How far the provider is, as far as this side knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Not mentioned in this stream.
    Untold,
    /// Told, or known from an inventory: it will ask if it needs anything.
    Told(Wanted),
    /// The body was asked for by the provider or changed, and waits for its turn.
    Queued,
    /// The body was sent and not answered.
    Sent(Hash),
    /// The provider said that nothing of it exists.
    Gone,
}

#[derive(Debug, Default)]
struct Set {
    /// All members are known: the first list of the watch behind the set is complete.
    synced: bool,
    /// The whole inventory was sent in this stream.
    announced: bool,
    members: BTreeMap<Key, Member>,
}

/// The consumer half for one peer.
#[derive(Debug, Default)]
pub struct Consumer {
    sets: BTreeMap<SetRef, Set>,
    connected: bool,
    /// How this side sees the addresses of the provider's pods.
    prefixes: Prefixes,
    /// Bodies sent and not answered.
    in_flight: usize,
    /// Objects whose body waits for its turn.
    queue: BTreeSet<(SetRef, Key)>,
    actions: VecDeque<Action>,
}

impl Consumer {
    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.actions.is_empty() {
            self.fill_window();
        }
        self.actions.pop_front()
    }

    /// Number of objects that exist at home.
    pub fn len(&self) -> usize {
        self.sets.values().map(|set| set.members.len()).sum()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Objects that wait to be sent, asked about or answered.
    pub fn unsettled(&self) -> Vec<(&SetRef, &Key)> {
        let settled = |member: &Member| matches!(member.progress, Progress::Told(wanted) if wanted == member.wanted && !member.gone_at_home);
        let members = self
            .sets
            .iter()
            .flat_map(|(set, state)| state.members.iter().map(move |(key, member)| (set, key, member)));
        members.filter(|(_, _, member)| !settled(member)).map(|(set, key, _)| (set, key)).collect()
    }

    /// Whether an object is known, with this UID.
    pub fn knows(&self, target: &Ref) -> bool {
        let member = self.sets.get(&target.set).and_then(|state| state.members.get(&target.key));
        member.is_some_and(|member| member.uid == target.uid)
    }

    /// The members of a set that exist at home.
    pub fn members(&self, set: &SetRef) -> impl Iterator<Item = (&Key, &Uid)> {
        let members = self.sets.get(set).into_iter().flat_map(|state| &state.members);
        members.filter(|(_, member)| !member.gone_at_home).map(|(key, member)| (key, &member.uid))
    }

    /// Objects at home that are being deleted.
    pub fn deleting(&self) -> Vec<Ref> {
        let members = self
            .sets
            .iter()
            .flat_map(|(set, state)| state.members.iter().map(move |(key, member)| (set, key, member)));
        members
            .filter(|(_, _, member)| matches!(member.wanted, Wanted::Deleting { .. }) && !member.gone_at_home)
            .map(|(set, key, member)| Ref { set: set.clone(), key: key.clone(), uid: member.uid.clone() })
            .collect()
    }

    /// The body that was asked for could not be read: it takes its turn again.
    pub fn not_sent(&mut self, target: &Ref) {
        let Some(member) = self.member(target) else { return };
        if matches!(member.progress, Progress::Sent(_)) {
            member.progress = Progress::Queued;
            self.in_flight = self.in_flight.saturating_sub(1);
            self.queue.insert((target.set.clone(), target.key.clone()));
        }
    }

    /// This is how this side sees the addresses of the provider's pods.
    pub fn see_addresses(&mut self, prefixes: Prefixes) {
        if std::mem::replace(&mut self.prefixes, prefixes) != self.prefixes {
            self.send_prefixes();
        }
    }

    /// A set exists. Its members are held back until [`Consumer::synced`].
    pub fn add_set(&mut self, set: SetRef) {
        if let Entry::Vacant(place) = self.sets.entry(set) {
            place.insert(Set::default());
            self.send_sets();
        }
    }

    /// A set is given up on purpose, with everything in it.
    pub fn remove_set(&mut self, set: &SetRef) {
        let Some(removed) = self.sets.remove(set) else {
            return;
        };
        for (key, member) in removed.members {
            self.forget(set, &key, &member);
        }
        self.send_sets();
    }

    /// Every member of the set has been observed once: its inventory may be sent.
    pub fn synced(&mut self, set: &SetRef) {
        let Some(state) = self.sets.get_mut(set) else {
            return;
        };
        if !state.synced {
            state.synced = true;
            self.announce(set);
        }
    }

    /// After a watch was interrupted and its list has been read anew: members not in `seen` are gone at home.
    pub fn resynced(&mut self, set: &SetRef, seen: &BTreeSet<Key>) {
        let Some(state) = self.sets.get(set) else { return };
        let vanished: Vec<_> = state
            .members
            .iter()
            .filter(|(key, member)| !member.gone_at_home && !seen.contains(*key))
            .map(|(key, member)| (key.clone(), member.uid.clone()))
            .collect();
        for (key, uid) in vanished {
            self.removed(set, &key, &uid, None);
        }
        self.synced(set);
    }

    /// The object exists at home, like this.
    pub fn observe(&mut self, target: Ref, wanted: Wanted, status: Option<Hash>) {
        let Ref { set, key, uid } = target;
        let Some(state) = self.sets.get_mut(&set) else {
            return;
        };
        if let Some(member) = state.members.get_mut(&key).filter(|member| member.writing == status) {
            member.writing = None;
        }
        match state.members.get_mut(&key) {
            Some(member) if member.uid == uid && member.wanted == wanted && !member.gone_at_home => {
                let changed = member.status != status;
                member.status = status;
                if changed {
                    self.restate(&set, &key);
                }
                return;
            }
            Some(member) if member.uid == uid => {
                member.wanted = wanted;
                member.status = status;
                member.gone_at_home = false;
            }
            _ => {
                let fresh = Member {
                    uid,
                    wanted,
                    gone_at_home: false,
                    status,
                    writing: None,
                    sent: None,
                    sent_before: None,
                    restated: None,
                    progress: Progress::Untold,
                    refused: false,
                };
                if let Some(old) = state.members.insert(key.clone(), fresh) {
                    self.forget(&set, &key, &old);
                }
            }
        }
        self.tell(&set, &key);
        self.restate(&set, &key);
    }

    /// Somebody else has changed the status (Kubernetes marks all pods of a node that was not ready for a moment): the
    /// provider sends what is true once more.
    fn restate(&mut self, set: &SetRef, key: &Key) {
        let Some(state) = self.sets.get_mut(set) else { return };
        let Some(member) = state.members.get_mut(key) else { return };
        let ours = member.status == member.sent || member.status == member.sent_before;
        if ours || member.sent.is_none() || member.restated == member.status {
            return;
        }
        member.writing = None;
        if !self.connected || !state.announced {
            return;
        }
        member.restated = member.status;
        let entry = frame::Entry {
            key: key.clone(),
            uid: member.uid.clone(),
            wanted: member.wanted,
            status: member.status,
        };
        let frame = ConsumerFrame::Inventory { set: set.clone(), entries: vec![entry], complete: false };
        self.actions.push_back(Action::Send(frame));
    }

    /// The object is gone at home (deleted by force, or its deletion was finished).
    pub fn removed(&mut self, set: &SetRef, key: &Key, uid: &Uid, grace: Option<u32>) {
        let Some(state) = self.sets.get_mut(set) else {
            return;
        };
        let Some(member) = state.members.get_mut(key) else {
            return;
        };
        if member.uid != *uid {
            return;
        }
        if member.progress == Progress::Gone {
            self.drop_member(set, key);
            return;
        }
        let already_told = matches!(member.wanted, Wanted::Deleting { .. });
        let grace = match member.wanted {
            Wanted::Deleting { grace: earlier } => grace.or(earlier),
            Wanted::Present(_) => grace,
        };
        member.gone_at_home = true;
        let wanted = Wanted::Deleting { grace };
        if already_told && member.wanted == wanted {
            return;
        }
        member.wanted = wanted;
        self.tell(set, key);
    }

    /// Nothing more is said about the object. Of a claim that is no statement about its data: the provider keeps it.
    pub fn released(&mut self, set: &SetRef, key: &Key) {
        self.drop_member(set, key);
    }

    /// A stream to the provider is open.
    pub fn connected(&mut self) {
        self.disconnected();
        self.connected = true;
        if !self.prefixes.is_empty() {
            self.send_prefixes();
        }
        self.send_sets();
        let sets: Vec<SetRef> = self.sets.keys().cloned().collect();
        for set in sets {
            self.announce(&set);
        }
    }

    /// The stream is lost, with everything in flight.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.in_flight = 0;
        self.queue.clear();
        self.actions.retain(|action| match action {
            Action::Send(_) | Action::SendBody { .. } => false,
            Action::ApplyStatus { .. }
            | Action::FinishDeletion(_)
            | Action::Refused { .. }
            | Action::Recovered(_)
            | Action::Settled(_)
            | Action::Warned { .. } => true,
        });
        for state in self.sets.values_mut() {
            state.announced = false;
            for member in state.members.values_mut() {
                if member.progress != Progress::Gone {
                    member.progress = Progress::Untold;
                }
            }
        }
    }

    /// The provider said something.
    pub fn received(&mut self, frame: ProviderFrame) {
        match frame {
            ProviderFrame::Want(target) => self.on_want(&target),
            ProviderFrame::Ack { target, hash } => self.on_ack(target, hash),
            ProviderFrame::Nack { target, hash, refusal } => self.on_nack(target, hash, refusal),
            ProviderFrame::Gone(target) => self.on_gone(target),
            ProviderFrame::Warning { target, id, warning } => {
                if self.member(&target).is_some_and(|member| !member.gone_at_home) {
                    self.actions.push_back(Action::Warned { target, id, warning });
                }
            }
            ProviderFrame::Status { target, hash, body } => {
                if let Some(member) = self.member(&target).filter(|member| !member.gone_at_home) {
                    member.writing = Some(hash);
                    if member.sent != Some(hash) {
                        member.sent_before = member.sent.replace(hash);
                    }
                    member.restated = None;
                    self.actions.push_back(Action::ApplyStatus { target, hash, body });
                }
            }
        }
    }

    fn on_want(&mut self, target: &Ref) {
        let Some(member) = self.member(target) else { return };
        if !matches!(member.wanted, Wanted::Present(_)) || member.progress == Progress::Queued {
            return;
        }
        // The body that was sent may have crossed this frame, or have been lost to a failure over there: only
        // sending it again is safe.
        let sent = matches!(member.progress, Progress::Sent(_));
        member.progress = Progress::Queued;
        self.in_flight = self.in_flight.saturating_sub(usize::from(sent));
        self.queue.insert((target.set.clone(), target.key.clone()));
    }

    fn on_ack(&mut self, target: Ref, hash: Hash) {
        self.settle(&target, hash);
        let Some(member) = self.member(&target) else {
            return;
        };
        if std::mem::take(&mut member.refused) {
            self.actions.push_back(Action::Recovered(target.clone()));
        }
        if self.member(&target).is_some_and(|member| member.wanted == Wanted::Present(hash)) {
            self.actions.push_back(Action::Settled(target));
        }
    }

    fn on_nack(&mut self, target: Ref, hash: Hash, refusal: Refusal) {
        self.settle(&target, hash);
        let Some(member) = self.member(&target) else {
            return;
        };
        member.refused = true;
        self.actions.push_back(Action::Refused { target, refusal });
    }

    /// The body with this digest was answered, if it is the one under way.
    fn settle(&mut self, target: &Ref, hash: Hash) {
        let Some(member) = self.member(target) else { return };
        if member.progress == Progress::Sent(hash) {
            member.progress = Progress::Told(Wanted::Present(hash));
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    fn on_gone(&mut self, target: Ref) {
        let Some(member) = self.member(&target) else {
            return;
        };
        if !matches!(member.wanted, Wanted::Deleting { .. }) {
            return;
        }
        if member.gone_at_home {
            self.drop_member(&target.set, &target.key);
        } else {
            member.progress = Progress::Gone;
            self.actions.push_back(Action::FinishDeletion(target));
        }
    }

    fn member(&mut self, target: &Ref) -> Option<&mut Member> {
        let member = self.sets.get_mut(&target.set)?.members.get_mut(&target.key)?;
        (member.uid == target.uid).then_some(member)
    }

    /// Tells the provider what is wanted of an object that is new or changed.
    fn tell(&mut self, set: &SetRef, key: &Key) {
        if !self.connected {
            return;
        }
        let Some(state) = self.sets.get_mut(set) else {
            return;
        };
        if !state.announced {
            return;
        }
        let Some(member) = state.members.get_mut(key) else {
            return;
        };
        match member.wanted {
            Wanted::Present(_) => {
                // A body still unanswered stays counted; its answer names another digest and is passed over,
                // so it is settled here.
                if matches!(member.progress, Progress::Sent(_)) {
                    self.in_flight = self.in_flight.saturating_sub(1);
                }
                member.progress = Progress::Queued;
                self.queue.insert((set.clone(), key.clone()));
            }
            Wanted::Deleting { grace } => {
                if member.progress == Progress::Gone {
                    return;
                }
                if matches!(member.progress, Progress::Sent(_)) {
                    self.in_flight = self.in_flight.saturating_sub(1);
                }
                self.queue.remove(&(set.clone(), key.clone()));
                member.progress = Progress::Told(member.wanted);
                member.refused = false;
                let target = Ref { set: set.clone(), key: key.clone(), uid: member.uid.clone() };
                self.actions.push_back(Action::Send(ConsumerFrame::Delete { target, grace }));
            }
        }
    }

    fn fill_window(&mut self) {
        while self.connected && self.in_flight < WINDOW {
            let Some((set, key)) = self.queue.pop_first() else {
                return;
            };
            let member = self.sets.get_mut(&set).and_then(|state| state.members.get_mut(&key));
            let Some(member) = member else { continue };
            let Wanted::Present(hash) = member.wanted else {
                continue;
            };
            member.progress = Progress::Sent(hash);
            self.in_flight += 1;
            let target = Ref { set, key, uid: member.uid.clone() };
            self.actions.push_back(Action::SendBody { target, hash });
        }
    }

    fn send_prefixes(&mut self) {
        if self.connected {
            self.actions.push_back(Action::Send(ConsumerFrame::Addresses(self.prefixes.clone())));
        }
    }

    fn send_sets(&mut self) {
        if self.connected {
            let sets = self.sets.keys().cloned().collect();
            self.actions.push_back(Action::Send(ConsumerFrame::Sets(sets)));
        }
    }

    fn announce(&mut self, set: &SetRef) {
        if !self.connected {
            return;
        }
        let Some(state) = self.sets.get_mut(set) else {
            return;
        };
        if !state.synced || state.announced {
            return;
        }
        state.announced = true;
        let mut entries = Vec::new();
        for (key, member) in &mut state.members {
            if member.progress == Progress::Gone {
                continue;
            }
            member.progress = Progress::Told(member.wanted);
            // If the provider has another one it sends that.
            member.sent = member.writing.or(member.status);
            entries.push(frame::Entry {
                key: key.clone(),
                uid: member.uid.clone(),
                wanted: member.wanted,
                // What comes next is compared with what is there by then.
                status: member.sent,
            });
        }
        let mut parts = entries.chunks(INVENTORY_PART).map(<[frame::Entry]>::to_vec).collect::<Vec<_>>();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let last = parts.len() - 1;
        for (index, entries) in parts.into_iter().enumerate() {
            let frame = ConsumerFrame::Inventory { set: set.clone(), entries, complete: index == last };
            self.actions.push_back(Action::Send(frame));
        }
    }

    fn drop_member(&mut self, set: &SetRef, key: &Key) {
        let removed = self.sets.get_mut(set).and_then(|state| state.members.remove(key));
        if let Some(member) = removed {
            self.forget(set, key, &member);
        }
    }

    /// Undoes the bookkeeping of a member that has left its set.
    fn forget(&mut self, set: &SetRef, key: &Key, member: &Member) {
        if matches!(member.progress, Progress::Sent(_)) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        self.queue.remove(&(set.clone(), key.clone()));
    }
}
