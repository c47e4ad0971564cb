//! One virtual node: its Node object and lease, its kubelet API, and its removal.

mod certificate;
mod drain;
mod lease;
mod object;
mod task;

pub(crate) use object::Picture;
pub(crate) use task::{NodeHandle, Shared};
