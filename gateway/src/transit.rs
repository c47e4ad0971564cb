//! Packets from one peer to another: which this gateway passes on.
//!
//! Both ends are pods of this cluster that run in peers; nothing else of a peer is behind this cluster for another one. What
//! was passed on is for a pod of the peer it goes to, so it is not passed on once more.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What is passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transit {
    /// Names of peers between which it is, both ways.
    pub between: BTreeSet<(String, String)>,
    /// Addresses, as seen from here, between which it is: those of this cluster's pods in peers.
    pub pods: Arc<HashSet<IpAddr>>,
}
