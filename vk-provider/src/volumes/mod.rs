//! Volumes in providers: for a claim whose first pod goes to a virtual node, a claim in the provider and a PersistentVolume at
//! home that stands for it, until the claim is given up by its owner.
//!
//! [`picture`] is pure: it holds what is known and derives what each provider shall have and the next step of each claim.
//! [`actor`] watches, and carries steps out; [`objects`] says what is read and written. Mirrors hear what their provider shall
//! have through a `watch` of the whole, and tell what it says: neither waits for the other.

mod actor;
mod objects;
mod picture;

pub(crate) use actor::{Teller, Volumes, follow};
pub(crate) use picture::{Behind, ClaimNews, ProviderClaims, Resolution, WantedState, Wish};
