//! The lab proved on itself: real clusters, started and stopped by the command people use.
//!
//! These tests need root, a few GiB of memory, and Kubernetes built (the first start does that), so they only run when
//! asked for: `cargo test --package xtask --test lab -- --ignored --test-threads=1`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod command_line;
mod faults;
mod footprint;
mod support;
mod teardown;
mod workloads;
