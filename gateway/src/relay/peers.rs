//! The side of the relay for those who come out of a tunnel: to the link endpoint of this cluster, and nowhere else. Who
//! they are, as far as the link is concerned, they have to show there.

use super::pipe::{self, Farewells};
use super::{Directory, Figures, Relay, connect};
use liquid_runtime::relay::Refusal;
use liquid_runtime::shares::{Share, Shares};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::debug;

/// Connections at one time, of all callers: what the link endpoint takes. They pin 32 MiB.
const MAX_CONNECTIONS: usize = 1024;
/// Connections of one caller: twice what the link endpoint lets a peer have, for those that are lost and not noticed yet.
const MAX_OF_ONE: usize = 16;
/// Connections of one guest: it joins with one, and may try again.
const MAX_OF_GUEST: usize = 4;

/// What is needed to serve a connection.
#[derive(Clone)]
pub(super) struct Peers {
    directory: watch::Receiver<Directory>,
    figures: Figures,
    connections: Arc<Semaphore>,
    farewells: Farewells,
    shares: Shares<String>,
}

impl Peers {
    pub(super) fn new(directory: watch::Receiver<Directory>, figures: Figures) -> Self {
        Self {
            directory,
            figures,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            farewells: Farewells::default(),
            shares: Shares::default(),
        }
    }

    async fn connect(
        &self,
        from: SocketAddr,
    ) -> Result<(TcpStream, Share<String>, OwnedSemaphorePermit), Refusal> {
        let (caller, link) = {
            let directory = self.directory.borrow();
            (directory.caller(from.ip()).cloned(), directory.link)
        };
        let caller = caller.ok_or(Refusal::Stranger)?;
        let most = if caller.guest { MAX_OF_GUEST } else { MAX_OF_ONE };
        let share = self.shares.take(&caller.name, most).ok_or(Refusal::TooMany)?;
        let slot = self.connections.clone().try_acquire_owned().map_err(|_| Refusal::TooMany)?;
        let link = connect(link.ok_or(Refusal::NoLink)?).await.ok_or(Refusal::NoLink)?;
        pipe::prepare(&link).map_err(|_| Refusal::NoLink)?;
        Ok((link, share, slot))
    }
}

impl Relay for Peers {
    async fn relay(self, stream: TcpStream, from: SocketAddr) {
        if pipe::prepare(&stream).is_err() {
            return;
        }
        match self.connect(from).await {
            Err(refusal) => {
                debug!(%from, %refusal, "not relayed");
                self.farewells.refuse(stream, refusal, &self.figures).await;
            }
            Ok((link, _share, _slot)) => pipe::join(stream, link, &self.figures).await,
        }
    }
}
