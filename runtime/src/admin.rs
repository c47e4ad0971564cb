//! The admin endpoints of a process: `/healthz`, `/readyz` and `/metrics` for everybody in the cluster, and
//! `/log-filter` on loopback only (reach it with `kubectl port-forward`).

use crate::drain::Drain;
use crate::health::Health;
use crate::listen::listen;
use crate::telemetry::LogFilter;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use tracing::info;

/// Where the admin endpoints listen.
#[derive(Debug, Clone, clap::Args)]
pub struct AdminArgs {
    /// Address for /healthz, /readyz and /metrics
    #[arg(long, env = "LIQUID_ADMIN_LISTEN", default_value = "[::]:9090")]
    pub admin_listen: SocketAddr,
    /// Loopback address for /log-filter (GET shows the log filter, PUT replaces it)
    #[arg(long, env = "LIQUID_CONTROL_LISTEN", default_value = "127.0.0.1:9091")]
    pub control_listen: SocketAddr,
    /// Log filter to start with, in the syntax of RUST_LOG
    #[arg(long, env = "LIQUID_LOG", default_value = crate::telemetry::DEFAULT_FILTER)]
    pub log: String,
}

/// Why the admin endpoints cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The control endpoints would be open to the network.
    #[error(
        "--control-listen must be a loopback address, not {0}: it lets anyone who reaches it change the log filter"
    )]
    ControlNotLoopback(SocketAddr),
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The wanted address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Binds both admin addresses and serves them until the drain.
///
/// # Errors
/// If an address cannot be bound, or the control address is not on loopback.
pub fn serve(
    args: &AdminArgs,
    health: Health,
    registry: Registry,
    log: LogFilter,
    drain: &Drain,
) -> Result<(), AdminError> {
    if !args.control_listen.ip().is_loopback() {
        return Err(AdminError::ControlNotLoopback(args.control_listen));
    }
    let public = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(health)
        .merge(Router::new().route("/metrics", get(metrics)).with_state(Arc::new(registry)));
    let control = Router::new().route("/log-filter", get(show_filter).put(set_filter)).with_state(log);
    for (address, router) in [(args.admin_listen, public), (args.control_listen, control)] {
        let listener = listen(address).map_err(|source| AdminError::Bind { address, source })?;
        let token = drain.token();
        drain.spawn(async move {
            // `serve` answers until the token is cancelled; accept errors are retried inside.
            let served = axum::serve(listener, router).with_graceful_shutdown(token.cancelled_owned());
            drop(served.await);
        });
    }
    info!(admin = %args.admin_listen, control = %args.control_listen, "admin endpoints listen");
    Ok(())
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let missing = health.missing();
    if missing.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines = missing.into_iter().map(|(part, why)| format!("{part}: {why}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string())
        }
    }
}

async fn show_filter(State(log): State<LogFilter>) -> String {
    format!("{}\n", log.current())
}

async fn set_filter(State(log): State<LogFilter>, text: String) -> impl IntoResponse {
    match log.set(text.trim()) {
        Ok(()) => {
            info!(filter = text.trim(), "log filter replaced");
            (StatusCode::OK, format!("{}\n", log.current()))
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}
