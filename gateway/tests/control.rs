//! What gateways say to each other inside their tunnels, on a virtual clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use liquid_gateway::control;
use liquid_gateway::drops::Drop;
use liquid_gateway::gateway::{Clock, Config, Gateway, Handled};
use liquid_gateway::lanes::Lane;
use liquid_gateway::nat::Remap;
use liquid_gateway::packet::checksum::Sum;
use liquid_gateway::packet::ip::Ip;
use liquid_gateway::packet::vnet::Offload;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::transit::Transit;
use liquid_gateway::tunnel::TunnelConfig;
use liquid_gateway::wireguard::key::PrivateKey;
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use support::{Datagram, Host, at, ends, exchange, net, tunnel, udp};

const OWN: &str = "169.254.112.1";
/// Where A sees B, and B sees A.
const VIEWS: [&str; 2] = ["169.254.112.7", "169.254.112.9"];
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A TCP segment with right checksums.
fn tcp(source: &str, destination: &str, ports: [u16; 2], flags: u8) -> Vec<u8> {
    let (source, destination): (Ipv4Addr, Ipv4Addr) = (source.parse().unwrap(), destination.parse().unwrap());
    let addresses = [source.octets(), destination.octets()].concat();
    let mut segment = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 16, 0, 0, 0, 0, 0]);
    let sum = Sum::of(&addresses).with_word(6).with_word(20).with(&segment).checksum();
    segment[16..18].copy_from_slice(&sum);
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    packet.extend(&addresses);
    let sum = Sum::of(&packet).checksum();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(segment);
    packet
}

fn peer(name: &str, other: &PrivateKey, endpoint: Option<&str>, view: &str) -> PeerConfig {
    let tunnel = TunnelConfig {
        keepalive: Some(Duration::from_secs(5)),
        control: Some(view.parse().unwrap()),
        ..tunnel("g0", other, endpoint.map(at))
    };
    PeerConfig { name: name.to_owned(), remaps: Vec::new(), mtu: 1420, tunnels: vec![tunnel] }
}

fn keys() -> [PrivateKey; 3] {
    [11, 22, 33].map(|byte| PrivateKey::new([byte; 32]))
}

const ADDRESSES: [&str; 2] = ["192.0.2.1:51820", "192.0.2.2:51821"];

fn config(key: &PrivateKey, peers: Vec<PeerConfig>) -> Config {
    Config { private_key: key.clone(), local: vec![net("10.244.0.0/16")], peers, transit: Transit::default() }
}

/// A and B, which know each other, and pods of each other as 10.72.0.0/16 and 10.71.0.0/16.
fn pair(now: Instant) -> (Host, Host) {
    let [a, b, _] = keys();
    let with_pods = |peer: PeerConfig, view: &str| {
        let remaps = vec![Remap::new(net(view), net("10.244.0.0/16")).unwrap()];
        PeerConfig { remaps, ..peer }
    };
    let to_b = with_pods(peer("b", &b, Some(ADDRESSES[1]), VIEWS[0]), "10.72.0.0/16");
    let to_a = with_pods(peer("a", &a, Some(ADDRESSES[0]), VIEWS[1]), "10.71.0.0/16");
    let mut a = Host::new(config(&a, vec![to_b]), at(ADDRESSES[0]), now);
    let mut b = Host::new(config(&b, vec![to_a]), at(ADDRESSES[1]), now);
    exchange(now, &mut a, &mut b);
    (a, b)
}

fn carried(now: Instant, a: &mut Host, b: &mut Host, packet: &[u8]) -> Vec<Vec<u8>> {
    a.send(now, packet);
    exchange(now, a, b).1
}

#[test]
fn each_gateway_sees_the_other_where_it_chose_to_and_both_are_called_the_same() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let call = carried(now, &mut a, &mut b, &tcp(OWN, VIEWS[0], [40_000, control::PORT], SYN));
    assert_eq!(call, [tcp(VIEWS[1], OWN, [40_000, control::PORT], SYN)]);
    b.send(now, &tcp(OWN, VIEWS[1], [control::PORT, 40_000], SYN | ACK));
    let answer = exchange(now, &mut a, &mut b).0;
    assert_eq!(answer, [tcp(VIEWS[0], OWN, [control::PORT, 40_000], SYN | ACK)]);
}

/// The kernel chooses the queue of the first segment by chance.
#[test]
fn a_further_lane_leaves_the_link_to_the_first() {
    let now = Instant::now();
    let [a, b, _] = keys();
    let whole = config(&a, vec![peer("b", &b, Some(ADDRESSES[1]), VIEWS[0])]);
    let lane = Lane { number: 1, count: 2 };
    let clock = Clock { instant: now, since_epoch: Duration::from_secs(1_800_000_000) };
    let further = [b.lane(1).public()];
    let own = lane.config(&whole, |_, _| Some(&further));
    let mut second = Gateway::new(own, (lane, &a), [7; 32], clock, true);
    let packet = tcp(OWN, VIEWS[0], [40_000, control::PORT], SYN);
    let mut copy = packet.clone();
    assert_eq!(second.handle_packet(now, Offload::None, &mut copy), Handled::ByFirstLane);
    assert_eq!(copy, packet, "as it was");
}

#[test]
fn gateways_reach_no_pods_and_pods_no_gateways() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let port = [40_000, control::PORT];
    let mut refused = 0;
    for (source, destination) in [(OWN, "10.72.0.5"), ("10.244.0.5", VIEWS[0]), (VIEWS[1], VIEWS[0])] {
        assert!(carried(now, &mut a, &mut b, &tcp(source, destination, port, SYN)).is_empty());
        refused += 1;
        assert_eq!(a.gateway.drops().get(Drop::Control), refused, "{source} to {destination}");
    }
    assert_eq!(carried(now, &mut a, &mut b, &udp("10.244.0.5", "10.72.0.9", b"pods")).len(), 1);
}

/// An end of the tunnel to B with A's key that keeps to no rules: what it sends has the addresses it likes.
struct Forger(Tunn);

impl Forger {
    fn new(now: Instant, b: &mut Host) -> Self {
        let (key, other) = (StaticSecret::from([11; 32]), PublicKey::from(b.key.public().0));
        let mut forger = Self(Tunn::new(key, other, None, None, 7, None));
        let mut buffer = [0; 2000];
        let TunnResult::WriteToNetwork(initiation) = forger.0.format_handshake_initiation(&mut buffer, false)
        else {
            panic!("no initiation")
        };
        let initiation = forger.datagram(b, initiation);
        b.receive(now, &initiation);
        let response = b.transmits().pop().unwrap();
        let mut buffer = [0; 2000];
        let TunnResult::WriteToNetwork(keepalive) = forger.0.decapsulate(None, &response.bytes, &mut buffer)
        else {
            panic!("no handshake")
        };
        let keepalive = forger.datagram(b, keepalive);
        b.receive(now, &keepalive);
        forger
    }

    fn datagram(&self, b: &Host, bytes: &[u8]) -> Datagram {
        Datagram { from: at(ADDRESSES[0]), to: b.address, bytes: bytes.to_vec() }
    }

    /// What of `packet` B lets through.
    fn send(&mut self, now: Instant, b: &mut Host, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2000];
        let TunnResult::WriteToNetwork(bytes) = self.0.encapsulate(packet, &mut buffer) else {
            panic!("nothing sent")
        };
        let datagram = self.datagram(b, bytes);
        b.receive(now, &datagram)
    }
}

proptest! {
    /// The relay of B listens on 7443, its metrics on 9090 of all addresses; what comes out of the tunnel for B itself must
    /// never be the beginning of a connection to another port than the former, nor come from or lead to anywhere else.
    #[test]
    fn whatever_a_peer_sends_reaches_nothing_of_a_gateway_but_the_relay(
        source in prop::sample::select(vec![OWN, "10.244.0.5", "169.254.112.5", "169.254.112.9"]),
        destination in prop::sample::select(vec![OWN, "10.244.0.9", "169.254.112.5", "169.254.112.9"]),
        from in prop::sample::select(vec![control::PORT, 9090, 40_000]),
        to in prop::sample::select(vec![control::PORT, 9090, 40_000]),
        flags in any::<u8>(),
    ) {
        let now = Instant::now();
        let mut b = lone(now);
        let got = Forger::new(now, &mut b).send(now, &mut b, &tcp(source, destination, [from, to], flags));
        let begins = flags & (SYN | ACK) == SYN;
        let link = to == control::PORT || (from == control::PORT && !begins);
        let expected = match (source, destination) {
            (OWN, OWN) if link => Some((VIEWS[1].to_owned(), OWN.to_owned())),
            ("10.244.0.5", "10.244.0.9") => Some(("10.71.0.5".to_owned(), destination.to_owned())),
            _ => None,
        };
        prop_assert_eq!(got.first().map(|packet| ends(packet)), expected);
    }
}

/// B, which has not heard of A yet.
fn lone(now: Instant) -> Host {
    let [a, b, _] = keys();
    let remaps = vec![Remap::new(net("10.71.0.0/16"), net("10.244.0.0/16")).unwrap()];
    let to_a = PeerConfig { remaps, ..peer("a", &a, None, VIEWS[1]) };
    Host::new(config(&b, vec![to_a]), at(ADDRESSES[1]), now)
}

#[test]
fn other_protocols_do_not_reach_a_gateway() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    assert!(carried(now, &mut a, &mut b, &udp(OWN, VIEWS[0], b"x")).is_empty());
    assert_eq!(a.gateway.drops().get(Drop::Control), 1);
    let mut b = lone(now);
    assert!(Forger::new(now, &mut b).send(now, &mut b, &udp(OWN, OWN, b"x")).is_empty());
    assert_eq!(b.gateway.drops().get(Drop::Control), 1);
}

/// A, by the key of a guest.
fn guest_of_b() -> Config {
    let [a, b, guest] = keys();
    let mut to_b = peer("b", &b, Some(ADDRESSES[1]), VIEWS[0]);
    to_b.tunnels[0].own_key = Some(guest);
    config(&a, vec![to_b])
}

#[test]
fn a_guest_comes_in_by_its_own_key_and_goes_on_by_the_gateways() {
    let now = Instant::now();
    let [a_key, b_key, guest_key] = keys();
    let mut a = Host::new(guest_of_b(), at(ADDRESSES[0]), now);
    let guest = peer("guest:x", &guest_key, None, "169.254.112.5");
    let mut b = Host::new(config(&b_key, vec![guest.clone()]), at(ADDRESSES[1]), now);
    exchange(now, &mut a, &mut b);
    let port = [40_000, control::PORT];
    let got = carried(now, &mut a, &mut b, &tcp(OWN, VIEWS[0], port, SYN));
    assert_eq!(ends(&got[0]).0, "169.254.112.5");

    // It has joined: B learns its key, and A goes by that.
    let known = peer("a", &a_key, None, VIEWS[1]);
    b.configure(config(&b_key, vec![guest, known.clone()]), now);
    let later = now + Duration::from_secs(1);
    a.configure(config(&a_key, vec![peer("b", &b_key, Some(ADDRESSES[1]), VIEWS[0])]), later);
    exchange(later, &mut a, &mut b);
    let got = carried(later, &mut a, &mut b, &tcp(OWN, VIEWS[0], port, SYN));
    assert_eq!(ends(&got[0]).0, VIEWS[1], "at once, and not when the session of the guest is old");
    b.configure(config(&b_key, vec![known]), later);
    assert_eq!(carried(later, &mut a, &mut b, &tcp(OWN, VIEWS[0], port, SYN)).len(), 1);
}

#[test]
fn a_guest_that_is_not_let_in_any_more_is_not_answered() {
    let now = Instant::now();
    let mut a = Host::new(guest_of_b(), at(ADDRESSES[0]), now);
    let mut b = Host::new(config(&keys()[1], Vec::new()), at(ADDRESSES[1]), now);
    exchange(now, &mut a, &mut b);
    assert!(carried(now, &mut a, &mut b, &tcp(OWN, VIEWS[0], [40_000, control::PORT], SYN)).is_empty());
    assert_eq!(b.gateway.drops().get(Drop::UnknownPeer), 1);
}

#[test]
fn whoever_was_called_by_its_key_keeps_its_session_as_a_peer() {
    let now = Instant::now();
    let [a_key, b_key, _] = keys();
    let mut a = Host::new(config(&a_key, vec![peer("b", &b_key, None, VIEWS[0])]), at(ADDRESSES[0]), now);
    let guest = peer("guest:x", &a_key, Some(ADDRESSES[0]), VIEWS[1]);
    let mut b = Host::new(config(&b_key, vec![guest]), at(ADDRESSES[1]), now);
    exchange(now, &mut a, &mut b);
    let mut known = peer("a", &a_key, None, VIEWS[1]);
    known.tunnels[0].name = "liquid-gateway-0".to_owned();
    b.configure(config(&b_key, vec![known]), now);
    assert!(b.transmits().is_empty(), "no handshake is needed");
    let got = carried(now, &mut a, &mut b, &tcp(OWN, VIEWS[0], [40_000, control::PORT], ACK));
    assert_eq!(Ip::parse(&got[0]).unwrap().source.to_string(), VIEWS[1]);
    let status: Vec<_> = b.gateway.status().collect();
    assert_eq!((status.len(), status[0].name.as_str()), (1, "a"));
    assert_eq!(status[0].tunnels[0].name, "liquid-gateway-0");
    assert_eq!(carried(now, &mut b, &mut a, &tcp(OWN, VIEWS[1], [control::PORT, 40_000], ACK)).len(), 1);
}

#[test]
fn each_gateway_of_a_peer_is_reached_through_its_own_tunnel() {
    let now = Instant::now();
    let [a_key, b_key, c_key] = keys();
    let other = "192.0.2.3:51822";
    let mut both = peer("b", &b_key, Some(ADDRESSES[1]), VIEWS[0]);
    let view = Some("169.254.112.8".parse().unwrap());
    both.tunnels.push(TunnelConfig { control: view, ..tunnel("g1", &c_key, Some(at(other))) });
    let mut a = Host::new(config(&a_key, vec![both]), at(ADDRESSES[0]), now);
    let of_a = || vec![peer("a", &a_key, None, VIEWS[1])];
    let mut b = Host::new(config(&b_key, of_a()), at(ADDRESSES[1]), now);
    let mut c = Host::new(config(&c_key, of_a()), at(other), now);
    for view in [VIEWS[0], "169.254.112.8"] {
        // The first brings the handshake, and is not kept: TCP sends it again.
        for _ in 0..2 {
            a.send(now, &tcp(OWN, view, [40_000, control::PORT], SYN));
            let mut got = [0, 0];
            for _ in 0..4 {
                let sent: Vec<Datagram> =
                    [&mut a, &mut b, &mut c].into_iter().flat_map(Host::transmits).collect();
                for datagram in sent {
                    let host = [&mut a, &mut b, &mut c].into_iter().find(|host| host.address == datagram.to);
                    let Some(host) = host else { continue };
                    let (address, packets) = (host.address, host.receive(now, &datagram).len());
                    got[0] += if address == at(ADDRESSES[1]) { packets } else { 0 };
                    got[1] += if address == at(other) { packets } else { 0 };
                }
            }
            let expected = if view == VIEWS[0] { [1, 0] } else { [0, 1] };
            assert!(got == expected || got == [0, 0], "{view}: {got:?}");
            if got == expected {
                break;
            }
        }
    }
}
