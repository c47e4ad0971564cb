//! Coalescing of received packets into super-packets, by the rules of the kernel's own GRO: one write to the TUN
//! device then costs what one packet did.
//!
//! Packets stay where they were decrypted: what is built is a list of pieces of the buffer they lie in.

use super::checksum::Sum;
use super::ip::{Fragment, IPV4_HEADER, IPV6_HEADER, Ip, protocol};
use super::vnet::{self, Offload, Segmented};
use std::ops::Range;

/// Longest IP packet.
const MAX_PACKET: usize = 65_535;
/// Most datagrams of a UDP super-packet: `UDP_MAX_SEGMENTS` before Linux 6.9.
const MAX_DATAGRAMS: u16 = 64;
/// Most packets of a run, each of which is a piece of the write: the kernel takes 1,024 (`IOV_MAX`), and 47 of
/// 1,400 bytes fill a super-packet.
pub const MAX_PIECES: u16 = 128;
/// Runs that may still grow at a time. More flows than this in one batch cost speed, not order: the oldest run is
/// closed.
const MAX_OPEN: usize = 32;
const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;
const NO_PIECE: u32 = u32::MAX;

/// A batch of packets on its way to the TUN device.
#[derive(Debug, Default)]
pub struct Coalescer {
    runs: Vec<Run>,
    pieces: Vec<Piece>,
    open: Vec<Open>,
    datagrams: bool,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u32,
    end: u32,
    next: u32,
}

/// A run that may grow, findable by the hash of its flow.
#[derive(Debug, Clone, Copy)]
struct Open {
    hash: u32,
    run: usize,
}

/// Packets of one flow that follow each other.
#[derive(Debug, Clone, Copy)]
struct Run {
    first_piece: u32,
    last_piece: u32,
    /// The first packet, with all its headers.
    start: usize,
    shape: Option<Shape>,
    count: u16,
    /// Length of the super-packet.
    length: usize,
    /// Sequence number of the next TCP segment.
    next_sequence: u32,
    /// The first packet's transport checksum has been found right.
    verified: bool,
}

/// What a packet that can be coalesced looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    protocol: Segmented,
    v4: bool,
    /// Length of the IP header, which has no options.
    network: usize,
    /// Length of all headers.
    headers: usize,
    /// Payload bytes of a full segment.
    size: usize,
}

/// What to write to the TUN device in one call.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// The virtio header.
    pub header: [u8; vnet::LENGTH],
    coalescer: &'a Coalescer,
    next: u32,
}

impl Iterator for Delivery<'_> {
    type Item = Range<usize>;

    /// The next piece of the buffer.
    fn next(&mut self) -> Option<Range<usize>> {
        let piece = self.coalescer.pieces.get(usize::try_from(self.next).ok()?)?;
        self.next = piece.next;
        Some(index(piece.start)..index(piece.end))
    }
}

fn index(offset: u32) -> usize {
    usize::try_from(offset).expect("32 bits fit")
}

impl Coalescer {
    /// An empty batch; UDP is coalesced only if the device cuts it again (`datagrams`: `TUN_F_USO4` and `6`).
    #[must_use]
    pub fn new(datagrams: bool) -> Self {
        Self { datagrams, ..Self::default() }
    }

    /// Forgets the batch, keeping its memory.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.pieces.clear();
        self.open.clear();
    }

    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many calls it takes to write the batch.
    #[must_use]
    pub fn deliveries(&self) -> usize {
        self.runs.len()
    }

    /// Adds the packet at `range` of `buffer`, read as `ip`. Packets of one flow keep their order.
    pub fn push(&mut self, buffer: &mut [u8], range: Range<usize>, ip: &Ip) {
        let range = range.start..range.start + ip.length;
        let packet = &buffer[range.clone()];
        let transport =
            matches!(ip.protocol, protocol::TCP | protocol::UDP) && ip.fragment == Fragment::Whole;
        if !transport {
            // Nothing with ports: it is in no order with the packets of a run. (Fragments of a datagram may
            // overtake whole ones, as they may everywhere.)
            self.start(range, None, 0, None);
            return;
        }
        let hash = flow_hash(packet, ip);
        let shape = self.shape(packet, ip);
        if let Some(position) = self.open.iter().position(|open| open.hash == hash) {
            let run = self.open[position].run;
            if let Some(shape) = shape
                && self.continues(run, &shape, buffer, &range)
            {
                if self.append(run, &shape, buffer, range) {
                    self.open.swap_remove(position);
                }
                return;
            }
            self.open.swap_remove(position);
        }
        // What ends a burst (PSH) is not to be waited with by the receiver: nothing joins it.
        let closes = shape.is_none_or(|shape| shape.protocol == Segmented::Tcp && psh(packet, &shape));
        let sequence = match shape {
            Some(shape) if shape.protocol == Segmented::Tcp => {
                sequence(packet, &shape).wrapping_add(u32::try_from(shape.size).unwrap_or(u32::MAX))
            }
            _ => 0,
        };
        self.start(range, shape, sequence, Some(hash).filter(|_| !closes));
    }

    fn start(&mut self, range: Range<usize>, shape: Option<Shape>, next_sequence: u32, open: Option<u32>) {
        let piece = self.piece(range.clone());
        self.runs.push(Run {
            first_piece: piece,
            last_piece: piece,
            start: range.start,
            shape,
            count: 1,
            length: range.len(),
            next_sequence,
            verified: false,
        });
        if let Some(hash) = open {
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(Open { hash, run: self.runs.len() - 1 });
        }
    }

    fn piece(&mut self, range: Range<usize>) -> u32 {
        let narrow = |offset: usize| u32::try_from(offset).expect("receive buffers are far below 4 GiB");
        self.pieces.push(Piece { start: narrow(range.start), end: narrow(range.end), next: NO_PIECE });
        narrow(self.pieces.len() - 1)
    }

    /// How a packet looks, if it is of a kind that can be coalesced.
    fn shape(&self, packet: &[u8], ip: &Ip) -> Option<Shape> {
        let v4 = ip.is_v4();
        let network = if v4 { IPV4_HEADER } else { IPV6_HEADER };
        if ip.payload != network {
            return None;
        }
        let (protocol, header) = match ip.protocol {
            protocol::TCP => {
                let tcp = packet.get(network..network + 20)?;
                let header = usize::from(tcp[12] >> 4) * 4;
                if tcp[13] & !TCP_PSH != TCP_ACK || header < 20 {
                    return None;
                }
                (Segmented::Tcp, header)
            }
            // Without a checksum it could not be verified, and with super-packets it would get one.
            protocol::UDP if self.datagrams && packet.get(network + 6..network + 8)? != [0, 0] => {
                (Segmented::Udp, 8)
            }
            _ => return None,
        };
        let headers = network + header;
        let size = packet.len().checked_sub(headers).filter(|size| *size > 0)?;
        Some(Shape { protocol, v4, network, headers, size })
    }

    /// Whether the packet at `range` may be the next of a run.
    fn continues(&mut self, run: usize, shape: &Shape, buffer: &[u8], range: &Range<usize>) -> bool {
        let run = &mut self.runs[run];
        let Some(first) = run.shape else { return false };
        let (head, packet) = (&buffer[run.start..run.start + first.headers], &buffer[range.clone()]);
        let fits = first.headers == shape.headers
            && first.protocol == shape.protocol
            && first.v4 == shape.v4
            && shape.size <= first.size
            && run.length + shape.size <= MAX_PACKET
            && run.count < MAX_PIECES
            && same_headers(head, packet, &first, run.count)
            && match first.protocol {
                Segmented::Tcp => sequence(packet, shape) == run.next_sequence,
                Segmented::Udp => run.count < MAX_DATAGRAMS,
            };
        if !fits || !checksum_is_right(packet, shape) {
            return false;
        }
        if !run.verified {
            run.verified =
                checksum_is_right(&buffer[run.start..run.start + first.headers + first.size], &first);
        }
        run.verified
    }

    /// Adds the packet to the run; returns whether the run is complete with it.
    fn append(&mut self, run: usize, shape: &Shape, buffer: &mut [u8], range: Range<usize>) -> bool {
        let pushed = shape.protocol == Segmented::Tcp && psh(&buffer[range.clone()], shape);
        let piece = self.piece(range.start + shape.headers..range.end);
        let run = &mut self.runs[run];
        self.pieces[index(run.last_piece)].next = piece;
        run.last_piece = piece;
        run.count += 1;
        run.length += shape.size;
        run.next_sequence = run.next_sequence.wrapping_add(u32::try_from(shape.size).unwrap_or(u32::MAX));
        if pushed {
            buffer[run.start + shape.network + 13] |= TCP_PSH;
        }
        pushed || run.shape.is_none_or(|first| shape.size < first.size)
    }

    /// Completes the headers of super-packets in `buffer`: call it once before [`Coalescer::delivery`].
    pub fn finish(&mut self, buffer: &mut [u8]) {
        for run in self.runs.iter().filter(|run| run.count > 1) {
            let Some(shape) = run.shape else { continue };
            let head = &mut buffer[run.start..run.start + shape.headers];
            let (network, transport) = head.split_at_mut(shape.network);
            let total = u16::try_from(run.length).unwrap_or(u16::MAX);
            let length = u16::try_from(run.length - shape.network).unwrap_or(u16::MAX);
            let addresses = if shape.v4 {
                network[2..4].copy_from_slice(&total.to_be_bytes());
                network[10..12].fill(0);
                let sum = Sum::of(network).checksum();
                network[10..12].copy_from_slice(&sum);
                &network[12..20]
            } else {
                network[4..6].copy_from_slice(&length.to_be_bytes());
                &network[8..40]
            };
            let (number, field) = match shape.protocol {
                Segmented::Tcp => (protocol::TCP, 16),
                Segmented::Udp => {
                    transport[4..6].copy_from_slice(&length.to_be_bytes());
                    (protocol::UDP, 6)
                }
            };
            let sum = Sum::of(addresses).with_word(u16::from(number)).with_word(length).folded();
            transport[field..field + 2].copy_from_slice(&sum);
        }
    }

    /// The `number`th write of the batch.
    #[must_use]
    pub fn delivery(&self, number: usize) -> Option<Delivery<'_>> {
        let run = self.runs.get(number)?;
        let narrow = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let header = match run.shape {
            Some(shape) if run.count > 1 => Offload::segments(
                shape.protocol,
                shape.v4,
                narrow(shape.size),
                narrow(shape.headers),
                narrow(shape.network),
            ),
            _ => [0; vnet::LENGTH],
        };
        Some(Delivery { header, coalescer: self, next: run.first_piece })
    }
}

fn psh(packet: &[u8], shape: &Shape) -> bool {
    packet[shape.network + 13] & TCP_PSH != 0
}

fn sequence(packet: &[u8], shape: &Shape) -> u32 {
    let at = shape.network + 4;
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

/// A hash of what tells flows apart: it only has to be quick, a wrong match is found by comparing headers.
fn flow_hash(packet: &[u8], ip: &Ip) -> u32 {
    let word = |at: usize| {
        let bytes = packet.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    let addresses = if ip.is_v4() { [12, 16] } else { [20, 36] };
    let seed = u32::from(ip.protocol);
    [addresses[0], addresses[1], ip.payload]
        .into_iter()
        .fold(seed, |hash, at| (hash.rotate_left(5) ^ word(at)).wrapping_mul(0x9e37_79b9))
}

/// Whether a packet has the headers that the segment after `count` others of a super-packet with `head` gets.
fn same_headers(head: &[u8], packet: &[u8], shape: &Shape, count: u16) -> bool {
    let same = |range: Range<usize>| head[range.clone()] == packet[range];
    let network = if shape.v4 {
        let word = |bytes: &[u8]| u16::from_be_bytes([bytes[4], bytes[5]]);
        // Version and TOS; flags, TTL and protocol; addresses. With DF the identification says nothing (RFC 6864).
        same(0..2)
            && same(6..10)
            && same(12..20)
            && (head[6] & 0x40 != 0 || word(packet) == word(head).wrapping_add(count))
    } else {
        same(0..4) && same(6..40)
    };
    let at = shape.network;
    network
        && same(at..at + 4)
        && match shape.protocol {
            // Acknowledgement and header length; window; urgent pointer and options. Flags were looked at.
            Segmented::Tcp => same(at + 8..at + 13) && same(at + 14..at + 16) && same(at + 18..shape.headers),
            Segmented::Udp => true,
        }
}

fn checksum_is_right(packet: &[u8], shape: &Shape) -> bool {
    let addresses = if shape.v4 { &packet[12..20] } else { &packet[8..40] };
    let number = match shape.protocol {
        Segmented::Tcp => protocol::TCP,
        Segmented::Udp => protocol::UDP,
    };
    let transport = &packet[shape.network..];
    let Ok(length) = u16::try_from(transport.len()) else { return false };
    let sum = Sum::of(addresses).with_word(u16::from(number)).with_word(length).with(transport);
    sum.checksum() == [0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::{Body, Packet, checksums_are_right};
    use crate::packet::segment::Segments;
    use proptest::prelude::*;

    /// What the kernel makes of the batch: every super-packet cut into segments again.
    fn delivered(packets: &[Vec<u8>]) -> (Vec<Vec<u8>>, usize) {
        let mut buffer: Vec<u8> = Vec::new();
        let ranges: Vec<_> = packets
            .iter()
            .map(|packet| {
                let start = buffer.len();
                buffer.extend(packet);
                start..buffer.len()
            })
            .collect();
        let mut coalescer = Coalescer::new(true);
        for (range, packet) in ranges.into_iter().zip(packets) {
            coalescer.push(&mut buffer, range, &Ip::parse(packet).unwrap());
        }
        coalescer.finish(&mut buffer);
        let mut out = Vec::new();
        for number in 0..coalescer.deliveries() {
            let delivery = coalescer.delivery(number).unwrap();
            let header = delivery.header;
            let packet: Vec<u8> = delivery.flat_map(|range| buffer[range].to_vec()).collect();
            let ip = Ip::parse(&packet).unwrap();
            assert_eq!(ip.length, packet.len());
            match Offload::read(&header).unwrap() {
                Offload::Segments { protocol, size } => {
                    let segments = Segments::new(&packet, &ip, protocol, size).unwrap();
                    for index in 0..segments.count() {
                        let mut segment = vec![0; segments.length(index)];
                        segments.write(index, &mut segment);
                        out.push(segment);
                    }
                }
                Offload::None => out.push(packet),
                Offload::Checksum { .. } => unreachable!("never written"),
            }
        }
        (out, coalescer.deliveries())
    }

    #[derive(Debug, Clone, Copy)]
    struct Step {
        flow: u16,
        kind: u8,
        length: usize,
        broken: bool,
    }

    fn packets(v4: bool, steps: &[Step]) -> Vec<(u16, Vec<u8>)> {
        let mut sequence = [1000u32; 4];
        let mut out = Vec::new();
        for (identification, step) in (0u16..).zip(steps) {
            let payload = vec![u8::try_from(step.flow).unwrap(); step.length];
            let ports = [step.flow, 80];
            let flow = usize::from(step.flow);
            let mut tcp = |flags| {
                let body = Body::Tcp {
                    ports,
                    sequence: sequence[flow],
                    acknowledgement: 5,
                    flags,
                    options: vec![1; 12],
                    payload: payload.clone(),
                };
                sequence[flow] += u32::try_from(step.length).unwrap();
                body
            };
            let body = match step.kind {
                0..=3 => tcp(TCP_ACK),
                4 => tcp(TCP_ACK | TCP_PSH),
                5 => tcp(TCP_ACK | 1),
                6 | 7 => Body::Udp { ports, checksum: true, payload },
                8 => Body::Udp { ports, checksum: false, payload },
                _ => Body::Other { protocol: 132, payload },
            };
            let (from, to) = if v4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
            let mut packet = Packet::new(from, to, body);
            packet.identification = identification;
            let mut bytes = packet.bytes();
            if step.broken {
                *bytes.last_mut().unwrap() ^= 1;
            }
            out.push((step.flow, bytes));
        }
        out
    }

    fn step() -> impl Strategy<Value = Step> {
        let length = prop::sample::select(vec![1000usize, 1000, 1000, 1000, 300, 1]);
        (0u16..3, 0u8..10, length, prop::bool::weighted(0.03)).prop_map(|(flow, kind, length, broken)| Step {
            flow,
            kind,
            length,
            broken,
        })
    }

    /// With DF set, identifications mean nothing: coalescing may renumber them.
    fn without_identification(packet: &[u8]) -> Vec<u8> {
        let mut packet = packet.to_vec();
        if packet[0] >> 4 == 4 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        packet
    }

    proptest! {
        #[test]
        fn what_arrives_is_what_was_sent_in_the_order_of_each_flow(
            v4 in any::<bool>(), steps in prop::collection::vec(step(), 0..150)
        ) {
            let sent = packets(v4, &steps);
            let (got, _) = delivered(&sent.iter().map(|(_, packet)| packet.clone()).collect::<Vec<_>>());
            prop_assert_eq!(got.len(), sent.len());
            // TCP and UDP are flows of their own, and each port; what has no ports is one more.
            let class = |packet: &[u8]| {
                let ip = Ip::parse(packet).unwrap();
                (ip.protocol, if ip.protocol == 132 { 0 } else { packet[ip.payload + 1] })
            };
            for flow in sent.iter().map(|(_, packet)| class(packet)) {
                let of_flow = |packets: Vec<Vec<u8>>| -> Vec<_> {
                    packets.into_iter().filter(|packet| class(packet) == flow)
                        .map(|packet| without_identification(&packet)).collect()
                };
                prop_assert_eq!(of_flow(got.clone()), of_flow(sent.iter().map(|(_, packet)| packet.clone()).collect()));
            }
        }
    }

    #[test]
    fn a_burst_becomes_one_write_and_a_broken_packet_is_not_laundered() {
        let good = Step { flow: 1, kind: 0, length: 1000, broken: false };
        let burst: Vec<_> = packets(true, &vec![good; 40]).into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(delivered(&burst).1, 1);

        let broken = Step { broken: true, ..good };
        let steps = [good, good, broken, good, good];
        let sent: Vec<_> = packets(true, &steps).into_iter().map(|(_, packet)| packet).collect();
        let (got, writes) = delivered(&sent);
        assert_eq!(writes, 3, "two, the broken one, which nothing joins, and two");
        assert_eq!(got.iter().filter(|packet| !checksums_are_right(packet)).count(), 1);
    }

    #[test]
    fn small_datagrams_are_coalesced_up_to_the_limit() {
        let step = Step { flow: 1, kind: 6, length: 64, broken: false };
        let sent: Vec<_> = packets(false, &vec![step; 130]).into_iter().map(|(_, packet)| packet).collect();
        let (got, writes) = delivered(&sent);
        assert_eq!((got.len(), writes), (130, 3));
    }
}
