//! A peer: another cluster, reached through the tunnels to its gateways.

use crate::nat::Remap;
use crate::prefix_map::PrefixMap;
use crate::spread::Spread;
use crate::tunnel::{Traffic, TunnelConfig, TunnelStatus, Waiting};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// So long after a packet the peer counts as talked to: longer than TCP waits at first before it sends again (RFC 6298:
/// 1 s, then 2 s).
const ACTIVE_FOR: Duration = Duration::from_secs(3);

/// What is known of a peer beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// For people, logs and metrics.
    pub name: String,
    /// Its prefixes.
    pub remaps: Vec<Remap>,
    /// Longest packet that is sent to it.
    pub mtu: u16,
    /// Its gateways. Any of them takes packets for any of its prefixes, and sends from any: translation keeps no state.
    pub tunnels: Vec<TunnelConfig>,
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// What went through all tunnels.
    pub traffic: Traffic,
    /// How these are.
    pub tunnels: Vec<TunnelStatus>,
}

/// A peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) remaps: Vec<Remap>,
    /// By real prefix, the position in `remaps`.
    sources: PrefixMap<usize>,
    /// Where its tunnels are.
    pub(crate) tunnels: Vec<usize>,
    pub(crate) spread: Spread,
    pub(crate) waiting: Waiting,
    /// What went through tunnels that are no more.
    pub(crate) past: Traffic,
    active_until: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            remaps: Vec::new(),
            sources: PrefixMap::default(),
            tunnels: Vec::new(),
            spread: Spread::default(),
            waiting: Waiting::default(),
            past: Traffic::default(),
            active_until: None,
        }
    }

    /// Takes over its prefixes.
    pub(crate) fn reconfigure(&mut self, remaps: Vec<Remap>) {
        self.sources = PrefixMap::new(remaps.iter().enumerate().map(|(at, remap)| (remap.real(), at)));
        self.remaps = remaps;
    }

    /// Where one of its addresses is seen.
    pub(crate) fn view(&self, real: IpAddr) -> Option<IpAddr> {
        self.sources.get(real).and_then(|remap| self.remaps[remap].to_view(real))
    }

    /// A packet passes to or from it; returns whether that begins after a pause.
    pub(crate) fn passes(&mut self, now: Instant) -> bool {
        let begins = !self.is_active(now);
        self.active_until = Some(now + ACTIVE_FOR);
        begins
    }

    /// Whether packets flow.
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.active_until.is_some_and(|until| now < until)
    }
}
