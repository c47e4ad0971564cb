//! Two gateways talk to each other on a virtual clock.

mod support;

use liquid_gateway::drops::Drop;
use liquid_gateway::gateway::Handled;
use liquid_gateway::nat::Quoted;
use liquid_gateway::packet::ip::Ip;
use liquid_gateway::packet::vnet::Offload;
use liquid_gateway::peer::PeerConfig;
use liquid_gateway::tunnel::{TunnelConfig, Why};
use liquid_gateway::wireguard::key::{PresharedKey, PrivateKey};
use proptest::prelude::*;
use std::time::{Duration, Instant};
use support::{Datagram, Host, at, ends, exchange, pair, tunnel, udp};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn connected(now: Instant) -> (Host, Host) {
    let (mut a, mut b) = pair(now, None);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"first"));
    let (_, got) = exchange(now, &mut a, &mut b);
    assert_eq!(got.len(), 1);
    (a, b)
}

#[test]
fn the_first_packet_brings_the_handshake_and_overlapping_networks_see_each_other_elsewhere() {
    let now = Instant::now();
    for preshared in [None, Some(PresharedKey::new([5; 32]))] {
        let (mut a, mut b) = pair(now, preshared);
        a.send(now, &udp("10.244.0.5", "10.71.0.9", b"ping"));
        let (_, got) = exchange(now, &mut a, &mut b);
        assert_eq!(got, [udp("10.72.0.5", "10.244.0.9", b"ping")]);
        b.send(now, &udp("10.244.0.9", "10.72.0.5", b"pong"));
        let (got, _) = exchange(now, &mut a, &mut b);
        assert_eq!(got, [udp("10.71.0.9", "10.244.0.5", b"pong")]);
        b.send(now, &udp("fd00:244::9", "fd00:72::5", b"pong"));
        assert_eq!(exchange(now, &mut a, &mut b).0, [udp("fd00:71::9", "fd00:244::5", b"pong")]);
    }
}

#[test]
fn a_wrong_preshared_key_keeps_peers_apart() {
    let now = Instant::now();
    let (mut a, _) = pair(now, Some(PresharedKey::new([5; 32])));
    let (_, mut b) = pair(now, None);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"ping"));
    assert_eq!(exchange(now, &mut a, &mut b), (vec![], vec![]));
    assert_eq!(a.gateway.drops().get(Drop::BadHandshake), 1);
}

#[test]
fn packets_from_or_to_foreign_addresses_do_not_pass() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.send(now, &udp("10.99.0.5", "10.71.0.9", b"not of a"));
    a.send(now, &udp("10.244.0.5", "10.99.0.9", b"to nobody"));
    let (_, got) = exchange(now, &mut a, &mut b);
    assert_eq!(got.len(), 0);
    assert_eq!((a.gateway.drops().get(Drop::NoRoute), b.gateway.drops().get(Drop::ForeignSource)), (1, 1));
}

#[test]
fn datagrams_replayed_forged_or_late_are_not_taken() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"once"));
    let sent = a.transmits();
    assert_eq!(b.receive(now, &sent[0]).len(), 1);
    assert_eq!(b.receive(now, &sent[0]).len(), 0);
    let mut forged = sent[0].clone();
    forged.bytes[8] ^= 0x10;
    assert_eq!(b.receive(now, &forged).len(), 0);
    assert_eq!((b.gateway.drops().get(Drop::Replayed), b.gateway.drops().get(Drop::Forged)), (1, 1));
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"late"));
    let late = a.transmits();
    assert_eq!(b.receive(now + seconds(181), &late[0]).len(), 0);
}

#[test]
fn a_peer_is_followed_where_it_goes_and_not_led_by_strangers() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"x"));
    let moved = at("198.51.100.7:4000");
    let mut datagram = a.transmits().remove(0);
    datagram.from = moved;
    b.receive(now, &datagram);
    b.send(now, &udp("10.244.0.9", "10.72.0.5", b"y"));
    assert_eq!(b.transmits()[0].to, moved);
    datagram.from = at("203.0.113.1:1");
    b.receive(now, &datagram);
    b.send(now, &udp("10.244.0.9", "10.72.0.5", b"y"));
    assert_eq!(b.transmits()[0].to, moved, "a replayed datagram moves nobody");
}

#[test]
fn an_unanswered_initiation_is_repeated_every_five_seconds_for_ninety() {
    let now = Instant::now();
    let (mut a, _) = pair(now, None);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"x"));
    assert_eq!(a.transmits().len(), 1);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"x"));
    assert_eq!(a.transmits().len(), 0, "not for every packet");
    let (mut clock, mut sent) = (now, 0);
    while let Some((due, Why::RetransmitHandshake)) = a.gateway.poll_timeout() {
        assert!(due - clock >= seconds(5) && due - clock < Duration::from_millis(5400));
        clock = due;
        a.gateway.handle_timeout(clock);
        sent += a.transmits().len();
    }
    assert!((16..=18).contains(&sent), "{sent}");
    // The next packet starts over.
    clock += seconds(5);
    a.send(clock, &udp("10.244.0.5", "10.71.0.9", b"x"));
    assert_eq!(a.transmits().len(), 1);
}

#[test]
fn who_only_receives_says_after_ten_seconds_that_it_is_there() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"x"));
    exchange(now, &mut a, &mut b);
    let (due, why) = b.gateway.poll_timeout().unwrap();
    assert_eq!((due, why), (now + seconds(10), Why::Keepalive));
    b.gateway.handle_timeout(due);
    let keepalive = b.transmits();
    assert_eq!((keepalive.len(), keepalive[0].bytes.len()), (1, 32));
    assert_eq!(a.receive(due, &keepalive[0]).len(), 0);
    assert!(a.gateway.poll_timeout().unwrap().1 != Why::Silence);
}

#[test]
fn a_peer_that_lost_its_keys_is_found_again_by_the_silence() {
    let now = Instant::now();
    let (mut a, _) = connected(now);
    let (_, mut b) = pair(now, None);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"lost"));
    assert_eq!(exchange(now, &mut a, &mut b).1.len(), 0);
    let (due, why) = a.gateway.poll_timeout().unwrap();
    assert!(why == Why::Silence && due - now < seconds(16));
    a.gateway.handle_timeout(due);
    exchange(due, &mut a, &mut b);
    a.send(due, &udp("10.244.0.5", "10.71.0.9", b"found"));
    assert_eq!(exchange(due, &mut a, &mut b).1.len(), 1);
}

#[test]
fn sessions_are_renewed_under_load_without_losing_a_packet() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let mut delivered = 0;
    for tick in 0..6000u64 {
        let clock = now + Duration::from_millis(tick * 100);
        for host in [&mut a, &mut b] {
            host.gateway.handle_timeout(clock);
        }
        a.send(clock, &udp("10.244.0.5", "10.71.0.9", &tick.to_be_bytes()));
        delivered += exchange(clock, &mut a, &mut b).1.len();
    }
    assert_eq!(delivered, 6000);
    let handshakes = a.gateway.status().next().unwrap().traffic.handshakes;
    assert!((5..=6).contains(&handshakes), "600 s make five sessions of 120 s, not {handshakes}");
    let dropped: u64 = Drop::ALL.iter().map(|reason| b.gateway.drops().get(*reason)).sum();
    assert_eq!(dropped, 0);
}

#[test]
fn persistent_keepalives_call_a_peer_at_once_and_keep_its_nat_open() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now, None);
    let mut config = liquid_gateway::gateway::Config {
        private_key: a.key.clone(),
        local: vec![support::net("10.244.0.0/16")],
        peers: vec![],
        transit: liquid_gateway::transit::Transit::default(),
    };
    a.configure(config.clone(), now);
    config.peers = vec![PeerConfig {
        name: "b".to_owned(),
        remaps: vec![],
        mtu: 1420,
        tunnels: vec![TunnelConfig { keepalive: Some(seconds(25)), ..tunnel("b", &b.key, Some(b.address)) }],
    }];
    a.configure(config, now);
    let (_, _) = exchange(now, &mut a, &mut b);
    assert_eq!(a.gateway.status().next().unwrap().traffic.handshakes, 1);
    let (due, why) = a.gateway.poll_timeout().unwrap();
    assert_eq!((due, why), (now + seconds(25), Why::PersistentKeepalive));
    a.gateway.handle_timeout(due);
    assert_eq!(a.transmits().len(), 1);
}

#[test]
fn a_flood_of_initiations_is_answered_with_cookies_and_a_peer_still_gets_in() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now, None);
    // The flooder sends from the very address of the peer, with initiations of its own key.
    let (mut flooder, _) = pair(now, None);
    let strange = liquid_gateway::gateway::Config {
        private_key: PrivateKey::new([66; 32]),
        local: vec![],
        peers: vec![PeerConfig {
            name: "b".to_owned(),
            remaps: vec![],
            mtu: 1420,
            tunnels: vec![TunnelConfig {
                keepalive: Some(seconds(1)),
                ..tunnel("b", &b.key, Some(b.address))
            }],
        }],
        transit: liquid_gateway::transit::Transit::default(),
    };
    flooder.configure(strange, now);
    let initiation = flooder.transmits().remove(0);
    for _ in 0..1000 {
        b.receive(now, &initiation);
    }
    assert!(b.transmits().iter().all(|reply| reply.bytes.len() == 64));
    assert_eq!(
        (b.gateway.drops().get(Drop::UnknownPeer), b.gateway.drops().get(Drop::HandshakeFlood)),
        (5, 995)
    );

    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"x"));
    assert_eq!(exchange(now, &mut a, &mut b).1.len(), 0, "a cookie first");
    let (due, _) = a.gateway.poll_timeout().unwrap();
    for _ in 0..1000 {
        b.receive(due, &initiation);
    }
    b.transmits();
    a.gateway.handle_timeout(due);
    assert_eq!(exchange(due, &mut a, &mut b).1.len(), 1, "and with it the flood does not matter");
}

#[test]
fn keys_change_while_the_session_goes_on() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let key = PrivateKey::new([33; 32]);
    let changed = |host: &Host, own: Option<PrivateKey>, other: PrivateKey, number: usize, endpoint| {
        liquid_gateway::gateway::Config {
            private_key: own.unwrap_or_else(|| host.key.clone()),
            local: vec![support::net("10.244.0.0/16")],
            peers: vec![PeerConfig {
                name: format!("peer-{number}"),
                tunnels: vec![tunnel("only", &other, Some(endpoint))],
                remaps: vec![
                    liquid_gateway::nat::Remap::new(
                        support::net(if number == 1 { "10.71.0.0/16" } else { "10.72.0.0/16" }),
                        support::net("10.244.0.0/16"),
                    )
                    .unwrap(),
                ],
                mtu: 1420,
            }],
            transit: liquid_gateway::transit::Transit::default(),
        }
    };
    let (to_a, to_b) = (a.address, b.address);
    let for_a = changed(&a, Some(key.clone()), b.key.clone(), 1, to_b);
    let for_b = changed(&b, None, key, 0, to_a);
    a.configure(for_a, now);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"x"));
    assert_eq!(exchange(now, &mut a, &mut b).1.len(), 1);
    b.configure(for_b, now);
    let mut delivered = 0;
    for tick in 1..3000u64 {
        let clock = now + Duration::from_millis(tick * 100);
        a.gateway.handle_timeout(clock);
        b.gateway.handle_timeout(clock);
        a.send(clock, &udp("10.244.0.5", "10.71.0.9", b"x"));
        delivered += exchange(clock, &mut a, &mut b).1.len();
    }
    assert_eq!(delivered, 2999);
    assert!(a.gateway.status().next().unwrap().traffic.handshakes >= 3);
}

#[test]
fn what_does_not_fit_the_path_is_answered_or_cut() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.gateway.handle_path_mtu(b.address.ip(), 1360);
    assert_eq!(a.gateway.status().next().unwrap().tunnels[0].mtu, 1300);
    let large = udp("10.244.0.5", "10.71.0.9", &[1; 1372]);
    a.send(now, &large);
    assert_eq!(exchange(now, &mut a, &mut b).1.len(), 0);
    let answer = a.gateway.poll_answer().unwrap();
    assert_eq!(ends(&answer), ("10.71.0.9".to_owned(), "10.244.0.5".to_owned()));
    let ip = Ip::parse(&answer).unwrap();
    assert_eq!(Quoted::find(&answer, &ip).unwrap().ip.destination.to_string(), "10.71.0.9");

    let mut divisible = large;
    divisible[6] = 0;
    let sum = liquid_gateway::packet::checksum::Sum::of(&divisible[..10]).with(&divisible[12..20]).checksum();
    divisible[10..12].copy_from_slice(&sum);
    a.send(now, &divisible);
    let got = exchange(now, &mut a, &mut b).1;
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [1300, 120]);
}

#[test]
fn an_error_from_a_router_beyond_the_tunnel_comes_as_one_of_the_host_it_is_about() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    // What B's network sees of a packet from A's pod, and the answer of a router of B that A knows nothing of.
    let seen = udp("10.72.0.5", "10.244.0.9", &[0; 100]);
    let mut error = [0; liquid_gateway::packet::too_big::MAX_ANSWER];
    let ip = Ip::parse(&seen).unwrap();
    let length = liquid_gateway::packet::too_big::answer(&seen, &ip, 1000, &mut error).unwrap();
    let mut error = error[..length].to_vec();
    error[12..16].copy_from_slice(&[172, 16, 0, 1]);
    error[10..12].fill(0);
    let sum = liquid_gateway::packet::checksum::Sum::of(&error[..20]).checksum();
    error[10..12].copy_from_slice(&sum);
    b.send(now, &error);
    let got = exchange(now, &mut a, &mut b).0;
    assert_eq!(ends(&got[0]), ("10.71.0.9".to_owned(), "10.244.0.5".to_owned()));
    let ip = Ip::parse(&got[0]).unwrap();
    let quoted = Quoted::find(&got[0], &ip).unwrap();
    assert_eq!(
        (quoted.ip.source.to_string(), quoted.ip.destination.to_string()),
        ("10.244.0.5".to_owned(), "10.71.0.9".to_owned())
    );
    assert_eq!(got[0][quoted.offset..], udp("10.244.0.5", "10.71.0.9", &[0; 100]), "as it was sent");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Loss, duplication and reordering of anything, restarts, and time: at the end both talk again.
    #[test]
    fn whatever_happens_to_datagrams_the_tunnel_recovers(
        steps in prop::collection::vec((0u8..12, 0usize..8), 1..300)
    ) {
        let mut now = Instant::now();
        let (mut a, mut b) = pair(now, None);
        let mut wire: Vec<Datagram> = Vec::new();
        let mut sent = std::collections::HashSet::new();
        let mut got = std::collections::HashSet::new();
        let mut number = 0u32;
        for (kind, which) in steps {
            match kind {
                0..=3 => {
                    number += 1;
                    let packet = udp("10.244.0.5", "10.71.0.9", &number.to_be_bytes());
                    sent.insert(number.to_be_bytes());
                    a.send(now, &packet);
                }
                4 => b.send(now, &udp("10.244.0.9", "10.72.0.5", b"back")),
                5 => {
                    now += Duration::from_millis(u64::try_from(which).unwrap() * 4000);
                    a.gateway.handle_timeout(now);
                    b.gateway.handle_timeout(now);
                }
                6 if !wire.is_empty() => drop(wire.remove(which % wire.len())),
                7 if !wire.is_empty() => wire.push(wire[which % wire.len()].clone()),
                8 if which == 0 => {
                    let (_, fresh) = pair(now, None);
                    b = fresh;
                }
                _ if !wire.is_empty() => {
                    let datagram = wire.remove(which % wire.len());
                    if datagram.to == b.address {
                        for packet in b.receive(now, &datagram) {
                            let payload: [u8; 4] = packet[28..].try_into().unwrap();
                            prop_assert!(sent.contains(&payload));
                            prop_assert!(got.insert(payload), "delivered twice");
                        }
                    } else {
                        a.receive(now, &datagram);
                    }
                }
                _ => {}
            }
            wire.extend(a.transmits());
            wire.extend(b.transmits());
        }
        // A quiet network for a while.
        for _ in 0..60 {
            now += seconds(1);
            a.gateway.handle_timeout(now);
            b.gateway.handle_timeout(now);
            a.send(now, &udp("10.244.0.5", "10.71.0.9", b"keep"));
            exchange(now, &mut a, &mut b);
        }
        a.send(now, &udp("10.244.0.5", "10.71.0.9", b"last"));
        let last = exchange(now, &mut a, &mut b).1;
        prop_assert_eq!(last, vec![udp("10.72.0.5", "10.244.0.9", b"last")]);
    }

    #[test]
    fn arbitrary_datagrams_and_packets_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..6, version in prop::sample::select(vec![0x45u8, 0x60])
    ) {
        let now = Instant::now();
        let (mut a, mut b) = connected(now);
        if bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        b.receive(now, &Datagram { from: a.address, to: b.address, bytes: bytes.clone() });
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        a.send(now, &bytes);
        a.transmits();
    }
}

/// Whoever may open packet sockets says what the kernel is to sum, and where to put it: over an address, which is looked at
/// before.
#[test]
fn a_checksum_is_not_put_into_the_header() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now, None);
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"hello"));
    assert_eq!(exchange(now, &mut a, &mut b).1.len(), 1);
    for start in [0, 10, 12, 16, 19] {
        let mut packet = udp("10.244.0.5", "10.71.0.9", b"hello");
        let offload = Offload::Checksum { start, offset: 0 };
        assert_eq!(a.gateway.handle_packet(now, offload, &mut packet), Handled::Here);
    }
    assert!(a.transmits().is_empty());
    assert_eq!(a.gateway.drops().get(Drop::Malformed), 5);
}
