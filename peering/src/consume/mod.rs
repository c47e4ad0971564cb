//! Borrowing: how this cluster joins its providers and keeps in touch with them.

mod credentials;
mod join;
mod leave;
mod offer;
mod session;
mod task;
mod virtual_nodes;

pub(crate) use task::Borrowing;
pub(crate) use virtual_nodes::follow as follow_virtual_nodes;
