//! What every Liquid process shares: telemetry, the admin endpoints, leader election, drain and TLS set-up.

pub mod admin;
pub mod backoff;
pub mod drain;
pub mod exposition;
pub mod health;
pub mod leader;
pub mod metrics;
pub mod process;
pub mod telemetry;
pub mod tls;
pub mod watch;

/// Version of Liquid, as compiled in.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
