//! The consumer's end: connects to an endpoint of a provider that answers.

use crate::limits::{CONNECT_TIMEOUT, CONNECTION_WINDOW, HANDSHAKE_TIMEOUT, HEAD_START, STREAM_WINDOW};
use crate::liveness::Liveness;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use liquid_runtime::relay::Refusal;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use tracing::debug;

/// Why one endpoint could not be used.
#[derive(Debug, Clone, Error)]
pub enum EndpointError {
    /// Its name has no address, or nothing answers there.
    #[error("{endpoint}: {reason}")]
    Unreachable {
        /// host:port.
        endpoint: String,
        /// What the system says.
        reason: String,
    },
    /// Somebody else answers there.
    #[error(
        "{endpoint}: the server is not the expected cluster ({reason}); if a proxy ends TLS on the way, let it pass TCP through"
    )]
    NotThePeer {
        /// host:port.
        endpoint: String,
        /// What rustls says.
        reason: String,
    },
    /// It is a gateway, which cannot connect to the peer.
    #[error("{endpoint}: {refusal}")]
    NotRelayed {
        /// host:port.
        endpoint: String,
        /// What it says.
        refusal: Refusal,
    },
}

/// No endpoint of the peer could be used.
#[derive(Debug, Clone, Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Unreachable(pub Vec<EndpointError>);

/// How to reach a provider.
#[derive(Clone)]
pub struct Dialer {
    endpoints: Vec<String>,
    tls: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    liveness: Liveness,
}

impl Dialer {
    /// A dialer for `endpoints` (host:port), each tried when the one before has failed, or has not answered soon.
    pub fn new(endpoints: Vec<String>, tls: ClientConfig, server_name: ServerName<'static>) -> Self {
        let liveness = Liveness::default();
        Self { endpoints, tls: Arc::new(tls), server_name, liveness }
    }

    /// How soon a connection is to notice that it is broken.
    #[must_use]
    pub fn noticing(self, liveness: Liveness) -> Self {
        Self { liveness, ..self }
    }

    /// Connects to the first endpoint that answers as the expected cluster.
    ///
    /// # Errors
    /// If none does, with the reason for each.
    pub async fn connect(&self) -> Result<Channel, Unreachable> {
        let mut waiting = self.endpoints.iter().enumerate();
        let mut tries = FuturesUnordered::new();
        let mut failures = BTreeMap::new();
        loop {
            match waiting.next() {
                Some((at, endpoint)) => {
                    tries.push(async move { (at, endpoint, self.handshake(endpoint).await) });
                }
                None if tries.is_empty() => return Err(Unreachable(failures.into_values().collect())),
                None => {}
            }
            tokio::select! {
                Some((at, endpoint, tried)) = tries.next() => match tried {
                    Ok(stream) => return self.channel(stream, endpoint).await,
                    Err(error) => {
                        debug!(%error, "link endpoint cannot be used");
                        failures.insert(at, error);
                    }
                },
                () = sleep(HEAD_START), if waiting.len() > 0 => {}
            }
        }
    }

    async fn handshake(&self, endpoint: &str) -> Result<TlsStream<TcpStream>, EndpointError> {
        let unreachable =
            |reason: String| EndpointError::Unreachable { endpoint: endpoint.to_owned(), reason };
        let late = |time: Duration| unreachable(format!("no answer within {} s", time.as_secs()));
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(endpoint))
            .await
            .map_err(|_| late(CONNECT_TIMEOUT))?
            .map_err(|error| unreachable(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
        let connector = TlsConnector::from(self.tls.clone());
        timeout(HANDSHAKE_TIMEOUT, connector.connect(self.server_name.clone(), stream))
            .await
            .map_err(|_| late(HANDSHAKE_TIMEOUT))?
            .map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(rustls::Error::InvalidCertificate(reason)) => {
                    EndpointError::NotThePeer { endpoint: endpoint.to_owned(), reason: reason.to_string() }
                }
                Some(rustls::Error::AlertReceived(alert)) => match Refusal::of_code(u8::from(*alert)) {
                    Some(refusal) => EndpointError::NotRelayed { endpoint: endpoint.to_owned(), refusal },
                    None => unreachable(error.to_string()),
                },
                _ => unreachable(error.to_string()),
            })
    }

    /// A channel over one connection: when that is lost, so is the channel, and the caller dials again. It
    /// has state to bring back (an inventory, a watch) that a silent reconnect would hide.
    async fn channel(&self, stream: TlsStream<TcpStream>, endpoint: &str) -> Result<Channel, Unreachable> {
        let stream = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let once = service_fn(move |_| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        });
        // The URI only fills the :authority header; the connection is there already.
        Endpoint::from_static("https://link.liquid.mesh")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(self.liveness.ask())
            .keep_alive_timeout(self.liveness.answer())
            .keep_alive_while_idle(true)
            .connect_with_connector(once)
            .await
            .map_err(|error| {
                let reason = error.to_string();
                Unreachable(vec![EndpointError::Unreachable { endpoint: endpoint.to_owned(), reason }])
            })
    }
}
