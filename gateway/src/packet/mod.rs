//! Packets as bytes: pure functions without state.

#[cfg(test)]
pub(crate) mod build;
pub mod checksum;
pub mod coalesce;
pub mod fragment;
pub mod ip;
pub mod mss;
pub mod segment;
pub mod too_big;
pub mod vnet;
