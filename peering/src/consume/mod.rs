//! Borrowing: how this cluster joins its providers and keeps in touch with them.

mod credentials;
mod join;
mod leave;
mod session;
mod task;

pub(crate) use task::Borrowing;
