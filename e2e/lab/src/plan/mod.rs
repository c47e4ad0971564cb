//! What a lab is asked to be, and everything that follows from it: names and addresses. Pure.

pub(crate) mod address;
pub(crate) mod layout;
pub(crate) mod spec;
