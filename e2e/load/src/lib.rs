//! Traffic between network namespaces and what of it arrives, for benchmarks of the data path.
//!
//! A benchmark ends where it cannot measure: all of this panics.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a benchmark ends where it cannot measure"
)]

mod load;
mod report;

pub use load::{
    Flood, RoundTrips, Transfer, Way, answers, echo, echo_beside, flood, inside, pause, processor_time,
    steps, transfer,
};
pub use report::{Results, Series};
