//! Clusters with several gateways each, on a virtual clock: any of them carries any packet, and one can die.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use liquid_gateway::drops::Drop;
use liquid_gateway::gateway::Config;
use liquid_gateway::liveness::Way;
use liquid_gateway::nat::Remap;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::transit::Transit;
use liquid_gateway::tunnel::TunnelConfig;
use liquid_gateway::wireguard::key::PrivateKey;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::{Datagram, Host, at, net, tunnel, udp_ports};

const MS: Duration = Duration::from_millis(1);
/// Time a datagram takes.
const DELAY: Duration = Duration::from_millis(5);

/// A gateway, by its cluster and its number there.
type Name = (char, usize);

/// Clusters a and b, both with 10.244.0.0/16, each with some gateways, and the internet between.
struct Clusters {
    now: Instant,
    counts: BTreeMap<char, usize>,
    hosts: BTreeMap<Name, Host>,
    keys: BTreeMap<Name, PrivateKey>,
    /// Addresses of each gateway, in the order peers are told of them.
    addresses: BTreeMap<Name, Vec<SocketAddr>>,
    /// Pairs of addresses between which nothing passes, in that direction.
    cut: HashSet<(SocketAddr, SocketAddr)>,
    under_way: Vec<(Instant, Datagram)>,
    arrived: Vec<Arrived>,
}

/// A packet that came out of a tunnel.
struct Arrived {
    at: Instant,
    by: Name,
    /// Port of its sender, which stands for the flow, and its number in it.
    flow: u16,
    number: u32,
}

impl Clusters {
    fn new(a: usize, b: usize) -> Self {
        Self::with_addresses(a, b, 1)
    }

    fn with_addresses(a: usize, b: usize, each: usize) -> Self {
        let counts = BTreeMap::from([('a', a), ('b', b)]);
        let names: Vec<Name> =
            counts.iter().flat_map(|(cluster, count)| (0..*count).map(|number| (*cluster, number))).collect();
        let byte =
            |(cluster, number): Name| u8::try_from(usize::from(cluster == 'b') * 100 + number * 10).unwrap();
        let keys = names.iter().map(|name| (*name, PrivateKey::new([byte(*name) + 1; 32]))).collect();
        let all = |name| (0..each).map(|n| at(&format!("192.0.{n}.{}:51820", byte(name) + 1))).collect();
        let mut clusters = Self {
            now: Instant::now(),
            counts,
            hosts: BTreeMap::new(),
            keys,
            addresses: names.iter().map(|name| (*name, all(*name))).collect(),
            cut: HashSet::new(),
            under_way: Vec::new(),
            arrived: Vec::new(),
        };
        names.iter().for_each(|name| clusters.start(*name));
        clusters
    }

    fn config(&self, name: Name) -> Config {
        let other = if name.0 == 'a' { 'b' } else { 'a' };
        let view = if name.0 == 'a' { "10.71.0.0/16" } else { "10.72.0.0/16" };
        let tunnel = |number| TunnelConfig {
            endpoints: self.addresses[&(other, number)].clone(),
            keepalive: Some(Duration::from_secs(5)),
            probes: true,
            ..tunnel(&format!("g{number}"), &self.keys[&(other, number)], None)
        };
        Config {
            private_key: self.keys[&name].clone(),
            local: vec![net("10.244.0.0/16")],
            peers: vec![PeerConfig {
                name: other.to_string(),
                remaps: vec![Remap::new(net(view), net("10.244.0.0/16")).unwrap()],
                mtu: 1420,
                tunnels: (0..self.counts[&other]).map(tunnel).collect(),
            }],
            transit: Transit::default(),
        }
    }

    fn start(&mut self, name: Name) {
        let host = Host::new(self.config(name), self.addresses[&name][0], self.now);
        self.hosts.insert(name, host);
    }

    /// Pulls the plug of a gateway.
    fn kill(&mut self, name: Name) {
        self.hosts.remove(&name);
    }

    /// Cuts the way from one gateway to another, by all addresses.
    fn cut(&mut self, from: Name, to: Name) {
        for from in &self.addresses[&from] {
            self.cut.extend(self.addresses[&to].iter().map(|to| (*from, *to)));
        }
    }

    /// A pod of the cluster of `by` sends a packet of a flow; its node has chosen that gateway.
    fn send(&mut self, by: Name, flow: u16, number: u32) {
        let to = if by.0 == 'a' { "10.71.0.9" } else { "10.72.0.9" };
        let packet = udp_ports("10.244.0.5", to, [flow, 80], &number.to_be_bytes());
        let now = self.now;
        if let Some(host) = self.hosts.get_mut(&by) {
            host.send(now, &packet);
        }
    }

    fn step(&mut self) {
        self.now += MS;
        for host in self.hosts.values_mut() {
            host.gateway.handle_timeout(self.now);
            let sent = host.transmits();
            self.under_way.extend(sent.into_iter().map(|datagram| (self.now + DELAY, datagram)));
        }
        let (due, rest): (Vec<_>, Vec<_>) = self.under_way.drain(..).partition(|(at, _)| *at <= self.now);
        self.under_way = rest;
        for (_, datagram) in due {
            if self.cut.contains(&(datagram.from, datagram.to)) {
                continue;
            }
            let of = |name: &Name| self.addresses[name].contains(&datagram.to);
            let Some(name) = self.addresses.keys().copied().find(|name| of(name)) else { continue };
            let Some(host) = self.hosts.get_mut(&name) else { continue };
            // What it sends leaves by the address that was asked last, as through a NAT.
            host.address = datagram.to;
            for packet in host.receive(self.now, &datagram) {
                let flow = u16::from_be_bytes([packet[20], packet[21]]);
                let number = u32::from_be_bytes(packet[28..32].try_into().unwrap());
                self.arrived.push(Arrived { at: self.now, by: name, flow, number });
            }
            let answers = host.transmits();
            self.under_way.extend(answers.into_iter().map(|answer| (self.now + DELAY, answer)));
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step();
        }
    }

    /// Runs while every flow of `flows` sends a packet each 10 ms by `by`; returns how many each has sent.
    fn stream(&mut self, by: Name, flows: &[u16], time: Duration) -> u32 {
        let until = self.now + time;
        let mut number = 0;
        while self.now < until {
            flows.iter().for_each(|flow| self.send(by, *flow, number));
            number += 1;
            self.run(10 * MS);
        }
        number
    }

    fn connected(a: usize, b: usize) -> Self {
        let mut clusters = Self::new(a, b);
        clusters.run(Duration::from_secs(1));
        clusters
    }

    fn ways(&self, name: Name) -> Vec<Way> {
        self.hosts[&name].gateway.status().next().unwrap().tunnels.iter().map(|tunnel| tunnel.way).collect()
    }

    /// Through which gateways each flow came since `since`.
    fn carriers(&self, since: Instant) -> BTreeMap<u16, BTreeSet<Name>> {
        let mut carriers = BTreeMap::<_, BTreeSet<Name>>::new();
        for arrived in self.arrived.iter().filter(|arrived| arrived.at >= since) {
            carriers.entry(arrived.flow).or_default().insert(arrived.by);
        }
        carriers
    }

    /// The longest time without a packet of any one flow.
    fn longest_gap(&self) -> Duration {
        let mut last = BTreeMap::<u16, Instant>::new();
        let gaps = self
            .arrived
            .iter()
            .filter_map(|arrived| Some(arrived.at - last.insert(arrived.flow, arrived.at)?));
        gaps.max().unwrap_or(Duration::MAX)
    }

    /// Whether the packets of each flow came in order and once.
    fn in_order(&self) -> bool {
        let mut last = BTreeMap::<u16, u32>::new();
        self.arrived.iter().all(|arrived| {
            last.insert(arrived.flow, arrived.number).is_none_or(|before| before < arrived.number)
        })
    }
}

fn flows() -> Vec<u16> {
    (1000..1032).collect()
}

#[test]
fn all_gateways_of_a_peer_carry_traffic_at_once_and_each_flow_keeps_to_one() {
    let mut clusters = Clusters::connected(2, 2);
    for name in clusters.hosts.keys() {
        assert_eq!(clusters.ways(*name), [Way::Up; 2], "{name:?}");
    }
    let begun = clusters.now;
    let sent = clusters.stream(('a', 0), &flows(), Duration::from_secs(1));
    clusters.run(100 * MS);
    let carriers = clusters.carriers(begun);
    assert!(carriers.values().all(|by| by.len() == 1));
    let used: BTreeSet<Name> = carriers.values().flatten().copied().collect();
    assert_eq!(used, BTreeSet::from([('b', 0), ('b', 1)]));
    assert_eq!(clusters.arrived.len(), flows().len() * usize::try_from(sent).unwrap());
    assert!(clusters.in_order());
    // And back by the gateway that had nothing to do with it: translation keeps no state.
    let begun = clusters.now;
    clusters.stream(('b', 1), &flows(), 100 * MS);
    clusters.run(100 * MS);
    assert!(clusters.carriers(begun).values().flatten().all(|(cluster, _)| *cluster == 'a'));
}

#[test]
fn a_gateway_of_the_peer_that_dies_is_left_within_half_a_second_and_others_do_not_notice() {
    let mut clusters = Clusters::connected(1, 2);
    let begun = clusters.now;
    clusters.stream(('a', 0), &flows(), Duration::from_secs(1));
    let before = clusters.carriers(begun);
    clusters.kill(('b', 1));
    let killed = clusters.now;
    clusters.stream(('a', 0), &flows(), Duration::from_secs(3));
    let gap = clusters.longest_gap();
    assert!(gap > 250 * MS && gap < 450 * MS, "{gap:?}");
    let unconcerned = |arrived: &&Arrived| before[&arrived.flow].contains(&('b', 0));
    let mut last = BTreeMap::new();
    for arrived in clusters.arrived.iter().filter(unconcerned) {
        let gap = arrived.at - last.insert(arrived.flow, arrived.at).unwrap_or(arrived.at);
        assert!(gap <= 12 * MS, "{gap:?}");
    }
    assert!(clusters.carriers(killed + Duration::from_secs(1)).values().all(|by| *by == [('b', 0)].into()));

    // Back again, it gets the same flows as before.
    clusters.start(('b', 1));
    clusters.run(Duration::from_secs(2));
    let begun = clusters.now;
    clusters.stream(('a', 0), &flows(), 500 * MS);
    clusters.run(50 * MS);
    assert_eq!(clusters.carriers(begun), before);
}

#[test]
fn a_way_that_is_broken_in_one_direction_only_is_left_by_both_ends() {
    for (from, to) in [(('a', 0), ('b', 1)), (('b', 1), ('a', 0))] {
        let mut clusters = Clusters::connected(1, 2);
        clusters.stream(('a', 0), &flows(), 500 * MS);
        clusters.cut(from, to);
        clusters.stream(('a', 0), &flows(), Duration::from_secs(2));
        clusters.run(100 * MS);
        assert!(clusters.longest_gap() < 450 * MS, "{:?}", clusters.longest_gap());
        assert_eq!(clusters.ways(('a', 0)), [Way::Up, Way::Down]);
        assert_eq!(clusters.ways(('b', 1)), [Way::Down]);
        clusters.cut.clear();
        clusters.stream(('a', 0), &flows(), Duration::from_secs(3));
        assert_eq!(clusters.ways(('a', 0)), [Way::Up; 2], "and found again");
    }
}

#[test]
fn nothing_is_lost_when_a_gateway_says_first_that_it_will_go() {
    let mut clusters = Clusters::connected(1, 2);
    let mut sent = clusters.stream(('a', 0), &flows(), Duration::from_secs(1));
    let now = clusters.now;
    clusters.hosts.get_mut(&('b', 1)).unwrap().gateway.set_standby(true, now);
    clusters.run(20 * MS);
    let left = clusters.now;
    let arrived = clusters.arrived.len();
    let more = clusters.stream(('a', 0), &flows(), Duration::from_secs(1));
    clusters.kill(('b', 1));
    sent += more + clusters.stream(('a', 0), &flows(), Duration::from_secs(2));
    clusters.run(100 * MS);
    assert_eq!(clusters.arrived.len(), flows().len() * usize::try_from(sent).unwrap());
    assert!(clusters.arrived.len() > arrived);
    assert!(clusters.carriers(left).values().all(|by| *by == [('b', 0)].into()));
}

#[test]
fn one_that_says_so_is_used_all_the_same_if_there_is_no_other() {
    let mut clusters = Clusters::connected(1, 1);
    let now = clusters.now;
    clusters.hosts.get_mut(&('b', 0)).unwrap().gateway.set_standby(true, now);
    clusters.run(100 * MS);
    assert_eq!(clusters.ways(('a', 0)), [Way::Standby]);
    let sent = clusters.stream(('a', 0), &[1000], Duration::from_secs(1));
    clusters.run(50 * MS);
    assert_eq!(clusters.arrived.len(), usize::try_from(sent).unwrap());
}

#[test]
fn a_gateway_that_is_not_ready_gets_nothing_before_it_says_so() {
    let mut clusters = Clusters::connected(1, 2);
    clusters.kill(('b', 1));
    clusters.stream(('a', 0), &flows(), Duration::from_secs(2));
    clusters.start(('b', 1));
    let now = clusters.now;
    clusters.hosts.get_mut(&('b', 1)).unwrap().gateway.set_standby(true, now);
    let begun = clusters.now;
    clusters.stream(('a', 0), &flows(), Duration::from_secs(2));
    assert!(clusters.carriers(begun).values().all(|by| *by == [('b', 0)].into()));
    let now = clusters.now;
    clusters.hosts.get_mut(&('b', 1)).unwrap().gateway.set_standby(false, now);
    clusters.run(100 * MS);
    assert_eq!(clusters.ways(('a', 0)), [Way::Up; 2]);
}

#[test]
fn a_peer_that_dies_altogether_is_found_as_soon_as_one_gateway_is_back() {
    let mut clusters = Clusters::connected(1, 2);
    clusters.stream(('a', 0), &flows(), 500 * MS);
    clusters.kill(('b', 0));
    clusters.kill(('b', 1));
    clusters.stream(('a', 0), &flows(), Duration::from_secs(20));
    assert_eq!(clusters.ways(('a', 0)), [Way::Down; 2]);
    clusters.start(('b', 1));
    let begun = clusters.now;
    clusters.stream(('a', 0), &flows(), Duration::from_secs(1));
    let first = clusters.arrived.iter().find(|arrived| arrived.at >= begun).unwrap().at - begun;
    assert!(first <= 100 * MS, "{first:?}: it calls itself");
    assert_eq!(clusters.carriers(begun).len(), flows().len());
}

#[test]
fn one_that_only_we_can_call_is_found_within_two_seconds_after_a_restart() {
    let mut clusters = Clusters::new(1, 1);
    // It knows no address of ours, as of a cluster behind a NAT.
    let mut config = clusters.config(('b', 0));
    config.peers[0].tunnels[0].endpoints.clear();
    let blind = |clusters: &mut Clusters| {
        let (config, now) = (config.clone(), clusters.now);
        let address = clusters.addresses[&('b', 0)][0];
        clusters.hosts.insert(('b', 0), Host::new(config, address, now));
    };
    blind(&mut clusters);
    clusters.stream(('a', 0), &[1000], Duration::from_secs(3));
    assert_eq!(clusters.ways(('a', 0)), [Way::Up]);
    for down in [0, 300, 3000, 9000] {
        clusters.kill(('b', 0));
        clusters.stream(('a', 0), &[1000], MS * down);
        blind(&mut clusters);
        let begun = clusters.now;
        clusters.stream(('a', 0), &[1000], Duration::from_secs(3));
        let first = clusters.arrived.iter().find(|arrived| arrived.at > begun + DELAY).unwrap().at - begun;
        assert!(first <= Duration::from_secs(2), "{first:?} after {down} ms");
    }
}

#[test]
fn all_addresses_of_a_gateway_are_tried_at_once() {
    let mut clusters = Clusters::with_addresses(1, 1, 3);
    let addresses = clusters.addresses.clone();
    // The first two addresses of b lead nowhere.
    let dead = |clusters: &mut Clusters, which: &[usize]| {
        clusters.cut.clear();
        for number in which {
            let (a, b) = (&addresses[&('a', 0)], addresses[&('b', 0)][*number]);
            clusters.cut.extend(a.iter().flat_map(|a| [(*a, b), (b, *a)]));
        }
    };
    dead(&mut clusters, &[0, 1]);
    // And b cannot call.
    let now = clusters.now;
    let mut config = clusters.config(('b', 0));
    config.peers[0].tunnels[0].endpoints.clear();
    clusters.hosts.get_mut(&('b', 0)).unwrap().configure(config, now);
    clusters.run(200 * MS);
    assert_eq!(clusters.ways(('a', 0)), [Way::Up]);
    let endpoint = |clusters: &Clusters| clusters.hosts[&('a', 0)].gateway.endpoints().next().unwrap();
    assert_eq!(endpoint(&clusters), addresses[&('b', 0)][2]);

    // The address in use breaks, another one works.
    clusters.stream(('a', 0), &[1000], Duration::from_secs(1));
    dead(&mut clusters, &[0, 2]);
    clusters.stream(('a', 0), &[1000], Duration::from_secs(2));
    assert_eq!(endpoint(&clusters), addresses[&('b', 0)][1]);
    assert!(clusters.longest_gap() < 450 * MS, "{:?}", clusters.longest_gap());
}

#[test]
fn keys_of_gateways_are_replaced_while_traffic_flows() {
    let mut clusters = Clusters::connected(2, 2);
    let mut sent = 0;
    for round in 0..2 {
        for name in [('b', 0), ('b', 1), ('a', 0)] {
            clusters.keys.insert(
                name,
                PrivateKey::new(
                    [200 + u8::try_from(round).unwrap() * 3
                        + u8::from(name.0 == 'a')
                        + u8::try_from(name.1).unwrap() * 2; 32],
                ),
            );
            // Its own process hears of it first, the peers two seconds later.
            for concerned in [name.0, if name.0 == 'a' { 'b' } else { 'a' }] {
                let names: Vec<Name> = clusters
                    .hosts
                    .keys()
                    .copied()
                    .filter(|it| it.0 == concerned && (it.0 != name.0 || *it == name))
                    .collect();
                for host in names {
                    let (config, now) = (clusters.config(host), clusters.now);
                    clusters.hosts.get_mut(&host).unwrap().configure(config, now);
                }
                sent += clusters.stream(('a', 0), &flows()[..4], Duration::from_secs(2));
            }
        }
        // Sessions end after three minutes: those that are used now were made with the new keys.
        sent += clusters.stream(('a', 0), &flows()[..4], Duration::from_secs(190));
    }
    clusters.run(50 * MS);
    assert_eq!(clusters.arrived.len(), 4 * usize::try_from(sent).unwrap());
}

#[test]
fn a_gateway_that_is_gone_for_good_takes_its_tunnel_along_and_a_new_one_brings_its_own() {
    let mut clusters = Clusters::connected(1, 2);
    clusters.stream(('a', 0), &flows(), 200 * MS);
    let passed =
        |clusters: &Clusters| clusters.hosts[&('a', 0)].gateway.status().next().unwrap().traffic.sent_packets;
    let before = passed(&clusters);
    let mut config = clusters.config(('a', 0));
    let (mut removed, now) = (config.peers[0].tunnels.remove(1), clusters.now);
    clusters.hosts.get_mut(&('a', 0)).unwrap().configure(config.clone(), now);
    assert_eq!(passed(&clusters), before, "what has been counted stays counted");
    let begun = clusters.now + DELAY * 2;
    clusters.stream(('a', 0), &flows(), 200 * MS);
    assert!(clusters.carriers(begun).values().all(|by| *by == [('b', 0)].into()));
    removed.name = "new".to_owned();
    config.peers[0].tunnels.push(removed);
    let now = clusters.now;
    clusters.hosts.get_mut(&('a', 0)).unwrap().configure(config, now);
    clusters.run(500 * MS);
    assert_eq!(clusters.ways(('a', 0)), [Way::Up; 2]);
}

#[test]
fn sources_are_checked_by_cluster_and_not_by_gateway() {
    let mut clusters = Clusters::connected(1, 2);
    // A third cluster, known to a, whose gateway sends from addresses of b.
    let key = PrivateKey::new([77; 32]);
    let stranger = at("198.51.100.1:51820");
    let mut config = clusters.config(('a', 0));
    config.peers.push(PeerConfig {
        name: "c".to_owned(),
        remaps: vec![Remap::new(net("10.73.0.0/16"), net("10.245.0.0/16")).unwrap()],
        mtu: 1420,
        tunnels: vec![TunnelConfig { probes: true, ..tunnel("g0", &key, None) }],
    });
    let now = clusters.now;
    clusters.hosts.get_mut(&('a', 0)).unwrap().configure(config, now);
    let of_c = Config {
        private_key: key,
        local: vec![net("10.245.0.0/16")],
        peers: vec![PeerConfig {
            name: "a".to_owned(),
            remaps: vec![Remap::new(net("10.72.0.0/16"), net("10.244.0.0/16")).unwrap()],
            mtu: 1420,
            tunnels: vec![TunnelConfig {
                endpoints: clusters.addresses[&('a', 0)].clone(),
                probes: true,
                ..tunnel("g0", &clusters.keys[&('a', 0)], None)
            }],
        }],
        transit: Transit::default(),
    };
    clusters.addresses.insert(('c', 0), vec![stranger]);
    clusters.hosts.insert(('c', 0), Host::new(of_c, stranger, now));
    let send = |clusters: &mut Clusters, source| {
        let packet = udp_ports(source, "10.72.0.5", [1000, 80], &[0; 4]);
        let now = clusters.now;
        clusters.hosts.get_mut(&('c', 0)).unwrap().send(now, &packet);
        clusters.run(100 * MS);
        clusters.arrived.drain(..).count()
    };
    assert_eq!(send(&mut clusters, "10.245.0.9"), 1);
    assert_eq!(send(&mut clusters, "10.244.0.9"), 0);
    assert_eq!(clusters.hosts[&('a', 0)].gateway.drops().get(Drop::ForeignSource), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Gateways die, come back, say that they will go; ways break in one direction or both: nothing comes twice, and when
    /// all is well again, every flow passes within seconds.
    #[test]
    fn whatever_happens_to_gateways_and_ways_flows_find_a_way(
        steps in prop::collection::vec((0u8..8, 0usize..2, 0usize..2, 50u32..1500), 1..12)
    ) {
        let mut clusters = Clusters::connected(2, 2);
        let mut number = 0;
        for (kind, first, second, time) in steps {
            let (a, b, now) = (('a', first), ('b', second), clusters.now);
            match kind {
                0 => clusters.kill(b),
                1 if !clusters.hosts.contains_key(&b) => clusters.start(b),
                2 => clusters.cut(a, b),
                3 => clusters.cut(b, a),
                4 => clusters.cut.clear(),
                5 => clusters.hosts.get_mut(&b).into_iter().for_each(|host| host.gateway.set_standby(true, now)),
                6 => clusters.hosts.get_mut(&b).into_iter().for_each(|host| host.gateway.set_standby(false, now)),
                _ => {}
            }
            for _ in 0..time / 50 {
                flows()[..8].iter().for_each(|flow| clusters.send(('a', 0), *flow, number));
                number += 1;
                clusters.run(50 * MS);
            }
        }
        let seen: HashSet<_> = clusters.arrived.iter().map(|arrived| (arrived.flow, arrived.number)).collect();
        prop_assert_eq!(seen.len(), clusters.arrived.len(), "delivered twice");
        clusters.cut.clear();
        for number in 0..2 {
            if !clusters.hosts.contains_key(&('b', number)) {
                clusters.start(('b', number));
            }
        }
        clusters.stream(('a', 0), &flows()[..8], Duration::from_secs(4));
        clusters.arrived.clear();
        let sent = clusters.stream(('a', 0), &flows()[..8], 500 * MS);
        clusters.run(50 * MS);
        prop_assert_eq!(clusters.arrived.len(), 8 * usize::try_from(sent).unwrap());
    }
}
