//! What is planned, and the way there.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ipnet::IpNet;
use liquid_fabric::access::Access;
use liquid_fabric::diff::{Step, diff};
use liquid_fabric::filter::Outline;
use liquid_fabric::plan::{Plan, Problem, plan};
use liquid_fabric::state::{
    Desired, DeviceSettings, Link, Mac, Observed, Route, RouteKey, Rule, State, TABLE_PEERS, TABLE_PODS,
    Target,
};
use liquid_fabric::topology::{Gateway, GatewayState, Host, Node, Peer, Place, Settings, Topology};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn settings() -> Settings {
    Settings {
        overlay: "overlay".into(),
        tunnel: "tunnel".into(),
        port: 51_822,
        vni: 7,
        rule_priority: 480,
        probe_port: 51_823,
    }
}

fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        pod_cidrs: pod_cidrs.iter().map(|text| net(text)).collect(),
        ready: true,
    }
}

fn gateway(addresses: &[&str], state: GatewayState) -> Gateway {
    Gateway {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        hosts: vec![ip("192.0.2.1")],
        state,
    }
}

fn peer(prefixes: &[&str]) -> Peer {
    let prefixes: BTreeSet<IpNet> = prefixes.iter().map(|text| net(text)).collect();
    Peer { pods: prefixes.clone(), prefixes, ..Peer::default() }
}

fn topology() -> Topology {
    let dual = |number: u8| {
        node(
            &[&format!("192.0.2.{number}"), &format!("2001:db8::{number}")],
            &[&format!("10.244.{number}.0/24"), &format!("fd00:244:0:{number}::/64")],
        )
    };
    Topology {
        nodes: BTreeMap::from([("n1".into(), dual(1)), ("n2".into(), dual(2))]),
        gateways: BTreeMap::from([
            ("g1".into(), gateway(&["10.244.1.5", "fd00:244:0:1::5"], GatewayState::Ready)),
            ("g2".into(), gateway(&["10.244.2.5", "fd00:244:0:2::5"], GatewayState::Ready)),
        ]),
        peers: BTreeMap::from([("p".into(), peer(&["10.201.0.0/16", "fd00:201::/32"]))]),
        ..Topology::default()
    }
}

fn host() -> Host {
    Host { path_mtu: Some(1500), tunnel: true, forwarding: [true; 2], dead: BTreeSet::new() }
}

fn on_node(topology: &Topology) -> Plan {
    plan(topology, &Place::Node("n1".into()), &settings(), &host())
}

fn in_gateway(topology: &Topology, host: &Host) -> Plan {
    let own = vec![ip("10.244.1.5"), ip("fd00:244:0:1::5")];
    plan(topology, &Place::Gateway(own), &settings(), host)
}

fn route<'a>(plan: &'a Plan, table: u32, prefix: &str) -> &'a Route {
    &plan.desired.routes[&RouteKey { table, prefix: net(prefix) }]
}

fn overlay(hops: &[&str]) -> Target {
    Target::Overlay(hops.iter().map(|hop| ip(hop)).collect())
}

#[test]
fn a_node_sends_to_peers_over_every_gateway_that_is_ready() {
    let plan = on_node(&topology());
    assert!(plan.problems.is_empty(), "{:?}", plan.problems);
    let v4 = route(&plan, TABLE_PEERS, "10.201.0.0/16");
    assert_eq!((&v4.target, v4.source), (&overlay(&["10.244.1.5", "10.244.2.5"]), Some(ip("10.244.1.0"))));
    let hops = ["10.244.1.5", "10.244.2.5"].map(|hop| Mac::of(ip(hop)).link_local().to_string());
    let v6 = route(&plan, TABLE_PEERS, "fd00:201::/32");
    assert_eq!(v6.target, overlay(&[&hops[0], &hops[1]]));
    assert_eq!(v6.source, Some(ip("fd00:244:0:1::")));
    let link = plan.desired.link.unwrap();
    assert_eq!((link.local, link.mtu), (ip("192.0.2.1"), 1450));
    assert_eq!(plan.desired.addresses, BTreeSet::from([net("10.244.1.0/32"), net("fd00:244:0:1::/128")]));
    // Each next hop has a neighbour, and that one's MAC leads to the gateway.
    for hop in hops.iter().map(String::as_str).chain(["10.244.1.5", "10.244.2.5"]) {
        let mac = plan.desired.neighbours[&ip(hop)];
        assert!(plan.desired.forwarding.iter().any(|(found, _)| *found == mac), "{hop}");
    }
}

#[test]
fn gateways_that_leave_get_nothing_new_and_those_in_doubt_only_if_there_is_no_other() {
    let mut topology = topology();
    let target = |topology: &Topology| route(&on_node(topology), TABLE_PEERS, "10.201.0.0/16").target.clone();
    topology.gateways.get_mut("g1").unwrap().state = GatewayState::Leaving;
    assert_eq!(target(&topology), overlay(&["10.244.2.5"]));
    topology.gateways.get_mut("g2").unwrap().state = GatewayState::Doubtful;
    assert_eq!(target(&topology), overlay(&["10.244.1.5"]), "one that leaves forwards what comes");
    topology.gateways.get_mut("g1").unwrap().state = GatewayState::Ready;
    assert_eq!(target(&topology), overlay(&["10.244.1.5"]));
    let place = Place::Node("n1".into());
    let with_dead = |topology: &Topology, dead: &[&str]| {
        let host = Host { dead: dead.iter().map(|text| ip(text)).collect(), ..host() };
        route(&plan(topology, &place, &settings(), &host), TABLE_PEERS, "10.201.0.0/16").target.clone()
    };
    topology.gateways.get_mut("g2").unwrap().state = GatewayState::Ready;
    assert_eq!(with_dead(&topology, &["10.244.1.5"]), overlay(&["10.244.2.5"]));
    let all = ["10.244.1.5", "10.244.2.5"];
    assert_eq!(with_dead(&topology, &all), overlay(&all), "perhaps it is not their fault");
    topology.gateways.get_mut("g1").unwrap().state = GatewayState::Leaving;
    topology.gateways.get_mut("g2").unwrap().state = GatewayState::Doubtful;
    assert_eq!(with_dead(&topology, &["10.244.1.5"]), overlay(&["10.244.2.5"]));
    assert_eq!(
        with_dead(&topology, &all),
        overlay(&["10.244.2.5"]),
        "what leaves and does not answer is gone"
    );
    topology.gateways.clear();
    assert_eq!(target(&topology), Target::Unreachable, "and not out of the default route");
    assert!(on_node(&topology).problems.contains(&Problem::NoGateway));
}

#[test]
fn each_peer_is_reached_over_the_gateways_that_reach_it() {
    let mut topology = topology();
    topology.peers.insert("q".into(), peer(&["10.202.0.0/16"]));
    topology.peers.get_mut("q").unwrap().unreached_by.insert("g1".into());
    let target = |topology: &Topology, prefix| route(&on_node(topology), TABLE_PEERS, prefix).target.clone();
    let both = overlay(&["10.244.1.5", "10.244.2.5"]);
    assert_eq!(target(&topology, "10.202.0.0/16"), overlay(&["10.244.2.5"]));
    assert_eq!(target(&topology, "10.201.0.0/16"), both);
    topology.peers.get_mut("q").unwrap().unreached_by.insert("g2".into());
    assert_eq!(target(&topology, "10.202.0.0/16"), both, "then none is better than another");
}

#[test]
fn a_gateway_sends_to_the_nodes_of_pods_and_nothing_astray() {
    let plan = in_gateway(&topology(), &host());
    assert!(plan.problems.is_empty(), "{:?}", plan.problems);
    assert_eq!(route(&plan, TABLE_PODS, "10.244.2.0/24").target, overlay(&["192.0.2.2"]));
    let hop = Mac::of(ip("192.0.2.2")).link_local().to_string();
    assert_eq!(route(&plan, TABLE_PODS, "fd00:244:0:2::/64").target, overlay(&[&hop]));
    assert_eq!(route(&plan, TABLE_PODS, "0.0.0.0/0").target, Target::Unreachable);
    assert_eq!(route(&plan, TABLE_PODS, "::/0").target, Target::Unreachable);
    assert_eq!(route(&plan, TABLE_PEERS, "10.201.0.0/16").target, Target::Device("tunnel".into()));
    // What comes out of the tunnel; and what nodes send while the tunnel, and the routes of peers with it, is gone.
    let rules = plan.desired.rules.iter().filter(|rule| rule.table == TABLE_PODS);
    let rules: BTreeSet<_> = rules
        .map(|rule| (rule.v6, rule.device.as_deref(), rule.priority - settings().rule_priority))
        .collect();
    let (tunnel, overlay) = ((Some("tunnel"), 0), (Some("overlay"), 1));
    let expected = [false, true].map(|v6| [(v6, tunnel.0, tunnel.1), (v6, overlay.0, overlay.1)]);
    assert_eq!(rules, expected.into_iter().flatten().collect());
}

#[test]
fn hosts_outside_are_reached_over_one_node_that_works_whatever_others_there_are() {
    let mut topology = topology();
    let prefixes: Vec<IpNet> = (0..8).map(|number| net(&format!("198.51.100.{number}/32"))).collect();
    topology.peers.get_mut("p").unwrap().external = prefixes.iter().copied().collect();
    let hops = |topology: &Topology| -> Vec<Target> {
        let plan = in_gateway(topology, &host());
        prefixes.iter().map(|prefix| route(&plan, TABLE_PODS, &prefix.to_string()).target.clone()).collect()
    };
    let (first, second) = (overlay(&["192.0.2.1"]), overlay(&["192.0.2.2"]));
    let before = hops(&topology);
    assert!(before.contains(&first) && before.contains(&second), "they share the work: {before:?}");
    topology.nodes.insert("n3".into(), node(&["192.0.2.3"], &["10.244.3.0/24"]));
    let third = overlay(&["192.0.2.3"]);
    let with_more = hops(&topology);
    assert!(before.iter().zip(&with_more).all(|(before, after)| before == after || *after == third));
    topology.nodes.get_mut("n3").unwrap().ready = false;
    assert_eq!(hops(&topology), before, "nothing else moves with a node that has failed");
    topology.nodes.get_mut("n1").unwrap().pod_cidrs.clear();
    assert!(hops(&topology).iter().all(|hop| *hop == second), "answers would not come back");
    topology.nodes.get_mut("n2").unwrap().ready = false;
    assert!(!hops(&topology).contains(&Target::Unreachable), "perhaps it is not their fault");
    topology.nodes.clear();
    assert!(hops(&topology).iter().all(|hop| *hop == Target::Unreachable));
}

#[test]
fn hosts_outside_are_reached_by_pods_of_those_to_whom_they_are_offered_and_under_a_nodes_address() {
    let mut topology = topology();
    let offered = BTreeSet::from([net("198.51.100.0/24"), net("2001:db8:7::7/128")]);
    topology.peers.get_mut("p").unwrap().external = offered;
    topology.peers.get_mut("p").unwrap().prefixes.insert(net("10.203.0.0/16"));
    topology.peers.insert("q".into(), peer(&["10.202.0.0/16"]));
    let text = |topology: &Topology, name: &str| -> Vec<String> {
        let chains = on_node(topology).desired.filter.unwrap().chains;
        let chain = chains.iter().find(|known| known.name == name);
        chain.into_iter().flat_map(|chain| &chain.rules).map(ToString::to_string).collect()
    };
    let to = "iif overlay ip daddr 198.51.100.0/24";
    assert!(text(&topology, "postrouting").contains(&format!("{to} masquerade")));
    let forward = text(&topology, "forward");
    let at = |text: &str| forward.iter().position(|rule| rule.contains(text)).unwrap();
    assert!(at(&format!("{to} jump outward")) < at("ip daddr != 10.244.1.0/24 drop"));
    let pods = ["ip saddr 10.201.0.0/16 accept", "ip6 saddr fd00:201::/32 accept"];
    assert_eq!(text(&topology, "outward"), ["invalid drop", pods[0], pods[1], "unconnected drop"]);
    let access = serde_json::from_value(serde_json::json!({"default": "Deny"})).unwrap();
    topology.peers.get_mut("p").unwrap().access = Access::read(&access);
    assert!(text(&topology, "outward").is_empty());
    assert!(!text(&topology, "postrouting").iter().any(|rule| rule.contains("masquerade")));
}

#[test]
fn without_its_tunnel_a_gateway_turns_nothing_back_to_the_pod_network() {
    let plan = in_gateway(&topology(), &Host { tunnel: false, ..host() });
    assert_eq!(route(&plan, TABLE_PEERS, "10.201.0.0/16").target, Target::Unreachable);
    assert_eq!(plan.problems, BTreeSet::from([Problem::NoTunnel("tunnel".into())]));
}

#[test]
fn without_peers_there_is_nothing() {
    let topology = Topology { peers: BTreeMap::from([("p".into(), Peer::default())]), ..topology() };
    for plan in [on_node(&topology), in_gateway(&topology, &host())] {
        assert_eq!(plan.desired, Desired::default());
        assert!(plan.problems.is_empty());
    }
}

#[test]
fn a_prefix_that_covers_addresses_of_this_cluster_is_refused_and_the_others_are_routed() {
    for bad in
        ["0.0.0.0/0", "192.0.0.0/8", "10.244.0.0/16", "10.244.1.128/25", "127.0.0.0/8", "224.0.0.0/8", "::/0"]
    {
        let mut topology = topology();
        topology.peers.insert("q".into(), peer(&[bad, "10.202.0.0/16"]));
        for plan in [on_node(&topology), in_gateway(&topology, &host())] {
            assert!(plan.problems.iter().any(|it| it.reason() == "PrefixInUse"), "{bad}");
            let prefixes = plan.desired.routes.keys().filter(|key| key.table == TABLE_PEERS);
            let prefixes: BTreeSet<_> = prefixes.map(|key| key.prefix).collect();
            let good = ["10.201.0.0/16", "10.202.0.0/16", "fd00:201::/32"].map(net);
            assert_eq!(prefixes, BTreeSet::from(good), "{bad}");
        }
    }
}

#[test]
fn what_stands_in_the_way_is_named() {
    let mut without_cidr = topology();
    without_cidr.nodes.get_mut("n1").unwrap().pod_cidrs.pop();
    let plan_without = on_node(&without_cidr);
    assert_eq!(plan_without.problems.iter().map(Problem::reason).collect::<Vec<_>>(), ["NoPodCidr"]);
    assert_eq!(route(&plan_without, TABLE_PEERS, "fd00:201::/32").target, Target::Unreachable);
    assert_ne!(route(&plan_without, TABLE_PEERS, "10.201.0.0/16").target, Target::Unreachable);

    let place = Place::Node("n1".into());
    let reasons = |host: Host| {
        let plan = plan(&topology(), &place, &settings(), &host);
        plan.problems.iter().map(Problem::reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons(Host { forwarding: [false, true], ..host() }), ["NoForwarding"]);
    assert_eq!(reasons(Host { path_mtu: None, ..host() }), ["AddressNotLocal"]);
    assert_eq!(reasons(Host { path_mtu: Some(1300), ..host() }), ["NarrowPath"]);
    let gateway = in_gateway(&topology(), &Host { forwarding: [false, false], ..host() });
    assert!(
        gateway.problems.iter().any(|problem| problem.to_string().contains("net.ipv6.conf.all.forwarding"))
    );
    assert_eq!(gateway.problems.len(), 1, "IPv4 needs nothing");
    let elsewhere = plan(&topology(), &Place::Node("n9".into()), &settings(), &host());
    assert_eq!(elsewhere.problems, BTreeSet::from([Problem::NoAddress]));
}

#[test]
fn every_rule_fits_in_its_comment() {
    // Names of 15 letters and the longest addresses.
    let long = |number: u16| format!("fd00:aaaa:bbbb:cccc:dddd:eeee:ffff:{number:x}/112");
    let mut topology = topology();
    topology.nodes.insert("n1".into(), node(&["2001:db8::1"], &[&long(0), "10.244.111.128/25"]));
    let settings = Settings { overlay: "abcdefghijklmno".into(), ..settings() };
    let plan = plan(&topology, &Place::Node("n1".into()), &settings, &host());
    for chain in plan.desired.filter.unwrap().chains {
        for rule in chain.rules {
            assert!(rule.to_string().len() <= 127, "{rule}");
        }
    }
}

/// Takes steps as the kernel would, and complains about those that it would refuse.
fn take(state: &mut Observed, step: &Step) {
    let on_link = |state: &Observed| assert!(state.link.is_some(), "{step:?} without a device");
    match step {
        Step::SetFilter(table) => state.filter = Some(table.outline()),
        Step::RemoveFilter => assert!(state.filter.take().is_some()),
        Step::AddLink(link) => {
            assert!(state.link.is_none(), "there is one");
            state.settings.insert(link.name.clone(), DeviceSettings { forwarding: false, rp_filter: 1 });
            state.link = Some(link.clone());
        }
        Step::ChangeLink(link) => {
            assert!(state.link.as_ref().unwrap().can_become(link));
            state.link = Some(link.clone());
        }
        Step::RemoveLink(name) => {
            assert!(state.link.take().is_some());
            state.settings.remove(name);
            state.addresses.clear();
            state.neighbours.clear();
            state.forwarding.clear();
            let stays = |route: &Route| route.source.is_none() && !matches!(route.target, Target::Overlay(_));
            state.routes.retain(|_, route| stays(route));
        }
        Step::Configure(name, settings) => {
            assert!(state.settings.insert(name.clone(), *settings).is_some(), "{name} is not there");
        }
        Step::AddAddress(address) => {
            on_link(state);
            state.addresses.insert(*address);
        }
        Step::RemoveAddress(address) => {
            assert!(state.addresses.remove(address));
            state.routes.retain(|_, route| route.source != Some(address.addr()));
        }
        Step::SetNeighbour(address, mac) => {
            on_link(state);
            state.neighbours.insert(*address, *mac);
        }
        Step::RemoveNeighbour(address) => assert!(state.neighbours.remove(address).is_some()),
        Step::SetForwarding(mac, address) => {
            on_link(state);
            state.forwarding.insert((*mac, *address));
        }
        Step::RemoveForwarding(mac, address) => assert!(state.forwarding.remove(&(*mac, *address))),
        Step::SetRoute(key, route) => {
            if let Some(source) = route.source {
                assert!(state.addresses.iter().any(|address| address.addr() == source), "{step:?}");
            }
            if let Target::Overlay(hops) = &route.target {
                on_link(state);
                assert!(hops.iter().all(|hop| state.neighbours.contains_key(hop)), "{step:?} leads nowhere");
            }
            state.routes.insert(*key, route.clone());
        }
        Step::RemoveRoute(key) => assert!(state.routes.remove(key).unwrap().ours),
        Step::AddRule(rule) => assert!(state.rules.insert(rule.clone())),
        Step::RemoveRule(rule) => assert!(state.rules.remove(rule)),
    }
}

fn topologies() -> impl Strategy<Value = Topology> {
    let states = prop_oneof![
        Just(None),
        Just(Some(GatewayState::Ready)),
        Just(Some(GatewayState::Doubtful)),
        Just(Some(GatewayState::Leaving))
    ];
    let gateways = proptest::collection::vec(states, 3);
    let peers = proptest::sample::subsequence(vec!["10.201.0.0/16", "10.202.0.0/16", "fd00:201::/32"], 0..=3);
    let nodes = proptest::sample::subsequence(vec!["n1", "n2"], 1..=2);
    (gateways, peers, nodes).prop_map(|(gateways, peers, nodes)| {
        let mut topology = topology();
        topology.nodes.retain(|name, _| nodes.contains(&name.as_str()));
        topology.gateways = (1..)
            .zip(gateways)
            .filter_map(|(number, state)| {
                let addresses = [format!("10.244.1.{number}"), format!("fd00:244:0:1::{number}")];
                Some((format!("g{number}"), gateway(&[&addresses[0], &addresses[1]], state?)))
            })
            .collect();
        let external = peers.iter().map(|_| net("198.51.100.0/24")).collect();
        topology.peers = BTreeMap::from([("p".into(), Peer { external, ..peer(&peers) })]);
        topology
    })
}

/// A state after somebody has been at it, foreign things included.
fn disturbed(desired: &Desired, damage: u16, settings: &Settings) -> Observed {
    let hit = |bit: u16| damage & (1 << bit) != 0;
    let mut state: Observed = State {
        link: desired.link.clone(),
        settings: desired.settings.clone(),
        addresses: desired.addresses.clone(),
        neighbours: desired.neighbours.clone(),
        forwarding: desired.forwarding.clone(),
        routes: desired.routes.clone(),
        rules: desired.rules.clone(),
        filter: desired.filter.as_ref().map(liquid_fabric::filter::Table::outline),
    };
    let foreign = Route { target: Target::Other, source: None, ours: false };
    state.routes.insert(RouteKey { table: TABLE_PEERS, prefix: net("203.0.113.0/24") }, foreign.clone());
    if let Some(link) = state.link.as_mut() {
        if hit(0) {
            link.mac = Mac([2; 6]);
        }
        if hit(1) {
            link.up = false;
        }
        if hit(2) {
            link.vni += 1;
        }
        if hit(3) {
            take(&mut state, &Step::RemoveLink(settings.overlay.clone()));
        }
    }
    if hit(4) {
        let _ = state.addresses.pop_first();
    }
    if hit(5) {
        let _ = state.neighbours.pop_first();
    }
    if hit(6) {
        let _ = state.forwarding.pop_last();
    }
    if hit(7)
        && let Some(route) = state.routes.values_mut().find(|route| route.ours)
    {
        *route = foreign;
    }
    if hit(8) {
        drop(state.rules.pop_first());
    }
    if hit(9) {
        state.filter = None;
    }
    if hit(10)
        && let Some(filter) = &mut state.filter
    {
        filter.chains.clear();
    }
    if hit(11) {
        let rule = Rule { v6: false, priority: 1, device: None, table: TABLE_PODS };
        state.rules.insert(rule);
        state.filter.get_or_insert_with(Outline::default).sets.clear();
    }
    if hit(12) && state.link.is_some() {
        state.addresses.insert(net("203.0.113.1/32"));
        state.neighbours.insert(ip("203.0.113.1"), Mac([2; 6]));
        state.forwarding.insert((Mac([2; 6]), ip("203.0.113.1")));
    }
    if hit(13) {
        for settings in state.settings.values_mut() {
            settings.forwarding = false;
        }
    }
    state
}

/// Devices of others that a plan counts on.
fn with_tunnel(mut state: Observed, place: &Place) -> Observed {
    if matches!(place, Place::Gateway(_)) {
        state.settings.entry("tunnel".into()).or_insert(DeviceSettings { forwarding: false, rp_filter: 1 });
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// From whatever anybody has left behind to whatever is wanted next, in steps each of which the kernel takes; then
    /// there is nothing left to do, and what is somebody else's is still there.
    #[test]
    fn steps_lead_from_any_state_to_what_is_wanted(
        before in topologies(), after in topologies(), damage in any::<u16>(), in_gateway in any::<bool>(),
        mtu in prop_oneof![Just(1500), Just(9000)],
    ) {
        let place = if in_gateway {
            Place::Gateway(vec![ip("10.244.1.1"), ip("fd00:244:0:1::1")])
        } else {
            Place::Node("n1".into())
        };
        let settings = settings();
        let before = plan(&before, &place, &settings, &host()).desired;
        let wanted = plan(&after, &place, &settings, &Host { path_mtu: Some(mtu), ..host() }).desired;
        let mut state = with_tunnel(disturbed(&before, damage, &settings), &place);
        // The kernel may take routes away with an address; the next look sees that.
        for _ in 0..3 {
            for step in diff(&wanted, &state) {
                take(&mut state, &step);
            }
        }
        prop_assert_eq!(diff(&wanted, &state), []);
        let foreign = RouteKey { table: TABLE_PEERS, prefix: net("203.0.113.0/24") };
        prop_assert!(state.routes.contains_key(&foreign));
        prop_assert_eq!(&state.link, &wanted.link);
        if wanted.link.is_none() {
            prop_assert!(state.rules.is_empty() && state.filter.is_none());
            prop_assert!(state.routes.values().all(|route| !route.ours));
        }
    }
}

#[test]
fn a_link_that_cannot_be_changed_is_made_anew_with_all_that_was_on_it() {
    let wanted = on_node(&topology()).desired;
    let mut state = disturbed(&wanted, 0, &settings());
    let link: &mut Link = state.link.as_mut().unwrap();
    link.port += 1;
    let steps = diff(&wanted, &state);
    let at = |piece: fn(&Step) -> bool| steps.iter().position(piece).unwrap();
    let removed = at(|step| matches!(step, Step::RemoveLink(_)));
    let added = at(|step| matches!(step, Step::AddLink(_)));
    let routed = at(|step| matches!(step, Step::SetRoute(..)));
    assert!(removed < added && added < routed);
}

#[test]
fn a_gateway_has_its_own_address_on_the_overlay_too() {
    let plan = in_gateway(&topology(), &host());
    assert_eq!(plan.desired.addresses, BTreeSet::from([net("10.244.1.5/32")]));
}
