//! What peers may send besides what is for pods of this cluster: between pods of this cluster that run in peers, from one
//! peer to another, and from these to hosts outside.
//!
//! Nothing else of a peer is behind this cluster for another one. What was passed on is for a pod of the peer it goes to, so it
//! is not passed on once more.

use ipnet::IpNet;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What is let through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transit {
    /// Names of peers between which packets are passed on, both ways.
    pub between: BTreeSet<(String, String)>,
    /// Prefixes of hosts outside.
    pub outside: Vec<IpNet>,
    /// Who may send.
    pub pods: Arc<Pods>,
}

/// Addresses, as seen from here, of this cluster's pods in peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pods {
    /// Those between which packets are passed on.
    pub transit: HashSet<IpAddr>,
    /// Those that reach hosts outside.
    pub outward: HashSet<IpAddr>,
}
