//! What the fuzz targets share: packets out of arbitrary bytes, and a peer that seals whatever it likes.

#![allow(clippy::missing_panics_doc, reason = "a fuzz target ends where something is wrong")]

pub mod packet;
#[path = "../../gateway/tests/support/mod.rs"]
mod support;
pub mod tunnel;
