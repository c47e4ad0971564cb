//! The peer link through the tunnels: what this cluster's own processes have to say to a peer goes in by one gateway and
//! comes out by another, which hands it to the link endpoint beside it. Bytes pass unread; TLS is between the clusters.
//!
//! [`directory`] says who may reach whom, [`hello`] for whom a connection is, [`own`] serves this cluster's processes and
//! [`peers`] those who come out of a tunnel; [`pipe`] carries the bytes.

pub(crate) mod directory;
mod figures;
mod hello;
mod own;
mod peers;
mod pipe;

pub(crate) use directory::Directory;
pub(crate) use figures::Figures;

use liquid_gateway::control;
use liquid_runtime::drain::Drain;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Time for connecting, through the tunnel or to the link endpoint: two lost packets are made up for, and the caller, who
/// waits 10 s, still hears why it was in vain.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Time for the first message of TLS.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a listener could not be made, or has failed.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// Relays until the drain; `at` is the address for this cluster's own processes.
pub(crate) fn start(directory: watch::Receiver<Directory>, at: SocketAddr, figures: Figures, drain: &Drain) {
    let own = own::Own::new(directory.clone(), figures.clone());
    let peers = peers::Peers::new(directory, figures);
    let inside = SocketAddr::from((control::ADDRESS, control::PORT));
    drain.spawn(serve(at, own, drain.token()));
    drain.spawn(serve(inside, peers, drain.token()));
}

/// What is done with a connection.
trait Relay: Clone + Send + 'static {
    /// Sees to a connection to its end.
    fn relay(self, stream: TcpStream, from: SocketAddr) -> impl Future<Output = ()> + Send;
}

/// Serves until `end`, and cuts off what is relayed then: while this gateway still forwards, links find another.
async fn serve(at: SocketAddr, relay: impl Relay, end: CancellationToken) {
    let serving = async {
        let listener = listen(at).await;
        info!(address = %at, "relays the link");
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let relayed = relay.clone().relay(stream, from);
                    drop(tokio::spawn(end.clone().run_until_cancelled_owned(relayed)));
                }
                Err(error) => {
                    warn!(address = %at, %error, "cannot accept a connection");
                    sleep(LISTEN_PAUSE).await;
                }
            }
        }
    };
    end.run_until_cancelled(serving).await;
}

async fn listen(at: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(at).await {
            Ok(listener) => return listener,
            Err(error) => warn!(address = %at, %error, "cannot listen for the link; trying again"),
        }
        sleep(LISTEN_PAUSE).await;
    }
}

/// Connects to `to`; none if there is no answer in time.
async fn connect(to: SocketAddr) -> Option<TcpStream> {
    timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::directory::{Caller, Path};
    use super::*;
    use liquid_crds::ClusterId;
    use liquid_gateway::liveness::Way;
    use liquid_runtime::relay::{ALERT_LENGTH, Refusal};
    use std::net::{IpAddr, Ipv4Addr};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const ID: &str = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab";
    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// The first message for the link endpoint of a cluster.
    fn hello(cluster: &str) -> Vec<u8> {
        hello::hello(&cluster.parse::<ClusterId>().unwrap().link_name())
    }

    /// Serves `relay` on some port, and returns which.
    async fn served(relay: impl Relay) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, from) = listener.accept().await.unwrap();
                tokio::spawn(relay.clone().relay(stream, from));
            }
        });
        at
    }

    fn own(directory: Directory) -> own::Own {
        own::Own::new(watch::Sender::new(directory).subscribe(), Figures::default())
    }

    /// What a caller that sends `bytes` hears.
    async fn refusal(at: SocketAddr, bytes: &[u8]) -> Option<Refusal> {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut alert = [0; ALERT_LENGTH];
        stream.read_exact(&mut alert).await.ok()?;
        assert_eq!(alert[..6], [21, 3, 3, 0, 2, 2]);
        Refusal::of_code(alert[6])
    }

    fn path(gateway: [u8; 4], way: Way) -> Path {
        Path { control: gateway.into(), way }
    }

    #[tokio::test]
    async fn bytes_reach_a_gateway_of_the_cluster_that_is_named_as_they_were_sent() {
        let (dead, alive) = ([127, 0, 112, 2], [127, 0, 112, 3]);
        let gateway = TcpListener::bind((Ipv4Addr::from(alive), control::PORT)).await.unwrap();
        let paths = vec![path(dead, Way::Up), path(alive, Way::Standby)];
        let at = served(own(Directory {
            paths: [(ID.parse().unwrap(), paths)].into(),
            clients: [LOCALHOST].into(),
            ..Directory::default()
        }))
        .await;
        let mut client = TcpStream::connect(at).await.unwrap();
        let hello = hello(ID);
        // In pieces, as networks bring it.
        for piece in hello.chunks(100) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let (mut peer, _) = gateway.accept().await.unwrap();
        let mut got = vec![0; hello.len()];
        peer.read_exact(&mut got).await.unwrap();
        assert_eq!(got, hello);
        peer.write_all(b"an answer").await.unwrap();
        let mut answer = [0; 9];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"an answer");
        drop(client);
        assert_eq!(peer.read(&mut got).await.unwrap(), 0, "the end of one is the end of the other");
    }

    #[tokio::test]
    async fn whoever_is_not_connected_hears_why() {
        let reached = |clients: &[IpAddr], gateway: [u8; 4]| Directory {
            paths: [(ID.parse().unwrap(), vec![path(gateway, Way::Up)])].into(),
            clients: clients.iter().copied().collect(),
            ..Directory::default()
        };
        let silent = [127, 0, 112, 4];
        let stranger = served(own(reached(&[], silent))).await;
        assert_eq!(refusal(stranger, &hello(ID)).await, Some(Refusal::NotAllowed));
        let at = served(own(reached(&[LOCALHOST], silent))).await;
        assert_eq!(refusal(at, &hello(ID)).await, Some(Refusal::Silent));
        let other = ID.replace('3', "4");
        assert_eq!(refusal(at, &hello(&other)).await, Some(Refusal::NoTunnel));
        assert_eq!(refusal(at, b"GET / HTTP/1.1\r\n\r\n").await, Some(Refusal::NoTunnel));
    }

    #[tokio::test]
    async fn who_comes_out_of_a_tunnel_reaches_the_link_endpoint_and_has_a_share_of_it() {
        let link = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest = Caller { name: "guest:aa".to_owned(), guest: true };
        let directory = Directory {
            callers: [(Ipv4Addr::LOCALHOST, guest)].into(),
            link: Some(link.local_addr().unwrap()),
            ..Directory::default()
        };
        let peers = |directory: Directory| {
            peers::Peers::new(watch::Sender::new(directory).subscribe(), Figures::default())
        };
        let at = served(peers(directory.clone())).await;
        let mut open = Vec::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            let (mut reached, _) = link.accept().await.unwrap();
            let mut got = [0; 5];
            reached.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"hello");
            open.push((stream, reached));
        }
        assert_eq!(refusal(at, b"hello").await, Some(Refusal::TooMany));
        let at = served(peers(Directory { callers: [].into(), ..directory.clone() })).await;
        assert_eq!(refusal(at, b"hello").await, Some(Refusal::Stranger));
        let at = served(peers(Directory { link: None, ..directory })).await;
        assert_eq!(refusal(at, b"hello").await, Some(Refusal::NoLink));
    }
}
