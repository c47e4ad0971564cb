//! The side of the relay for this cluster's own processes: to the gateway of the peer that they name in their first message
//! of TLS. It leads nowhere else.

use super::hello::{Hello, Progress};
use super::pipe::{self, Farewells};
use super::{CONNECT_TIMEOUT, Directory, Figures, HELLO_TIMEOUT, Relay, connect};
use liquid_crds::ClusterId;
use liquid_gateway::control;
use liquid_runtime::relay::Refusal;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

/// Connections at one time: the two of each of 500 peers. They pin 32 MiB.
const MAX_CONNECTIONS: usize = 1024;
/// Connections that have not said for whom they are, or are being connected: enough for all processes of a cluster.
const MAX_BEGINNING: usize = 64;

/// What is needed to serve a connection.
#[derive(Clone)]
pub(super) struct Own {
    directory: watch::Receiver<Directory>,
    figures: Figures,
    connections: Arc<Semaphore>,
    beginning: Arc<Semaphore>,
    farewells: Farewells,
}

impl Own {
    pub(super) fn new(directory: watch::Receiver<Directory>, figures: Figures) -> Self {
        Self {
            directory,
            figures,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            beginning: Arc::new(Semaphore::new(MAX_BEGINNING)),
            farewells: Farewells::default(),
        }
    }

    /// Connects to the peer that the first message names.
    async fn begin(
        &self,
        stream: &mut TcpStream,
    ) -> Option<Result<(TcpStream, OwnedSemaphorePermit), Refusal>> {
        let (hello, cluster) = timeout(HELLO_TIMEOUT, first_message(stream)).await.ok()??;
        Some(self.connect(hello, cluster).await)
    }

    async fn connect(
        &self,
        hello: Vec<u8>,
        cluster: Option<ClusterId>,
    ) -> Result<(TcpStream, OwnedSemaphorePermit), Refusal> {
        let slot = self.connections.clone().try_acquire_owned().map_err(|_| Refusal::TooMany)?;
        let gateways = cluster.map(|cluster| self.directory.borrow().gateways(&cluster)).unwrap_or_default();
        if gateways.is_empty() {
            return Err(Refusal::NoTunnel);
        }
        // All together, so that the caller hears of it in time.
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        for gateway in gateways {
            let to = SocketAddr::from((gateway, control::PORT));
            let Ok(connected) = timeout_at(deadline, connect(to)).await else { break };
            if let Some(mut peer) = connected
                && pipe::prepare(&peer).is_ok()
                && peer.write_all(&hello).await.is_ok()
            {
                return Ok((peer, slot));
            }
        }
        Err(Refusal::Silent)
    }
}

impl Relay for Own {
    async fn relay(self, mut stream: TcpStream, from: SocketAddr) {
        if pipe::prepare(&stream).is_err() {
            return;
        }
        if !self.directory.borrow().serves(from.ip()) {
            debug!(%from, "not relayed: none of this cluster's processes");
            return self.farewells.refuse(stream, Refusal::NotAllowed, &self.figures).await;
        }
        let Ok(beginning) = self.beginning.clone().try_acquire_owned() else { return };
        let begun = self.begin(&mut stream).await;
        drop(beginning);
        match begun {
            None => debug!(%from, "closed: no first message of TLS"),
            Some(Err(refusal)) => {
                debug!(%from, %refusal, "not relayed");
                self.farewells.refuse(stream, refusal, &self.figures).await;
            }
            Some(Ok((peer, _slot))) => pipe::join(stream, peer, &self.figures).await,
        }
    }
}

/// Reads the first message of TLS, and for whom it is; nothing if it is none.
async fn first_message(stream: &mut TcpStream) -> Option<(Vec<u8>, Option<ClusterId>)> {
    let mut hello = Hello::default();
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer).await.ok().filter(|length| *length > 0)?;
        match hello.take(&buffer[..length]) {
            Progress::More => {}
            Progress::For(cluster) => return Some((hello.into_bytes(), Some(cluster))),
            Progress::Other => return Some((hello.into_bytes(), None)),
        }
    }
}
