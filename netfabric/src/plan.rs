//! From what the cluster says to what the kernel shall have: one function, without IO.

use crate::access::Guard;
use crate::filter::{Action, AddressSet, Base, Chain, Condition, Hook, Rule as FilterRule, Table};
use crate::state::{
    Desired, DeviceSettings, Link, Mac, Route, RouteKey, Rule, TABLE_PEERS, TABLE_PODS, Target, over_overlay,
};
use crate::topology::{Ends, Gateway, GatewayState, Host, Node, Peer, Place, Settings, Topology, like};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv6Addr};

/// IPv4 20, UDP 8, VXLAN 8 and Ethernet 14 bytes.
const OVERHEAD_V4: u32 = 50;
/// The same with an IPv6 header of 40 bytes.
const OVERHEAD_V6: u32 = 70;
/// Below this, IPv6 cannot be used at all (RFC 8200 section 5), and the kernel takes it off the device.
const LEAST_MTU: u32 = 1280;
/// Ahead of the source NAT of pod networks and of kube-proxy, which is at 100: the first chain that decides wins.
const BEFORE_MASQUERADE: i32 = 90;
/// Ahead of filters at the usual 0, which may accept what these chains drop; behind destination NAT.
const BEFORE_FILTERS: i32 = -10;
/// Name of the set of those who may send over the overlay: `SENDERS` of IPv4, `SENDERS6` of IPv6.
const SENDERS: &str = "senders";
const SENDERS6: &str = "senders6";
/// Name of the chain about what is sent to hosts outside of this cluster.
const OUTWARD: &str = "outward";

/// What shall be, and what stands in the way.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// What the kernel shall have.
    pub desired: Desired,
    /// What somebody has to see to.
    pub problems: BTreeSet<Problem>,
}

/// Something that keeps traffic from flowing and that this program must not or cannot change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The Node has no internal address, or is unknown.
    #[error("the address of this node is not known: its Node object has no InternalIP")]
    NoAddress,
    /// The address of the node is not here.
    #[error("{0} is on no device here: the overlay needs the address by which the cluster knows this host")]
    AddressNotLocal(IpAddr),
    /// The Node has no part of the pods' addresses.
    #[error(
        "node {node} has no {family} podCIDR: replies from peers would not find it. Pod networks with an address \
         management of their own are not supported; let the controller manager allocate node CIDRs"
    )]
    NoPodCidr {
        /// The node.
        node: String,
        /// IPv4 or IPv6.
        family: &'static str,
    },
    /// A prefix of a peer would swallow addresses of this cluster.
    #[error("prefix {prefix} of peer {peer} is not routed: it covers {covered}, which is in this cluster")]
    PrefixInUse {
        /// The peer.
        peer: String,
        /// Its prefix.
        prefix: IpNet,
        /// What it covers.
        covered: IpNet,
    },
    /// No gateway runs.
    #[error("no gateway pod runs: peers cannot be reached")]
    NoGateway,
    /// The tunnel device is not there.
    #[error("device {0} is not there: liquid-gateway has not made it yet")]
    NoTunnel(String),
    /// The node, or the gateway's pod, does not forward.
    #[error(
        "{family} is not forwarded here: pods cannot reach peers by it; set sysctl {sysctl}=1 (in gateways, network.ipv6 of the chart does)"
    )]
    NoForwarding {
        /// IPv4 or IPv6.
        family: &'static str,
        /// What to set.
        sysctl: &'static str,
    },
    /// The path is too narrow.
    #[error(
        "a packet over the overlay may have {0} bytes only, and IPv6 needs 1280: raise the MTU of the pod network"
    )]
    NarrowPath(u32),
    /// The pods of this node cannot be read.
    #[error(
        "nothing here lets in connections from peers whose Peer has spec.network.access: pods and namespaces cannot be read; \
         liquid-fabric needs list and watch of both in all namespaces"
    )]
    UnknownPods,
    /// What a peer may reach cannot be read.
    #[error("nothing here lets in connections from peer {peer}: spec.network.access of the Peer has {why}")]
    UnreadableAccess {
        /// The peer.
        peer: String,
        /// What is wrong.
        why: String,
    },
}

impl Problem {
    /// A word for metrics and events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoAddress => "NoAddress",
            Self::AddressNotLocal(_) => "AddressNotLocal",
            Self::NoPodCidr { .. } => "NoPodCidr",
            Self::PrefixInUse { .. } => "PrefixInUse",
            Self::NoGateway => "NoGateway",
            Self::NoTunnel(_) => "NoTunnel",
            Self::NoForwarding { .. } => "NoForwarding",
            Self::NarrowPath(_) => "NarrowPath",
            Self::UnreadableAccess { .. } => "UnreadableAccess",
            Self::UnknownPods => "UnknownPods",
        }
    }

    /// All words, so that metrics can say that a problem is not there.
    pub const REASONS: [&'static str; 10] = [
        "NoAddress",
        "AddressNotLocal",
        "NoPodCidr",
        "PrefixInUse",
        "NoGateway",
        "NoTunnel",
        "NoForwarding",
        "NarrowPath",
        "UnreadableAccess",
        "UnknownPods",
    ];
}

/// Works out what the kernel at `place` shall have. Without peers, that is nothing at all.
#[must_use]
pub fn plan(topology: &Topology, place: &Place, settings: &Settings, host: &Host) -> Plan {
    let mut plan = Plan::default();
    let ends = topology.ends(place);
    let prefixes = routable(topology, place, ends.as_ref(), &mut plan.problems);
    if prefixes.is_empty() {
        return plan;
    }
    let Some(ends) = ends else {
        plan.problems.insert(Problem::NoAddress);
        return plan;
    };
    let Some(path_mtu) = host.path_mtu else {
        plan.problems.insert(Problem::AddressNotLocal(ends.local));
        return plan;
    };
    let overhead = if ends.local.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
    let mtu = path_mtu.saturating_sub(overhead);
    if mtu < LEAST_MTU {
        plan.problems.insert(Problem::NarrowPath(mtu));
    }
    let desired = &mut plan.desired;
    desired.link = Some(Link {
        name: settings.overlay.clone(),
        vni: settings.vni,
        port: settings.port,
        local: ends.local,
        learning: false,
        mac: Mac::of(ends.local),
        mtu,
        up: true,
    });
    desired.settings.insert(settings.overlay.clone(), DeviceSettings::WANTED);
    if let IpAddr::V6(own) = over_overlay(ends.local) {
        desired.addresses.insert(Ipv6Net::new_assert(own, 64).into());
    }
    let families: BTreeSet<bool> = prefixes.iter().map(is_v6).collect();
    for remote in &ends.remotes {
        let mac = Mac::of(*remote);
        desired.forwarding.insert((mac, *remote));
        desired.neighbours.extend(families.iter().filter_map(|v6| Some((next_hop(*remote, *v6)?, mac))));
    }
    for v6 in &families {
        let rule = Rule { v6: *v6, priority: settings.rule_priority, device: None, table: TABLE_PEERS };
        desired.rules.insert(rule);
    }
    match place {
        Place::Node(name) => {
            node(&mut plan, topology, name, &prefixes, ends.local, settings, host);
        }
        Place::Gateway(_) => gateway(&mut plan, topology, &prefixes, &families, &ends, settings, host),
    }
    let sysctls = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
    for v6 in families {
        // For IPv4 it is enough that the devices of a gateway forward, which is seen to. For IPv6 there is no such thing.
        let needed = v6 || matches!(place, Place::Node(_));
        if needed && !host.forwarding[usize::from(v6)] {
            let (family, sysctl) = (family_name(v6), sysctls[usize::from(v6)]);
            plan.problems.insert(Problem::NoForwarding { family, sysctl });
        }
    }
    plan
}

/// The prefixes of peers that can be routed without cutting this cluster off from itself. The rules of the overlay come
/// before all other routes, so that a prefix that is too wide would do just that.
fn routable(
    topology: &Topology,
    place: &Place,
    ends: Option<&Ends>,
    problems: &mut BTreeSet<Problem>,
) -> BTreeSet<IpNet> {
    let own = |addresses: &Vec<IpAddr>| addresses.iter().copied().map(IpNet::from).collect::<Vec<_>>();
    let mut used: Vec<IpNet> = Vec::new();
    for node in topology.nodes.values() {
        used.extend(own(&node.addresses));
        used.extend(&node.pod_cidrs);
    }
    for gateway in topology.gateways.values() {
        used.extend(own(&gateway.addresses));
        used.extend(own(&gateway.hosts));
    }
    if let Place::Gateway(addresses) = place {
        used.extend(own(addresses));
    }
    used.extend(ends.map(|ends| IpNet::from(ends.local)));
    // Never anybody's pods: loopback, link-local, multicast.
    let reserved = ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::1/128", "fe80::/10", "ff00::/8"];
    used.extend(reserved.iter().filter_map(|prefix| prefix.parse::<IpNet>().ok()));

    let mut routable = BTreeSet::new();
    for (peer, Peer { prefixes, .. }) in &topology.peers {
        for prefix in prefixes {
            let overlaps = |used: &&IpNet| used.contains(prefix) || prefix.contains(*used);
            if let Some(covered) = used.iter().find(overlaps) {
                let (peer, prefix, covered) = (peer.clone(), *prefix, *covered);
                problems.insert(Problem::PrefixInUse { peer, prefix, covered });
            } else {
                routable.insert(prefix.trunc());
            }
        }
    }
    routable
}

/// A node: to peers over any gateway, under a source address that they can answer to.
fn node(
    plan: &mut Plan,
    topology: &Topology,
    name: &str,
    prefixes: &BTreeSet<IpNet>,
    local: IpAddr,
    settings: &Settings,
    host: &Host,
) {
    let Some(node) = topology.nodes.get(name) else { return };
    let used = usable(&topology.gateways, &host.dead);
    if used.is_empty() {
        plan.problems.insert(Problem::NoGateway);
    }
    let addresses = [false, true].map(|v6| own_address(node, v6));
    let with_address = |prefix: &&IpNet| addresses[usize::from(is_v6(prefix))].is_some();
    for prefix in prefixes {
        let v6 = is_v6(prefix);
        let hops: BTreeSet<_> = reaching(&used, topology, prefix)
            .filter_map(|gateway| next_hop(like(&gateway.addresses, local)?, v6))
            .collect();
        let source = addresses[usize::from(v6)];
        if source.is_none() {
            let (node, family) = (name.to_owned(), family_name(v6));
            plan.problems.insert(Problem::NoPodCidr { node, family });
        }
        let target =
            if hops.is_empty() || source.is_none() { Target::Unreachable } else { Target::Overlay(hops) };
        let source = source.filter(|_| target != Target::Unreachable);
        let key = RouteKey { table: TABLE_PEERS, prefix: *prefix };
        plan.desired.routes.insert(key, Route { target, source, ours: true });
    }
    for prefix in prefixes.iter().filter(with_address) {
        plan.desired.addresses.extend(addresses[usize::from(is_v6(prefix))].map(IpNet::from));
    }
    let gateways = topology.gateways.values();
    let senders = gateways.flat_map(|gateway| gateway.addresses.iter().chain(&gateway.hosts)).copied();
    let guard = guarded(topology, settings, &mut plan.problems);
    let outward = outward(topology, prefixes, settings);
    plan.desired.filter =
        Some(node_filter(node, addresses, senders.collect(), local, settings, guard, outward));
}

/// The rules about what pods of peers send to hosts outside of this cluster.
#[derive(Default)]
struct Outward {
    /// What comes in for them leads to the chain.
    forward: Vec<FilterRule>,
    /// It lets in what comes from where pods of this cluster may be: which of these are is for the gateways to know.
    chain: Option<Chain>,
    /// These hosts answer to this node, as they do to pods here.
    source: Vec<FilterRule>,
}

fn outward(topology: &Topology, routed: &BTreeSet<IpNet>, settings: &Settings) -> Outward {
    let mut outward = Outward::default();
    // Rules of access are about pods: whom they keep from something is kept from all of this.
    let offered = topology.peers.values().filter(|peer| peer.access.is_none() && !peer.external.is_empty());
    let (mut hosts, mut senders) = (BTreeSet::new(), BTreeSet::new());
    for peer in offered {
        hosts.extend(peer.external.iter().map(IpNet::trunc));
        senders.extend(peer.pods.iter().map(IpNet::trunc).filter(|prefix| routed.contains(prefix)));
    }
    if hosts.is_empty() {
        return outward;
    }
    for prefix in hosts {
        let when = || vec![Condition::InDevice(settings.overlay.clone()), Condition::Destination(prefix)];
        outward.forward.push(FilterRule { when: when(), action: Action::Jump(OUTWARD.to_owned()) });
        outward.source.push(FilterRule { when: when(), action: Action::Masquerade });
    }
    let mut rules = vec![FilterRule { when: vec![Condition::Invalid], action: Action::Drop }];
    rules.extend(
        senders
            .into_iter()
            .map(|prefix| FilterRule { when: vec![Condition::Source(prefix)], action: Action::Accept }),
    );
    // Answers of pods of others to such a host, which has called a node port, have been let in.
    rules.push(FilterRule { when: vec![Condition::Unconnected], action: Action::Drop });
    outward.chain = Some(Chain { name: OUTWARD.to_owned(), base: None, rules });
    outward
}

/// The node by which a prefix of hosts outside is reached, the same one from all gateways: connections last as long as it does.
/// Those that do not say that they work are used if there is no other.
fn way_out(topology: &Topology, prefix: &IpNet, local: IpAddr) -> Option<IpAddr> {
    let ways = topology.nodes.iter().filter_map(|(name, node)| {
        own_address(node, is_v6(prefix))?;
        let mut hasher = DefaultHasher::new();
        (prefix.to_string(), name).hash(&mut hasher);
        Some((node.ready, hasher.finish(), like(&node.addresses, local)?))
    });
    ways.max().map(|(_, _, underlay)| underlay)
}

/// What keeps peers from what they may not reach.
fn guarded(topology: &Topology, settings: &Settings, problems: &mut BTreeSet<Problem>) -> Guard {
    let inside = Condition::InDevice(settings.overlay.clone());
    let mut guard = Guard::default();
    if topology.peers.values().any(|peer| peer.access.is_some()) {
        // From nobody that is known, or not yet: whom the rules are about is not to be told by other sources.
        for v6 in [false, true] {
            let all = topology.peers.values().flat_map(|peer| &peer.prefixes).filter(|it| is_v6(it) == v6);
            let mut when = vec![inside.clone(), Condition::Family { v6 }, Condition::Unconnected];
            when.extend(all.map(|prefix| Condition::NotSource(prefix.trunc())));
            guard.jumps.push(FilterRule { when, action: Action::Drop });
        }
    }
    for (peer, Peer { prefixes, access, .. }) in &topology.peers {
        let Some(access) = access else { continue };
        if topology.pods.unknown {
            problems.insert(Problem::UnknownPods);
        }
        if let Some(why) = access.unreadable() {
            problems.insert(Problem::UnreadableAccess { peer: peer.clone(), why: why.to_owned() });
        }
        guard.add(&inside, peer, prefixes, access, &topology.pods);
    }
    guard
}

/// The gateways to use: those that are ready and answer; if there is none, those that are about to end and still answer,
/// then those that may be ready and answer. If none answers, the fault may be with who asks: no reason to give all of them
/// up.
fn usable<'a>(
    gateways: &'a BTreeMap<String, Gateway>,
    dead: &BTreeSet<IpAddr>,
) -> Vec<(&'a str, &'a Gateway)> {
    let all = |state, answers| {
        let is_dead = |gateway: &Gateway| gateway.addresses.iter().any(|address| dead.contains(address));
        let fits = |gateway: &Gateway| gateway.state == state && is_dead(gateway) != answers;
        let chosen = gateways.iter().filter(|(_, gateway)| fits(gateway));
        chosen.map(|(name, gateway)| (name.as_str(), gateway)).collect::<Vec<_>>()
    };
    use GatewayState::{Doubtful, Leaving, Ready};
    let choices = [(Ready, true), (Leaving, true), (Doubtful, true), (Ready, false), (Doubtful, false)];
    let mut choices = choices.into_iter().map(|(state, answers)| all(state, answers));
    choices.find(|gateways| !gateways.is_empty()).unwrap_or_default()
}

/// Of these gateways, those that do not say that they do not reach the peer behind `prefix`; all, if all say so.
fn reaching<'a>(
    used: &[(&str, &'a Gateway)],
    topology: &Topology,
    prefix: &IpNet,
) -> impl Iterator<Item = &'a Gateway> {
    let peer = topology.peers.values().find(|peer| peer.prefixes.iter().any(|seen| seen.trunc() == *prefix));
    let reaches = |name: &str| peer.is_none_or(|peer| !peer.unreached_by.contains(name));
    let any = used.iter().any(|(name, _)| reaches(name));
    let chosen: Vec<_> = used.iter().filter(|(name, _)| !any || reaches(name)).map(|(_, it)| *it).collect();
    chosen.into_iter()
}

/// The address a node answers to in the overlay: the first one of its pod CIDR, which no pod gets, as it is the address of
/// the network. Peers reach it like any pod of the node, so that nothing else needs to be known of it.
fn own_address(node: &Node, v6: bool) -> Option<IpAddr> {
    node.pod_cidrs.iter().find(|prefix| is_v6(prefix) == v6).map(IpNet::network)
}

fn node_filter(
    node: &Node,
    addresses: [Option<IpAddr>; 2],
    senders: BTreeSet<IpAddr>,
    local: IpAddr,
    settings: &Settings,
    access: Guard,
    outward: Outward,
) -> Table {
    let inside = || Condition::InDevice(settings.overlay.clone());
    let outside = || Condition::OutDevice(settings.overlay.clone());
    let rule = |when: Vec<Condition>, action| FilterRule { when, action };
    // What is for an end of the overlay itself are probes, which are answered to the address that the overlay knows.
    let v6 = local.is_ipv6();
    let probe = if v6 {
        // Nothing else is sent to such addresses: they are not routed.
        Condition::Destination(IpNet::new_assert(Ipv6Addr::from([0xfe80, 0, 0, 0, 0, 0, 0, 0]).into(), 10))
    } else {
        Condition::DestinationIn { v6, set: set_of(local).to_owned() }
    };
    let mut source = vec![rule(vec![outside(), probe], Action::KeepSource { v6 })];
    let mut input = vec![guard(local, settings)];
    // Of what passes through, that of the pods here: each node sees to its own, and none knows all others, which send to
    // the gateways here.
    let pods = node.pod_cidrs.iter().filter(|prefix| is_v6(prefix) == local.is_ipv6());
    source.extend(outward.source);
    let mut forward: Vec<_> = pods
        .map(|prefix| {
            let FilterRule { mut when, action } = guard(local, settings);
            when.push(Condition::Source(prefix.trunc()));
            rule(when, action)
        })
        .collect();
    forward.extend(outward.forward);
    for (v6, own) in [(false, addresses[0]), (true, addresses[1])] {
        let Some(own) = own else { continue };
        let keep = || Action::KeepSource { v6 };
        let prefixes: Vec<_> =
            node.pod_cidrs.iter().filter(|prefix| is_v6(prefix) == v6).map(IpNet::trunc).collect();
        // Pods of this node keep their address. Everybody else's replies have to come back here: a pod of another node
        // that was led through here, a client of a node port, this node.
        source
            .extend(prefixes.iter().map(|prefix| rule(vec![outside(), Condition::Source(*prefix)], keep())));
        source.push(rule(vec![outside(), Condition::Family { v6 }], Action::Source(own)));
        // Pods here see who calls. Where a Service leads on to another node, kube-proxy has its way.
        source.extend(
            prefixes.iter().map(|prefix| rule(vec![inside(), Condition::Destination(*prefix)], keep())),
        );
        // Pods of peers reach pods of this node. Nothing else: not the node (but for ping), nor what is behind it.
        input.push(rule(vec![inside(), Condition::Icmp { v6 }], Action::Accept));
        input.push(rule(vec![inside(), Condition::Family { v6 }, Condition::Unconnected], Action::Drop));
        let mut elsewhere = vec![inside(), Condition::Family { v6 }, Condition::Unconnected];
        elsewhere.extend(prefixes.into_iter().map(Condition::NotDestination));
        forward.push(rule(elsewhere, Action::Drop));
    }
    forward.extend(access.jumps);
    let mut chains = vec![
        base("input", Hook::Input, BEFORE_FILTERS, input),
        base("forward", Hook::Forward, BEFORE_FILTERS, forward),
        base("postrouting", Hook::Source, BEFORE_MASQUERADE, source),
    ];
    chains.extend(outward.chain);
    chains.extend(access.chains);
    let mut sets = sender_set(senders, local);
    sets.extend(access.sets);
    Table { chains, sets }
}

fn base(name: &str, hook: Hook, priority: i32, rules: Vec<FilterRule>) -> Chain {
    Chain { name: name.to_owned(), base: Some(Base { hook, priority }), rules }
}

/// Only the ends of the overlay may speak VXLAN: whoever else can send UDP here, a pod for instance, could pass as any
/// address of any cluster.
fn guard(local: IpAddr, settings: &Settings) -> FilterRule {
    let (v6, set) = (local.is_ipv6(), set_of(local).to_owned());
    let overlay = [Condition::UdpPort(settings.port), Condition::Vni(settings.vni)];
    let when = overlay.into_iter().chain([Condition::SourceNotIn { v6, set }]).collect();
    FilterRule { when, action: Action::Drop }
}

/// The name of the set of those who may send over the overlay.
fn set_of(local: IpAddr) -> &'static str {
    if local.is_ipv6() { SENDERS6 } else { SENDERS }
}

fn sender_set(senders: BTreeSet<IpAddr>, local: IpAddr) -> BTreeMap<String, AddressSet> {
    let v6 = local.is_ipv6();
    let addresses = senders.into_iter().filter(|address| address.is_ipv6() == v6).collect();
    BTreeMap::from([(set_of(local).to_owned(), AddressSet { v6, addresses })])
}

/// A gateway: what nodes send goes into the tunnel, what comes out of it goes to the node of the pod.
fn gateway(
    plan: &mut Plan,
    topology: &Topology,
    prefixes: &BTreeSet<IpNet>,
    families: &BTreeSet<bool>,
    ends: &Ends,
    settings: &Settings,
    host: &Host,
) {
    let desired = &mut plan.desired;
    // The pod's own address, once more: what comes in for the gateway itself by a device without any address passes no
    // reverse-path filter, be it loose.
    desired.addresses.insert(IpNet::from(ends.local));
    if host.tunnel {
        desired.settings.insert(settings.tunnel.clone(), DeviceSettings::WANTED);
    } else {
        plan.problems.insert(Problem::NoTunnel(settings.tunnel.clone()));
    }
    let mut route = |table, prefix, target| {
        desired.routes.insert(RouteKey { table, prefix }, Route { target, source: None, ours: true });
    };
    for prefix in prefixes {
        // Without the tunnel, nothing may turn back to the pod network.
        let target = if host.tunnel { Target::Device(settings.tunnel.clone()) } else { Target::Unreachable };
        route(TABLE_PEERS, *prefix, target);
    }
    for v6 in families {
        // What is for none of the pods here must not reach the nodes' networks.
        route(TABLE_PODS, everything(*v6), Target::Unreachable);
    }
    for node in topology.nodes.values() {
        let Some(underlay) = like(&node.addresses, ends.local) else { continue };
        for prefix in node.pod_cidrs.iter().filter(|prefix| families.contains(&is_v6(prefix))) {
            let hop = next_hop(underlay, is_v6(prefix));
            route(TABLE_PODS, prefix.trunc(), Target::Overlay(hop.into_iter().collect()));
        }
    }
    let external = topology.peers.values().flat_map(|peer| &peer.external);
    for prefix in external.filter(|prefix| families.contains(&is_v6(prefix))) {
        let hop = way_out(topology, prefix, ends.local).and_then(|node| next_hop(node, is_v6(prefix)));
        let target = hop.map_or(Target::Unreachable, |hop| Target::Overlay([hop].into()));
        route(TABLE_PODS, prefix.trunc(), target);
    }
    // What comes out of the tunnel. And what nodes send, when no route of a peer takes it: the tunnel's routes are gone with it, before
    // anybody hears of it, and until then nothing must leave by the pod's default route, which leads back to the node that sent it.
    for (device, after) in [(&settings.tunnel, 0), (&settings.overlay, 1)] {
        desired.rules.extend(families.iter().map(|v6| Rule {
            v6: *v6,
            priority: settings.rule_priority + after,
            device: Some(device.clone()),
            table: TABLE_PODS,
        }));
    }
    // Some pod networks let nodes send under the first addresses of their pod CIDR (flannel, bridges): no pod has these.
    let nodes = topology.nodes.values();
    let senders = nodes.flat_map(|node| {
        let first = node.pod_cidrs.iter().flat_map(|prefix| [Some(prefix.network()), prefix.hosts().next()]);
        node.addresses.iter().copied().chain(first.flatten())
    });
    let input = vec![guard(ends.local, settings)];
    desired.filter = Some(Table {
        chains: vec![base("input", Hook::Input, BEFORE_FILTERS, input)],
        sets: sender_set(senders.collect(), ends.local),
    });
}

/// The next hop that stands for an end of the overlay, with a neighbour of that address: its own address if the family
/// fits, as with flannel; so the overlay needs no addresses of its own. For IPv6 always the link-local address.
fn next_hop(underlay: IpAddr, v6: bool) -> Option<IpAddr> {
    if v6 {
        Some(Mac::of(underlay).link_local().into())
    } else {
        // IPv4 over IPv6: Kubernetes has no cluster whose pods have IPv4 while its nodes have none.
        Some(underlay).filter(IpAddr::is_ipv4)
    }
}

fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

fn family_name(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

fn everything(v6: bool) -> IpNet {
    if v6 { Ipv6Net::default().into() } else { Ipv4Net::default().into() }
}
