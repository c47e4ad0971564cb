//! From the network: out of tunnels to the TUN device, and handshakes.

use super::{Gateway, Handled, Handoff, Route};
use crate::control;
use crate::drops::Drop;
use crate::nat::{End, Quoted, Transport, rewrite, rewrite_quoted};
use crate::packet::ip::Ip;
use crate::packet::mss;
use crate::prefix_map::PrefixMap;
use crate::signal::Inner;
use crate::tunnel::Retired;
use crate::wireguard::handshake::{Responder, timestamp};
use crate::wireguard::limiter::Verdict;
use crate::wireguard::message::{DATA_HEADER, INITIATION, Message};
use crate::wireguard::session::{Refused, Session};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Instant;

/// Datagrams and packets for other lanes that wait to be handed over: those of a batch, with 2 MiB at most.
const MAX_HANDOFFS: usize = 1024;

impl Gateway {
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
        let message = Message::read(datagram).ok_or(Drop::NotWireGuard)?;
        if self.lane.count > 1
            && let Some(lane) = self.other_lane(message, datagram)
        {
            return self.hand_over(lane, from, datagram);
        }
        match message {
            Message::Data { receiver, counter } => {
                let at = *self.by_index.get(&receiver).ok_or(Drop::UnknownSession)?;
                let tunnel = self.tunnels.get_mut(at).and_then(Option::as_mut).ok_or(Drop::UnknownSession)?;
                let session = tunnel.session(receiver).ok_or(Drop::UnknownSession)?;
                let length = session.open(counter, datagram, now).map_err(|refused| match refused {
                    Refused::Replayed => Drop::Replayed,
                    Refused::Forged => Drop::Forged,
                    Refused::Expired => Drop::ExpiredSession,
                })?;
                let start = range.start + DATA_HEADER;
                let inner = Inner::read(&datagram[DATA_HEADER..DATA_HEADER + length]);
                let is_packet = inner == Inner::Packet;
                let done = self.with_tunnel(at, now, |tunnel, context| {
                    let done = tunnel.received(receiver, from, is_packet, now, context);
                    match inner {
                        Inner::Probe(probe) => tunnel.take_probe(&probe, now, context),
                        Inner::Lanes(lanes) => tunnel.take_lanes(lanes),
                        Inner::Packet | Inner::Unknown => {}
                    }
                    done
                });
                let (handshake, retired) = done.ok_or(Drop::UnknownSession)?;
                if let Some(index) = retired {
                    self.by_index.remove(&index);
                }
                if handshake {
                    self.initiate(at, now);
                }
                if is_packet { self.deliver(at, buffer, start..start + length, now) } else { Ok(()) }
            }
            Message::Initiation => self.respond(now, from, datagram),
            Message::Response { receiver } => {
                let at = *self.by_index.get(&receiver).ok_or(Drop::BadHandshake)?;
                let own =
                    self.tunnels.get(at).and_then(Option::as_ref).and_then(|tunnel| tunnel.own.as_ref());
                // Authenticated with the key of this end that the other knows.
                let is_right = match own {
                    Some(own) => own.first_is_right(datagram),
                    None => self.jar.first_is_right(datagram),
                };
                if !is_right {
                    return Err(Drop::BadHandshake);
                }
                let response = datagram.first_chunk().ok_or(Drop::BadHandshake)?;
                let retired = self
                    .with_tunnel(at, now, |tunnel, context| {
                        tunnel.finish_handshake(response, from, now, context)
                    })
                    .flatten()
                    .ok_or(Drop::BadHandshake)?;
                self.retire(&retired);
                Ok(())
            }
            Message::CookieReply { receiver } => {
                let at = *self.by_index.get(&receiver).ok_or(Drop::BadHandshake)?;
                let tunnel = self.tunnels.get_mut(at).and_then(Option::as_mut).ok_or(Drop::BadHandshake)?;
                tunnel.take_cookie(datagram.first_chunk().ok_or(Drop::BadHandshake)?, now);
                Ok(())
            }
        }
    }

    /// The other lane a datagram is for, if it is for one. For initiations there is no index of ours: they are for whom
    /// they are authenticated to.
    fn other_lane(&self, message: Message, datagram: &[u8]) -> Option<usize> {
        let lane = match message {
            Message::Data { receiver, .. }
            | Message::Response { receiver }
            | Message::CookieReply { receiver } => self.lane.of_index(receiver),
            Message::Initiation if self.jar.first_is_right(datagram) => return None,
            Message::Initiation => self.lanes.iter().position(|lane| lane.first_is_right(datagram))?,
        };
        Some(lane).filter(|lane| *lane != self.lane.number)
    }

    /// Keeps a datagram for another lane.
    fn hand_over(&mut self, lane: usize, from: SocketAddr, datagram: &[u8]) -> Result<(), Drop> {
        if self.handoffs.len() >= MAX_HANDOFFS {
            return Err(Drop::WrongLane);
        }
        self.handoffs.push_back(Handoff::Datagram { lane, from, datagram: datagram.to_vec() });
        Ok(())
    }

    /// Lets a packet that came through a tunnel through to the TUN device, if it comes from where its peer may send from.
    fn deliver(
        &mut self,
        at: usize,
        buffer: &mut [u8],
        range: Range<usize>,
        now: Instant,
    ) -> Result<(), Drop> {
        let tunnel = self.tunnels.get_mut(at).and_then(Option::as_mut).ok_or(Drop::UnknownSession)?;
        let packet = &mut buffer[range.clone()];
        let ip = Ip::parse(packet).map_err(|_| Drop::Malformed)?;
        let origin = tunnel.peer;
        if control::is_control(ip.source) || control::is_control(ip.destination) {
            // Both ends are gateways, and have the same address.
            let ends = [ip.source, ip.destination].iter().all(|end| *end == IpAddr::from(control::ADDRESS));
            let view = tunnel.config.control.filter(|_| ends && control::is_link(packet, &ip));
            let view = view.ok_or(Drop::Control)?;
            self.pass(at, buffer, range, &ip, view.into());
            return Ok(());
        }
        // Who may send there, if not all pods of the peer.
        let (is_here, senders) = if self.local.get(ip.destination).is_some() {
            (true, None)
        } else if self.outside.get(ip.destination).is_some() {
            (true, Some(&self.pods.outward))
        } else if self.is_onward(origin, ip.destination) {
            (false, Some(&self.pods.transit))
        } else {
            return Err(Drop::ForeignDestination);
        };
        let peer = self.peers.get(origin).and_then(Option::as_ref).ok_or(Drop::UnknownSession)?;
        let own =
            |routes: &PrefixMap<Route>, view| routes.get(view).is_some_and(|route| route.peer == origin);
        let view = |real| peer.view(real);
        let quoted = Quoted::find(packet, &ip);
        if let Some(quoted) = quoted
            && let Some(inner) = view(quoted.ip.destination)
        {
            rewrite_quoted(packet, &ip, &quoted, End::Destination, inner, Transport::Finished);
        }
        let may_send = |source: &IpAddr| {
            own(&self.routes, *source) && senders.is_none_or(|senders| senders.contains(source))
        };
        // An error that a router on the other side sends comes from an address we do not know, or one that is nobody's further
        // on: nodes and gateways have some of their pods' prefixes. It is let in as a message of the host it is about: without
        // it no path MTU is found beyond the tunnel.
        let packet = &buffer[range.clone()];
        let quoted = quoted.filter(|quoted| is_here || quoted.is_of_router(packet, &ip));
        let about = || quoted.and_then(|quoted| view(quoted.ip.destination)).filter(may_send);
        let source = view(ip.source).filter(may_send).or_else(about).ok_or(Drop::ForeignSource)?;
        self.passes(origin, now);
        if is_here {
            self.pass(at, buffer, range, &ip, source);
            return Ok(());
        }
        self.come_from(at, &mut buffer[range.clone()], &ip, source);
        self.pass_on(now, &mut buffer[range], &ip)
    }

    /// Whether a packet of the peer at `origin` for this address is passed on to another peer.
    fn is_onward(&self, origin: usize, destination: IpAddr) -> bool {
        let pod = || self.routes.get(destination).filter(|route| route.gateway.is_none());
        self.pods.transit.contains(&destination)
            && pod().is_some_and(|route| self.transit.contains(&(origin, route.peer)))
    }

    /// Sends a packet that came through a tunnel through another one, as a router does.
    fn pass_on(&mut self, now: Instant, packet: &mut [u8], ip: &Ip) -> Result<(), Drop> {
        if !ip.spend_hop(packet) {
            return Err(Drop::Expired);
        }
        match self.send_onward(now, packet)? {
            Handled::Here => Ok(()),
            Handled::ByFirstLane if self.handoffs.len() >= MAX_HANDOFFS => Err(Drop::WrongLane),
            Handled::ByFirstLane => {
                self.handoffs.push_back(Handoff::Onward(packet[..ip.length].to_vec()));
                Ok(())
            }
        }
    }

    /// Takes a packet that another lane has passed on, and has no way for.
    pub fn handle_onward(&mut self, now: Instant, packet: &mut [u8]) {
        // What comes to the first lane stays there.
        if let Err(reason) = self.send_onward(now, packet) {
            self.drops.count(reason);
        }
    }

    /// Passes a packet that came through a tunnel on to the TUN device, from where its sender is seen.
    fn pass(&mut self, at: usize, buffer: &mut [u8], range: Range<usize>, ip: &Ip, source: IpAddr) {
        self.come_from(at, &mut buffer[range.clone()], ip, source);
        self.deliveries.push(buffer, range, ip);
    }

    /// Gives a packet that came through a tunnel the source address under which its sender is seen.
    fn come_from(&mut self, at: usize, packet: &mut [u8], ip: &Ip, source: IpAddr) {
        let Some(tunnel) = self.tunnels.get_mut(at).and_then(Option::as_mut) else { return };
        rewrite(packet, ip, End::Source, source, Transport::Finished);
        mss::clamp(packet, ip, tunnel.mtu(), Transport::Finished);
        tunnel.traffic.received_packets += 1;
        tunnel.traffic.received_bytes += u64::try_from(ip.length).unwrap_or(0);
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
        let tunnel = self.tunnels.get_mut(at).and_then(Option::as_mut).ok_or(Drop::UnknownPeer)?;
        if !tunnel.accepts_initiation(&responder.timestamp, now) {
            return Err(Drop::Replayed);
        }
        let preshared = tunnel.config.preshared_key.as_ref();
        let answer = responder.finish(preshared, local, &tunnel.recipient, tunnel.cookie(now).as_ref());
        let (response, keys, remote) = answer.map_err(|_| Drop::BadHandshake)?;
        let retired = tunnel.responded(Session::new(&keys, local, remote, false, now), from, now);
        self.transmits.push(from, &response);
        if let Some(index) = retired {
            self.by_index.remove(&index);
        }
        self.by_index.insert(local, at);
        Ok(())
    }

    pub(super) fn initiate(&mut self, at: usize, now: Instant) {
        let local = self.fresh_index();
        let jitter = self.random.number();
        let label = timestamp(self.clock.since_epoch + now.saturating_duration_since(self.clock.instant));
        let Some(tunnel) = self.tunnels.get_mut(at).and_then(Option::as_mut) else { return };
        self.by_index.insert(local, at);
        if let Some(unused) =
            tunnel.initiate(&self.private_key, local, &label, jitter, now, &mut self.transmits)
        {
            self.by_index.remove(&unused);
        }
    }

    /// Random, so that nobody guesses which sessions there are.
    fn fresh_index(&mut self) -> u32 {
        loop {
            let index = self.lane.own_index(self.random.number());
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    pub(super) fn retire(&mut self, indices: &Retired) {
        for index in indices {
            self.by_index.remove(index);
        }
    }
}
