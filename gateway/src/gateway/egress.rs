//! From the TUN device into tunnels.

use super::{Gateway, Handled};
use crate::control;
use crate::drops::Drop;
use crate::liveness::Way;
use crate::nat::{End, Quoted, Transport, rewrite, rewrite_quoted};
use crate::packet::fragment::Fragments;
use crate::packet::ip::Ip;
use crate::packet::segment::{Segments, finish_checksum};
use crate::packet::vnet::Offload;
use crate::packet::{mss, too_big};
use crate::spread::flow;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Answers to packets that are too big, per second: each flow needs one, and a flood none.
const ANSWERS_PER_SECOND: u32 = 200;
/// Answers that wait to be written, of 1,280 bytes at most.
const MAX_ANSWERS: usize = 32;

impl Gateway {
    /// Takes a packet of the TUN device: sends it to the peer that has its destination.
    pub fn handle_packet(&mut self, now: Instant, offload: Offload, packet: &mut [u8]) -> Handled {
        self.send(now, offload, packet).unwrap_or_else(|Unsent { reason, answer }| {
            self.drops.count(reason);
            self.answers.extend(answer);
            Handled::Here
        })
    }

    /// Sends a packet that came from another peer. What its sender is to be told goes back there.
    pub(super) fn send_onward(&mut self, now: Instant, packet: &mut [u8]) -> Result<Handled, Drop> {
        self.send(now, Offload::None, packet).map_err(|Unsent { reason, answer }| {
            if let Some(mut answer) = answer {
                // It is small enough for any tunnel. If the way back is gone, the sender has nothing to be told about.
                let _ = self.send(now, Offload::None, &mut answer);
            }
            reason
        })
    }

    fn send(&mut self, now: Instant, offload: Offload, packet: &mut [u8]) -> Result<Handled, Unsent> {
        let ip = Ip::parse(packet).map_err(|_| Drop::Malformed)?;
        let packet = &mut packet[..ip.length];
        // What gateways say to each other, and what pods do, is kept apart.
        let from_gateway = ip.source == IpAddr::from(control::ADDRESS);
        if from_gateway && !self.lane.is_first() {
            return Ok(Handled::ByFirstLane);
        }
        let route = self.routes.get(ip.destination).ok_or(Drop::NoRoute)?;
        if route.gateway.is_some() != from_gateway || (from_gateway && !control::is_link(packet, &ip)) {
            return Err(Drop::Control.into());
        }
        if route.gateway.is_none() {
            self.passes(route.peer, now);
        }
        let peer = self.peers.get_mut(route.peer).and_then(Option::as_mut).ok_or(Drop::NoRoute)?;
        if !self.lane.is_first() && peer.spread.best() != Some(Way::Up) {
            return Ok(Handled::ByFirstLane);
        }
        let chosen = route.gateway.or_else(|| peer.spread.choose(flow(packet, &ip, self.flow_seed)));
        let at = chosen.ok_or(Drop::NoRoute)?;
        let tunnel = self.tunnels.get_mut(at).and_then(Option::as_mut).ok_or(Drop::NoRoute)?;
        let mtu = tunnel.mtu();
        let transport = match offload {
            Offload::Segments { .. } => Transport::Partial,
            Offload::Checksum { start, .. } if usize::from(start) == ip.payload => Transport::Partial,
            // Whoever may open packet sockets chooses freely what the kernel is to sum, and where it puts the sum: that would
            // change addresses after they were looked at.
            Offload::Checksum { start, .. } if usize::from(start) < ip.payload => {
                return Err(Drop::Malformed.into());
            }
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
            return Err(Unsent { reason: Drop::TooBig, answer: self.answer_too_big(packet, &ip, mtu, now) });
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
        let can_send = tunnel.can_send(now);
        let jitter = u64::try_from(ip.length & 0xff).unwrap_or(0);
        for index in 0..pieces.count() {
            let length = pieces.length(index);
            if can_send {
                tunnel.send(length, &mut self.transmits, |room| pieces.write(index, room));
            } else if route.gateway.is_none() {
                let mut room = vec![0; length];
                pieces.write(index, &mut room);
                peer.waiting.keep(room);
            }
        }
        if can_send {
            tunnel.sent_data(now, jitter);
        }
        if tunnel.wants_handshake_on_sending(now) {
            self.initiate(at, now);
        }
        Ok(Handled::Here)
    }

    fn answer_too_big(&mut self, packet: &[u8], ip: &Ip, mtu: u16, now: Instant) -> Option<Vec<u8>> {
        if now.saturating_duration_since(self.answers_since) >= Duration::from_secs(1) {
            self.answers_since = now;
            self.answers_given = 0;
        }
        if self.answers_given >= ANSWERS_PER_SECOND || self.answers.len() >= MAX_ANSWERS {
            return None;
        }
        let mut buffer = [0; too_big::MAX_ANSWER];
        let length = too_big::answer(packet, ip, mtu, &mut buffer)?;
        self.answers_given += 1;
        Some(buffer[..length].to_vec())
    }
}

/// Why a packet was not sent, and what its sender is told.
struct Unsent {
    reason: Drop,
    answer: Option<Vec<u8>>,
}

impl From<Drop> for Unsent {
    fn from(reason: Drop) -> Self {
        Self { reason, answer: None }
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
