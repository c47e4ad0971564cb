//! The program itself in network namespaces, with an API server made for it: needs root, `ip`, `bridge`, `nft` and `iptables`.
//!
//! `cargo test -p liquid-fabric --test netns -- --ignored --test-threads 1`

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::api::{ALL_PODS, DAEMON_SETS, NAMESPACES, NODES, PEERS, PODS};
use support::netns::{Namespace, eventually, pause, within};
use support::world::{ECHO, Nat, PEER, PEER6, World, binary, echo_in, get, peer_sees, sees, source_seen};

/// All that there is to see of a namespace's network, without what differs from one time to the next: numbers of devices,
/// handles, counters and ages.
fn picture(namespace: &Namespace) -> BTreeSet<String> {
    let lines = namespace.sh(
        "ip -o -d link show | sed -e 's/^[0-9]*: /link /' -e 's/@[^:]*:/:/' -e 's/link-netns.*//' -e 's/ bridge forward_delay.*//'
         ip -o addr show | sed -e 's/^[0-9]*: /address /'
         ip -o neigh show nud permanent | sed -e 's/^/neighbour /'
         bridge fdb show | sed -e 's/^/forwarding /'
         for family in -4 -6; do
           ip $family -o route show table all | sed -e 's/^/route /' -e 's/pref medium//'
           ip $family rule show | sed -e 's/^/rule /'
         done
         sysctl -a 2>/dev/null | grep -E 'ipv4.conf.*[.](forwarding|rp_filter) ' || true
         nft list ruleset | sed -e 's/counter packets .* bytes [0-9]*/counter/'",
    );
    lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn missing(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let gone = before.difference(after).map(|line| format!("- {line}"));
    gone.chain(after.difference(before).map(|line| format!("+ {line}"))).collect()
}

/// Sends an echo request, and waits for its answer.
fn ping(from: &Namespace, to: &str) {
    use socket2::{Domain, Protocol, Socket, Type};
    use std::io::Read as _;
    let target = std::net::SocketAddr::new(address(to), 0);
    from.inside(|| {
        let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // Type 8; the checksum of the rest, which is zero, is its complement.
        socket.send_to(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0], &target.into()).unwrap();
        let mut buffer = [0; 100];
        let length = socket.read(&mut buffer).unwrap();
        assert_eq!((length, &buffer[20..22]), (28, [0, 0].as_slice()), "an echo reply");
    });
}

/// Damages, and the most that the repair of each may take.
const REPAIR: Duration = Duration::from_secs(1);

fn repaired(namespace: &Namespace, damage: &str) {
    let before = picture(namespace);
    namespace.sh(damage);
    let began = Instant::now();
    // Looking at everything takes longer than the repair, so what counts is a look that began in time.
    loop {
        let looked = began.elapsed();
        let after = picture(namespace);
        if after == before {
            return;
        }
        assert!(
            looked < REPAIR,
            "in {} after {damage}:\n{}",
            namespace.name,
            missing(&before, &after).join("\n")
        );
        pause(Duration::from_millis(10));
    }
}

fn address(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn peers_see_addresses_that_they_can_answer_to() {
    for nat in [Nat::Nftables, Nat::Iptables] {
        let world = World::new(nat);
        let _running = world.start_all();
        world.with_echo(|| {
            for at in [0, 1] {
                let number = at + 1;
                // A pod keeps its address, although the pod network would take it away.
                assert_eq!(peer_sees(&world.pods[at]), address(&format!("10.244.{number}.7")), "{nat:?}");
                // A node and clients of its node ports have the node's address in the overlay.
                let own = address(&format!("10.244.{number}.0"));
                assert_eq!(peer_sees(&world.nodes[at]), own, "{nat:?}");
                let pod6 = address(&format!("fd00:244:0:{number}::7"));
                assert_eq!(sees(&world.pods[at], PEER6), pod6, "{nat:?}");
                let own6 = address(&format!("fd00:244:0:{number}::"));
                assert_eq!(sees(&world.nodes[at], PEER6), own6, "{nat:?}");
                let node_port = eventually("an answer of the node port", || {
                    let node = format!("192.0.2.1{number}");
                    source_seen(&world.lan, &node, support::world::NODE_PORT)
                });
                assert_eq!(node_port, own, "{nat:?}");
            }
        });
        // The other way round.
        for at in [0, 1] {
            for (pod, peer) in
                [(format!("10.244.{}.7", at + 1), PEER), (format!("fd00:244:0:{}::7", at + 1), PEER6)]
            {
                let seen = echo_in(&world.pods[at], &pod, || sees(&world.peer, &pod));
                assert_eq!(seen, address(peer), "{nat:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn whatever_others_do_to_the_overlay_is_repaired_within_a_second_and_what_is_theirs_stays() {
    let world = World::new(Nat::Nftables);
    let running = world.start_all();
    // Somebody else's, of every kind and in the same places.
    for namespace in [&world.nodes[0], &world.gateways[0]] {
        namespace.sh(
            "ip link add other type bridge; ip link set other up; ip addr add 203.0.113.1/24 dev other
             ip route add 198.51.100.0/24 dev other table 7600 proto static; ip rule add priority 470 to 198.51.100.9 lookup 7600
             ip neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev other
             nft add table inet other",
        );
    }
    let everywhere = [
        "ip link del liquid-overlay",
        "ip link set liquid-overlay down",
        "ip link set liquid-overlay mtu 1300",
        "ip link set liquid-overlay address 02:00:00:00:00:77",
        "ip route flush table 7600 proto 76; ip -6 route flush table 7600",
        "ip -6 rule del priority 480",
        "ip -6 route replace unreachable fd00:201::/32 table 7600",
        "ip route replace unreachable 10.201.0.0/16 table 7600",
        "ip rule del priority 480",
        "nft delete table inet liquid",
        "nft flush chain inet liquid input",
        "nft delete rule inet liquid input handle $(nft -a list chain inet liquid input | sed -n 's/.*handle //p' | tail -1)",
        "nft add rule inet liquid input drop",
        "nft flush set inet liquid senders",
        "nft add element inet liquid senders { 203.0.113.7 }",
        "echo 0 > /proc/sys/net/ipv4/conf/liquid-overlay/forwarding",
        "echo 1 > /proc/sys/net/ipv4/conf/liquid-overlay/rp_filter",
        "ip addr add 203.0.113.77/32 dev liquid-overlay",
    ];
    let node = [
        "ip -4 addr flush dev liquid-overlay",
        "ip addr del 10.244.1.0/32 dev liquid-overlay",
        "ip neigh flush dev liquid-overlay nud permanent",
        "ip neigh replace 10.244.2.5 lladdr 02:00:00:00:00:77 dev liquid-overlay nud permanent",
        "bridge fdb del 02:4c:0a:f4:02:05 dev liquid-overlay",
        "bridge fdb replace 02:4c:0a:f4:02:05 dev liquid-overlay dst 192.0.2.99",
        "bridge fdb append 02:4c:0a:f4:02:05 dev liquid-overlay dst 192.0.2.99",
        "ip route replace 10.201.0.0/16 table 7600 proto 76 via 10.244.2.5 dev liquid-overlay onlink",
    ];
    let gateway = [
        "ip neigh replace 192.0.2.12 lladdr 02:00:00:00:00:77 dev liquid-overlay nud permanent",
        "bridge fdb del 02:4c:c0:00:02:0c dev liquid-overlay",
        "ip route flush table 7601",
        "ip route del unreachable default table 7601",
        "ip route replace 10.244.2.0/24 table 7601 proto 76 dev eth0",
        "ip rule del iif liquid-wg lookup 7601",
        "ip rule del iif liquid-overlay lookup 7601",
        "echo 0 > /proc/sys/net/ipv4/conf/liquid-wg/forwarding",
    ];
    for damage in everywhere.iter().chain(&node) {
        repaired(&world.nodes[0], damage);
    }
    for damage in everywhere.iter().chain(&gateway) {
        repaired(&world.gateways[0], damage);
    }
    // Another device in the place of ours: not to be done faster than it is repaired.
    let before = picture(&world.nodes[0]);
    running[0].process.signal(Signal::SIGSTOP);
    world.nodes[0].sh("ip link del liquid-overlay; ip link add liquid-overlay type vxlan id 9 dstport 9");
    running[0].process.signal(Signal::SIGCONT);
    within(REPAIR * 2, "the right device", || (picture(&world.nodes[0]) == before).then_some(()));
    // And it works.
    world.with_echo(|| {
        for at in [0, 1] {
            assert_eq!(peer_sees(&world.pods[at]), address(&format!("10.244.{}.7", at + 1)));
        }
    });
}

#[test]
#[ignore = "needs root"]
fn the_overlay_of_a_cluster_with_ipv6_alone_is_repaired_too() {
    let world = World::v6_only();
    let _running = world.start_all();
    for namespace in [&world.nodes[0], &world.gateways[0]] {
        for damage in [
            "ip link del liquid-overlay",
            "ip link set liquid-overlay down",
            "ip link set liquid-overlay address 02:00:00:00:00:77",
            "ip -6 addr flush dev liquid-overlay",
            "ip -6 addr flush dev liquid-overlay scope link",
            "ip -6 addr add 2001:db8:9::77/128 dev liquid-overlay",
            "ip -6 route flush table 7600",
            "ip -6 rule del priority 480",
            "nft flush chain inet liquid postrouting || nft flush chain inet liquid input",
            "nft flush set inet liquid senders6",
        ] {
            repaired(namespace, damage);
        }
    }
    repaired(&world.gateways[0], "ip -6 rule del priority 481");
    world.with_echo(|| {
        for at in [0, 1] {
            let own = address(&format!("fd00:244:0:{}::7", at + 1));
            assert_eq!(sees(&world.pods[at], PEER6), own);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn it_leaves_a_node_as_it_was_and_only_when_it_is_told_to() {
    let world = World::new(Nat::Nftables);
    let before = picture(&world.nodes[0]);
    let leaves = |what: &str| {
        let left = || Some(picture(&world.nodes[0])).filter(|picture| *picture == before);
        drop(within(Duration::from_secs(5), what, left));
    };
    let running = world.start_node(0);
    running.is_ready();
    let in_place = picture(&world.nodes[0]);
    assert_ne!(in_place, before);

    running.process.terminate();
    assert_eq!(picture(&world.nodes[0]), in_place, "an upgrade interrupts nobody");
    // What is there is taken over as it is.
    let running = world.start_node(0);
    running.is_ready();
    assert!(!running.log().contains("\"repaired\":true"), "{}", running.log());
    assert_eq!(running.log().matches("overlay changed").count(), 1, "{}", running.log());

    world.cluster.delete(PEERS, "milan");
    leaves("nothing is left without peers");
    world.set_peer();
    eventually("the overlay is there again", || (picture(&world.nodes[0]) == in_place).then_some(()));

    world.cluster.delete(DAEMON_SETS, "liquid-fabric");
    leaves("nothing is left when the DaemonSet is deleted");
    drop(running);

    world.cluster.set(DAEMON_SETS, "liquid-fabric", json!({"metadata": {"uid": "v"}}));
    let running = world.start_node(0);
    running.is_ready();
    running.process.terminate();
    let status = world.nodes[0].command(binary()).arg("cleanup").status().unwrap();
    assert!(status.success());
    assert_eq!(missing(&before, &picture(&world.nodes[0])), [""; 0]);
}

#[test]
#[ignore = "needs root"]
fn no_datagram_is_lost_when_gateways_and_the_program_come_and_go() {
    let world = World::new(Nat::Nftables);
    let mut running = world.start_all();
    let stop = AtomicBool::new(false);
    world.with_echo(|| {
        let _ready = peer_sees(&world.pods[0]);
        std::thread::scope(|scope| {
            let stream = scope.spawn(|| {
                let (mut sent, mut lost) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    // A new flow each time, so that either gateway is asked.
                    sent += 1;
                    lost += u32::from(source_seen(&world.pods[0], PEER, ECHO).is_none());
                }
                (sent, lost)
            });
            let settle = || pause(Duration::from_millis(300));
            for (gateway, name) in [(1, "gateway-1"), (2, "gateway-2")] {
                world.set_gateway(gateway, name, "True", true);
                settle();
                world.set_gateway(gateway, name, "True", false);
                settle();
            }
            // The program is restarted on the node.
            running.remove(0).process.terminate();
            settle();
            running.insert(0, world.start_node(0));
            running[0].is_ready();
            // All are said to be unready, as a control plane does that sees no node.
            for (gateway, name) in [(1, "gateway-1"), (2, "gateway-2")] {
                world.set_gateway(gateway, name, "False", false);
            }
            settle();
            // The API server is away, and the program starts anew without it.
            running[0].isolate();
            settle();
            stop.store(true, Ordering::Relaxed);
            let (sent, lost) = stream.join().unwrap();
            assert!(sent > 100 && lost == 0, "{lost} of {sent} lost");
        });
    });
    // Repairs need no API server.
    world.nodes[0].sh("ip link del liquid-overlay");
    world.with_echo(|| assert_eq!(peer_sees(&world.pods[0]), address("10.244.1.7")));
}

#[test]
#[ignore = "needs root"]
fn a_node_without_a_gateway_reaches_that_of_another_node() {
    let world = World::new(Nat::Nftables);
    world.cluster.delete(PODS, "gateway-1");
    let _running = [world.start_node(0), world.start_node(1), world.start_gateway(1)];
    world.peer.sh("ip route replace 10.244.0.0/16 dev up2");
    world.with_echo(|| {
        for pod in &world.pods {
            peer_sees(pod);
        }
    });
}

/// Whether a datagram of the peer arrives at a pod.
fn arrives(world: &World, at: usize, address: &str, port: u16) -> bool {
    let socket = world.pods[at].inside(|| std::net::UdpSocket::bind((address, port)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let own = if address.contains(':') { PEER6 } else { PEER };
    world.peer.inside(|| {
        let peer = std::net::UdpSocket::bind((own, 0)).unwrap();
        // Refused at once where nothing listens any more.
        drop(peer.send_to(b"hello", (address, port)));
    });
    socket.recv(&mut [0; 10]).is_ok()
}

#[test]
#[ignore = "needs root"]
fn a_peer_reaches_what_its_rules_let_it_reach() {
    let world = World::new(Nat::Nftables);
    let running = world.start_all();
    let pod = |number: u8, labels: &serde_json::Value| {
        let addresses =
            json!([{"ip": format!("10.244.{number}.7")}, {"ip": format!("fd00:244:0:{number}::7")}]);
        json!({
            "metadata": {"namespace": "shop", "labels": labels}, "spec": {"nodeName": format!("node-{number}")},
            "status": {"phase": "Running", "podIPs": addresses},
        })
    };
    world.cluster.set(NAMESPACES, "shop", json!({"metadata": {"labels": {"team": "shop"}}}));
    world.cluster.set(ALL_PODS, "web", pod(1, &json!({"app": "web"})));
    world.cluster.set(ALL_PODS, "db", pod(2, &json!({"app": "db"})));
    // Web, port 7001 and 7003, and db: in both families.
    let reached = || {
        let web = [
            ("10.244.1.7", 7001),
            ("fd00:244:0:1::7", 7001),
            ("10.244.1.7", 7003),
            ("fd00:244:0:1::7", 7003),
        ];
        let web = web.map(|(address, port)| arrives(&world, 0, address, port));
        let db = ["10.244.2.7", "fd00:244:0:2::7"].map(|address| arrives(&world, 1, address, 7001));
        (web, db)
    };
    let become_ = |what: &str, wanted| {
        eventually(what, || (reached() == wanted).then_some(()));
    };
    let (all, none) = (([true; 4], [true; 2]), ([false; 4], [false; 2]));
    become_("all is reached without rules", all);

    let web_ports = json!({
        "action": "Allow", "namespaceSelector": {"matchLabels": {"team": "shop"}},
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]},
        "ports": [{"protocol": "UDP", "port": 7001, "endPort": 7002}, {"port": 7003}],
    });
    world.set_access(&json!({"default": "Deny", "rules": [web_ports]}));
    become_("only some ports of web are reached", ([true, true, false, false], [false; 2]));
    // Who calls is answered, and the peer's own calls are what is denied.
    world.with_echo(|| world.pods.each_ref().map(peer_sees));
    let denied = |node: usize| {
        let metrics = get(&world.nodes[node].name, "/metrics").unwrap();
        let of_peer = "liquid_fabric_denied_packets_total{peer=\"milan\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(of_peer));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    eventually("both nodes count", || (denied(0) >= 2 && denied(1) >= 2).then_some(()));
    eventually("an Event on the Peer", || {
        let events = world.cluster.events();
        let about = |event: &&serde_json::Value| {
            event["reason"] == "AccessDenied"
                && event["regarding"]["name"] == "milan"
                && event["note"].as_str().is_some_and(|note| note.starts_with("node node-2: "))
        };
        events.iter().find(about).map(drop)
    });

    // Rules follow labels, of pods and of their namespace.
    world.cluster.set(ALL_PODS, "web", pod(1, &json!({"app": "other"})));
    become_("nothing is reached", none);
    world.cluster.set(ALL_PODS, "web", pod(1, &json!({"app": "web"})));
    become_("web is reached again", ([true, true, false, false], [false; 2]));
    world.cluster.set(NAMESPACES, "shop", json!({"metadata": {}}));
    become_("nothing is reached", none);

    // The first rule that fits decides. A pod that is not known may be one that a rule denies.
    let db = json!({"action": "Deny", "podSelector": {"matchLabels": {"app": "db"}}});
    world.set_access(
        &json!({"rules": [{"action": "Allow", "ports": [{"protocol": "UDP", "port": 7003}]}, db]}),
    );
    become_("all but db is reached", ([true; 4], [false; 2]));
    world.cluster.delete(ALL_PODS, "web");
    become_("nothing is reached", none);

    // As many rules as a Peer may have.
    world.cluster.set(ALL_PODS, "web", pod(1, &json!({"app": "web"})));
    let rule = |number: u16| {
        let ports: Vec<_> =
            (0..16).map(|at| json!({"protocol": "UDP", "port": 6999 + number * 16 - at})).collect();
        json!({"action": "Allow", "podSelector": {"matchLabels": {"app": "web"}}, "ports": ports})
    };
    let rules: Vec<_> = [0, 2].into_iter().chain(3..33).map(rule).collect();
    world.set_access(&json!({"default": "Deny", "rules": rules}));
    become_("nothing is reached but by the last rules", none);
    world.set_access(&json!({"default": "Deny", "rules": (1..33).map(rule).collect::<Vec<_>>()}));
    become_("web is reached", ([true; 4], [false; 2]));

    // What cannot be read lets nothing in, and says so.
    world.set_access(&json!({"rules": [
        {"action": "Deny", "podSelector": {"matchExpressions": [{"key": "app", "operator": "Like", "values": ["x"]}]}}
    ]}));
    eventually("a problem", || {
        let metrics = get(&world.nodes[0].name, "/metrics").unwrap();
        metrics.contains("liquid_fabric_problem{reason=\"UnreadableAccess\"} 1").then_some(())
    });
    become_("nothing is reached", none);
    world.set_peer();
    become_("all is reached without rules", all);
    drop(running);
}

/// Would catch: hosts outside that see an address to which they cannot answer, or another one when a gateway has failed, and ways to
/// hosts that are not offered, to nodes, or around the rules of access.
#[test]
#[ignore = "needs root"]
fn hosts_outside_that_are_offered_are_reached_under_the_address_of_one_node() {
    let (outside, outside6, other) = ("192.0.2.1", "2001:db8::1", "192.0.2.9");
    for nat in [Nat::Nftables, Nat::Iptables] {
        let world = World::new(nat);
        world.lan.sh(&format!("ip addr add {other}/24 dev lan; ip addr add {outside6}/64 dev lan nodad"));
        let through = |number: usize| {
            for host in [outside, outside6, other, "192.0.2.11", "192.0.2.12"] {
                world.peer.sh(&format!("ip route replace {host} dev up{number}"));
            }
        };
        through(1);
        let _running = world.start_all();
        let seen = |host: &'static str| {
            move |world: &World| echo_in(&world.lan, host, || source_seen(&world.peer, host, ECHO))
        };
        assert_eq!(seen(outside)(&world), None, "nothing is offered");
        world.set_access_and_outside(&json!(null), &[&format!("{outside}/32"), &format!("{outside6}/128")]);
        let first = eventually("an answer from outside", || seen(outside)(&world));
        let first6 = eventually("an answer over IPv6", || seen(outside6)(&world));
        let nodes = ["192.0.2.11", "192.0.2.12"].map(address);
        let nodes6 = ["2001:db8::11", "2001:db8::12"].map(address);
        assert!(nodes.contains(&first) && nodes6.contains(&first6), "{first} {first6}, {nat:?}");
        through(2);
        assert_eq!(seen(outside)(&world), Some(first), "the same, whatever gateway it comes from");
        assert_eq!(seen(outside6)(&world), Some(first6));
        assert_eq!(seen(other)(&world), None, "it is not offered");
        for (node, host) in world.nodes.iter().zip(["192.0.2.11", "192.0.2.12"]) {
            assert_eq!(echo_in(node, host, || source_seen(&world.peer, host, ECHO)), None, "a node");
        }
        // Its node fails, as the cluster says.
        let at = nodes.iter().position(|node| *node == first).unwrap();
        world.set_node(at + 1, "Unknown");
        let moved = || seen(outside)(&world).filter(|source| *source == nodes[1 - at]);
        eventually("the other node is used", moved);
        world.set_access_and_outside(&json!({"default": "Deny"}), &[&format!("{outside}/32")]);
        eventually("whom access restricts reaches nothing", || seen(outside)(&world).is_none().then_some(()));
        // Also while others are offered it. What it answers to that host, as a client of a node port, comes in nevertheless.
        world.cluster.set(
            PEERS,
            "rome",
            json!({
                "metadata": {"uid": "v"}, "spec": {},
                "status": {"network": {
                    "podCIDRs": [{"real": "10.244.0.0/16", "seen": "10.202.0.0/16"}],
                    "ourExternalCIDRs": [format!("{outside}/32")],
                }},
            }),
        );
        let rules = || world.nodes[0].sh("nft list chain inet liquid outward 2>&1 || true");
        eventually("the rules are there", || rules().contains("10.202.0.0/16").then_some(()));
        assert_eq!(seen(outside)(&world), None);
        world.with_echo(|| {
            eventually("an answer of the node port", || {
                source_seen(&world.lan, "192.0.2.11", support::world::NODE_PORT)
            })
        });
    }
}

#[test]
#[ignore = "needs root"]
fn nobody_but_the_ends_of_the_overlay_gets_a_packet_in() {
    let world = World::new(Nat::Nftables);
    let running = world.start_all();
    // A pod makes an overlay device of its own, and speaks to a node, and to a gateway, as if it were one of them.
    let pod = &world.pods[0];
    for (to, mac, target) in
        [("192.0.2.12", "02:4c:c0:00:02:0c", "10.244.2.7"), ("10.244.2.5", "02:4c:0a:f4:02:05", "10.201.0.9")]
    {
        pod.sh(&format!(
            "ip link add forged type vxlan id 51822 dstport 51822 nolearning; ip link set forged up
             ip addr add 10.201.3.3/32 dev forged; ip neigh add {target} lladdr {mac} dev forged
             bridge fdb append {mac} dev forged dst {to}; ip route add {target} dev forged src 10.201.3.3"
        ));
        let receiver = if target == "10.201.0.9" { &world.peer } else { &world.pods[1] };
        let socket = receiver.inside(|| std::net::UdpSocket::bind((target, 7001)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        pod.inside(|| {
            let socket = std::net::UdpSocket::bind("10.201.3.3:0").unwrap();
            for _ in 0..5 {
                socket.send_to(b"forged", (target, 7001)).unwrap();
            }
        });
        assert!(socket.recv(&mut [0; 10]).is_err(), "forged packet for {target} by way of {to} got through");
        pod.sh("ip link del forged");
    }
    let dropped = |namespace: &Namespace| {
        let metrics = get(&namespace.name, "/metrics").unwrap();
        let line = metrics.lines().find(|line| line.starts_with("liquid_fabric_dropped_packets")).unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    eventually("drops on the pod's node are counted", || (dropped(&world.nodes[0]) >= 5).then_some(()));

    // A peer gets to pods of the node, not to the node: not by its address in the overlay, nor by that of its pod network.
    for target in ["10.244.1.0", "10.244.1.1"] {
        let socket = world.nodes[0].inside(|| std::net::UdpSocket::bind("0.0.0.0:7002").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        world.peer.inside(|| {
            let socket = std::net::UdpSocket::bind((PEER, 0)).unwrap();
            socket.send_to(b"hello", (target, 7002)).unwrap();
        });
        assert!(socket.recv(&mut [0; 10]).is_err(), "the peer reaches {target}");
    }
    ping(&world.peer, "10.244.1.0");
    drop(running);
}

#[test]
#[ignore = "needs root"]
fn what_keeps_traffic_from_flowing_is_said_where_people_look() {
    let world = World::new(Nat::Nftables);
    let running = world.start_node(0);
    running.is_ready();
    let problem = |reason: &str| {
        let metrics = get(&world.nodes[0].name, "/metrics").unwrap();
        // It may be there for both families.
        !metrics.contains(&format!("liquid_fabric_problem{{reason=\"{reason}\"}} 0"))
    };
    let event = |reason: &str| world.cluster.events().into_iter().find(|event| event["reason"] == reason);
    assert!(!problem("NoForwarding"));
    world.nodes[0].sysctl("ipv4/ip_forward", "0");
    eventually("forwarding is missed", || problem("NoForwarding").then_some(()));
    let event = eventually("an Event", || event("NoForwarding"));
    assert_eq!(event["regarding"]["name"], "node-1");
    assert!(event["note"].as_str().unwrap().contains("net.ipv4.ip_forward"), "{event}");
    world.nodes[0].sysctl("ipv4/ip_forward", "1");
    eventually("forwarding is there again", || (!problem("NoForwarding")).then_some(()));

    // The path gets narrower, and the overlay with it.
    world.nodes[0].sh("ip link set eth0 mtu 1400");
    eventually("the MTU follows", || {
        world.nodes[0].sh("ip link show liquid-overlay").contains("mtu 1350 ").then_some(())
    });
    assert!(get(&world.nodes[0].name, "/metrics").unwrap().contains("liquid_fabric_overlay_mtu_bytes 1350"));

    // A device of that name that is somebody else's stays as it is, and the process says that it is not ready.
    world.cluster.delete(PEERS, "milan");
    eventually("gone", || world.nodes[0].try_sh("ip link show liquid-overlay").is_err().then_some(()));
    world.nodes[0].sh("ip link add liquid-overlay type bridge");
    world.set_peer();
    eventually("not ready", || {
        get(&world.nodes[0].name, "/readyz").filter(|answer| answer.contains("somebody else's")).map(drop)
    });
    assert!(world.nodes[0].sh("ip -d link show liquid-overlay").contains("bridge"));
    world.nodes[0].sh("ip link del liquid-overlay");
    running.is_ready();

    world.cluster.set(
        NODES,
        "node-1",
        json!({"metadata": {}, "spec": {}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}}),
    );
    eventually("a node without podCIDR", || problem("NoPodCidr").then_some(()));
}

#[test]
#[ignore = "needs root"]
fn a_gateway_is_ready_once_nodes_let_in_what_it_sends() {
    let world = World::new(Nat::Nftables);
    let gateway = world.start_gateway(0);
    let says = |what: &str| {
        let answer = get(&world.gateways[0].name, "/readyz");
        answer.filter(|answer| answer.contains(what)).map(drop)
    };
    eventually("two nodes are waited for", || says("2 nodes do not know this gateway yet"));
    let first = world.start_node(0);
    first.is_ready();
    eventually("one is waited for", || says("1 nodes do not know").or_else(|| says("HTTP/1.1 200")));
    // The other is away, and is not waited for for ever.
    gateway.is_ready();
}

/// The longest time without an answer of the peer to a stream of one datagram each 10 ms, while `break_it` is done.
fn gap(world: &World, peer: &str, break_it: impl FnOnce() + Send) -> Duration {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            world.pods[0].inside(|| {
                let any = if peer.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = std::net::UdpSocket::bind(any).unwrap();
                socket.connect((peer, 7000)).unwrap();
                socket.set_nonblocking(true).unwrap();
                let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    // Errors are what happened to earlier datagrams.
                    drop(socket.send(b"now"));
                    pause(Duration::from_millis(10));
                    while socket.recv(&mut [0; 100]).is_ok() {
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                }
                longest.max(last.elapsed())
            })
        });
        pause(Duration::from_millis(500));
        break_it();
        pause(Duration::from_millis(2500));
        stop.store(true, Ordering::Relaxed);
        stream.join().unwrap()
    })
}

#[test]
#[ignore = "needs root"]
fn a_gateway_that_dies_unnoticed_by_the_cluster_is_left_within_a_second() {
    let lives = "ip link set eth0 up; ip route add 10.244.N.1 dev eth0; ip route add default via 10.244.N.1";
    leaves_dead_gateways(&World::new(Nat::Nftables), PEER, "10.244.0.0/16", lives);
    // A link that goes down takes its IPv6 addresses with it.
    let lives = "ip link set eth0 up; ip addr add fd00:244:0:N::5/64 dev eth0 noprefixroute
        ip route add fd00:244:0:N::1 dev eth0; ip route add default via fd00:244:0:N::1";
    leaves_dead_gateways(&World::v6_only(), PEER6, "fd00:244::/32", lives);
}

#[allow(clippy::print_stdout, reason = "it says what it measured")]
fn leaves_dead_gateways(world: &World, peer: &str, pods: &str, revive: &str) {
    let _running = world.start_all();
    let alive = |gateway: usize| {
        let metrics = get(&world.nodes[0].name, "/metrics").unwrap();
        metrics.contains(&format!("liquid_fabric_gateway_alive{{gateway=\"gateway-{gateway}\"}} 1"))
    };
    world.with_echo(|| {
        let _ready = sees(&world.pods[0], peer);
        for (dying, other) in [(1, 2), (2, 1)] {
            // No power; and no liquid-gateway, whose device goes with it.
            for (dies, lives) in [
                ("ip link set eth0 down", revive),
                ("ip link set liquid-wg down", "ip link set liquid-wg up"),
            ] {
                eventually("both gateways answer", || (alive(1) && alive(2)).then_some(()));
                // Answers take the way of the one that lives, as they would from a peer that has noticed.
                world.peer.sh(&format!("ip route replace {pods} dev up{other}"));
                let namespace = &world.gateways[dying - 1];
                let gap = gap(world, peer, || drop(namespace.sh(dies)));
                println!("gateway {dying} of {pods}, {dies}: longest gap {gap:?}");
                assert!(
                    gap < Duration::from_secs(1),
                    "{gap:?} without an answer after {dies} in {}",
                    namespace.name
                );
                assert!(!alive(dying) && alive(other));
                namespace.sh(&lives.replace('N', &dying.to_string()));
            }
        }
        eventually("both gateways answer", || (alive(1) && alive(2)).then_some(()));
    });
    let metrics = get(&world.nodes[0].name, "/metrics").unwrap();
    let figure = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{gateway=\"gateway-2\"}}")));
        line.unwrap().rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    assert!((0.0..0.1).contains(&figure("liquid_fabric_round_trip_seconds")), "{metrics}");
    assert!((0.0..0.1).contains(&figure("liquid_fabric_jitter_seconds")), "{metrics}");
    // It was silent for about 2 s.
    let (sent, lost) = (figure("liquid_fabric_probes_sent_total"), figure("liquid_fabric_probes_lost_total"));
    assert!(lost >= 5.0 && lost < sent, "{lost} of {sent}");
}
