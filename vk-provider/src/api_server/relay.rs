//! Relays TCP connections, unread: whoever is let in is connected with one place, and with nothing else.

use liquid_runtime::shares::Shares;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Pause after an accept error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for the other end.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that is gone without a word is noticed after about two minutes: its connection counts until then.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Who may use a relay.
pub(super) trait Gate: Send + Sync + 'static {
    /// Whether this address is let in; may take a moment, during which it waits.
    fn admits(&self, source: IpAddr) -> impl Future<Output = bool> + Send;

    /// Returns when this address, which was let in, is let in no more.
    fn closes(&self, source: IpAddr) -> impl Future<Output = ()> + Send;
}

/// How many connections there may be at once. Each takes two sockets and twice 8 KiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of all.
    pub(super) total: usize,
    /// Of one address.
    pub(super) per_source: usize,
}

/// Counts what goes through.
pub(crate) trait Meter: Send + Sync + 'static {
    /// A connection was relayed, or one of these is over.
    fn connections(&self, change: i64);

    /// A connection was not relayed, and why: one word.
    fn refused(&self, why: &'static str);
}

/// Relays what comes in on `listener` to where `connect` leads, for ever.
pub(super) async fn relay<G, M, C, F>(
    listener: TcpListener,
    limits: Limits,
    gate: Arc<G>,
    meter: Arc<M>,
    connect: C,
) where
    G: Gate,
    M: Meter,
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<TcpStream>> + Send,
{
    let slots = Arc::new(Semaphore::new(limits.total));
    let sources = Shares::default();
    loop {
        let (stream, source) = match listener.accept().await {
            Ok((stream, address)) => (stream, address.ip().to_canonical()),
            Err(error) => {
                warn!(%error, "cannot accept a connection to relay");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            meter.refused("full");
            continue;
        };
        let Some(counted) = sources.take(&source, limits.per_source) else {
            meter.refused("one_source");
            continue;
        };
        let (gate, meter, connect) = (gate.clone(), meter.clone(), connect.clone());
        tokio::spawn(async move {
            if !gate.admits(source).await {
                meter.refused("stranger");
                debug!(%source, "connection not relayed: it is not let in");
            } else {
                match timeout(CONNECT_TIMEOUT, connect()).await {
                    Ok(Ok(there)) => {
                        meter.connections(1);
                        tokio::select! {
                            () = pass(stream, there) => {}
                            () = gate.closes(source) => debug!(%source, "connection ended: it is let in no more"),
                        }
                        meter.connections(-1);
                    }
                    failed => {
                        let error = failed
                            .map_or_else(|_| "no answer".to_owned(), |failed| format!("{:?}", failed.err()));
                        meter.refused("unreachable");
                        debug!(%source, %error, "connection not relayed");
                    }
                }
            }
            drop((counted, slot));
        });
    }
}

/// Moves bytes both ways until both ends have said all.
async fn pass(mut here: TcpStream, mut there: TcpStream) {
    for stream in [&here, &there] {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        // Without it, a connection lasts longer than it has to.
        if let Err(error) =
            SockRef::from(stream).set_tcp_keepalive(&keepalive).and_then(|()| stream.set_nodelay(true))
        {
            debug!(%error, "socket not tuned");
        }
    }
    if let Err(error) = copy_bidirectional(&mut here, &mut there).await {
        debug!(%error, "relayed connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::atomic::{AtomicI64, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;

    struct Door(watch::Receiver<bool>);

    impl Gate for Door {
        async fn admits(&self, _: IpAddr) -> bool {
            *self.0.borrow()
        }

        async fn closes(&self, _: IpAddr) {
            drop(self.0.clone().wait_for(|open| !open).await);
        }
    }

    #[derive(Default)]
    struct Counts {
        open: AtomicI64,
        refused: AtomicI64,
    }

    impl Meter for Counts {
        fn connections(&self, change: i64) {
            self.open.fetch_add(change, Ordering::SeqCst);
        }

        fn refused(&self, _: &'static str) {
            self.refused.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn bound() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// A server that says everything back, and a relay to it.
    async fn relayed(limits: Limits) -> (SocketAddr, watch::Sender<bool>, Arc<Counts>) {
        let (server, there) = bound().await;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        let (listener, address) = bound().await;
        let (door, open) = watch::channel(true);
        let counts = Arc::new(Counts::default());
        let connect = move || TcpStream::connect(there);
        tokio::spawn(relay(listener, limits, Arc::new(Door(open)), counts.clone(), connect));
        (address, door, counts)
    }

    async fn echo(stream: &mut TcpStream) -> bool {
        let mut answer = [0; 5];
        stream.write_all(b"hello").await.is_ok()
            && stream.read_exact(&mut answer).await.is_ok()
            && answer == *b"hello"
    }

    const FEW: Limits = Limits { total: 3, per_source: 2 };

    #[tokio::test]
    async fn bytes_pass_both_ways_and_the_end_too() {
        let (address, _door, counts) = relayed(FEW).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(echo(&mut stream).await);
        assert_eq!(counts.open.load(Ordering::SeqCst), 1);
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn who_is_not_let_in_is_not_connected_and_who_no_more_is_disconnected() {
        let (address, door, counts) = relayed(FEW).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(echo(&mut stream).await);
        door.send(false).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
        let mut stranger = TcpStream::connect(address).await.unwrap();
        assert!(!echo(&mut stranger).await);
        assert_eq!(counts.refused.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn one_address_leaves_room_for_others() {
        let (address, _door, counts) = relayed(FEW).await;
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert!(echo(&mut stream).await);
            streams.push(stream);
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        assert!(!echo(&mut third).await);
        assert_eq!(counts.refused.load(Ordering::SeqCst), 1);
    }
}
