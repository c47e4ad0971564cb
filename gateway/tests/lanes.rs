//! Gateways with several lanes, on a virtual clock, with what the kernel does in between.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use liquid_gateway::drops::Drop;
use liquid_gateway::gateway::{Clock, Config, Gateway, Handled, Handoff};
use liquid_gateway::lanes::Lane;
use liquid_gateway::liveness::Way;
use liquid_gateway::nat::Remap;
use liquid_gateway::packet::vnet::Offload;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::transit::Transit;
use liquid_gateway::tunnel::TunnelConfig;
use liquid_gateway::wireguard::key::{PrivateKey, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::{Host, at, net, tunnel, udp_ports};

const MS: Duration = Duration::from_millis(1);

/// A gateway with lanes: what threads, sockets and queues do, one after the other.
struct Site {
    whole: Config,
    lanes: Vec<Gateway>,
    address: SocketAddr,
    learned: BTreeMap<String, Vec<PublicKey>>,
    /// Datagrams that are put into the wrong socket, of a hundred.
    astray: usize,
    count: usize,
    /// Flow, number and lane of what came out of the tunnels.
    arrived: Vec<(u16, u32, usize)>,
    /// Lanes that have sent data datagrams.
    used: BTreeSet<usize>,
}

impl Site {
    fn new(whole: Config, address: SocketAddr, count: usize, now: Instant) -> Self {
        let clock = Clock { instant: now, since_epoch: Duration::from_secs(1_800_000_000) };
        let lane = |number| {
            let lane = Lane { number, count };
            let seed = [u8::try_from(number).unwrap() + address.port().to_be_bytes()[1]; 32];
            Gateway::new(lane.config(&whole, |_, _| None), (lane, &whole.private_key), seed, clock, true)
        };
        let lanes = (0..count).map(lane).collect();
        let (learned, arrived, used) = Default::default();
        Self { lanes, whole, address, learned, astray: 0, count: 0, arrived, used }
    }

    fn learn(&mut self, now: Instant) {
        let peer = self.lanes[0].status().next().unwrap();
        let learned: BTreeMap<_, _> = peer
            .tunnels
            .iter()
            .filter_map(|tunnel| Some((tunnel.name.clone(), tunnel.lanes.clone()?)))
            .collect();
        if learned != self.learned {
            self.learned = learned;
            for number in 0..self.lanes.len() {
                let lane = Lane { number, count: self.lanes.len() };
                let own = lane.config(&self.whole, |_, tunnel| self.learned.get(tunnel).map(Vec::as_slice));
                self.lanes[number].configure(own, &self.whole.private_key.clone(), now);
            }
        }
    }

    /// The kernel chooses a queue by the flow.
    fn send(&mut self, now: Instant, to: &str, flow: u16, number: u32) {
        let mut payload = vec![0; 400];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        let packet = udp_ports("10.244.0.5", to, [flow, 80], &payload);
        let queue = usize::from(flow) % self.lanes.len();
        let mut copy = packet.clone();
        if self.lanes[queue].handle_packet(now, Offload::None, &mut copy) == Handled::ByFirstLane {
            assert_eq!(copy, packet, "as it was");
            assert_eq!(self.lanes[0].handle_packet(now, Offload::None, &mut copy), Handled::Here);
        }
    }

    fn transmits(&mut self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            while let Some(transmit) = lane.poll_transmit() {
                out.extend(transmit.contents.chunks(transmit.segment).map(<[u8]>::to_vec));
                if transmit.contents[0] == 4 && transmit.segment > 400 {
                    self.used.insert(number);
                }
            }
            lane.clear_transmits();
        }
        out
    }

    /// The kernel chooses a socket, as the program in it says.
    fn receive(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        self.count += 1;
        let at = if datagram[0] == 2 { 8 } else { 4 };
        let right = usize::from(datagram[at]) % self.lanes.len();
        let astray = self.count % 100 < self.astray;
        self.give(now, if astray { (right + 1) % self.lanes.len() } else { right }, from, datagram);
    }

    fn give(&mut self, now: Instant, lane: usize, from: SocketAddr, datagram: &[u8]) {
        let mut buffer = datagram.to_vec();
        let length = buffer.len();
        self.lanes[lane].handle_datagrams(now, from, &mut buffer, 0..length, length);
        let deliveries = self.lanes[lane].poll_deliveries(&mut buffer).deliveries();
        for number in 0..deliveries {
            let pieces = self.lanes[lane].poll_deliveries(&mut buffer).delivery(number).unwrap();
            let packet: Vec<u8> = pieces.flat_map(|piece| buffer[piece].to_vec()).collect();
            let flow = u16::from_be_bytes([packet[20], packet[21]]);
            self.arrived.push((flow, u32::from_be_bytes(packet[28..32].try_into().unwrap()), lane));
        }
        self.lanes[lane].clear_deliveries();
        while let Some(handoff) = self.lanes[lane].poll_handoff() {
            let Handoff::Datagram { lane: other, from, datagram } = handoff else { panic!("{handoff:?}") };
            assert_ne!(other, lane);
            self.give(now, other, from, &datagram);
        }
    }

    fn ways(&self) -> Vec<Way> {
        let tunnels = self.lanes.iter().flat_map(|lane| lane.status().next().unwrap().tunnels);
        tunnels.map(|tunnel| tunnel.way).collect()
    }
}

fn whole(own: u8, other: u8, view: &str, address: SocketAddr, probes: bool) -> Config {
    let to = tunnel("g0", &PrivateKey::new([other; 32]), Some(address));
    let keepalive = Some(Duration::from_secs(5));
    Config {
        private_key: PrivateKey::new([own; 32]),
        local: vec![net("10.244.0.0/16")],
        peers: vec![PeerConfig {
            name: "other".to_owned(),
            remaps: vec![Remap::new(net(view), net("10.244.0.0/16")).unwrap()],
            mtu: 1420,
            tunnels: vec![TunnelConfig { keepalive, probes, tells_lanes: probes, ..to }],
        }],
        transit: Transit::default(),
    }
}

struct Pair {
    now: Instant,
    sent: u32,
    a: Site,
    b: Site,
}

impl Pair {
    fn new(lanes: [usize; 2]) -> Self {
        let now = Instant::now();
        let (here, there) = (at("192.0.2.1:51820"), at("192.0.2.2:51821"));
        let a = Site::new(whole(1, 2, "10.71.0.0/16", there, true), here, lanes[0], now);
        let b = Site::new(whole(2, 1, "10.72.0.0/16", here, true), there, lanes[1], now);
        Self { now, sent: 0, a, b }
    }

    fn step(&mut self) {
        self.now += MS;
        let now = self.now;
        for site in [&mut self.a, &mut self.b] {
            site.lanes.iter_mut().for_each(|lane| lane.handle_timeout(now));
            site.learn(now);
        }
        let (from_a, from_b) = (self.a.transmits(), self.b.transmits());
        from_a.iter().for_each(|datagram| self.b.receive(now, self.a.address, datagram));
        from_b.iter().for_each(|datagram| self.a.receive(now, self.b.address, datagram));
    }

    fn run(&mut self, steps: u32) {
        (0..steps).for_each(|_| self.step());
    }

    /// Sixteen flows each way.
    fn stream(&mut self, count: u32) {
        for _ in 0..count {
            for flow in 0..16 {
                self.a.send(self.now, "10.71.0.9", flow, self.sent);
                self.b.send(self.now, "10.72.0.9", flow, self.sent);
            }
            self.sent += 1;
            self.run(10);
        }
    }

    fn assert_all_arrived(&self) {
        for site in [&self.a, &self.b] {
            assert_eq!(site.arrived.len(), 16 * usize::try_from(self.sent).unwrap());
            let mut last = BTreeMap::new();
            for (flow, number, _) in &site.arrived {
                assert!(last.insert(flow, number).is_none_or(|before| before < number), "in order");
            }
        }
    }
}

#[test]
fn lanes_find_each_other_through_the_first_and_all_carry_traffic() {
    for lanes in [[1, 1], [2, 2], [4, 4], [4, 2], [1, 3], [3, 2]] {
        let mut pair = Pair::new(lanes);
        pair.stream(1);
        pair.run(1500);
        let most = lanes[0].max(lanes[1]);
        for site in [&pair.a, &pair.b] {
            assert_eq!(site.ways(), vec![Way::Up; most], "{lanes:?}");
        }
        (pair.a.used, pair.b.used) = Default::default();
        pair.stream(20);
        assert_eq!(pair.a.used, (0..lanes[0]).collect(), "{lanes:?}");
        assert_eq!(pair.b.used, (0..lanes[1]).collect(), "{lanes:?}");
        pair.assert_all_arrived();
        let mut carriers = BTreeMap::<u16, BTreeSet<usize>>::new();
        pair.a.arrived[16..].iter().for_each(|(flow, _, lane)| {
            carriers.entry(*flow).or_default().insert(*lane);
        });
        assert!(carriers.values().all(|lanes| lanes.len() == 1), "each flow keeps to one lane");
    }
}

#[test]
fn whatever_comes_to_the_wrong_lane_is_handed_over() {
    let mut pair = Pair::new([3, 2]);
    (pair.a.astray, pair.b.astray) = (30, 100);
    pair.run(1500);
    pair.stream(20);
    pair.assert_all_arrived();
    let lost = |site: &Site| -> u64 {
        site.lanes
            .iter()
            .map(|lane| lane.drops().get(Drop::UnknownSession) + lane.drops().get(Drop::BadHandshake))
            .sum()
    };
    assert_eq!((lost(&pair.a), lost(&pair.b)), (0, 0));
}

#[test]
fn an_end_that_only_speaks_wireguard_sees_one_peer_and_gets_all_flows() {
    let mut now = Instant::now();
    let (here, there) = (at("192.0.2.1:51820"), at("192.0.2.2:51821"));
    let mut a = Site::new(whole(1, 2, "10.71.0.0/16", there, false), here, 4, now);
    let mut b = Host::new(whole(2, 1, "10.72.0.0/16", here, false), there, now);
    let mut arrived = 0;
    for number in 0..100 {
        now += MS * 10;
        a.lanes.iter_mut().for_each(|lane| lane.handle_timeout(now));
        b.gateway.handle_timeout(now);
        a.learn(now);
        (0..16).for_each(|flow| a.send(now, "10.71.0.9", flow, number));
        for _ in 0..3 {
            for bytes in a.transmits() {
                arrived += b.receive(now, &support::Datagram { from: here, to: there, bytes }).len();
            }
            for datagram in b.transmits() {
                a.receive(now, there, &datagram.bytes);
            }
        }
    }
    assert_eq!(arrived, 1600);
    assert_eq!(b.gateway.status().next().unwrap().traffic.handshakes, 1);
    assert_eq!(b.gateway.drops().get(Drop::Malformed), 0, "nothing but packets is sent to it");
}

#[test]
fn a_lane_whose_way_is_broken_leaves_its_flows_to_the_first() {
    let mut pair = Pair::new([2, 2]);
    pair.run(1500);
    pair.stream(5);
    // The second lane of B stands still: what is for it is lost.
    for number in 0..100 {
        for flow in 0..16 {
            pair.a.send(pair.now, "10.71.0.9", flow, number + 5);
        }
        for _ in 0..10 {
            pair.now += MS;
            let now = pair.now;
            pair.a.lanes.iter_mut().for_each(|lane| lane.handle_timeout(now));
            pair.b.lanes[0].handle_timeout(now);
            for datagram in pair.a.transmits() {
                let at = if datagram[0] == 2 { 8 } else { 4 };
                if datagram[at] % 2 == 0 && datagram[0] != 1 {
                    pair.b.give(now, 0, pair.a.address, &datagram);
                }
            }
            let answers = pair.b.transmits();
            answers.iter().for_each(|datagram| pair.a.receive(now, pair.b.address, datagram));
        }
    }
    let last: BTreeMap<_, _> =
        pair.b.arrived.iter().map(|(flow, number, lane)| (*flow, (*number, *lane))).collect();
    assert!(last.values().all(|last| *last == (104, 0)), "{last:?}");
    assert_eq!(pair.a.ways(), [Way::Up, Way::Down]);
}
