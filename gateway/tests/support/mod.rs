//! Two gateways with a clock that only tests move, and packets to send through them.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ipnet::IpNet;
use liquid_gateway::gateway::{Clock, Config, Gateway, Handled};
use liquid_gateway::lanes::Lane;
use liquid_gateway::nat::Remap;
use liquid_gateway::packet::checksum::Sum;
use liquid_gateway::packet::ip::Ip;
use liquid_gateway::packet::vnet::{self, Offload};
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::transit::Transit;
use liquid_gateway::tunnel::TunnelConfig;
use liquid_gateway::wireguard::key::{PresharedKey, PrivateKey};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A datagram on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// A tunnel to an end that only speaks WireGuard.
pub(crate) fn tunnel(name: &str, key: &PrivateKey, endpoint: Option<SocketAddr>) -> TunnelConfig {
    TunnelConfig {
        name: name.to_owned(),
        public_key: key.public(),
        preshared_key: None,
        endpoints: endpoint.into_iter().collect(),
        keepalive: None,
        probes: false,
        tells_lanes: false,
        own_key: None,
        control: None,
    }
}

pub(crate) struct Host {
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    pub(crate) key: PrivateKey,
}

impl Host {
    pub(crate) fn new(config: Config, address: SocketAddr, now: Instant) -> Self {
        static HOSTS: AtomicU8 = AtomicU8::new(0);
        let seed = [HOSTS.fetch_add(1, Ordering::Relaxed); 32];
        let clock = Clock { instant: now, since_epoch: Duration::from_secs(1_800_000_000) };
        let key = config.private_key.clone();
        let gateway = Gateway::new(config, (Lane::ONLY, &key), seed, clock, true);
        Self { key, gateway, address }
    }

    pub(crate) fn send(&mut self, now: Instant, packet: &[u8]) {
        let handled = self.gateway.handle_packet(now, Offload::None, &mut packet.to_vec());
        assert_eq!(handled, Handled::Here);
    }

    pub(crate) fn configure(&mut self, config: Config, now: Instant) {
        let first = config.private_key.clone();
        self.gateway.configure(config, &first, now);
    }

    pub(crate) fn transmits(&mut self) -> Vec<Datagram> {
        let mut out = Vec::new();
        while let Some(transmit) = self.gateway.poll_transmit() {
            for bytes in transmit.contents.chunks(transmit.segment) {
                out.push(Datagram { from: self.address, to: transmit.to, bytes: bytes.to_vec() });
            }
        }
        self.gateway.clear_transmits();
        out
    }

    /// Takes a datagram; returns the packets it brings.
    pub(crate) fn receive(&mut self, now: Instant, datagram: &Datagram) -> Vec<Vec<u8>> {
        let mut buffer = datagram.bytes.clone();
        let length = buffer.len();
        self.gateway.handle_datagrams(now, datagram.from, &mut buffer, 0..length, length);
        self.deliveries(&mut buffer).into_iter().map(|(_, packet)| packet).collect()
    }

    /// What datagrams in `buffer` have brought, each with its virtio header.
    pub(crate) fn deliveries(&mut self, buffer: &mut [u8]) -> Vec<([u8; vnet::LENGTH], Vec<u8>)> {
        let mut packets = Vec::new();
        for number in 0..self.gateway.poll_deliveries(buffer).deliveries() {
            let delivery = self.gateway.poll_deliveries(buffer).delivery(number).unwrap();
            let header = delivery.header;
            let pieces: Vec<_> = delivery.collect();
            packets.push((header, pieces.into_iter().flat_map(|piece| buffer[piece].to_vec()).collect()));
        }
        self.gateway.clear_deliveries();
        packets
    }
}

/// What both A and B have.
pub(crate) const REAL: [&str; 2] = ["10.244.0.0/16", "fd00:244::/64"];
/// How A sees what B has, and B what A has.
pub(crate) const VIEWS: [[&str; 2]; 2] = [["10.71.0.0/16", "fd00:71::/64"], ["10.72.0.0/16", "fd00:72::/64"]];
/// Longest packet between the two.
pub(crate) const MTU: u16 = 1420;

/// The keys of A and B.
pub(crate) fn keys() -> [PrivateKey; 2] {
    [PrivateKey::new([11; 32]), PrivateKey::new([22; 32])]
}

/// Where A and B are.
pub(crate) fn addresses() -> [SocketAddr; 2] {
    [at("192.0.2.1:51820"), at("192.0.2.2:51821")]
}

/// A and B, each seeing the other's prefixes elsewhere.
pub(crate) fn pair(now: Instant, preshared: Option<PresharedKey>) -> (Host, Host) {
    (one(now, 0, preshared.clone()), one(now, 1, preshared))
}

/// A, or B.
pub(crate) fn one(now: Instant, own: usize, preshared_key: Option<PresharedKey>) -> Host {
    let (keys, addresses, other) = (keys(), addresses(), 1 - own);
    let remaps = VIEWS[own].iter().zip(REAL).map(|(view, real)| Remap::new(net(view), net(real)).unwrap());
    let tunnels =
        vec![TunnelConfig { preshared_key, ..tunnel("only", &keys[other], Some(addresses[other])) }];
    let peer = PeerConfig { name: format!("peer-{other}"), remaps: remaps.collect(), mtu: MTU, tunnels };
    let config = Config {
        private_key: keys[own].clone(),
        local: REAL.map(net).into(),
        peers: vec![peer],
        transit: Transit::default(),
    };
    Host::new(config, addresses[own], now)
}

/// A UDP datagram with right checksums.
pub(crate) fn udp(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    udp_ports(source, destination, [7000, 7001], payload)
}

/// The same with ports.
pub(crate) fn udp_ports(source: &str, destination: &str, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let length = u16::try_from(payload.len() + 8).unwrap();
    let mut transport =
        [&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload]
            .concat();
    let (mut packet, addresses) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (length + 20).to_be_bytes();
            let addresses = [source.octets(), destination.octets()].concat();
            let mut header = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 17, 0, 0];
            header.extend(&addresses);
            let sum = Sum::of(&header).checksum();
            header[10..12].copy_from_slice(&sum);
            (header, addresses)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            let size = length.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, size[0], size[1], 17, 64];
            header.extend(&addresses);
            (header, addresses)
        }
        _ => panic!("one family"),
    };
    let sum = Sum::of(&addresses).with_word(17).with_word(length).with(&transport).checksum();
    transport[6..8].copy_from_slice(&sum);
    packet.extend(transport);
    packet
}

pub(crate) fn ends(packet: &[u8]) -> (String, String) {
    let ip = Ip::parse(packet).unwrap();
    (ip.source.to_string(), ip.destination.to_string())
}

/// Carries datagrams between the two until nothing is left; returns the packets each received.
pub(crate) fn exchange(now: Instant, a: &mut Host, b: &mut Host) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let (from_a, from_b) = (a.transmits(), b.transmits());
        if from_a.is_empty() && from_b.is_empty() {
            return (to_a, to_b);
        }
        let (at_a, at_b) = (a.address, b.address);
        for datagram in from_a.iter().filter(|datagram| datagram.to == at_b) {
            to_b.extend(b.receive(now, datagram));
        }
        for datagram in from_b.iter().filter(|datagram| datagram.to == at_a) {
            to_a.extend(a.receive(now, datagram));
        }
    }
    panic!("the two never stop talking");
}
