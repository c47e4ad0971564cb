//! What every Liquid process shares: telemetry, the admin endpoints, leader election, drain, TLS set-up, and the words of
//! relays.

pub mod admin;
pub mod backoff;
pub mod clock;
pub mod drain;
pub mod exposition;
pub mod health;
pub mod leader;
pub mod listen;
pub mod metrics;
pub mod pods;
pub mod process;
pub mod relay;
pub mod request;
pub mod shares;
pub mod storage_classes;
pub mod telemetry;
pub mod tls;
pub mod watch;

/// Version of Liquid, as compiled in.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
