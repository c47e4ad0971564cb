//! Three clusters with equal prefixes on a virtual clock: pods in b and c reach each other through a, whose pods they are,
//! and nobody else does.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use liquid_gateway::drops::Drop;
use liquid_gateway::gateway::{Clock, Config, Gateway, Handoff};
use liquid_gateway::lanes::Lane;
use liquid_gateway::nat::{Quoted, Remap};
use liquid_gateway::packet::checksum::Sum;
use liquid_gateway::packet::ip::Ip;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::transit::{Pods, Transit};
use liquid_gateway::tunnel::TunnelConfig;
use liquid_gateway::wireguard::key::PrivateKey;
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Datagram, Host, at, ends, net, tunnel, udp};

/// What each cluster has for its pods.
const OWN: [&str; 2] = ["10.244.0.0/16", "fd00:244::/64"];
/// Bytes of an IPv4 header before the addresses' end, of ICMP before what it quotes.
const HEADER: usize = 20;
const ICMP: usize = 8;

/// A gateway of a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// The hub has two.
    A(usize),
    B,
    C,
}

fn key(at: At) -> PrivateKey {
    let byte = match at {
        At::A(number) => 11 + u8::try_from(number).unwrap(),
        At::B => 22,
        At::C => 33,
    };
    PrivateKey::new([byte; 32])
}

fn address(host: At) -> SocketAddr {
    at(match host {
        At::A(0) => "192.0.2.1:51820",
        At::A(_) => "192.0.2.9:51820",
        At::B => "192.0.2.2:51820",
        At::C => "192.0.2.3:51820",
    })
}

fn peer(name: &str, prefixes: &[(&str, &str)], gateways: &[At], mtu: u16) -> PeerConfig {
    let tunnels = gateways.iter().enumerate().map(|(number, gateway)| TunnelConfig {
        keepalive: Some(Duration::from_secs(5)),
        probes: true,
        ..tunnel(&format!("g{number}"), &key(*gateway), Some(address(*gateway)))
    });
    let remaps = prefixes.iter().map(|(view, real)| Remap::new(net(view), net(real)).unwrap());
    PeerConfig { name: name.to_owned(), remaps: remaps.collect(), mtu, tunnels: tunnels.collect() }
}

fn config(host: At, peers: Vec<PeerConfig>, transit: Transit) -> Config {
    Config { private_key: key(host), local: OWN.map(net).to_vec(), peers, transit }
}

/// The hub sees b at 10.71 and c at 10.72; b sees what the hub calls 10.72 at 10.82, c sees 10.71 at 10.93.
fn hub(number: usize, transit: Transit, mtu_to_c: u16) -> Config {
    let b = peer("b", &[("10.71.0.0/16", OWN[0]), ("fd00:71::/64", OWN[1])], &[At::B], 1420);
    let c = peer("c", &[("10.72.0.0/16", OWN[0]), ("fd00:72::/64", OWN[1])], &[At::C], mtu_to_c);
    config(At::A(number), vec![b, c], transit)
}

fn transit(pods: &[&str]) -> Transit {
    let pods: Vec<IpAddr> = pods.iter().map(|pod| pod.parse().unwrap()).collect();
    let pods = Pods { transit: pods.into_iter().collect(), ..Pods::default() };
    Transit { between: [("b".to_owned(), "c".to_owned())].into(), pods: Arc::new(pods), ..Transit::default() }
}

struct World {
    now: Instant,
    hosts: Vec<(At, Host)>,
}

impl World {
    fn new(transit: &Transit, mtu_to_c: u16) -> Self {
        let now = Instant::now();
        let hubs = [At::A(0), At::A(1)];
        let of_b = [
            ("10.81.0.0/16", OWN[0]),
            ("fd00:81::/64", OWN[1]),
            ("10.82.0.0/16", "10.72.0.0/16"),
            ("10.83.0.0/24", "198.51.100.0/24"),
            ("fd00:82::/64", "fd00:72::/64"),
        ];
        let of_c = [
            ("10.91.0.0/16", OWN[0]),
            ("fd00:91::/64", OWN[1]),
            ("10.93.0.0/16", "10.71.0.0/16"),
            ("fd00:93::/64", "fd00:71::/64"),
        ];
        let configs = [
            (At::A(0), hub(0, transit.clone(), mtu_to_c)),
            (At::A(1), hub(1, transit.clone(), mtu_to_c)),
            (At::B, config(At::B, vec![peer("a", &of_b, &hubs, 1420)], Transit::default())),
            (At::C, config(At::C, vec![peer("a", &of_c, &hubs, 1420)], Transit::default())),
        ];
        let hosts = configs.map(|(at, config)| (at, Host::new(config, address(at), now)));
        let mut world = Self { now, hosts: hosts.into() };
        world.carry();
        world
    }

    fn host(&mut self, at: At) -> &mut Host {
        &mut self.hosts.iter_mut().find(|(name, _)| *name == at).unwrap().1
    }

    fn dropped(&mut self, at: At, reason: Drop) -> u64 {
        self.host(at).gateway.drops().get(reason)
    }

    /// Carries datagrams until there are no more; returns the packets that came out, and where.
    fn carry(&mut self) -> Vec<(At, Vec<u8>)> {
        let mut out = Vec::new();
        for _ in 0..20 {
            let sent: Vec<Datagram> = self.hosts.iter_mut().flat_map(|(_, host)| host.transmits()).collect();
            if sent.is_empty() {
                return out;
            }
            for datagram in sent {
                let now = self.now;
                let to = self.hosts.iter_mut().find(|(_, host)| host.address == datagram.to);
                let Some((at, host)) = to else { continue };
                out.extend(host.receive(now, &datagram).into_iter().map(|packet| (*at, packet)));
            }
        }
        panic!("they never stop talking");
    }

    /// A pod of a cluster sends a packet.
    fn send(&mut self, from: At, packet: &[u8]) -> Vec<(At, Vec<u8>)> {
        let now = self.now;
        self.host(from).send(now, packet);
        self.carry()
    }
}

fn only(got: &[(At, Vec<u8>)], at: At) -> &[u8] {
    let [(by, packet)] = got else { panic!("{} packets", got.len()) };
    assert!(*by == at);
    packet
}

fn is_whole(packet: &[u8]) -> bool {
    let ip = Ip::parse(packet).unwrap();
    let pseudo = match (ip.source, ip.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            if Sum::of(&packet[..HEADER]).checksum() != [0, 0] {
                return false;
            }
            Sum::of(&[from.octets(), to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => Sum::of(&[from.octets(), to.octets()].concat()),
        _ => return false,
    };
    let transport = &packet[ip.payload..ip.length];
    let sum = pseudo.with_word(ip.protocol.into()).with_word(u16::try_from(transport.len()).unwrap());
    sum.with(transport).checksum() == [0, 0]
}

#[test]
fn pods_in_two_peers_reach_each_other_and_are_known_by_the_addresses_they_are_listed_with() {
    let mut world = World::new(&transit(&["10.71.1.5", "10.72.2.7", "fd00:71::15", "fd00:72::27"]), 1420);
    let there = world.send(At::B, &udp("10.244.1.5", "10.82.2.7", b"question"));
    let packet = only(&there, At::C);
    assert_eq!(ends(packet), ("10.93.1.5".into(), "10.244.2.7".into()));
    assert!(is_whole(packet) && packet.ends_with(b"question"));
    assert_eq!(packet[8], 63, "a hop");
    let back = world.send(At::C, &udp("10.244.2.7", "10.93.1.5", b"answer"));
    assert_eq!(ends(only(&back, At::B)), ("10.82.2.7".into(), "10.244.1.5".into()));

    let there = world.send(At::B, &udp("fd00:244::15", "fd00:82::27", b"question"));
    let packet = only(&there, At::C);
    assert_eq!(ends(packet), ("fd00:93::15".into(), "fd00:244::27".into()));
    assert!(is_whole(packet));
    assert_eq!(packet[7], 63, "a hop");
    let back = world.send(At::C, &udp("fd00:244::27", "fd00:93::15", b"answer"));
    assert_eq!(ends(only(&back, At::B)), ("fd00:82::27".into(), "fd00:244::15".into()));
}

#[test]
fn nobody_else_is_passed_on() {
    let mut world = World::new(&transit(&["10.71.1.5", "10.72.2.7"]), 1420);
    let hubs = [At::A(0), At::A(1)];
    let counted = |world: &mut World, reason| hubs.map(|hub| world.dropped(hub, reason)).iter().sum::<u64>();
    assert!(world.send(At::B, &udp("10.244.1.6", "10.82.2.7", b"x")).is_empty(), "another pod of b");
    assert_eq!(counted(&mut world, Drop::ForeignSource), 1);
    assert!(world.send(At::B, &udp("10.244.1.5", "10.82.2.8", b"x")).is_empty(), "another pod of c");
    assert_eq!(counted(&mut world, Drop::ForeignDestination), 1);
    assert!(world.send(At::C, &udp("10.244.2.8", "10.93.1.5", b"x")).is_empty());
    // What is for the hub's own pods is not concerned.
    let got = world.send(At::B, &udp("10.244.1.6", "10.81.0.9", b"x"));
    assert!(got.len() == 1 && hubs.contains(&got[0].0));

    let alone = Transit { between: [].into(), ..transit(&["10.71.1.5", "10.72.2.7"]) };
    let mut world = World::new(&alone, 1420);
    assert!(
        world.send(At::B, &udp("10.244.1.5", "10.82.2.7", b"x")).is_empty(),
        "the two have nothing in common"
    );
    assert_eq!(counted(&mut world, Drop::ForeignDestination), 1);
}

#[test]
fn hosts_outside_are_reached_by_pods_of_this_cluster_and_by_no_others() {
    let pods = Pods { outward: ["10.71.1.5".parse().unwrap()].into(), ..Pods::default() };
    let outward =
        Transit { outside: vec![net("198.51.100.0/24")], pods: Arc::new(pods), ..Transit::default() };
    let mut world = World::new(&outward, 1420);
    let hubs = [At::A(0), At::A(1)];
    let counted = |world: &mut World, reason| hubs.map(|hub| world.dropped(hub, reason)).iter().sum::<u64>();
    let there = world.send(At::B, &udp("10.244.1.5", "10.83.0.9", b"question"));
    let [(by, packet)] = there.as_slice() else { panic!("{} packets", there.len()) };
    assert!(hubs.contains(by) && is_whole(packet));
    assert_eq!(ends(packet), ("10.71.1.5".into(), "198.51.100.9".into()));
    let back = world.send(At::A(0), &udp("198.51.100.9", "10.71.1.5", b"answer"));
    assert_eq!(ends(only(&back, At::B)), ("10.83.0.9".into(), "10.244.1.5".into()));

    assert!(world.send(At::B, &udp("10.244.1.6", "10.83.0.9", b"x")).is_empty(), "a pod of somebody else");
    assert_eq!(counted(&mut world, Drop::ForeignSource), 1);
    assert!(world.send(At::C, &udp("10.244.2.7", "10.83.0.9", b"x")).is_empty(), "nothing is offered to c");
    for number in 0..2 {
        let now = world.now;
        world
            .host(At::A(number))
            .configure(hub(number, Transit { outside: Vec::new(), ..outward.clone() }, 1420), now);
    }
    assert!(world.send(At::B, &udp("10.244.1.5", "10.83.0.9", b"x")).is_empty(), "no more");
    assert_eq!(counted(&mut world, Drop::ForeignDestination), 1);
}

#[test]
fn what_is_told_at_runtime_holds_at_once() {
    let mut world = World::new(&Transit::default(), 1420);
    let packet = udp("10.244.1.5", "10.82.2.7", b"x");
    assert!(world.send(At::B, &packet).is_empty());
    for number in 0..2 {
        let now = world.now;
        world.host(At::A(number)).configure(hub(number, transit(&["10.71.1.5", "10.72.2.7"]), 1420), now);
    }
    assert_eq!(world.send(At::B, &packet).len(), 1);
    for number in 0..2 {
        let now = world.now;
        world.host(At::A(number)).configure(hub(number, transit(&["10.71.1.5"]), 1420), now);
    }
    assert!(world.send(At::B, &packet).is_empty(), "the pod in c has ended");
}

#[test]
fn a_packet_that_has_no_hop_left_ends_at_the_hub() {
    let mut world = World::new(&transit(&["10.71.1.5", "10.72.2.7"]), 1420);
    let mut packet = udp("10.244.1.5", "10.82.2.7", b"x");
    packet[8] = 1;
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = Sum::of(&packet[..HEADER]).checksum();
    packet[10..12].copy_from_slice(&sum);
    assert!(world.send(At::B, &packet).is_empty());
    assert_eq!(world.dropped(At::A(0), Drop::Expired) + world.dropped(At::A(1), Drop::Expired), 1);
}

#[test]
fn a_packet_that_is_too_big_for_the_second_tunnel_is_answered_to_the_pod_that_sent_it() {
    let mut world = World::new(&transit(&["10.71.1.5", "10.72.2.7"]), 1300);
    let got = world.send(At::B, &udp("10.244.1.5", "10.82.2.7", &[7; 1360]));
    let answer = only(&got, At::B);
    assert_eq!(ends(answer), ("10.82.2.7".into(), "10.244.1.5".into()));
    assert_eq!(answer[HEADER..HEADER + 2], [3, 4]);
    assert_eq!(answer[HEADER + 6..HEADER + 8], 1300_u16.to_be_bytes());
    assert_eq!(ends(&quoted(answer)), ("10.244.1.5".into(), "10.82.2.7".into()), "it knows its packet again");
}

/// Of several lanes, each forwards what comes to it, and what it has no way for itself by the first.
#[test]
fn a_lane_without_a_way_to_the_other_peer_hands_the_packet_to_the_first() {
    let (now, first, second) = (Instant::now(), key(At::A(0)), key(At::A(0)).lane(1));
    let transit = transit(&["10.71.1.5", "10.72.2.7"]);
    let of_lane = Config { private_key: second.clone(), ..hub(0, transit.clone(), 1420) };
    let clock = Clock { instant: now, since_epoch: Duration::from_secs(1_800_000_000) };
    let lane = Lane { number: 1, count: 2 };
    let gateway = Gateway::new(of_lane, (lane, &first), [9; 32], clock, true);
    let mut hub_lane = Host { key: second.clone(), gateway, address: address(At::A(0)) };
    let mut to_hub = peer("a", &[("10.82.0.0/16", "10.72.0.0/16")], &[At::A(0)], 1420);
    to_hub.tunnels[0].public_key = second.public();
    let mut b = Host::new(config(At::B, vec![to_hub], Transit::default()), address(At::B), now);
    support::exchange(now, &mut hub_lane, &mut b);
    b.send(now, &udp("10.244.1.5", "10.82.2.7", b"x"));
    assert_eq!(support::exchange(now, &mut hub_lane, &mut b), (vec![], vec![]));
    let Some(Handoff::Onward(mut packet)) = hub_lane.gateway.poll_handoff() else { panic!("nothing") };
    assert_eq!(ends(&packet), ("10.71.1.5".into(), "10.72.2.7".into()));
    assert_eq!(hub_lane.gateway.poll_handoff(), None);

    let mut world = World::new(&transit, 1420);
    world.host(At::A(0)).gateway.handle_onward(now, &mut packet);
    let there = world.carry();
    let packet = only(&there, At::C);
    assert_eq!((ends(packet), packet[8]), (("10.93.1.5".into(), "10.244.2.7".into()), 63), "one hop");
}

fn quoted(error: &[u8]) -> Vec<u8> {
    let quoted = Quoted::find(error, &Ip::parse(error).unwrap()).unwrap();
    // Only the addresses are looked at, so the length may say what it likes.
    let mut packet = error[quoted.offset..].to_vec();
    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet
}

/// "Port unreachable", about a packet, to its sender.
fn unreachable(source: &str, about: &[u8]) -> Vec<u8> {
    error(3, source, &Ip::parse(about).unwrap().source.to_string(), about)
}

/// An ICMP error of this type, about a packet.
fn error(kind: u8, source: &str, to: &str, about: &[u8]) -> Vec<u8> {
    let mut icmp = [&[kind, 3, 0, 0, 0, 0, 0, 0][..], about].concat();
    let sum = Sum::of(&icmp).checksum();
    icmp[2..4].copy_from_slice(&sum);
    let mut packet = udp(source, to, &icmp[..icmp.len() - ICMP]);
    packet[9] = 1;
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = Sum::of(&packet[..HEADER]).checksum();
    packet[10..12].copy_from_slice(&sum);
    packet[HEADER..].copy_from_slice(&icmp);
    packet
}

#[test]
fn an_error_about_a_packet_finds_its_way_back_whoever_sends_it() {
    // The pod itself, its node by an address among those of pods, and somebody on the way.
    for router in ["10.244.2.7", "10.244.2.0", "192.0.2.77"] {
        let mut world = World::new(&transit(&["10.71.1.5", "10.72.2.7"]), 1420);
        let there = world.send(At::B, &udp("10.244.1.5", "10.82.2.7", b"question"));
        let error = unreachable(router, only(&there, At::C));
        let back = world.send(At::C, &error);
        let error = only(&back, At::B);
        assert_eq!(ends(error), ("10.82.2.7".into(), "10.244.1.5".into()));
        assert_eq!(ends(&quoted(error)), ("10.244.1.5".into(), "10.82.2.7".into()));
        assert_eq!(Sum::of(&error[HEADER..]).checksum(), [0, 0]);
    }
}

#[test]
fn who_is_not_listed_says_nothing_but_what_a_router_would() {
    let listed = ["10.71.1.5", "10.72.2.7"];
    let got = |kind: u8, quoted: &[u8]| {
        let mut world = World::new(&transit(&listed), 1420);
        world.send(At::B, &udp("10.244.1.5", "10.82.2.7", b"question"));
        world.send(At::C, &error(kind, "10.244.2.8", "10.93.1.5", quoted)).len()
    };
    let about = |source: &str, destination: &str, length: usize| udp(source, destination, &vec![0; length]);
    let asked = about("10.93.1.5", "10.244.2.7", 8);
    for kind in [3, 11, 12] {
        assert_eq!(got(kind, &asked), 1);
    }
    for kind in [4, 5] {
        assert_eq!(got(kind, &asked), 0, "only a router next to the sender says this");
    }
    assert_eq!(got(3, &about("10.93.1.6", "10.244.2.7", 8)), 0, "somebody else has sent that");
    assert_eq!(got(3, &about("10.93.1.5", "10.244.2.9", 8)), 0, "nobody that is listed got that");
    assert_eq!(got(3, &about("10.93.1.5", "10.244.2.7", 600)), 0, "it would carry what it likes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever may talk is known by its address two translations on, and by no other; what comes back finds it.
    #[test]
    fn two_translations_are_one(from in any::<u16>(), to in any::<u16>(), v6 in any::<bool>(), listed in any::<(bool, bool)>()) {
        let host = |prefix4: &str, prefix6: &str, host: u16| {
            let [high, low] = host.to_be_bytes();
            if v6 { format!("{prefix6}:{host:x}") } else { format!("{prefix4}.{high}.{low}") }
        };
        let canonical = |text: String| text.parse::<IpAddr>().unwrap().to_string();
        let (source, target) = (host("10.71", "fd00:71:", from), host("10.72", "fd00:72:", to));
        let pods: Vec<&str> = [(listed.0, &source), (listed.1, &target)]
            .iter().filter(|(is, _)| *is).map(|(_, pod)| pod.as_str()).collect();
        let mut world = World::new(&transit(&pods), 1420);
        let packet = udp(&host("10.244", "fd00:244:", from), &host("10.82", "fd00:82:", to), b"x");
        let got = world.send(At::B, &packet);
        prop_assert_eq!(got.len(), usize::from(listed == (true, true)));
        for (_, packet) in got {
            let as_listed = canonical(host("10.93", "fd00:93:", from));
            prop_assert_eq!(ends(&packet), (as_listed.clone(), canonical(host("10.244", "fd00:244:", to))));
            prop_assert!(is_whole(&packet));
            let back = world.send(At::C, &udp(&ends(&packet).1, &as_listed, b"y"));
            let (from_there, to_here) =
                (canonical(host("10.82", "fd00:82:", to)), canonical(host("10.244", "fd00:244:", from)));
            prop_assert_eq!(ends(only(&back, At::B)), (from_there, to_here));
        }
    }
}
