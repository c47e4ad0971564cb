//! What the tests in network namespaces need.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

pub(crate) mod api;
pub(crate) mod netns;
pub(crate) mod world;
