//! The other end is `boringtun`'s core: what both agree on is WireGuard.

mod support;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use liquid_gateway::wireguard::key::PrivateKey;
use std::time::Instant;
use support::{Datagram, Host, at, pair, udp};

fn tunn(own: [u8; 32], peer: &PrivateKey, preshared: Option<[u8; 32]>) -> Tunn {
    Tunn::new(StaticSecret::from(own), PublicKey::from(peer.public().0), preshared, None, 7, None)
}

/// What boringtun sends, or the packet it delivers.
#[derive(Debug, PartialEq)]
enum Out {
    Network(Vec<u8>),
    Tunnel(Vec<u8>),
    Nothing,
}

fn out(result: TunnResult<'_>) -> Out {
    match result {
        TunnResult::Done => Out::Nothing,
        TunnResult::Err(error) => panic!("{error:?}"),
        TunnResult::WriteToNetwork(bytes) => Out::Network(bytes.to_vec()),
        TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => {
            Out::Tunnel(bytes.to_vec())
        }
    }
}

/// Exchanges until both are silent; returns what each got through the tunnel.
fn exchange(now: Instant, a: &mut Host, b: &mut Tunn) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let from = at("192.0.2.2:51821");
    let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
    let mut replies = Vec::new();
    loop {
        let sent = a.transmits();
        for datagram in &sent {
            let mut buffer = vec![0; 2000];
            let mut result = out(b.decapsulate(Some(a.address.ip()), &datagram.bytes, &mut buffer));
            loop {
                match result {
                    Out::Network(bytes) => {
                        replies.push(bytes);
                        result = out(b.decapsulate(None, &[], &mut buffer));
                    }
                    Out::Tunnel(bytes) => {
                        to_b.push(bytes);
                        break;
                    }
                    Out::Nothing => break,
                }
            }
        }
        if sent.is_empty() && replies.is_empty() {
            return (to_a, to_b);
        }
        for bytes in replies.drain(..) {
            to_a.extend(a.receive(now, &Datagram { from, to: a.address, bytes }));
        }
    }
}

#[test]
fn either_end_begins_and_packets_pass_both_ways() {
    let now = Instant::now();
    for preshared in [None, Some([9; 32])] {
        for we_begin in [true, false] {
            let (mut a, _) = pair(now, preshared.map(liquid_gateway::wireguard::key::PresharedKey::new));
            let mut b = tunn([22; 32], &a.key, preshared);
            let (ping, pong) =
                (udp("10.244.0.5", "10.71.0.9", b"ping"), udp("10.244.0.9", "10.72.0.5", b"pong"));
            if we_begin {
                a.send(now, &ping);
                let (_, got) = exchange(now, &mut a, &mut b);
                // boringtun translates nothing: it sees our real source, and its own real destination.
                assert_eq!(got, [udp("10.244.0.5", "10.244.0.9", b"ping")]);
            }
            let mut buffer = vec![0; 2000];
            // In the tunnel are real addresses of both sides.
            let real = udp("10.244.0.9", "10.244.0.5", b"pong");
            let Out::Network(bytes) = out(b.encapsulate(&real, &mut buffer)) else { panic!("nothing sent") };
            let mut got = a.receive(now, &Datagram { from: at("192.0.2.2:51821"), to: a.address, bytes });
            got.extend(exchange(now, &mut a, &mut b).0);
            assert_eq!(got, [udp("10.71.0.9", "10.244.0.5", b"pong")]);
            drop(pong);
            a.send(now, &ping);
            assert_eq!(exchange(now, &mut a, &mut b).1, [udp("10.244.0.5", "10.244.0.9", b"ping")]);
        }
    }
}

#[test]
fn its_cookies_are_understood() {
    use boringtun::noise::rate_limiter::RateLimiter;
    use std::sync::Arc;
    let now = Instant::now();
    let (mut a, _) = pair(now, None);
    let public = PublicKey::from(PrivateKey::new([22; 32]).public().0);
    // A limit of nothing: every initiation without a cookie is answered with one.
    let limiter = Arc::new(RateLimiter::new(&public, 0));
    let mut b = Tunn::new(
        StaticSecret::from([22; 32]),
        PublicKey::from(a.key.public().0),
        None,
        None,
        7,
        Some(limiter),
    );
    a.send(now, &udp("10.244.0.5", "10.71.0.9", b"ping"));
    assert_eq!(exchange(now, &mut a, &mut b).1.len(), 0);
    let (due, _) = a.gateway.poll_timeout().unwrap();
    a.gateway.handle_timeout(due);
    assert_eq!(exchange(due, &mut a, &mut b).1.len(), 1);
}
