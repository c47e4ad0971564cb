//! One tunnel, to one gateway of a peer: its sessions, its handshakes and its timers (paper, section 6), and whether it
//! works.

use crate::liveness::{self, Liveness, Way};
use crate::signal::Probe;
use crate::spread;
use crate::transmit::Transmits;
use crate::wireguard::cookie::{self, Mac16, Recipient};
use crate::wireguard::handshake::{Initiator, Timestamp};
use crate::wireguard::key::{PresharedKey, PrivateKey, PublicKey};
use crate::wireguard::message::{DATA_HEADER, DATA_OVERHEAD, padded};
use crate::wireguard::session::{REJECT_AFTER_TIME, Session};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// An initiation without an answer is repeated after this time, and no second is sent before.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// The same if the other end says when it is there: that a handshake is missing is known sooner then, and that it was
/// only lost is likelier. A peer takes 50 per second.
pub const EAGER_REKEY_TIMEOUT: Duration = Duration::from_secs(1);
/// For so long; then it is not there.
const EAGER_ATTEMPT_TIME: Duration = Duration::from_secs(10);
/// Spread of that time, so that two peers that begin at once do not do so for ever.
const REKEY_JITTER_MILLIS: u32 = 334;
/// For so long a handshake is tried; then only new packets begin another.
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// A peer that received and had nothing to send says after this time that it is there.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Received on a session of this age, a packet makes the initiator begin another, before it ends.
const REKEY_ON_RECEIVING: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - KEEPALIVE_TIMEOUT.as_secs() - REKEY_TIMEOUT.as_secs());
/// Packets kept while there is no session: what a TCP connection sends before it waits, and 96 KiB per peer.
const MAX_WAITING: usize = 64;
/// Initiations of a peer closer than this are ignored, as in Linux: 50 per second.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

/// What is known of a tunnel beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Name of the gateway at the other end, unique among those of its peer: it stays when the key changes.
    pub name: String,
    /// Its key.
    pub public_key: PublicKey,
    /// A secret shared with it.
    pub preshared_key: Option<PresharedKey>,
    /// Where it can be reached: all are tried until it answers from one. Without any it has to begin. It is followed
    /// wherever it goes then.
    pub endpoints: Vec<SocketAddr>,
    /// How often a packet is sent if there is nothing else, to keep NATs between from forgetting.
    pub keepalive: Option<Duration>,
    /// Whether it answers probes; an end that only speaks WireGuard does not. One that sends probes is answered, and
    /// probed, in any case.
    pub probes: bool,
    /// Whether it is told of the lanes of this gateway: in the first one, and if it probes.
    pub tells_lanes: bool,
    /// The key of this end, if it is known by another than the gateway's: it then has to begin.
    pub own_key: Option<PrivateKey>,
    /// Address under which the gateway at the other end is seen; without one nothing passes but packets of pods.
    pub control: Option<Ipv4Addr>,
}

/// What went through a tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets sealed.
    pub sent_packets: u64,
    /// Bytes of these, without the overhead of the tunnel.
    pub sent_bytes: u64,
    /// Packets opened and let through.
    pub received_packets: u64,
    /// Bytes of these.
    pub received_bytes: u64,
    /// Handshakes completed.
    pub handshakes: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.sent_packets += other.sent_packets;
        self.sent_bytes += other.sent_bytes;
        self.received_packets += other.received_packets;
        self.received_bytes += other.received_bytes;
        self.handshakes += other.handshakes;
    }
}

/// How a tunnel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelStatus {
    /// Name of the gateway at the other end.
    pub name: String,
    /// Where it was heard of last, or is expected.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed.
    pub last_handshake: Option<Instant>,
    /// When an authentic packet came last.
    pub last_heard: Option<Instant>,
    /// How well it works.
    pub way: Way,
    /// Time a probe and its answer take; none without probes.
    pub round_trip: Option<Duration>,
    /// Longest packet that is sent through it.
    pub mtu: u16,
    /// Keys of the lanes of the other end beside the first; none if it has not told, as one without lanes.
    pub lanes: Option<Vec<PublicKey>>,
}

/// Packets for a peer that wait for a tunnel that takes them.
#[derive(Debug, Default)]
pub(crate) struct Waiting(VecDeque<Vec<u8>>);

impl Waiting {
    /// Keeps a packet; the oldest gives way.
    pub(crate) fn keep(&mut self, packet: Vec<u8>) {
        if self.0.len() >= MAX_WAITING {
            self.0.pop_front();
        }
        self.0.push_back(packet);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) config: TunnelConfig,
    /// The peer it leads to.
    pub(crate) peer: usize,
    /// What flows are spread by.
    pub(crate) number: u64,
    /// What was said of it last.
    pub(crate) shown: Way,
    pub(crate) recipient: Recipient,
    /// What messages to this end are authenticated with, if it has a key of its own.
    pub(crate) own: Option<Recipient>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// Longest packet that is sent to the peer.
    limit: u16,
    /// Longest packet the path was found to carry.
    pub(crate) path_mtu: Option<u16>,
    pub(crate) traffic: Traffic,
    pub(crate) last_handshake: Option<Instant>,
    pub(crate) last_heard: Option<Instant>,
    current: Option<Session>,
    previous: Option<Session>,
    /// Made by the peer's initiation; used once the peer does.
    next: Option<Session>,
    pending: Option<Pending>,
    /// The cookie for our initiations, and when it was given.
    cookie: Option<(Mac16, Instant)>,
    /// The timestamp of the last initiation: later ones have to be greater.
    last_timestamp: Timestamp,
    last_initiation_received: Option<Instant>,
    last_initiation_sent: Option<Instant>,
    rekey_asked: bool,
    timers: Timers,
    /// What the other end has told of its lanes, and when it is told of ours again.
    lanes: Option<Vec<PublicKey>>,
    tell_lanes: Option<Instant>,
    /// Whether the other end takes part in probing.
    probes: bool,
    liveness: Liveness,
    /// Packets went out, and nothing came back for as long as an end that is there would be silent.
    silent: bool,
}

/// A handshake we began.
#[derive(Debug)]
struct Pending {
    handshake: Initiator,
    since: Instant,
}

/// When what is due.
#[derive(Debug, Clone, Copy, Default)]
struct Timers {
    /// The initiation again.
    retransmit: Option<Instant>,
    /// A keepalive, because we received and sent nothing.
    keepalive: Option<Instant>,
    /// Another, because more was received since the last was wanted.
    keepalive_again: bool,
    /// A handshake, because we sent and nothing came.
    silence: Option<Instant>,
    /// A keepalive, because so it is configured.
    persistent: Option<Instant>,
    /// Everything secret is forgotten.
    forget: Option<Instant>,
}

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// An initiation was not answered.
    RetransmitHandshake,
    /// Something was received, and nothing sent since.
    Keepalive,
    /// Something was sent, and nothing received since.
    Silence,
    /// A NAT on the way shall not forget us.
    PersistentKeepalive,
    /// Old keys are wiped.
    ForgetKeys,
    /// It shall be known whether the other end is there.
    Probe,
}

/// A session index that is no longer in use.
pub(crate) type Retired = Vec<u32>;

impl Tunnel {
    /// A tunnel of the peer at `peer`, through which packets of at most `limit` bytes are sent.
    pub(crate) fn new(config: TunnelConfig, peer: usize, limit: u16) -> Self {
        Self {
            peer,
            number: spread::number(config.name.as_bytes()),
            shown: Way::Down,
            recipient: Recipient::new(&config.public_key),
            own: own(&config),
            endpoint: config.endpoints.first().copied(),
            limit,
            path_mtu: None,
            traffic: Traffic::default(),
            last_handshake: None,
            last_heard: None,
            current: None,
            previous: None,
            next: None,
            pending: None,
            cookie: None,
            last_timestamp: [0; 12],
            last_initiation_received: None,
            last_initiation_sent: None,
            rekey_asked: false,
            timers: Timers::default(),
            lanes: None,
            tell_lanes: None,
            probes: config.probes,
            liveness: Liveness::default(),
            silent: false,
            config,
        }
    }

    /// It is that of another peer from now on, or has another name.
    pub(crate) fn adopted(&mut self, peer: usize, name: &str) {
        self.peer = peer;
        self.number = spread::number(name.as_bytes());
        name.clone_into(&mut self.config.name);
    }

    /// Takes over a changed configuration; sessions go on. An end that answers is not looked for elsewhere. If this end is to
    /// be known by another key, sessions are over: their indices are returned.
    pub(crate) fn reconfigure(&mut self, config: TunnelConfig, limit: u16) -> Retired {
        self.limit = limit;
        let mut retired = Retired::new();
        if config.own_key != self.config.own_key {
            self.end_sessions(&mut retired);
            (self.cookie, self.last_initiation_sent, self.last_heard) = (None, None, None);
            self.timers = Timers::default();
            self.shown = Way::Down;
            self.own = own(&config);
        }
        let is_known = self.endpoint.is_some_and(|endpoint| config.endpoints.contains(&endpoint));
        let answers = self.probes && self.shown >= Way::Standby;
        if config.endpoints != self.config.endpoints && !is_known && !answers {
            self.move_to(config.endpoints.first().copied().or(self.endpoint));
        }
        if config.keepalive.is_none() {
            self.timers.persistent = None;
        }
        if config.public_key != self.config.public_key {
            self.recipient = Recipient::new(&config.public_key);
            self.cookie = None;
            // Labels are the clock of the host, which goes on, whatever its key: they still have to grow.
        }
        self.probes |= config.probes;
        self.config = config;
        retired
    }

    /// Whether it should be called without waiting for a packet to send.
    pub(crate) fn calls(&self) -> bool {
        self.endpoint.is_some() && (self.config.keepalive.is_some() || self.config.probes)
    }

    fn move_to(&mut self, endpoint: Option<SocketAddr>) {
        if self.endpoint != endpoint {
            self.endpoint = endpoint;
            self.path_mtu = None;
        }
    }

    /// Addresses that may lead to the other end, besides the one it was heard from last.
    fn elsewhere(&self) -> impl Iterator<Item = SocketAddr> {
        let current = self.endpoint;
        self.config.endpoints.iter().copied().filter(move |endpoint| Some(*endpoint) != current)
    }

    /// Whether the other end is to be looked for at all its addresses: it cannot be talked to, or does not answer.
    fn is_lost(&self, now: Instant) -> bool {
        !self.can_send(now) || if self.probes { self.liveness.is_silent() } else { self.silent }
    }

    /// How well it works at `now`.
    pub(crate) fn way(&self, now: Instant) -> Way {
        match (self.can_send(now), self.probes) {
            (false, _) => Way::Down,
            (true, true) => self.liveness.way(),
            (true, false) if self.silent => Way::Down,
            (true, false) => Way::Up,
        }
    }

    /// How it is, for people.
    pub(crate) fn status(&self) -> TunnelStatus {
        TunnelStatus {
            name: self.config.name.clone(),
            endpoint: self.endpoint,
            last_handshake: self.last_handshake,
            last_heard: self.last_heard,
            way: self.shown,
            round_trip: self.liveness.round_trip(),
            mtu: self.mtu(),
            lanes: self.lanes.clone(),
        }
    }

    /// Longest packet to send.
    pub(crate) fn mtu(&self) -> u16 {
        self.path_mtu.map_or(self.limit, |path| path.min(self.limit))
    }

    /// Forgets everything that is secret.
    fn end_sessions(&mut self, retired: &mut Retired) {
        retired.extend(self.indices());
        (self.current, self.previous, self.next, self.pending) = (None, None, None, None);
        self.liveness.session_ends();
    }

    /// Every index in use.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        let sessions = [&self.current, &self.previous, &self.next];
        let sessions = sessions.into_iter().flatten().map(|session| session.local);
        sessions.chain(self.pending.as_ref().map(|pending| pending.handshake.local))
    }

    // --- Sending ---

    /// Whether packets can be sent at `now`; if not, or not for long any more, `wants_handshake` says so.
    pub(crate) fn can_send(&self, now: Instant) -> bool {
        self.endpoint.is_some() && self.current.as_ref().is_some_and(|session| !session.is_expired(now))
    }

    /// Seals a packet that `write` puts into the room it is given; for callers that have asked
    /// [`Tunnel::can_send`].
    pub(crate) fn send(&mut self, length: usize, transmits: &mut Transmits, write: impl FnOnce(&mut [u8])) {
        let mtu = usize::from(self.mtu());
        let (Some(session), Some(to)) = (self.current.as_mut(), self.endpoint) else { return };
        let padded = padded(length, mtu);
        let message = transmits.reserve(padded + DATA_OVERHEAD);
        let (packet, padding) = message[DATA_HEADER..DATA_HEADER + padded].split_at_mut(length);
        write(packet);
        padding.fill(0);
        session.seal(message);
        transmits.commit(to, padded + DATA_OVERHEAD);
        self.traffic.sent_packets += 1;
        self.traffic.sent_bytes += u64::try_from(length).unwrap_or(0);
    }

    fn send_waiting(&mut self, waiting: &mut Waiting, transmits: &mut Transmits, now: Instant) -> bool {
        let any = !waiting.0.is_empty();
        while let Some(packet) = waiting.0.pop_front() {
            self.send(packet.len(), transmits, |room| room.copy_from_slice(&packet));
        }
        if any {
            self.sent_data(now, 0);
        }
        any
    }

    fn send_keepalive(&mut self, transmits: &mut Transmits, now: Instant) {
        self.send_signal(&[], transmits, now);
    }

    /// Sends a message to the other gateway, which does not count as traffic.
    fn send_signal(&mut self, message: &[u8], transmits: &mut Transmits, now: Instant) {
        if self.can_send(now) {
            self.send(message.len(), transmits, |room| room.copy_from_slice(message));
            self.traffic.sent_packets -= 1;
            self.traffic.sent_bytes -= u64::try_from(message.len()).unwrap_or(0);
            self.sent_anything(now);
        }
    }

    /// After packets have been sent: `jitter` in milliseconds.
    pub(crate) fn sent_data(&mut self, now: Instant, jitter: u64) {
        let wait = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + Duration::from_millis(jitter);
        self.timers.silence.get_or_insert(now + wait);
        self.sent_anything(now);
    }

    fn sent_anything(&mut self, now: Instant) {
        self.timers.keepalive = None;
        self.timers.keepalive_again = false;
        self.put_off_keepalive(now);
    }

    /// Whether a packet that is sent now should bring a handshake with it.
    pub(crate) fn wants_handshake_on_sending(&self, now: Instant) -> bool {
        !self.can_send(now)
            || self.current.as_ref().is_some_and(|session| session.wants_rekey_on_sending(now))
    }

    // --- Receiving ---

    /// The session with the index `local`.
    pub(crate) fn session(&mut self, local: u32) -> Option<&mut Session> {
        let sessions = [&mut self.current, &mut self.next, &mut self.previous];
        sessions.into_iter().flatten().find(|session| session.local == local)
    }

    /// After an authentic packet of session `local` came `from`; returns whether a handshake is wanted, and what has
    /// ended.
    pub(crate) fn received(
        &mut self,
        local: u32,
        from: SocketAddr,
        data: bool,
        now: Instant,
        context: &mut Context<'_>,
    ) -> (bool, Option<u32>) {
        // The newest session decides where the peer is; a late packet of an old one does not move it back.
        let newest = self.previous.as_ref().is_none_or(|session| session.local != local);
        if newest {
            self.move_to(Some(from));
        }
        let mut retired = None;
        if self.next.as_ref().is_some_and(|session| session.local == local) {
            retired = self.previous.take().map(|session| session.local);
            self.previous = self.current.take();
            self.current = self.next.take();
            self.completed(now, context);
        }
        self.timers.silence = None;
        self.silent = false;
        self.last_heard = Some(now);
        // An end that is probed need not guess.
        if data && !self.probes {
            if self.timers.keepalive.is_some() {
                self.timers.keepalive_again = true;
            } else {
                self.timers.keepalive = Some(now + KEEPALIVE_TIMEOUT);
            }
        }
        let ageing = self.current.as_ref().is_some_and(|session| {
            session.initiator && now.saturating_duration_since(session.created) >= REKEY_ON_RECEIVING
        });
        let wanted = ageing && !self.rekey_asked;
        self.rekey_asked |= wanted;
        (wanted, retired)
    }

    /// Takes a probe that was received in this tunnel.
    pub(crate) fn take_probe(&mut self, probe: &Probe, now: Instant, context: &mut Context<'_>) {
        if !self.probes {
            self.probes = true;
            self.liveness.session_begins(now);
        }
        if let Some(answer) = self.liveness.take(probe, now, context.active, context.standby) {
            self.send_signal(&answer.encode(), context.transmits, now);
        }
    }

    /// The other end has told of its lanes.
    pub(crate) fn take_lanes(&mut self, lanes: Vec<PublicKey>) {
        self.lanes = Some(lanes);
    }

    /// Packets begin to flow to or from the peer.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.liveness.wake(now);
    }

    /// Only what is sent puts the next keepalive off, not what is received as well: of two ends with the same interval
    /// one would always be just in time, the other never send any, and nobody could tell silence from a broken way.
    fn put_off_keepalive(&mut self, now: Instant) {
        if let Some(interval) = self.config.keepalive {
            self.timers.persistent = Some(now + interval);
        }
    }

    // --- Handshakes ---

    /// The cookie to sign with, if it is still good.
    pub(crate) fn cookie(&self, now: Instant) -> Option<Mac16> {
        let fresh = |given: Instant| now.saturating_duration_since(given) < cookie::LIFETIME;
        self.cookie.filter(|(_, given)| fresh(*given)).map(|(cookie, _)| cookie)
    }

    /// Sends an initiation, unless one was sent just before, with the index `local`; returns the
    /// index that is no longer in use, or `local` if nothing was sent.
    pub(crate) fn initiate(
        &mut self,
        own: &PrivateKey,
        local: u32,
        timestamp: &Timestamp,
        jitter: u32,
        now: Instant,
        transmits: &mut Transmits,
    ) -> Option<u32> {
        let since = self.pending.as_ref().map_or(now, |pending| pending.since);
        let eager = self.probes && now.saturating_duration_since(since) < EAGER_ATTEMPT_TIME;
        let pause = if eager { EAGER_REKEY_TIMEOUT } else { REKEY_TIMEOUT };
        let recent = |sent: Instant| now.saturating_duration_since(sent) < pause;
        let Some(to) = self.endpoint.filter(|_| !self.last_initiation_sent.is_some_and(recent)) else {
            return Some(local);
        };
        self.last_initiation_sent = Some(now);
        let jitter = Duration::from_millis(u64::from(jitter % REKEY_JITTER_MILLIS));
        self.timers.retransmit = Some(now + pause + jitter);
        let cookie = self.cookie(now);
        let begun = Initiator::begin(
            self.config.own_key.as_ref().unwrap_or(own),
            &self.config.public_key,
            self.config.preshared_key.as_ref(),
            local,
            timestamp,
            &self.recipient,
            cookie.as_ref(),
        );
        let Ok((handshake, message)) = begun else { return Some(local) };
        transmits.push(to, &message);
        if self.is_lost(now) {
            // Whichever copy comes first is answered; to its address, packets go from then on.
            self.elsewhere().for_each(|to| transmits.repeat(to));
        }
        self.put_off_keepalive(now);
        let replaced = self.pending.replace(Pending { handshake, since });
        replaced.map(|pending| pending.handshake.local)
    }

    /// Whether an initiation with this timestamp is new, and not too soon after the last.
    pub(crate) fn accepts_initiation(&mut self, timestamp: &Timestamp, now: Instant) -> bool {
        let soon = |last: Instant| now.saturating_duration_since(last) < INITIATION_INTERVAL;
        if *timestamp <= self.last_timestamp || self.last_initiation_received.is_some_and(soon) {
            return false;
        }
        self.last_timestamp = *timestamp;
        self.last_initiation_received = Some(now);
        true
    }

    /// After our response to an initiation `from` the peer: the session waits for the peer's first packet.
    pub(crate) fn responded(&mut self, session: Session, from: SocketAddr, now: Instant) -> Option<u32> {
        self.move_to(Some(from));
        self.timers.silence = None;
        self.timers.forget = Some(now + REJECT_AFTER_TIME * 3);
        self.sent_anything(now);
        self.next.replace(session).map(|session| session.local)
    }

    /// Ends the handshake that `response` answers: the session can be used at once. Returns what has ended; `None`
    /// if the response is not the peer's.
    pub(crate) fn finish_handshake(
        &mut self,
        response: &[u8; crate::wireguard::message::RESPONSE],
        from: SocketAddr,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Option<Retired> {
        let pending = self.pending.as_mut()?;
        let (keys, remote) = pending.handshake.finish(response).ok()?;
        let session = Session::new(&keys, pending.handshake.local, remote, true, now);
        self.pending = None;
        self.last_heard = Some(now);
        self.move_to(Some(from));
        // Whatever the peer sends last on the other sessions is still taken.
        let ended = [self.previous.take(), self.next.take()];
        let (newer, ended) = match ended {
            [previous, Some(next)] => (Some(next), [previous, self.current.take()]),
            [previous, None] => (self.current.take(), [previous, None]),
        };
        self.previous = newer;
        self.current = Some(session);
        self.timers.silence = None;
        self.silent = false;
        self.timers.forget = Some(now + REJECT_AFTER_TIME * 3);
        // The peer sends nothing before it has received something.
        if !self.completed(now, context) {
            self.send_keepalive(context.transmits, now);
        }
        Some(ended.into_iter().flatten().map(|session| session.local).collect())
    }

    /// Packets can be sent: first of all how this end is, then what has waited. Returns whether anything was sent.
    fn completed(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        self.timers.retransmit = None;
        self.rekey_asked = false;
        self.last_handshake = Some(now);
        self.traffic.handshakes += 1;
        if self.probes {
            self.liveness.session_begins(now);
            self.tell_lanes = None;
            self.probe(now, context);
        }
        self.send_waiting(context.waiting, context.transmits, now) || self.probes
    }

    /// Sends a probe, if one is due; returns whether one was.
    fn probe(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        let Some(probe) = self.liveness.due(now, context.active, context.standby) else { return false };
        self.send_signal(&probe.encode(), context.transmits, now);
        if self.config.tells_lanes && self.tell_lanes.is_none_or(|at| at <= now) {
            // Now and then, for it may be lost, and comes with a probe anyway.
            self.tell_lanes = Some(now + liveness::IDLE_INTERVAL);
            self.send_signal(context.lanes, context.transmits, now);
        }
        if self.liveness.is_silent() && self.can_send(now) {
            // The same datagram: whichever copy comes first is taken.
            self.elsewhere().for_each(|to| context.transmits.repeat(to));
        }
        true
    }

    /// Keeps the cookie that answers our initiation: the next one carries it.
    pub(crate) fn take_cookie(
        &mut self,
        reply: &[u8; crate::wireguard::message::COOKIE_REPLY],
        now: Instant,
    ) {
        let Some(pending) = &self.pending else { return };
        if let Some(cookie) = self.recipient.open_reply(reply, &pending.handshake.first_mac) {
            self.cookie = Some((cookie, now));
        }
    }

    // --- Timers ---

    /// The next deadline, and what it is for.
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, Why)> {
        let timers = [
            (self.timers.retransmit, Why::RetransmitHandshake),
            (self.timers.keepalive, Why::Keepalive),
            (self.timers.silence, Why::Silence),
            (self.timers.persistent, Why::PersistentKeepalive),
            (self.timers.forget, Why::ForgetKeys),
            (self.liveness.poll_timeout(), Why::Probe),
        ];
        timers.into_iter().filter_map(|(at, why)| at.map(|at| (at, why))).min_by_key(|(at, _)| *at)
    }

    /// Does what is due; returns whether a handshake is wanted, and the indices that have ended.
    pub(crate) fn handle_timeout(&mut self, now: Instant, context: &mut Context<'_>) -> (bool, Retired) {
        let due = |timer: &mut Option<Instant>| timer.take_if(|at| *at <= now).is_some();
        let mut handshake = false;
        let mut retired = Retired::new();
        if due(&mut self.timers.retransmit)
            && let Some(pending) = &self.pending
        {
            if now.saturating_duration_since(pending.since) >= REKEY_ATTEMPT_TIME {
                retired.extend(self.pending.take().map(|pending| pending.handshake.local));
                context.waiting.clear();
                self.timers.forget.get_or_insert(now + REJECT_AFTER_TIME * 3);
            } else {
                handshake = true;
            }
        }
        if due(&mut self.timers.keepalive) {
            let again = self.timers.keepalive_again;
            self.send_keepalive(context.transmits, now);
            if again {
                self.timers.keepalive = Some(now + KEEPALIVE_TIMEOUT);
            }
        }
        if due(&mut self.timers.silence) {
            self.silent = true;
            handshake = true;
        }
        if due(&mut self.timers.persistent) {
            self.put_off_keepalive(now);
            if !self.can_send(now) {
                handshake = true;
            } else if !self.probes {
                self.send_keepalive(context.transmits, now);
            }
        }
        if self.probe(now, context) {
            // An end that has lost the session does not answer either.
            handshake |= self.liveness.is_silent() || self.wants_handshake_on_sending(now);
        }
        if due(&mut self.timers.forget) {
            self.end_sessions(&mut retired);
            self.timers.retransmit = None;
        }
        (handshake, retired)
    }
}

/// What messages to this end are authenticated with, if it has a key of its own.
fn own(config: &TunnelConfig) -> Option<Recipient> {
    config.own_key.as_ref().map(|key| Recipient::new(&key.public()))
}

/// What a tunnel needs of the gateway it belongs to.
pub(crate) struct Context<'a> {
    /// Where datagrams go.
    pub(crate) transmits: &'a mut Transmits,
    /// Packets for the peer that no tunnel could take yet.
    pub(crate) waiting: &'a mut Waiting,
    /// Whether packets flow to or from the peer.
    pub(crate) active: bool,
    /// Whether this gateway would rather have packets go elsewhere.
    pub(crate) standby: bool,
    /// The message that tells of the lanes of this gateway.
    pub(crate) lanes: &'a [u8],
}
