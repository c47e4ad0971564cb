//! The picture of one object.

use super::state::{Hold, Instance, Record};
use crate::digest::StatusDigest;
use crate::key::{Kind, Uid};
use bytes::Bytes;
use liquid_link::digest::Hash;
use liquid_runtime::backoff::Backoff;
use std::time::Instant;

/// What the consumer has said about an object since this process started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing: keep what is there going.
    Unspoken,
    Present {
        uid: Uid,
        hash: Hash,
        body: Option<Bytes>,
    },
    Absent {
        uid: Uid,
        grace: Option<u32>,
    },
    /// Of a claim: the consumer did not name it among all it has. That is no statement about its data.
    Omitted {
        uid: Uid,
    },
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) wish: Wish,
    pub(super) record: Option<Record>,
    pub(super) instance: Option<Instance>,
    /// The step under way, without its body.
    pub(super) running: Option<(Running, Generation)>,
    /// Newest versions heard of, also of objects that are gone: a late answer must not bring one back.
    pub(super) record_seen: u64,
    pub(super) instance_seen: u64,
    /// The body was asked for in this stream and has not come.
    pub(super) asked: bool,
    /// The last answer about the wished digest, to send each answer once per stream.
    pub(super) answered: Option<Answer>,
    /// The grace a `Stop` was already issued with, for the instance of that UID.
    pub(super) stopped: Option<(Uid, Option<u32>)>,
    /// The status the consumer has.
    pub(super) status: Option<Hash>,
    /// Something may exist that was not heard of: a request to make it, for this object at home, was not answered.
    pub(super) uncertain: Option<Uid>,
    /// An answer came from before the watches were interrupted: what it says may be over, and no news of that comes.
    pub(super) outdated: bool,
    /// The API server itself said that there is no record; the watches of records and instances may be apart.
    pub(super) orphaned: bool,
    /// No step before this.
    pub(super) wait: Option<Wait>,
    /// How long the next wait is; forgotten when a step succeeds or something else is wished.
    pub(super) backoff: Option<Backoff>,
}

/// An object waits before its next step.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) until: Instant,
    /// The last step found that the picture is out of date: news of the object ends the wait.
    pub(super) outdated: bool,
}

/// Counts how often the watches were interrupted and their lists read anew.
pub(super) type Generation = u64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Running {
    Stop(Uid, Option<u32>),
    Erase(Uid),
    /// Makes something: if it fails it may have taken effect all the same.
    Make,
    /// With the newest versions heard of when it began: it says nothing of what is newer.
    Look {
        record_seen: u64,
        instance_seen: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Stored(Hash),
    Refused(Hash),
}

impl Member {
    pub(super) fn new() -> Self {
        Self {
            wish: Wish::Unspoken,
            record: None,
            instance: None,
            running: None,
            record_seen: 0,
            instance_seen: 0,
            asked: false,
            answered: None,
            stopped: None,
            status: None,
            uncertain: None,
            outdated: false,
            orphaned: false,
            wait: None,
            backoff: None,
        }
    }

    /// The wished digest, if that is what is stored.
    pub(super) fn stored_as_wished(&self) -> Option<Hash> {
        let (Wish::Present { uid, hash, .. }, Some(record)) = (&self.wish, &self.record) else {
            return None;
        };
        let current = record.home == *uid && record.hash == *hash && !record.terminating;
        (current && record.hold != Hold::Retired).then_some(*hash)
    }

    /// What the consumer is to be shown of `instance`, and whether that is the interim status.
    pub(super) fn shown(&self, instance: &Instance) -> (Option<StatusDigest>, bool) {
        let wanted = matches!(self.wish, Wish::Present { .. });
        let interim = wanted && instance.terminating && !instance.finished;
        (if interim { instance.interim } else { instance.status }, interim)
    }

    pub(super) fn learn_record(&mut self, record: Record) {
        let newer = record.version > self.record_seen;
        if newer || self.record.as_ref().is_some_and(|known| known.version == record.version) {
            self.record_seen = record.version;
            self.record = Some(record);
            self.orphaned = false;
        }
    }

    pub(super) fn learn_instance(&mut self, instance: Instance) {
        let newer = instance.version > self.instance_seen;
        if newer || self.instance.as_ref().is_some_and(|known| known.version == instance.version) {
            self.instance_seen = instance.version;
            self.instance = Some(instance);
        }
    }

    /// Whether nothing happens to it, and nothing more is to happen: it is kept for the data of a user. So is a claim of which
    /// nothing was said, also if nobody has written to it yet: at home a volume may stand for it, to be found again.
    pub(super) fn is_kept(&self, kind: Kind) -> bool {
        let Some(record) = &self.record else { return false };
        let held = record.hold != Hold::Nothing;
        let stays = match self.wish {
            Wish::Unspoken => held || kind == Kind::PersistentVolumeClaim,
            Wish::Omitted { .. } => held,
            Wish::Present { .. } | Wish::Absent { .. } => false,
        };
        stays && !self.outdated && self.running.is_none() && self.instance.is_none()
    }

    /// UID at home this member is about now.
    pub(super) fn home(&self) -> Option<&Uid> {
        match &self.wish {
            Wish::Present { uid, .. } | Wish::Absent { uid, .. } | Wish::Omitted { uid } => Some(uid),
            Wish::Unspoken => self
                .record
                .as_ref()
                .map(|record| &record.home)
                .or_else(|| self.instance.as_ref().map(|instance| &instance.home))
                .or(self.uncertain.as_ref()),
        }
    }
}
