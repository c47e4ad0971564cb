//! The program itself between network namespaces: needs root, `ip`, and `/dev/net/tun`.
//!
//! `cargo xtask test` runs them, but for those whose names begin with `by_hand`: `cargo test -p liquid-gateway --test netns
//! -- --ignored --test-threads 1`. Those with other implementations build these (Go and cargo, through their registries)
//! when they are not in `target/gateway-tools/bin`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::print_stdout, reason = "a test says what it measured")]

#[path = "support/netns.rs"]
mod netns;

use netns::{DEADLINE, End, Other, Prefixes, Process, Site, World, eventually, pause};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PORT: u16 = 7000;

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn timed(socket: &UdpSocket, time: Duration) {
    socket.set_read_timeout(Some(time)).unwrap();
}

/// Sends echo requests from one client to the other until one is answered.
fn ping(from: &Site, to: &Site, family: usize) {
    let target = from.sees(to, family);
    from.client.inside(|| {
        let (domain, protocol, kind) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
        };
        let mut socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let target = SocketAddr::new(target, 0);
        let mut request = [kind, 0, 0, 0, 7, 7, 0, 1, 1, 2, 3, 4];
        eventually(&format!("ping of {target}"), || {
            if target.is_ipv4() && request[2..4] == [0, 0] {
                let sum = liquid_gateway::packet::checksum::Sum::of(&request).checksum();
                request[2..4].copy_from_slice(&sum);
            }
            socket.send_to(&request, &target.into()).ok()?;
            let mut buffer = [0; 1500];
            let length = socket.read(&mut buffer).ok()?;
            // IPv4 raw sockets show the IP header.
            let start = if target.is_ipv4() { 20 } else { 0 };
            let reply = &buffer[start..length];
            (reply[0] != kind && reply[4..] == request[4..]).then_some(())
        });
    });
}

/// Sends `bytes` over one connection and compares what arrives; returns how long that took.
fn stream(from: &Site, to: &Site, family: usize, bytes: usize) -> Duration {
    let target = SocketAddr::new(from.sees(to, family), PORT);
    let byte = |at: usize| u8::try_from((at * 31 + at / 4096) % 251).unwrap();
    let listener = to.client.inside(|| TcpListener::bind((any(target.ip()), PORT)).unwrap());
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            listener.set_nonblocking(true).unwrap();
            let mut connection = eventually("connection", || listener.accept().ok()).0;
            connection.set_nonblocking(false).unwrap();
            connection.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut received = Vec::with_capacity(bytes);
            connection.read_to_end(&mut received).unwrap();
            assert_eq!(received.len(), bytes);
            assert!((0..bytes).all(|at| received[at] == byte(at)), "bytes changed on the way");
        });
        let began = Instant::now();
        from.client.inside(|| {
            let mut connection = TcpStream::connect_timeout(&target, DEADLINE).unwrap();
            let data: Vec<u8> = (0..bytes).map(byte).collect();
            connection.set_write_timeout(Some(DEADLINE)).unwrap();
            connection.write_all(&data).unwrap();
        });
        receiver.join().unwrap();
        began.elapsed()
    })
}

/// Sends datagrams of these lengths one by one, each until it is echoed.
fn datagrams(from: &Site, to: &Site, family: usize, lengths: &[usize]) {
    let target = SocketAddr::new(from.sees(to, family), PORT);
    let server = to.client.inside(|| UdpSocket::bind((any(target.ip()), PORT)).unwrap());
    timed(&server, Duration::from_millis(50));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 65_536];
            while !done.load(Ordering::Relaxed) {
                if let Ok((length, sender)) = server.recv_from(&mut buffer) {
                    drop(server.send_to(&buffer[..length], sender));
                }
            }
        });
        let _done = Done(&done);
        let socket = from.client.inside(|| UdpSocket::bind((any(target.ip()), 0)).unwrap());
        timed(&socket, Duration::from_millis(200));
        let mut buffer = vec![0; 65_536];
        for length in lengths {
            let sent: Vec<u8> = (0..*length).map(|at| u8::try_from(at % 253).unwrap()).collect();
            eventually(&format!("echo of {length} bytes by {target}"), || {
                socket.send_to(&sent, target).ok()?;
                let (got, _) = socket.recv_from(&mut buffer).ok()?;
                (buffer[..got] == sent).then_some(())
            });
        }
    });
}

fn no_checksum_errors(world: &World) {
    for namespace in [&world.a.client, &world.b.client, &world.a.gateway, &world.b.gateway] {
        assert_eq!(namespace.checksum_errors(), 0, "in {}", namespace.name);
    }
}

#[test]
#[ignore = "needs root"]
fn two_sites_with_the_same_addresses_talk_over_either_family() {
    for outer in [0, 1] {
        let world = World::new(Prefixes::Overlapping);
        let _a = world.a.start_gateway(&world.b, outer);
        let _b = world.b.start_gateway(&world.a, outer);
        for first in ['a', 'b'] {
            let (from, to) = world.sites(first);
            for family in [0, 1] {
                ping(from, to, family);
                stream(from, to, family, 5_000_000);
                datagrams(from, to, family, &[1, 64, 1300, 1392, 1393, 4000, 9000]);
            }
        }
        no_checksum_errors(&world);
    }
}

#[test]
#[ignore = "needs root"]
fn an_error_reaches_the_socket_that_caused_it() {
    let world = World::new(Prefixes::Overlapping);
    let _a = world.a.start_gateway(&world.b, 0);
    let _b = world.b.start_gateway(&world.a, 0);
    for family in [0, 1] {
        ping(&world.a, &world.b, family);
        let target = SocketAddr::new(world.a.sees(&world.b, family), 9);
        world.a.client.inside(|| {
            // "Port unreachable" quotes the datagram: only a right translation of the quote finds the socket.
            let socket = UdpSocket::bind((any(target.ip()), 0)).unwrap();
            socket.connect(target).unwrap();
            timed(&socket, Duration::from_millis(200));
            eventually("refusal", || {
                drop(socket.send(b"anybody?"));
                let error = socket.recv(&mut [0; 10]).err()?;
                (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
            });
        });
    }
}

#[test]
#[ignore = "needs root"]
fn a_path_that_turns_narrow_is_noticed_and_connections_go_on() {
    // Below 1,340 (1,360 over IPv6) no IPv6 packet of 1,280 would fit.
    for (outer, narrow) in [(0, 1344), (1, 1364)] {
        let world = World::new(Prefixes::Overlapping);
        let _a = world.a.start_gateway(&world.b, outer);
        let _b = world.b.start_gateway(&world.a, outer);
        stream(&world.a, &world.b, 0, 5_000_000);
        // The last hop to B: A's gateway learns of it from the router only.
        world.internet.ip(&format!("link set to-b mtu {narrow}"));
        world.b.gateway.ip(&format!("link set out mtu {narrow}"));
        for (from, to) in [(&world.a, &world.b), (&world.b, &world.a)] {
            for family in [0, 1] {
                stream(from, to, family, 5_000_000);
                datagrams(from, to, family, &[1200, 1340, 1372, 4000]);
            }
        }
        no_checksum_errors(&world);
    }
}

/// Sets a flag also when a test fails, so that threads that wait for it end.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stream of numbered datagrams, one every `interval`, and which of them arrived.
struct Probe {
    interval: Duration,
    sent: AtomicU64,
    stop: AtomicBool,
}

impl Probe {
    fn run(
        from: &Site,
        to: &Site,
        interval: Duration,
        while_it_runs: impl FnOnce() + Send,
    ) -> (u64, Vec<(u64, Instant)>) {
        let target = SocketAddr::new(from.sees(to, 0), PORT);
        let server = to.client.inside(|| UdpSocket::bind((any(target.ip()), PORT)).unwrap());
        let client = from.client.inside(|| UdpSocket::bind((any(target.ip()), 0)).unwrap());
        timed(&server, Duration::from_millis(500));
        let probe = Self { interval, sent: AtomicU64::new(0), stop: AtomicBool::new(false) };
        let got = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut got = Vec::new();
                let mut buffer = [0; 8];
                loop {
                    match server.recv(&mut buffer) {
                        Ok(_) => got.push((u64::from_be_bytes(buffer), Instant::now())),
                        Err(_) if probe.stop.load(Ordering::Relaxed) => return got,
                        Err(_) => {}
                    }
                }
            });
            scope.spawn(|| {
                while !probe.stop.load(Ordering::Relaxed) {
                    let number = probe.sent.fetch_add(1, Ordering::Relaxed);
                    drop(client.send_to(&number.to_be_bytes(), target));
                    pause(probe.interval);
                }
            });
            let done = Done(&probe.stop);
            while_it_runs();
            drop(done);
            receiver.join().unwrap()
        });
        (probe.sent.load(Ordering::Relaxed), got)
    }
}

fn longest_gap(got: &[(u64, Instant)]) -> Duration {
    got.windows(2).map(|pair| pair[1].1 - pair[0].1).max().unwrap_or(Duration::MAX)
}

#[test]
#[ignore = "needs root, and more than two minutes, for sessions live that long: by hand"]
fn by_hand_sessions_are_renewed_under_load_without_loss() {
    let world = World::new(Prefixes::Overlapping);
    let _a = world.a.start_gateway(&world.b, 0);
    let _b = world.b.start_gateway(&world.a, 0);
    ping(&world.a, &world.b, 0);
    let (sent, got) =
        Probe::run(&world.a, &world.b, Duration::from_millis(1), || pause(Duration::from_secs(130)));
    assert_eq!(u64::try_from(got.len()).unwrap(), sent);
    assert!(got.is_sorted_by_key(|(number, _)| number), "in order");
}

#[test]
#[ignore = "needs root"]
fn a_gateway_that_changes_its_address_is_followed() {
    let world = World::new(Prefixes::Overlapping);
    let _a = world.a.start_gateway(&world.b, 0);
    let _b = world.b.start_gateway(&world.a, 0);
    ping(&world.a, &world.b, 0);
    let (_, got) = Probe::run(&world.a, &world.b, Duration::from_millis(10), || {
        pause(Duration::from_secs(1));
        world.a.gateway.ip("addr del 192.0.2.2/24 dev out");
        world.a.gateway.ip("addr add 192.0.2.77/24 dev out");
        world.a.gateway.ip("route replace default via 192.0.2.1");
        pause(Duration::from_secs(2));
    });
    assert!(longest_gap(&got) < Duration::from_secs(1), "{:?}", longest_gap(&got));
    ping(&world.b, &world.a, 0);
}

#[test]
#[ignore = "needs root"]
fn a_gateway_that_is_killed_comes_back_within_a_second_of_its_start() {
    let world = World::new(Prefixes::Overlapping);
    let _a = world.a.start_gateway(&world.b, 0);
    let b = world.b.start_gateway(&world.a, 0);
    ping(&world.a, &world.b, 0);
    let mut again = None;
    let (_, got) = Probe::run(&world.a, &world.b, Duration::from_millis(10), || {
        pause(Duration::from_millis(500));
        b.kill();
        again = Some(world.b.start_gateway(&world.a, 0));
        pause(Duration::from_secs(3));
    });
    assert!(longest_gap(&got) < Duration::from_secs(1), "{:?}", longest_gap(&got));
    // And the other way round: the session that A still has is not B's any more.
    stream(&world.b, &world.a, 0, 1_000_000);
}

/// Both gateways of B, and A's with a tunnel to each; all of them liquid-gateway.
fn two_gateways(world: &World, second: &Site) -> (Process, Process, Process) {
    let end = |site: &Site| End { probes: true, ..site.end(0) };
    let ends = [end(&world.b), end(second)];
    let a = world.a.start_with(&world.b, &ends, &[]);
    let b = world.b.start_with(&world.a, &[end(&world.a)], &[]);
    let other = second.start_with(&world.a, &[end(&world.a)], &[]);
    ping(&world.a, &world.b, 0);
    // Probes have found both.
    pause(Duration::from_millis(500));
    (a, b, other)
}

/// Eight streams from A to B, so that some take each way; returns the longest gap of any of them.
fn streams(world: &World, while_it_runs: impl FnOnce() + Send) -> Duration {
    let target = world.a.sees(&world.b, 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut receivers = Vec::new();
        for port in PORT..PORT + 8 {
            let target = SocketAddr::new(target, port);
            let server = world.b.client.inside(|| UdpSocket::bind((any(target.ip()), port)).unwrap());
            let client = world.a.client.inside(|| UdpSocket::bind((any(target.ip()), 0)).unwrap());
            timed(&server, Duration::from_millis(200));
            let stop = &stop;
            receivers.push(scope.spawn(move || {
                let mut got = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    if server.recv(&mut [0; 8]).is_ok() {
                        got.push((0, Instant::now()));
                    }
                }
                longest_gap(&got)
            }));
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    drop(client.send_to(&[7; 8], target));
                    pause(Duration::from_millis(10));
                }
            });
        }
        let done = Done(&stop);
        pause(Duration::from_millis(500));
        while_it_runs();
        drop(done);
        receivers.into_iter().map(|receiver| receiver.join().unwrap()).max().unwrap()
    })
}

#[test]
#[ignore = "needs root"]
fn flows_leave_a_gateway_that_is_killed_and_a_link_that_breaks_within_a_second() {
    let world = World::new(Prefixes::Overlapping);
    let second = world.second();
    let (_a, _b, mut other) = two_gateways(&world, &second);
    let mut gaps = Vec::new();
    for _ in 0..3 {
        let mut killed = Some(other);
        gaps.push(streams(&world, || {
            killed.take().unwrap().kill();
            pause(Duration::from_secs(1));
        }));
        other = second.start_with(&world.a, &[End { probes: true, ..world.a.end(0) }], &[]);
        pause(Duration::from_millis(700));
    }
    println!("longest gaps of eight streams when a gateway is killed: {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < Duration::from_secs(1)));
    // Half of the flows went that way.
    assert!(gaps.iter().all(|gap| *gap > Duration::from_millis(200)));

    let gap = streams(&world, || {
        world.internet.ip("link set to-b2 down");
        pause(Duration::from_secs(1));
    });
    println!("when its link is lost: {gap:?}");
    assert!(gap < Duration::from_secs(1));
    let received = || second.gateway.counter("Udp", "InDatagrams");
    world.internet.ip("link set to-b2 up");
    let back = Instant::now();
    let gap = streams(&world, || {
        let before = received();
        // More than probes: flows are back on it.
        eventually("flows on the link that is back", || (received() > before + 200).then_some(()));
    });
    println!("back on it {:?} after its return, longest gap {gap:?}", back.elapsed());
    assert!(gap < Duration::from_millis(200));
}

#[test]
#[ignore = "needs root"]
fn nothing_is_lost_when_a_gateway_is_told_to_end() {
    let world = World::new(Prefixes::Overlapping);
    let second = world.second();
    let (_a, _b, other) = two_gateways(&world, &second);
    let mut leaving = Some(other);
    let gap = streams(&world, || {
        let leaving = leaving.take().unwrap();
        leaving.signal("TERM");
        leaving.wait();
        pause(Duration::from_millis(500));
    });
    println!("longest gap of eight streams when a gateway is told to end: {gap:?}");
    assert!(gap < Duration::from_millis(100));
}

#[test]
#[ignore = "needs root"]
fn a_gateway_that_begins_again_elsewhere_is_used_as_soon_as_it_is_told_of() {
    let world = World::new(Prefixes::Overlapping);
    let second = world.second();
    let (a, _b, other) = two_gateways(&world, &second);
    other.kill();
    second.gateway.ip("addr del 203.0.113.2/24 dev out");
    second.gateway.ip("addr add 203.0.113.77/24 dev out");
    second.gateway.ip("route replace default via 203.0.113.1");
    // As of a cluster that cannot call: it knows no address of A.
    let nowhere = End { probes: true, endpoint: "192.0.2.99:9".parse().unwrap(), ..world.a.end(0) };
    let _other = second.start_with(&world.a, &[nowhere], &[]);
    let moved = End { probes: true, endpoint: "203.0.113.77:51820".parse().unwrap(), ..second.end(0) };
    world.a.write_config(&world.b, &[End { probes: true, ..world.b.end(0) }, moved]);
    let received = || second.gateway.counter("Udp", "InDatagrams");
    let told = Instant::now();
    a.signal("HUP");
    let gap = streams(&world, || {
        let before = received();
        eventually("flows over the gateway that moved", || (received() > before + 200).then_some(()));
    });
    println!(
        "flows over a gateway that moved {:?} after its new address was told, longest gap {gap:?}",
        told.elapsed()
    );
    assert!(gap < Duration::from_millis(200));
}

fn is_understood(other: Other) {
    let world = World::new(Prefixes::Disjoint);
    let _b = world.b.start_other(&world.a, other, 1420);
    // With lanes, of which the other end knows nothing.
    let _a = world.a.start_with(&world.b, &[world.b.end(0)], &["--lanes", "3"]);
    for first in ['a', 'b'] {
        let (from, to) = world.sites(first);
        for family in [0, 1] {
            ping(from, to, family);
            stream(from, to, family, 5_000_000);
            datagrams(from, to, family, &[1, 1300, 1392, 4000]);
        }
    }
    no_checksum_errors(&world);
}

#[test]
#[ignore = "needs root; builds wireguard-go, unless WIREGUARD_GO names it"]
fn wireguard_go_is_understood() {
    is_understood(Other::WireguardGo);
}

#[test]
#[ignore = "needs root, and builds boringtun-cli: by hand"]
fn by_hand_boringtun_cli_is_understood() {
    is_understood(Other::BoringtunCli);
}
