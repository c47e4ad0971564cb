//! The gateway as a state machine: packets of the TUN device and datagrams of the network go in, datagrams and packets
//! come out. It reads no clock and owns no socket; `handle_*` feed it, `poll_*` ask what it wants.

use crate::drops::{Drop, Drops};
use crate::nat::{End, Quoted, Remap, Transport, rewrite, rewrite_quoted};
use crate::packet::coalesce::Coalescer;
use crate::packet::fragment::Fragments;
use crate::packet::ip::Ip;
use crate::packet::segment::{Segments, finish_checksum};
use crate::packet::vnet::Offload;
use crate::packet::{mss, too_big};
use crate::peer::{Peer, PeerConfig, Retired, Traffic, Why};
use crate::prefix_map::PrefixMap;
use crate::transmit::{Transmit, Transmits};
use crate::wireguard::cookie::Jar;
use crate::wireguard::handshake::{Responder, timestamp};
use crate::wireguard::key::{PrivateKey, PublicKey};
use crate::wireguard::limiter::{Limiter, Verdict};
use crate::wireguard::message::{DATA_HEADER, DATA_OVERHEAD, INITIATION, Message};
use crate::wireguard::random::Random;
use crate::wireguard::session::{Refused, Session};
use ipnet::IpNet;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Answers to packets that are too big, per second: each flow needs one, and a flood none.
const ANSWERS_PER_SECOND: u32 = 200;
/// Answers that wait to be written, of 1,280 bytes at most.
const MAX_ANSWERS: usize = 32;
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
    /// The peers; names, keys and prefixes as seen from here are unique.
    pub peers: Vec<PeerConfig>,
}

/// Wall-clock time, which labels handshakes: at `instant` it was `since_epoch` after the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// On the clock that deadlines are measured with.
    pub instant: Instant,
    /// On the clock that other hosts know too.
    pub since_epoch: Duration,
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Where it was heard of last, or is expected.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed.
    pub last_handshake: Option<Instant>,
    /// When an authentic packet came last.
    pub last_heard: Option<Instant>,
    /// Longest packet that is sent to it.
    pub mtu: u16,
    /// What went through.
    pub traffic: Traffic,
}

/// The way to a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    peer: usize,
    remap: Remap,
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
    by_key: HashMap<PublicKey, usize>,
    by_index: HashMap<u32, usize>,
    /// By prefix as seen from here.
    routes: PrefixMap<Route>,
    local: PrefixMap<()>,
    transmits: Transmits,
    deliveries: Coalescer,
    answers: VecDeque<Vec<u8>>,
    answers_since: Instant,
    answers_given: u32,
    drops: Drops,
}

impl Gateway {
    /// A gateway with no sessions. `seed` must be random; `datagrams` says whether the TUN device takes UDP
    /// super-packets.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32], clock: Clock, datagrams: bool) -> Self {
        let mut random = Random::new(seed);
        let now = clock.instant;
        let mut gateway = Self {
            jar: Jar::new(&config.private_key.public(), now, &mut random),
            private_key: config.private_key.clone(),
            limiter: Limiter::new(now),
            random,
            clock,
            peers: Vec::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            routes: PrefixMap::new([]),
            local: PrefixMap::new([]),
            transmits: Transmits::default(),
            deliveries: Coalescer::new(datagrams),
            answers: VecDeque::new(),
            answers_since: now,
            answers_given: 0,
            drops: Drops::default(),
        };
        gateway.configure(config, now);
        gateway
    }

    /// Takes over another configuration. Peers are known by name: sessions go on, also with a peer whose key changes,
    /// and with all of them when the own key does, until the next handshake, which uses the new keys. Peers that are
    /// new and have an endpoint and a keepalive interval are called at once.
    pub fn configure(&mut self, config: Config, now: Instant) {
        if config.private_key != self.private_key {
            self.jar = Jar::new(&config.private_key.public(), now, &mut self.random);
            self.private_key = config.private_key;
        }
        self.local = PrefixMap::new(config.local.into_iter().map(|prefix| (prefix, ())));
        for slot in &mut self.peers {
            let stays = |peer: &mut Peer| !config.peers.iter().any(|wanted| wanted.name == peer.config.name);
            if let Some(gone) = slot.take_if(stays) {
                for index in gone.indices() {
                    self.by_index.remove(&index);
                }
            }
        }
        let mut new = Vec::new();
        for wanted in config.peers {
            let known = self.peers.iter_mut().flatten().find(|peer| peer.config.name == wanted.name);
            if let Some(peer) = known {
                peer.reconfigure(wanted);
                continue;
            }
            let call = wanted.endpoint.is_some() && wanted.keepalive.is_some();
            let at = self.peers.iter().position(Option::is_none).unwrap_or(self.peers.len());
            if at == self.peers.len() {
                self.peers.push(None);
            }
            self.peers[at] = Some(Peer::new(wanted));
            new.extend(Some(at).filter(|_| call));
        }
        let peers =
            || self.peers.iter().enumerate().filter_map(|(at, peer)| Some((at, &peer.as_ref()?.config)));
        self.by_key = peers().map(|(at, config)| (config.public_key, at)).collect();
        let route = |(peer, config): (usize, &PeerConfig)| {
            let routes = config.remaps.iter().map(move |remap| (remap.view(), Route { peer, remap: *remap }));
            routes.collect::<Vec<_>>()
        };
        self.routes = PrefixMap::new(peers().flat_map(route));
        for peer in new {
            self.initiate(peer, now);
        }
    }

    // --- From the TUN device ---

    /// Takes a packet of the TUN device: sends it to the peer that has its destination.
    pub fn handle_packet(&mut self, now: Instant, offload: Offload, packet: &mut [u8]) {
        if let Err(reason) = self.send(now, offload, packet) {
            self.drops.count(reason);
        }
    }

    fn send(&mut self, now: Instant, offload: Offload, packet: &mut [u8]) -> Result<(), Drop> {
        let ip = Ip::parse(packet).map_err(|_| Drop::Malformed)?;
        let packet = &mut packet[..ip.length];
        let route = self.routes.get(ip.destination).ok_or(Drop::NoRoute)?;
        let peer = self.peers.get_mut(route.peer).and_then(Option::as_mut).ok_or(Drop::NoRoute)?;
        let mtu = peer.mtu();
        let transport = match offload {
            Offload::Segments { .. } => Transport::Partial,
            Offload::Checksum { start, .. } if usize::from(start) == ip.payload => Transport::Partial,
            // What has a checksum further inside is somebody's tunnel: the outer one is finished.
            Offload::Checksum { .. } | Offload::None => Transport::Finished,
        };
        let longest = match offload {
            Offload::Segments { protocol, size } => {
                let segments = Segments::new(packet, &ip, protocol, size).map_err(|_| Drop::Malformed)?;
                segments.full_length().min(ip.length)
            }
            Offload::None | Offload::Checksum { .. } => ip.length,
        };
        let fits = longest <= usize::from(mtu);
        if !fits && (too_big::must_stay_whole(packet, &ip) || matches!(offload, Offload::Segments { .. })) {
            // Before translation: the sender shall know its packet again.
            self.answer_too_big(packet, &ip, mtu, now);
            return Err(Drop::TooBig);
        }
        if let Some(quoted) = Quoted::find(packet, &ip)
            && let Some(inner) = self.routes.get(quoted.ip.source).filter(|inner| inner.peer == route.peer)
            && let Some(real) = inner.remap.to_real(quoted.ip.source)
        {
            rewrite_quoted(packet, &ip, &quoted, End::Source, real, transport);
        }
        let real = route.remap.to_real(ip.destination).ok_or(Drop::NoRoute)?;
        rewrite(packet, &ip, End::Destination, real, transport);
        mss::clamp(packet, &ip, mtu, transport);
        if let Offload::Checksum { start, offset } = offload {
            finish_checksum(packet, &ip, start, offset);
        }
        let pieces = match offload {
            Offload::Segments { protocol, size } => {
                Pieces::Segments(Segments::new(packet, &ip, protocol, size).map_err(|_| Drop::Malformed)?)
            }
            Offload::None | Offload::Checksum { .. } if fits => Pieces::Whole(packet),
            Offload::None | Offload::Checksum { .. } => {
                Pieces::Fragments(Fragments::new(packet, &ip, usize::from(mtu)).ok_or(Drop::TooBig)?)
            }
        };
        let can_send = peer.can_send(now);
        let jitter = u64::try_from(ip.length & 0xff).unwrap_or(0);
        for index in 0..pieces.count() {
            let length = pieces.length(index);
            if can_send {
                peer.send(length, &mut self.transmits, |room| pieces.write(index, room));
            } else {
                let mut room = vec![0; length];
                pieces.write(index, &mut room);
                peer.wait(room);
            }
        }
        if can_send {
            peer.sent_data(now, jitter);
        }
        if peer.wants_handshake_on_sending(now) {
            self.initiate(route.peer, now);
        }
        Ok(())
    }

    fn answer_too_big(&mut self, packet: &[u8], ip: &Ip, mtu: u16, now: Instant) {
        if now.saturating_duration_since(self.answers_since) >= Duration::from_secs(1) {
            self.answers_since = now;
            self.answers_given = 0;
        }
        if self.answers_given >= ANSWERS_PER_SECOND || self.answers.len() >= MAX_ANSWERS {
            return;
        }
        let mut buffer = [0; too_big::MAX_ANSWER];
        if let Some(length) = too_big::answer(packet, ip, mtu, &mut buffer) {
            self.answers_given += 1;
            self.answers.push_back(buffer[..length].to_vec());
        }
    }

    // --- From the network ---

    /// Takes datagrams of equal length (`stride`; the last may be shorter) that lie in `buffer` at `range`. What they
    /// carry for the TUN device stays in `buffer` until it is written.
    pub fn handle_datagrams(
        &mut self,
        now: Instant,
        from: SocketAddr,
        buffer: &mut [u8],
        range: Range<usize>,
        stride: usize,
    ) {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + stride.max(1));
            if let Err(reason) = self.receive(now, from, buffer, start..end) {
                self.drops.count(reason);
            }
            start = end;
        }
    }

    fn receive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        buffer: &mut [u8],
        range: Range<usize>,
    ) -> Result<(), Drop> {
        let datagram = &mut buffer[range.clone()];
        match Message::read(datagram).ok_or(Drop::NotWireGuard)? {
            Message::Data { receiver, counter } => {
                let at = *self.by_index.get(&receiver).ok_or(Drop::UnknownSession)?;
                let peer = self.peers.get_mut(at).and_then(Option::as_mut).ok_or(Drop::UnknownSession)?;
                let session = peer.session(receiver).ok_or(Drop::UnknownSession)?;
                let length = session.open(counter, datagram, now).map_err(|refused| match refused {
                    Refused::Replayed => Drop::Replayed,
                    Refused::Forged => Drop::Forged,
                    Refused::Expired => Drop::ExpiredSession,
                })?;
                let (handshake, retired) =
                    peer.received(receiver, from, length > 0, now, &mut self.transmits);
                if let Some(index) = retired {
                    self.by_index.remove(&index);
                }
                if handshake {
                    self.initiate(at, now);
                }
                let start = range.start + DATA_HEADER;
                if length > 0 { self.deliver(at, buffer, start..start + length) } else { Ok(()) }
            }
            Message::Initiation => self.respond(now, from, datagram),
            Message::Response { receiver } => {
                if !self.jar.first_is_right(datagram) {
                    return Err(Drop::BadHandshake);
                }
                let at = *self.by_index.get(&receiver).ok_or(Drop::BadHandshake)?;
                let peer = self.peers.get_mut(at).and_then(Option::as_mut).ok_or(Drop::BadHandshake)?;
                let response = datagram.first_chunk().ok_or(Drop::BadHandshake)?;
                let retired = peer
                    .finish_handshake(response, from, now, &mut self.transmits)
                    .ok_or(Drop::BadHandshake)?;
                self.retire(&retired);
                Ok(())
            }
            Message::CookieReply { receiver } => {
                let at = *self.by_index.get(&receiver).ok_or(Drop::BadHandshake)?;
                let peer = self.peers.get_mut(at).and_then(Option::as_mut).ok_or(Drop::BadHandshake)?;
                peer.take_cookie(datagram.first_chunk().ok_or(Drop::BadHandshake)?, now);
                Ok(())
            }
        }
    }

    /// Lets a packet of a peer through to the TUN device, if it comes from where the peer may send from.
    fn deliver(&mut self, at: usize, buffer: &mut [u8], range: Range<usize>) -> Result<(), Drop> {
        let peer = self.peers.get_mut(at).and_then(Option::as_mut).ok_or(Drop::UnknownSession)?;
        let packet = &mut buffer[range.clone()];
        let ip = Ip::parse(packet).map_err(|_| Drop::Malformed)?;
        self.local.get(ip.destination).ok_or(Drop::ForeignDestination)?;
        let own = |routes: &PrefixMap<Route>, view| routes.get(view).is_some_and(|route| route.peer == at);
        let view = |peer: &Peer, real| {
            peer.sources.get(real).and_then(|remap| peer.config.remaps[remap].to_view(real))
        };
        let quoted = Quoted::find(packet, &ip);
        if let Some(quoted) = quoted
            && let Some(inner) = view(peer, quoted.ip.destination)
        {
            rewrite_quoted(packet, &ip, &quoted, End::Destination, inner, Transport::Finished);
        }
        // An error that a router on the other side sends comes from an address we do not know. It is let in as a
        // message of the host it is about: without it no path MTU is found beyond the tunnel.
        let source =
            view(peer, ip.source).or_else(|| quoted.and_then(|quoted| view(peer, quoted.ip.destination)));
        let source = source.filter(|source| own(&self.routes, *source)).ok_or(Drop::ForeignSource)?;
        rewrite(packet, &ip, End::Source, source, Transport::Finished);
        mss::clamp(packet, &ip, peer.mtu(), Transport::Finished);
        peer.traffic.received_packets += 1;
        peer.traffic.received_bytes += u64::try_from(ip.length).unwrap_or(0);
        self.deliveries.push(buffer, range, &ip);
        Ok(())
    }

    // --- Handshakes ---

    fn respond(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Result<(), Drop> {
        if !self.jar.first_is_right(datagram) {
            return Err(Drop::BadHandshake);
        }
        let proven = self.jar.proves_address(datagram, from);
        match self.limiter.judge(from, proven, now) {
            Verdict::Read => {}
            Verdict::Challenge => {
                if let Some(reply) = self.jar.reply(datagram, from, now, &mut self.random) {
                    self.transmits.push(from, &reply);
                }
                return Err(Drop::HandshakeFlood);
            }
            Verdict::Drop => return Err(Drop::HandshakeFlood),
        }
        let initiation = datagram.first_chunk::<INITIATION>().ok_or(Drop::BadHandshake)?;
        let responder = Responder::read(&self.private_key, initiation).map_err(|_| Drop::BadHandshake)?;
        let at = *self.by_key.get(&responder.peer).ok_or(Drop::UnknownPeer)?;
        let local = self.fresh_index();
        let peer = self.peers.get_mut(at).and_then(Option::as_mut).ok_or(Drop::UnknownPeer)?;
        if !peer.accepts_initiation(&responder.timestamp, now) {
            return Err(Drop::Replayed);
        }
        let preshared = peer.config.preshared_key.as_ref();
        let answer = responder.finish(preshared, local, &peer.recipient, peer.cookie(now).as_ref());
        let (response, keys, remote) = answer.map_err(|_| Drop::BadHandshake)?;
        let retired = peer.responded(Session::new(&keys, local, remote, false, now), from, now);
        self.transmits.push(from, &response);
        if let Some(index) = retired {
            self.by_index.remove(&index);
        }
        self.by_index.insert(local, at);
        Ok(())
    }

    fn initiate(&mut self, at: usize, now: Instant) {
        let local = self.fresh_index();
        let jitter = self.random.number();
        let label = timestamp(self.clock.since_epoch + now.saturating_duration_since(self.clock.instant));
        let Some(peer) = self.peers.get_mut(at).and_then(Option::as_mut) else { return };
        self.by_index.insert(local, at);
        if let Some(unused) =
            peer.initiate(&self.private_key, local, &label, jitter, now, &mut self.transmits)
        {
            self.by_index.remove(&unused);
        }
    }

    /// Random, so that nobody guesses which sessions there are.
    fn fresh_index(&mut self) -> u32 {
        loop {
            let index = self.random.number();
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    fn retire(&mut self, indices: &Retired) {
        for index in indices {
            self.by_index.remove(index);
        }
    }

    // --- Time ---

    /// When [`Gateway::handle_timeout`] wants to be called, and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Why)> {
        self.peers.iter().flatten().filter_map(Peer::poll_timeout).min_by_key(|(at, _)| *at)
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        for at in 0..self.peers.len() {
            let Some(peer) = self.peers[at].as_mut() else { continue };
            if peer.poll_timeout().is_none_or(|(due, _)| due > now) {
                continue;
            }
            let (handshake, retired) = peer.handle_timeout(now, &mut self.transmits);
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

    /// An answer of the gateway itself, to be written to the TUN device.
    pub fn poll_answer(&mut self) -> Option<Vec<u8>> {
        self.answers.pop_front()
    }

    // --- The path and the state ---

    /// Addresses that the path MTU is to be found for.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.peers.iter().flatten().filter_map(|peer| peer.endpoint)
    }

    /// The path to `address` carries IP packets of `mtu` bytes.
    pub fn handle_path_mtu(&mut self, address: IpAddr, mtu: u16) {
        let outer = if address.is_ipv4() { OUTER_V4 } else { OUTER_V6 };
        let overhead = u16::try_from(DATA_OVERHEAD).unwrap_or(u16::MAX);
        let inner = mtu.saturating_sub(outer).saturating_sub(overhead).max(MIN_MTU);
        for peer in self.peers.iter_mut().flatten() {
            if peer.endpoint.is_some_and(|endpoint| endpoint.ip() == address) {
                peer.path_mtu = Some(inner);
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
        self.peers.iter().flatten().map(|peer| PeerStatus {
            name: peer.config.name.clone(),
            endpoint: peer.endpoint,
            last_handshake: peer.last_handshake,
            last_heard: peer.last_heard,
            mtu: peer.mtu(),
            traffic: peer.traffic,
        })
    }
}

/// What one packet of the TUN device becomes.
enum Pieces<'a> {
    Whole(&'a [u8]),
    Segments(Segments<'a>),
    Fragments(Fragments<'a>),
}

impl Pieces<'_> {
    fn count(&self) -> usize {
        match self {
            Self::Whole(_) => 1,
            Self::Segments(segments) => segments.count(),
            Self::Fragments(fragments) => fragments.count(),
        }
    }

    fn length(&self, index: usize) -> usize {
        match self {
            Self::Whole(packet) => packet.len(),
            Self::Segments(segments) => segments.length(index),
            Self::Fragments(fragments) => fragments.length(index),
        }
    }

    fn write(&self, index: usize, out: &mut [u8]) {
        match self {
            Self::Whole(packet) => out.copy_from_slice(packet),
            Self::Segments(segments) => segments.write(index, out),
            Self::Fragments(fragments) => fragments.write(index, out),
        }
    }
}
