//! A gateway with a peer that has its keys right and is free in what it seals.

use crate::support::{self, Host, REAL, VIEWS, addresses, keys, net, one};
use liquid_gateway::gateway::Gateway;
use liquid_gateway::packet::vnet;
use liquid_gateway::wireguard::cookie::Recipient;
use liquid_gateway::wireguard::handshake::{Initiator, timestamp};
use liquid_gateway::wireguard::message::{DATA_HEADER, DATA_OVERHEAD, Message, RESPONSE};
use liquid_gateway::wireguard::session::Session;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Longest packet of the tunnel.
pub const MTU: u16 = support::MTU;

/// Hosts on both sides, of IPv4 and of IPv6, as they see themselves.
#[must_use]
pub fn hosts() -> [[IpAddr; 2]; 2] {
    [["10.244.1.5", "10.244.2.6"], ["fd00:244::5", "fd00:244::6"]].map(|pair| pair.map(address))
}

/// The same, but the second as the gateway sees it.
#[must_use]
pub fn seen() -> [[IpAddr; 2]; 2] {
    [["10.244.1.5", "10.71.2.6"], ["fd00:244::5", "fd00:71::6"]].map(|pair| pair.map(address))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Whether both sides have this address.
#[must_use]
pub fn is_real(address: IpAddr) -> bool {
    REAL.iter().any(|prefix| net(prefix).contains(&address))
}

/// Whether the gateway sees the peer at this address.
#[must_use]
pub fn is_view(address: IpAddr) -> bool {
    VIEWS[0].iter().any(|prefix| net(prefix).contains(&address))
}

/// Where datagrams of the peer come from.
#[must_use]
pub fn peer_address() -> SocketAddr {
    addresses()[1]
}

/// What handshakes with the gateway are signed for.
#[must_use]
pub fn recipient() -> Recipient {
    Recipient::new(&keys()[0].public())
}

/// A gateway with a peer, and no session.
#[must_use]
pub fn gateway(now: Instant) -> Gateway {
    one(now, 0, None).gateway
}

/// A gateway and a peer with a session.
pub struct Tunnel {
    host: Host,
    /// The session, at the peer.
    pub peer: Session,
    /// A moment at which the session is good.
    pub now: Instant,
    /// What the peer has sealed, and where each message lies.
    sealed: Vec<u8>,
    messages: Vec<Range<usize>>,
}

impl Tunnel {
    /// A session that the peer began.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        let [own, peer] = keys();
        let mut host = one(now, 0, None);
        let label = timestamp(Duration::from_secs(1_800_000_001));
        let begun = Initiator::begin(&peer, &own.public(), None, 77, &label, &recipient(), None);
        let (mut initiator, mut initiation) = begun.expect("good keys");
        let length = initiation.len();
        host.gateway.handle_datagrams(now, peer_address(), &mut initiation, 0..length, length);
        let response = host.gateway.poll_transmit().expect("an answer");
        let response: &[u8; RESPONSE] = response.contents.first_chunk().expect("a response");
        let (keys, remote) = initiator.finish(response).expect("the gateway's response");
        host.gateway.clear_transmits();
        let peer = Session::new(&keys, 77, remote, true, now);
        let mut tunnel = Self { host, peer, now, sealed: Vec::new(), messages: Vec::new() };
        // The gateway sends nothing before it has heard of the peer (key confirmation).
        tunnel.seal(&[]);
        assert!(tunnel.deliver().is_empty(), "a keepalive carries nothing");
        tunnel
    }

    /// The gateway.
    pub fn gateway(&mut self) -> &mut Gateway {
        &mut self.host.gateway
    }

    /// Seals bytes as the peer; all that is sealed is sent by [`Tunnel::deliver`].
    pub fn seal(&mut self, inner: &[u8]) {
        let start = self.sealed.len();
        self.sealed.resize(start + inner.len() + DATA_OVERHEAD, 0);
        let message = &mut self.sealed[start..];
        message[DATA_HEADER..DATA_HEADER + inner.len()].copy_from_slice(inner);
        self.peer.seal(message);
        self.messages.push(start..self.sealed.len());
    }

    /// Sends what was sealed, as one batch; returns what the gateway writes to its TUN device, each with its virtio header.
    pub fn deliver(&mut self) -> Vec<([u8; vnet::LENGTH], Vec<u8>)> {
        let mut buffer = std::mem::take(&mut self.sealed);
        for range in std::mem::take(&mut self.messages) {
            let length = range.len();
            self.host.gateway.handle_datagrams(self.now, peer_address(), &mut buffer, range, length);
        }
        let written = self.host.deliveries(&mut buffer);
        self.host.gateway.clear_transmits();
        written
    }

    /// What the gateway has sealed for the peer, opened, with its padding.
    pub fn opened(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for support::Datagram { to, bytes: mut datagram, .. } in self.host.transmits() {
            assert_eq!(to, peer_address(), "there is nobody else");
            match Message::read(&datagram) {
                Some(Message::Data { counter, .. }) => {
                    let length = self.peer.open(counter, &mut datagram, self.now);
                    let length = length.expect("what the gateway seals opens");
                    packets.push(datagram[DATA_HEADER..DATA_HEADER + length].to_vec());
                }
                Some(_) => {}
                None => panic!("the gateway sent something that is not WireGuard"),
            }
        }
        packets
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self::new()
    }
}
