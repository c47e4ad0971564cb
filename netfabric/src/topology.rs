//! What the cluster says: nodes, gateways, and where peers are seen.

use crate::access::{Access, Pods};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything the overlay depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Nodes by name. On a node only its own is needed.
    pub nodes: BTreeMap<String, Node>,
    /// Gateway pods by name.
    pub gateways: BTreeMap<String, Gateway>,
    /// Peers by name.
    pub peers: BTreeMap<String, Peer>,
    /// Pods of this node, while what a peer may reach depends on them.
    pub pods: Pods,
}

/// A peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Prefixes at which this cluster sees what is reached through it.
    pub prefixes: BTreeSet<IpNet>,
    /// Those of its own pods.
    pub pods: BTreeSet<IpNet>,
    /// Prefixes of hosts outside of this cluster that pods of this cluster reach through it when they run there.
    pub external: BTreeSet<IpNet>,
    /// Gateways that say that they do not reach it.
    pub unreached_by: BTreeSet<String>,
    /// UID of the Peer.
    pub uid: Option<String>,
    /// What it may reach here; everything, if none.
    pub access: Option<Access>,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its internal addresses.
    pub addresses: Vec<IpAddr>,
    /// Its part of the pods' addresses.
    pub pod_cidrs: Vec<IpNet>,
    /// It says that it works.
    pub ready: bool,
}

/// A gateway pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The addresses of its node: pod networks may send its packets under these.
    pub hosts: Vec<IpAddr>,
    /// Whether it takes packets.
    pub state: GatewayState,
}

/// Whether a gateway takes packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatewayState {
    /// It says that it does.
    Ready,
    /// It is said not to be ready. It is used when no other is: the statement may be that of a control plane that has lost
    /// sight of its nodes.
    Doubtful,
    /// It is about to end, and forwards what comes until then.
    Leaving,
}

/// Where this process works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the node of this name.
    Node(String),
    /// In the gateway pod with these addresses.
    Gateway(Vec<IpAddr>),
}

/// What is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the overlay device.
    pub overlay: String,
    /// Name of the tunnel device of a gateway.
    pub tunnel: String,
    /// UDP port of the overlay.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Priority of the policy rules.
    pub rule_priority: u32,
    /// UDP port at which gateways answer probes, over the overlay only.
    pub probe_port: u16,
}

/// What this host says of itself, and what it finds around it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Longest packet that all paths below the overlay take; none if the own address is on no device here.
    pub path_mtu: Option<u32>,
    /// Whether the tunnel device is there, and up.
    pub tunnel: bool,
    /// Whether packets are forwarded at all: IPv4 and IPv6.
    pub forwarding: [bool; 2],
    /// Gateways that do not answer probes.
    pub dead: BTreeSet<IpAddr>,
}

/// The ends of the overlay, as seen from one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// The own address.
    pub local: IpAddr,
    /// The others.
    pub remotes: BTreeSet<IpAddr>,
}

impl Topology {
    /// The ends of the overlay; none as long as the own address is not known.
    #[must_use]
    pub fn ends(&self, place: &Place) -> Option<Ends> {
        let (own, others): (&[IpAddr], Vec<&[IpAddr]>) = match place {
            Place::Node(name) => (
                &self.nodes.get(name)?.addresses,
                self.gateways.values().map(|gateway| gateway.addresses.as_slice()).collect(),
            ),
            Place::Gateway(addresses) => {
                (addresses, self.nodes.values().map(|node| node.addresses.as_slice()).collect())
            }
        };
        let local = underlay(own)?;
        let remotes = others.into_iter().filter_map(|addresses| like(addresses, local)).collect();
        Some(Ends { local, remotes })
    }
}

/// The address an end is reached at: IPv4 if it has one. Nodes and pods of a cluster have the same families, so that all
/// ends choose the same.
fn underlay(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().find(|address| address.is_ipv4()).or_else(|| addresses.first()).copied()
}

/// The first address of the family of `local`.
pub(crate) fn like(addresses: &[IpAddr], local: IpAddr) -> Option<IpAddr> {
    addresses.iter().find(|address| address.is_ipv4() == local.is_ipv4()).copied()
}
