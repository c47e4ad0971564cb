//! How every process of Liquid begins and ends.

use crate::drain::Drain;
use crate::health::Health;
use crate::telemetry::LogFilter;
use crate::{metrics, telemetry, tls};
use prometheus_client::registry::Registry;
use std::process::ExitCode;
use tracing::error;

/// What a process has from its first line on; [`crate::admin::serve`] takes most of it when the metrics are registered.
pub struct Process {
    /// The log filter in force.
    pub log: LogFilter,
    /// Asks for the end at SIGTERM and SIGINT.
    pub drain: Drain,
    /// Metrics of the process itself; its own are added.
    pub registry: Registry,
    /// What it is not ready for yet; nothing so far.
    pub health: Health,
}

impl Process {
    /// Sets up what `name` shares with all others; `filter` is the log filter to start with.
    ///
    /// # Errors
    /// If the filter cannot be parsed, or signals cannot be handled.
    pub fn begin(name: &'static str, filter: &str) -> anyhow::Result<Self> {
        tls::install_crypto_provider();
        let log = telemetry::init(filter)?;
        let drain = Drain::default();
        drain.on_signals()?;
        Ok(Self { log, drain, registry: metrics::registry(name), health: Health::default() })
    }
}

/// How the process ends; an error is logged.
pub fn exit_code(ended: anyhow::Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
