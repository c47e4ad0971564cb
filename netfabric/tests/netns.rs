//! The program itself in network namespaces, with an API server made for it: needs root, `ip`, `bridge`, `nft` and `iptables`.
//!
//! `cargo test -p liquid-netfabric --test netns -- --ignored --test-threads 1`

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use support::world::{Nat, World, echo_in, peer_sees, sees};

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
                let node_port = support::netns::eventually("an answer of the node port", || {
                    let node = format!("192.0.2.1{number}");
                    support::world::source_seen(&world.lan, &node, support::world::NODE_PORT)
                });
                assert_eq!(node_port, own, "{nat:?}");
            }
        });
        // The other way round.
        for at in [0, 1] {
            let pod = format!("10.244.{}.7", at + 1);
            let seen = echo_in(&world.pods[at], &pod, || sees(&world.peer, &pod));
            assert_eq!(seen, address(support::world::PEER), "{nat:?}");
        }
    }
}
