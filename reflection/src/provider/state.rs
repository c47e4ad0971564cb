//! What the provider half knows of an object, and what it asks its shell to do.

use crate::digest::StatusDigest;
use crate::frame::{ProviderFrame, Ref, Refusal};
use crate::key::Uid;
use bytes::Bytes;
use liquid_link::digest::Hash;

/// The stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// UID the API server gave it.
    pub object: Uid,
    /// Its resource version; older news is passed over (comparable since Kubernetes 1.35, and in etcd always).
    pub version: u64,
    /// UID at home of the object it stands for.
    pub home: Uid,
    /// Digest of the body it was stored with.
    pub hash: Hash,
    /// Being deleted.
    pub terminating: bool,
    /// What ran has ended for good (a pod that Succeeded or Failed) and must not be started again.
    pub finished: bool,
    /// The status it ended with; of a claim the one it has.
    pub status: Option<StatusDigest>,
    /// What a user would lose with it.
    pub hold: Hold,
}

/// What a user would lose with a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hold {
    /// Nothing that could not be made anew.
    #[default]
    Nothing,
    /// Of a claim: it has had a volume, so there may be data. Only a positive statement of its owner ends it.
    Data,
    /// Of a namespace: it was given up and is kept for the claims in it.
    Retired,
}

/// What runs behind a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// UID the API server gave it.
    pub object: Uid,
    /// Its resource version.
    pub version: u64,
    /// UID at home of the object it stands for.
    pub home: Uid,
    /// Digest of the body it was started with.
    pub hash: Hash,
    /// Being deleted.
    pub terminating: bool,
    /// Has ended for good.
    pub finished: bool,
    /// Its status.
    pub status: Option<StatusDigest>,
    /// What is shown instead while it ends although it is wanted: another one is going to take its place.
    pub interim: Option<StatusDigest>,
    /// Nobody has written of it yet: there is nothing in its status.
    pub fresh: bool,
}

/// An object that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// UID the API server had given it.
    pub object: Uid,
    /// Resource version of the deletion.
    pub version: u64,
}

/// What the shell has to do for one object, as one operation; it answers with [`done`](super::Provider::done).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create the record, or replace its body; `replaces` is the record as it is known.
    Store {
        /// The body.
        body: Bytes,
        /// Its digest.
        hash: Hash,
        /// The record to change, if there is one.
        replaces: Option<Uid>,
    },
    /// Start what the record describes.
    Start,
    /// Bring the running instance in line with the record.
    Adjust(Uid),
    /// End the running instance.
    Stop {
        /// Which one.
        object: Uid,
        /// Seconds it may take; `None` is its own default.
        grace: Option<u32>,
    },
    /// Remember in the record that the instance has ended for good.
    Finish,
    /// Delete the record.
    Erase(Uid),
    /// Delete the record if nothing has happened to it since this version: a request of an earlier process that arrives
    /// late must not meet what has come into it in the meantime.
    Reclaim {
        /// Which one.
        object: Uid,
        /// Its resource version.
        version: u64,
    },
    /// Give up a namespace, but keep it, for there are claims in it: from then on its record is [`Hold::Retired`].
    Retire(Uid),
    /// Read the record and the instance from the API server: the fate of an earlier step is not known. Objects
    /// of the same name that belong to another set do not count.
    Look,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this frame.
    Send(ProviderFrame),
    /// Carry out this step.
    Run {
        /// For which object; the UID is the one at home.
        target: Ref,
        /// What.
        step: Step,
    },
    /// Send a `Status` with the status of this object if it is at hand; otherwise read it and call
    /// [`status_read`](super::Provider::status_read).
    SendStatus {
        /// Which object.
        target: Ref,
        /// Digest the status had, as the consumer sees it.
        hash: Hash,
        /// Whether it is the [`Instance::interim`] one.
        interim: bool,
    },
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done; the object as the API server returned it, if it did.
    Stored(Record),
    /// Done; the instance as the API server returned it.
    Running(Instance),
    /// Done, or nothing was there to do it to; news comes by the watches.
    Done,
    /// What a [`Step::Look`] found.
    Found {
        /// The record, if it exists.
        record: Option<Record>,
        /// The instance, if it exists.
        instance: Option<Instance>,
    },
    /// Not done: something has happened to the object that is not known here yet.
    Outdated,
    /// Not done, or not known whether it was done.
    Failed(Refusal),
}

/// Whose status was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusFound {
    /// That of what runs.
    Running(Instance),
    /// The one the record keeps of what has ended.
    Kept(StatusDigest),
    /// There is none (any more).
    Nothing,
}
