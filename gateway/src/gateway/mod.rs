//! The gateway as a state machine: packets of the TUN device and datagrams of the network go in, datagrams and packets
//! come out. It reads no clock and owns no socket; `handle_*` feed it, `poll_*` ask what it wants.

mod configure;
mod egress;
mod ingress;

use crate::drops::Drops;
use crate::lanes::Lane;
use crate::nat::Remap;
use crate::packet::coalesce::Coalescer;
use crate::peer::{Peer, PeerConfig, PeerStatus};
use crate::prefix_map::PrefixMap;
use crate::transit::{Pods, Transit};
use crate::transmit::{Transmit, Transmits};
use crate::tunnel::{Context, Tunnel, Why};
use crate::wireguard::cookie::{Jar, Recipient};
use crate::wireguard::key::{PrivateKey, PublicKey};
use crate::wireguard::limiter::Limiter;
use crate::wireguard::message::DATA_OVERHEAD;
use crate::wireguard::random::Random;
use ipnet::IpNet;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Shortest tunnel MTU a path can bring about: a path that claims less lies (RFC 791 asks for 576 of every host, and
/// IPv6 for 1,280, which the kernel sees to).
const MIN_MTU: u16 = 576 - 60;
/// IPv4 and UDP headers.
const OUTER_V4: u16 = 28;
/// IPv6 and UDP headers.
const OUTER_V6: u16 = 48;

/// What a gateway is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its key.
    pub private_key: PrivateKey,
    /// What peers may send to: this cluster's own prefixes.
    pub local: Vec<IpNet>,
    /// The peers; names, prefixes as seen from here, and keys of all tunnels are unique.
    pub peers: Vec<PeerConfig>,
    /// What else is let through.
    pub transit: Transit,
}

/// Wall-clock time, which labels handshakes: at `instant` it was `since_epoch` after the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// On the clock that deadlines are measured with.
    pub instant: Instant,
    /// On the clock that other hosts know too.
    pub since_epoch: Duration,
}

/// What another lane of this gateway shall take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handoff {
    /// A datagram that is for it.
    Datagram {
        /// Which lane.
        lane: usize,
        /// Where it came from.
        from: SocketAddr,
        /// What it is.
        datagram: Vec<u8>,
    },
    /// A packet that is passed on to another peer, for the first lane: this one has no way to that.
    Onward(Vec<u8>),
}

/// What became of a packet of the TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Handled {
    /// It was sent, kept, answered or dropped.
    Here,
    /// It is as it was: this lane has no way to the peer that works, and the first shall take it.
    ByFirstLane,
}

/// The way to a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    peer: usize,
    remap: Remap,
    /// The tunnel whose other end it leads to, and not to pods.
    gateway: Option<usize>,
}

/// A gateway.
#[derive(Debug)]
pub struct Gateway {
    private_key: PrivateKey,
    jar: Jar,
    limiter: Limiter,
    random: Random,
    clock: Clock,
    peers: Vec<Option<Peer>>,
    tunnels: Vec<Option<Tunnel>>,
    /// Tunnels by the keys of their other ends, and by the indices of their sessions.
    by_key: HashMap<PublicKey, usize>,
    by_index: HashMap<u32, usize>,
    /// By prefix as seen from here.
    routes: PrefixMap<Route>,
    local: PrefixMap<()>,
    /// Places of peers between which packets are passed on, both ways, and the addresses between which they are.
    transit: HashSet<(usize, usize)>,
    outside: PrefixMap<()>,
    pods: Arc<Pods>,
    lane: Lane,
    /// What messages to each lane are authenticated with, and the message that tells the other ends of them.
    lanes: Vec<Recipient>,
    lanes_message: Vec<u8>,
    handoffs: VecDeque<Handoff>,
    /// What flows are told apart with.
    flow_seed: u64,
    standby: bool,
    transmits: Transmits,
    deliveries: Coalescer,
    answers: VecDeque<Vec<u8>>,
    answers_since: Instant,
    answers_given: u32,
    drops: Drops,
}

impl Gateway {
    /// A lane of a gateway, with no sessions. `seed` must be random; `datagrams` says whether the TUN device takes UDP
    /// super-packets. `config` is that of the lane; `first` is the key of the first one.
    #[must_use]
    pub fn new(
        config: Config,
        (lane, first): (Lane, &PrivateKey),
        seed: [u8; 32],
        clock: Clock,
        datagrams: bool,
    ) -> Self {
        let mut random = Random::new(seed);
        let now = clock.instant;
        let mut gateway = Self {
            jar: Jar::new(&config.private_key.public(), now, &mut random),
            private_key: config.private_key.clone(),
            limiter: Limiter::new(now),
            clock,
            peers: Vec::new(),
            tunnels: Vec::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            routes: PrefixMap::new([]),
            local: PrefixMap::new([]),
            transit: HashSet::new(),
            outside: PrefixMap::new([]),
            pods: Arc::default(),
            lane,
            lanes: Vec::new(),
            lanes_message: Vec::new(),
            handoffs: VecDeque::new(),
            flow_seed: u64::from(random.number()) << 32 | u64::from(random.number()),
            standby: false,
            random,
            transmits: Transmits::default(),
            deliveries: Coalescer::new(datagrams),
            answers: VecDeque::new(),
            answers_since: now,
            answers_given: 0,
            drops: Drops::default(),
        };
        gateway.know_lanes(first);
        gateway.configure(config, first, now);
        gateway
    }

    /// Says to all peers, now and with every probe, whether they should rather send elsewhere: this gateway is about to
    /// end, or not ready yet. What they send is forwarded in any case.
    pub fn set_standby(&mut self, standby: bool, now: Instant) {
        if std::mem::replace(&mut self.standby, standby) == standby {
            return;
        }
        for tunnel in self.tunnels.iter_mut().flatten() {
            tunnel.wake(now);
        }
        self.handle_timeout(now);
    }

    // --- Tunnels ---

    /// Does something with a tunnel and what it needs, and spreads flows anew if the tunnel is better or worse after it.
    fn with_tunnel<T>(
        &mut self,
        at: usize,
        now: Instant,
        act: impl FnOnce(&mut Tunnel, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let tunnel = self.tunnels.get_mut(at)?.as_mut()?;
        let peer = self.peers.get_mut(tunnel.peer)?.as_mut()?;
        let active = peer.is_active(now);
        let mut context = Context {
            transmits: &mut self.transmits,
            waiting: &mut peer.waiting,
            active,
            standby: self.standby,
            lanes: &self.lanes_message,
        };
        let done = act(tunnel, &mut context);
        let way = tunnel.way(now);
        if std::mem::replace(&mut tunnel.shown, way) != way {
            let peer = tunnel.peer;
            self.spread(peer);
        }
        Some(done)
    }

    fn spread(&mut self, peer: usize) {
        let Some(peer) = &mut self.peers[peer] else { return };
        let known = |at: &usize| self.tunnels[*at].as_ref().map(|tunnel| (*at, tunnel.number, tunnel.shown));
        let tunnels: Vec<_> = peer.tunnels.iter().filter_map(known).collect();
        peer.spread.over(&tunnels);
    }

    /// A packet passes to or from a peer: if it is the first after a pause, it is time to know which tunnels work.
    fn passes(&mut self, peer: usize, now: Instant) {
        let Some(peer) = &mut self.peers[peer] else { return };
        if peer.passes(now) {
            for at in &peer.tunnels {
                if let Some(tunnel) = &mut self.tunnels[*at] {
                    tunnel.wake(now);
                }
            }
        }
    }

    // --- Time ---

    /// When [`Gateway::handle_timeout`] wants to be called, and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Why)> {
        self.tunnels.iter().flatten().filter_map(Tunnel::poll_timeout).min_by_key(|(at, _)| *at)
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        for at in 0..self.tunnels.len() {
            let Some(tunnel) = &self.tunnels[at] else { continue };
            if tunnel.poll_timeout().is_none_or(|(due, _)| due > now) {
                continue;
            }
            let done = self.with_tunnel(at, now, |tunnel, context| tunnel.handle_timeout(now, context));
            let Some((handshake, retired)) = done else { continue };
            self.retire(&retired);
            if handshake {
                self.initiate(at, now);
            }
        }
    }

    // --- What comes out ---

    /// What to send to the network next.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        self.transmits.poll()
    }

    /// Forgets what [`Gateway::poll_transmit`] has returned.
    pub fn clear_transmits(&mut self) {
        self.transmits.clear();
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn transmit_bytes(&self) -> usize {
        self.transmits.bytes()
    }

    /// What to write to the TUN device; `buffer` is the one the datagrams came in.
    pub fn poll_deliveries(&mut self, buffer: &mut [u8]) -> &Coalescer {
        self.deliveries.finish(buffer);
        &self.deliveries
    }

    /// Forgets what [`Gateway::poll_deliveries`] has returned: the buffer may be used again.
    pub fn clear_deliveries(&mut self) {
        self.deliveries.clear();
    }

    /// What came here and another lane shall take.
    pub fn poll_handoff(&mut self) -> Option<Handoff> {
        self.handoffs.pop_front()
    }

    /// An answer of the gateway itself, to be written to the TUN device.
    pub fn poll_answer(&mut self) -> Option<Vec<u8>> {
        self.answers.pop_front()
    }

    // --- The path and the state ---

    /// Addresses that the path MTU is to be found for.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.tunnels.iter().flatten().filter_map(|tunnel| tunnel.endpoint)
    }

    /// The path to `address` carries IP packets of `mtu` bytes.
    pub fn handle_path_mtu(&mut self, address: IpAddr, mtu: u16) {
        let outer = if address.is_ipv4() { OUTER_V4 } else { OUTER_V6 };
        let overhead = u16::try_from(DATA_OVERHEAD).unwrap_or(u16::MAX);
        let inner = mtu.saturating_sub(outer).saturating_sub(overhead).max(MIN_MTU);
        for tunnel in self.tunnels.iter_mut().flatten() {
            if tunnel.endpoint.is_some_and(|endpoint| endpoint.ip() == address) {
                tunnel.path_mtu = Some(inner);
            }
        }
    }

    /// What was not forwarded, by reason.
    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// How the peers are.
    pub fn status(&self) -> impl Iterator<Item = PeerStatus> {
        self.peers.iter().flatten().map(|peer| {
            let tunnels = || peer.tunnels.iter().filter_map(|at| self.tunnels[*at].as_ref());
            let mut traffic = peer.past;
            tunnels().for_each(|tunnel| traffic += tunnel.traffic);
            PeerStatus { name: peer.name.clone(), traffic, tunnels: tunnels().map(Tunnel::status).collect() }
        })
    }
}
