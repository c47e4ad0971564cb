//! The side of the relay for those who come out of a tunnel: to the link endpoint of this cluster, and nowhere else. Who
//! they are, as far as the link is concerned, they have to show there.

use super::pipe::{self, Farewells};
use super::{Directory, Figures, Relay, connect};
use liquid_runtime::relay::Refusal;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
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
    shares: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// One of the connections a caller may have.
struct Share {
    name: String,
    shares: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Share {
    fn take(name: &str, most: usize, shares: &Arc<Mutex<BTreeMap<String, usize>>>) -> Option<Self> {
        let mut known = shares.lock().unwrap_or_else(PoisonError::into_inner);
        let count = known.entry(name.to_owned()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self { name: name.to_owned(), shares: shares.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut known = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = known.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                known.remove(&self.name);
            }
        }
    }
}

impl Peers {
    pub(super) fn new(directory: watch::Receiver<Directory>, figures: Figures) -> Self {
        Self {
            directory,
            figures,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            farewells: Farewells::default(),
            shares: Arc::default(),
        }
    }

    async fn connect(&self, from: SocketAddr) -> Result<(TcpStream, Share, OwnedSemaphorePermit), Refusal> {
        let (caller, link) = {
            let directory = self.directory.borrow();
            (directory.caller(from.ip()).cloned(), directory.link)
        };
        let caller = caller.ok_or(Refusal::Stranger)?;
        let most = if caller.guest { MAX_OF_GUEST } else { MAX_OF_ONE };
        let share = Share::take(&caller.name, most, &self.shares).ok_or(Refusal::TooMany)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_its_share_and_no_more() {
        let shares = Arc::default();
        let one = Share::take("turin", 2, &shares);
        let two = Share::take("turin", 2, &shares);
        assert!(one.is_some() && two.is_some());
        assert!(Share::take("turin", 2, &shares).is_none());
        assert!(Share::take("milan", 2, &shares).is_some(), "another has its own");
        drop(one);
        assert!(Share::take("turin", 2, &shares).is_some());
        drop(two);
        assert!(shares.lock().unwrap().is_empty());
    }
}
