//! The provider's end: accepts connections, authenticates them, and serves gRPC on them.

use crate::identity::PeerIdentity;
use crate::limits::{
    CONNECTION_WINDOW, GUEST_LIFETIME, HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PEER,
    MAX_GUESTS, MAX_HANDSHAKES, MAX_STREAMS, STREAM_WINDOW,
};
use crate::liveness::Liveness;
use futures::Stream;
use liquid_runtime::shares::{Share, Shares};
use socket2::SockRef;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// Who is at the other end of a connection; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Address of the connection.
    pub address: SocketAddr,
    /// The peer, if it presented a certificate of this cluster; a guest may only join.
    pub peer: Option<PeerIdentity>,
}

/// Handshakes that have ended but whose connections are not served yet.
const ACCEPT_QUEUE: usize = 32;

/// Pause after an accept error: it is the process that is out of descriptors or memory, not the caller.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A gRPC server with the bounds of the peer link, ready for services.
pub fn builder(liveness: Liveness) -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(liveness.doubt()))
        .http2_keepalive_timeout(Some(liveness.acknowledgement()))
}

/// Accepts connections on `listener` until the stream is dropped.
pub fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    liveness: Liveness,
) -> impl Stream<Item = Result<Connection, std::io::Error>> {
    let (sender, mut accepted) = mpsc::channel(ACCEPT_QUEUE);
    tokio::spawn(accept_loop(listener, tls, liveness, sender));
    futures::stream::poll_fn(move |cx| accepted.poll_recv(cx).map(|connection| connection.map(Ok)))
}

async fn accept_loop(
    listener: TcpListener,
    tls: TlsAcceptor,
    liveness: Liveness,
    sender: mpsc::Sender<Connection>,
) {
    let slots = Slots {
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        peers: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        guests: Arc::new(Semaphore::new(MAX_GUESTS)),
        per_peer: Shares::default(),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a link connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(handshake) = slots.handshakes.clone().try_acquire_owned() else {
            debug!(%address, "link connection closed: too many handshakes at once");
            continue;
        };
        let (tls, sender, slots) = (tls.clone(), sender.clone(), slots.clone());
        tokio::spawn(async move {
            match authenticate(stream, address, tls, liveness, &slots).await {
                // The queue is bounded and the server reads it at once; if it is gone there is nobody to serve.
                Ok(connection) => drop(sender.send(connection).await),
                Err(reason) => debug!(%address, %reason, "link connection refused"),
            }
            drop(handshake);
        });
    }
}

#[derive(Clone)]
struct Slots {
    /// Handshakes under way: each costs a signature, so strangers get a bounded share of the CPU.
    handshakes: Arc<Semaphore>,
    peers: Arc<Semaphore>,
    guests: Arc<Semaphore>,
    per_peer: Shares<PeerIdentity>,
}

async fn authenticate(
    stream: TcpStream,
    address: SocketAddr,
    tls: TlsAcceptor,
    liveness: Liveness,
    slots: &Slots,
) -> Result<Connection, String> {
    // Without it an exec keystroke waits for the acknowledgement of the last segment.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let acknowledgement = Some(liveness.acknowledgement());
    SockRef::from(&stream).set_tcp_user_timeout(acknowledgement).map_err(|error| error.to_string())?;
    let stream = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream))
        .await
        .map_err(|_| "TLS handshake timed out".to_owned())?
        .map_err(|error| format!("TLS handshake failed: {error}"))?;
    let peer = match stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()) {
        None => None,
        Some(leaf) => Some(PeerIdentity::from_certificate(leaf).map_err(|error| error.to_string())?),
    };
    let too_many = || format!("{MAX_CONNECTIONS_PER_PEER} connections of this peer are open already");
    let share = match &peer {
        None => None,
        Some(peer) => Some(slots.per_peer.take(peer, MAX_CONNECTIONS_PER_PEER).ok_or_else(too_many)?),
    };
    let (slots, lifetime) = match peer {
        Some(_) => (&slots.peers, None),
        None => (&slots.guests, Some(Box::pin(sleep(GUEST_LIFETIME)))),
    };
    let slot = slots.clone().try_acquire_owned().map_err(|_| "too many connections".to_owned())?;
    Ok(Connection { stream, caller: Caller { address, peer }, lifetime, _slot: slot, _share: share })
}

/// An authenticated connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    lifetime: Option<Pin<Box<Sleep>>>,
    _slot: OwnedSemaphorePermit,
    _share: Option<Share<PeerIdentity>>,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Some(lifetime) = &mut self.lifetime
            && lifetime.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
