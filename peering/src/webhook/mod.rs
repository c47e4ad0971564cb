//! Admission of pods of offloaded namespaces: lets them run on virtual nodes, as their `NamespaceOffloading` says.

mod claims;
mod late;
mod placement;
mod server;

pub(crate) use claims::Claims;
pub(crate) use late::tolerate;
pub(crate) use server::{Offloadings, keep_authority, serve};
