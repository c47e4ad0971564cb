//! A gateway with a peer that has its keys right and is free in what it seals.

use ipnet::IpNet;
use liquid_gateway::gateway::{Clock, Config, Gateway};
use liquid_gateway::lanes::Lane;
use liquid_gateway::nat::Remap;
use liquid_gateway::packet::vnet;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::transit::Transit;
use liquid_gateway::tunnel::TunnelConfig;
use liquid_gateway::wireguard::cookie::Recipient;
use liquid_gateway::wireguard::handshake::{Initiator, timestamp};
use liquid_gateway::wireguard::key::PrivateKey;
use liquid_gateway::wireguard::message::{DATA_HEADER, DATA_OVERHEAD, Message, RESPONSE};
use liquid_gateway::wireguard::session::Session;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Longest packet of the tunnel.
pub const MTU: u16 = 1420;
/// The prefixes both sides have, and how the gateway sees those of the peer.
const REAL: [&str; 2] = ["10.244.0.0/16", "fd00:244::/64"];
const VIEW: [&str; 2] = ["10.71.0.0/16", "fd00:71::/64"];

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

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// Whether both sides have this address.
#[must_use]
pub fn is_real(address: IpAddr) -> bool {
    REAL.iter().any(|prefix| net(prefix).contains(&address))
}

/// Whether the gateway sees the peer at this address.
#[must_use]
pub fn is_view(address: IpAddr) -> bool {
    VIEW.iter().any(|prefix| net(prefix).contains(&address))
}

/// Where datagrams of the peer come from.
#[must_use]
pub fn peer_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2], 51_820))
}

fn keys() -> [PrivateKey; 2] {
    [PrivateKey::new([11; 32]), PrivateKey::new([22; 32])]
}

/// A gateway with a peer, and no session.
#[must_use]
pub fn gateway(now: Instant) -> Gateway {
    let [own, peer] = keys();
    let remaps = VIEW.iter().zip(REAL).map(|(view, real)| Remap::new(net(view), net(real)));
    let config = Config {
        private_key: own.clone(),
        local: REAL.map(net).into(),
        peers: vec![PeerConfig {
            name: "peer".to_owned(),
            remaps: remaps.collect::<Result<_, _>>().expect("equal lengths"),
            mtu: MTU,
            tunnels: vec![TunnelConfig {
                name: "only".to_owned(),
                public_key: peer.public(),
                preshared_key: None,
                endpoints: vec![peer_address()],
                keepalive: None,
                probes: false,
                tells_lanes: false,
                own_key: None,
                control: None,
            }],
        }],
        transit: Transit::default(),
    };
    let clock = Clock { instant: now, since_epoch: Duration::from_secs(1_800_000_000) };
    Gateway::new(config, (Lane::ONLY, &own), [7; 32], clock, true)
}

/// A gateway and a peer with a session.
#[derive(Debug)]
pub struct Tunnel {
    /// The gateway.
    pub gateway: Gateway,
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
        let mut gateway = gateway(now);
        let label = timestamp(Duration::from_secs(1_800_000_001));
        let begun =
            Initiator::begin(&peer, &own.public(), None, 77, &label, &Recipient::new(&own.public()), None);
        let (mut initiator, mut initiation) = begun.expect("good keys");
        let length = initiation.len();
        gateway.handle_datagrams(now, peer_address(), &mut initiation, 0..length, length);
        let response = gateway.poll_transmit().expect("an answer");
        let response: &[u8; RESPONSE] = response.contents.first_chunk().expect("a response");
        let (keys, remote) = initiator.finish(response).expect("the gateway's response");
        gateway.clear_transmits();
        let peer = Session::new(&keys, 77, remote, true, now);
        let mut tunnel = Self { gateway, peer, now, sealed: Vec::new(), messages: Vec::new() };
        // The gateway sends nothing before it has heard of the peer (key confirmation).
        tunnel.seal(&[]);
        assert!(tunnel.deliver().is_empty(), "a keepalive carries nothing");
        tunnel
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
            self.gateway.handle_datagrams(self.now, peer_address(), &mut buffer, range, length);
        }
        let count = self.gateway.poll_deliveries(&mut buffer).deliveries();
        let mut written = Vec::new();
        for number in 0..count {
            let delivery = self.gateway.poll_deliveries(&mut buffer).delivery(number);
            let Some(delivery) = delivery else { break };
            let header = delivery.header;
            let pieces: Vec<_> = delivery.collect();
            written.push((header, pieces.into_iter().flat_map(|piece| buffer[piece].to_vec()).collect()));
        }
        self.gateway.clear_deliveries();
        self.gateway.clear_transmits();
        written
    }

    /// What the gateway has sealed for the peer, opened, with its padding.
    pub fn opened(&mut self) -> Vec<Vec<u8>> {
        let mut datagrams: Vec<Vec<u8>> = Vec::new();
        while let Some(transmit) = self.gateway.poll_transmit() {
            assert_eq!(transmit.to, peer_address(), "there is nobody else");
            datagrams.extend(transmit.contents.chunks(transmit.segment).map(<[u8]>::to_vec));
        }
        self.gateway.clear_transmits();
        let mut packets = Vec::new();
        for mut datagram in datagrams {
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
