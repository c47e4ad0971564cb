//! One virtual node: its Node object and lease, its kubelet API, and its removal.

mod certificate;
mod drain;
mod lease;
mod object;
mod ownership;
mod task;
mod watched;

pub(crate) use object::Picture;
pub(crate) use ownership::Ownership;
pub(crate) use task::{NodeHandle, Shared};
pub(crate) use watched::WatchedNodes;
