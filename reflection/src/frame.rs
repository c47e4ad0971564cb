//! What the two halves say to each other. The peer link delivers frames of one stream in order and at most
//! once; when a stream breaks, everything in flight is lost and the consumer starts a new one.

use crate::addresses::Prefixes;
use crate::key::{Key, SetRef, Uid};
use crate::warning::Warning;
use bytes::Bytes;
use liquid_link::digest::Hash;

/// From the consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerFrame {
    /// The sets the consumer has; those not named are given up. First frame of a stream, and again whenever a
    /// set comes or goes.
    Sets(Vec<SetRef>),
    /// How the consumer sees the addresses of the provider's pods: statuses have them so. Before the first one, and for
    /// pods outside of these prefixes, they have none.
    Addresses(Prefixes),
    /// Part of what a set holds. With `complete`, members no part has named are given up. A part after that only says
    /// which statuses its entries have by now.
    Inventory {
        /// Which set.
        set: SetRef,
        /// Some of its members.
        entries: Vec<Entry>,
        /// Whether this is the last part.
        complete: bool,
    },
    /// The object is wanted like this.
    Upsert {
        /// Which object.
        target: Ref,
        /// Digest of `body`.
        hash: Hash,
        /// JSON.
        body: Bytes,
    },
    /// The object is being deleted.
    Delete {
        /// Which object.
        target: Ref,
        /// Seconds its processes may take; `None` is the object's own default.
        grace: Option<u32>,
    },
}

/// A member of a set, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which object.
    pub key: Key,
    /// Its UID at home.
    pub uid: Uid,
    /// What is wanted of it.
    pub wanted: Wanted,
    /// Digest of the status the consumer has of it.
    pub status: Option<Hash>,
}

/// What is wanted of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That it exists with this digest.
    Present(Hash),
    /// That it ends.
    Deleting {
        /// Seconds its processes may take; `None` is the object's own default.
        grace: Option<u32>,
    },
}

/// One object as the two halves refer to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ref {
    /// The set it is a member of.
    pub set: SetRef,
    /// Its names at home.
    pub key: Key,
    /// Its UID at home.
    pub uid: Uid,
}

/// From the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderFrame {
    /// The provider needs the body.
    Want(Ref),
    /// The object is stored, and what belongs to it was started.
    Ack {
        /// Which object.
        target: Ref,
        /// With which digest.
        hash: Hash,
    },
    /// It could not be stored or started.
    Nack {
        /// Which object.
        target: Ref,
        /// With which digest.
        hash: Hash,
        /// Why.
        refusal: Refusal,
    },
    /// Nothing of this object exists any more.
    Gone(Ref),
    /// What the provider's API server reports of it.
    Status {
        /// Which object.
        target: Ref,
        /// Digest of the status.
        hash: Hash,
        /// JSON.
        body: Bytes,
    },
    /// Somebody in the provider warns of the pod. It explains, and changes nothing.
    Warning {
        /// Which object.
        target: Ref,
        /// The same for a warning that is repeated.
        id: Uid,
        /// What it says.
        warning: Box<Warning>,
    },
}

/// Why the provider does not do what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase, for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}
