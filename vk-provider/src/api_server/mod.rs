//! The way of pods in providers to this cluster's API server: they come through the network between the clusters to this
//! process, which connects them with the API server and reads nothing of what they say. Here, because it is known here which
//! pods may: those of namespaces that give them tokens ([`Callers`]). Anybody else is hung up on.

mod callers;
mod relay;

pub(crate) use callers::Callers;
pub(crate) use relay::Meter;

use crate::metrics::Metrics;
use relay::{Limits, relay};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::{info, warn};

/// Port on this process's pod.
pub(crate) const PORT: u16 = 6443;
/// Connections at once. A client of the API server keeps one or a few; the kernel holds some 20 KiB for each, and this
/// process 16.
const LIMITS: Limits = Limits { total: 4096, per_source: 64 };
/// Pause after the port could not be had.
const LISTEN_PAUSE: Duration = Duration::from_secs(5);

/// Leads `callers` from `address` to the API server at `server` (host and port), for ever.
pub(crate) async fn serve(address: IpAddr, server: (String, u16), callers: Arc<Callers>, metrics: Metrics) {
    let at = SocketAddr::new(address, PORT);
    let listener = loop {
        match TcpListener::bind(at).await {
            Ok(listener) => break listener,
            Err(error) => {
                warn!(address = %at, %error, "pods in providers do not reach the API server; trying again")
            }
        }
        sleep(LISTEN_PAUSE).await;
    };
    info!(address = %at, "pods in providers reach the API server here");
    let connect = move || {
        let server = server.clone();
        async move { TcpStream::connect((server.0.as_str(), server.1)).await }
    };
    relay(listener, LIMITS, callers, Arc::new(metrics), connect).await;
}

/// Host and port of the API server that `config` talks to.
pub(crate) fn server_of(config: &kube::Config) -> Option<(String, u16)> {
    let url = &config.cluster_url;
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), url.port_u16().unwrap_or(443)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_is_the_one_this_process_talks_to() {
        let server = |url: &str| server_of(&kube::Config::new(url.parse().unwrap())).unwrap();
        assert_eq!(server("https://10.96.0.1:443/"), ("10.96.0.1".to_owned(), 443));
        assert_eq!(server("https://kubernetes.default.svc/"), ("kubernetes.default.svc".to_owned(), 443));
        assert_eq!(server("https://[fd00::1]:6443/"), ("fd00::1".to_owned(), 6443));
    }
}
