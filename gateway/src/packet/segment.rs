//! Segmentation of TCP and UDP super-packets, as a network card with TSO and USO does it.

use super::checksum::Sum;
use super::ip::{Ip, protocol};
use super::vnet::Segmented;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// The segments of a super-packet.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    packet: &'a [u8],
    ip: Ip,
    protocol: Segmented,
    /// Length of all headers.
    headers: usize,
    size: usize,
    count: usize,
}

/// A super-packet that contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this cannot be segmented")]
pub struct Unfit;

impl<'a> Segments<'a> {
    /// Segments of `size` payload bytes.
    ///
    /// # Errors
    /// If the packet is not of that protocol, or has no payload.
    pub fn new(packet: &'a [u8], ip: &Ip, protocol: Segmented, size: u16) -> Result<Self, Unfit> {
        let packet = packet.get(..ip.length).ok_or(Unfit)?;
        let transport = packet.get(ip.payload..).ok_or(Unfit)?;
        let header = match (protocol, ip.protocol) {
            (Segmented::Tcp, protocol::TCP) => usize::from(*transport.get(12).ok_or(Unfit)? >> 4) * 4,
            (Segmented::Udp, protocol::UDP) => 8,
            _ => return Err(Unfit),
        };
        let payload = transport.len().checked_sub(header).filter(|length| *length > 0).ok_or(Unfit)?;
        if size == 0 || (protocol == Segmented::Tcp && header < 20) || !ip.has_transport() {
            return Err(Unfit);
        }
        let size = usize::from(size);
        let count = payload.div_ceil(size);
        Ok(Self { packet, ip: *ip, protocol, headers: ip.payload + header, size, count })
    }

    /// How many there are; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of a full segment with its headers.
    #[must_use]
    pub fn full_length(&self) -> usize {
        self.headers + self.size
    }

    /// Length of a segment with its headers.
    #[must_use]
    pub fn length(&self, index: usize) -> usize {
        self.headers + self.payload(index).len()
    }

    fn payload(&self, index: usize) -> &'a [u8] {
        let start = self.headers + index * self.size;
        &self.packet[start..(start + self.size).min(self.packet.len())]
    }

    /// Writes a segment to the start of `out`, which is at least as long as it, with every checksum.
    pub fn write(&self, index: usize, out: &mut [u8]) {
        let payload = self.payload(index);
        let out = &mut out[..self.headers + payload.len()];
        let (headers, body) = out.split_at_mut(self.headers);
        headers.copy_from_slice(&self.packet[..self.headers]);
        body.copy_from_slice(payload);
        let (network, transport) = headers.split_at_mut(self.ip.payload);
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        // An IP packet is below 64 KiB, and a segment is no longer than the packet it comes from.
        let transport_length = u16::try_from(transport.len() + body.len()).unwrap_or(u16::MAX);
        let addresses = if self.ip.is_v4() {
            let total = u16::try_from(network.len()).unwrap_or(u16::MAX).saturating_add(transport_length);
            let identification = u16::from_be_bytes([network[4], network[5]]).wrapping_add(number);
            network[2..4].copy_from_slice(&total.to_be_bytes());
            network[4..6].copy_from_slice(&identification.to_be_bytes());
            network[10..12].fill(0);
            let sum = Sum::of(network).checksum();
            network[10..12].copy_from_slice(&sum);
            &network[12..20]
        } else {
            let payload = self.ip.payload - super::ip::IPV6_HEADER;
            let length = u16::try_from(payload).unwrap_or(u16::MAX).saturating_add(transport_length);
            network[4..6].copy_from_slice(&length.to_be_bytes());
            &network[8..40]
        };
        let pseudo = Sum::of(addresses).with_word(u16::from(self.ip.protocol)).with_word(transport_length);
        match self.protocol {
            Segmented::Tcp => {
                let offset = u32::try_from(index * self.size).unwrap_or(u32::MAX);
                let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                transport[4..8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
                if index + 1 < self.count {
                    transport[13] &= !(TCP_FIN | TCP_PSH);
                }
                if index > 0 {
                    // RFC 3168, section 6.1.2: once per window.
                    transport[13] &= !TCP_CWR;
                }
                transport[16..18].fill(0);
                let sum = pseudo.with(transport).with(body).checksum();
                transport[16..18].copy_from_slice(&sum);
            }
            Segmented::Udp => {
                transport[4..6].copy_from_slice(&transport_length.to_be_bytes());
                transport[6..8].fill(0);
                let sum = pseudo.with(transport).with(body).checksum();
                transport[6..8].copy_from_slice(if sum == [0, 0] { &[0xff, 0xff] } else { &sum });
            }
        }
    }
}

/// Finishes a checksum that was left to a device: it covers everything from `start` to `length`.
pub fn finish_checksum(packet: &mut [u8], ip: &Ip, start: u16, offset: u16) {
    let Some(summed) = packet.get_mut(usize::from(start)..ip.length) else { return };
    let sum = Sum::of(summed).checksum();
    let offset = usize::from(offset);
    let zero_means_none = ip.protocol == protocol::UDP && sum == [0, 0];
    if let Some(field) = summed.get_mut(offset..offset + 2) {
        field.copy_from_slice(if zero_means_none { &[0xff, 0xff] } else { &sum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::{Body, Packet, address, any_packet};
    use proptest::prelude::*;

    fn tcp(payload: Vec<u8>, sequence: u32, flags: u8) -> Body {
        Body::Tcp { ports: [5, 6], sequence, acknowledgement: 9, flags, options: vec![1; 12], payload }
    }

    fn packet(v4: bool, identification: u16, body: Body) -> Packet {
        Packet {
            source: address(v4, 1 << 40 | 77),
            destination: address(v4, 1 << 50 | 99),
            body,
            options: false,
            fragment: None,
            identification,
            dont_fragment: true,
        }
    }

    proptest! {
        #[test]
        fn segments_are_the_packets_a_sender_without_offload_sends(
            v4 in any::<bool>(), udp in any::<bool>(), length in 1usize..9000, size in 100u16..2000, flags in any::<u8>()
        ) {
            let payload: Vec<u8> = (0..length).map(|byte| u8::try_from(byte * 7 % 256).unwrap()).collect();
            let body = |payload: Vec<u8>, index: usize, flags| if udp {
                Body::Udp { ports: [5, 6], checksum: true, payload }
            } else {
                tcp(payload, u32::MAX.wrapping_add(u32::try_from(index * usize::from(size)).unwrap()), flags)
            };
            let whole = packet(v4, 0xffff, body(payload.clone(), 0, flags)).partial_bytes();
            let ip = Ip::parse(&whole).unwrap();
            let kind = if udp { Segmented::Udp } else { Segmented::Tcp };
            let segments = Segments::new(&whole, &ip, kind, size).unwrap();
            let pieces: Vec<_> = payload.chunks(usize::from(size)).collect();
            prop_assert_eq!(segments.count(), pieces.len());
            for (index, piece) in pieces.iter().enumerate() {
                let mut flags = flags;
                if index + 1 < pieces.len() { flags &= !(TCP_FIN | TCP_PSH); }
                if index > 0 { flags &= !TCP_CWR; }
                let number = 0xffff_u16.wrapping_add(u16::try_from(index).unwrap());
                let expected = packet(v4, number, body(piece.to_vec(), index, flags)).bytes();
                let mut out = vec![0; segments.length(index)];
                segments.write(index, &mut out);
                prop_assert_eq!(out, expected);
            }
        }

        #[test]
        fn finishing_a_checksum_is_computing_it(packet in any_packet()) {
            let mut packet = packet;
            packet.fragment = None;
            if let Body::Udp { checksum, .. } = &mut packet.body { *checksum = true; }
            if matches!(packet.body, Body::Tcp { .. } | Body::Udp { .. }) {
                let mut bytes = packet.partial_bytes();
                let ip = Ip::parse(&bytes).unwrap();
                let offset = u16::try_from(ip.checksum_offset().unwrap()).unwrap();
                finish_checksum(&mut bytes, &ip, u16::try_from(ip.payload).unwrap(), offset);
                prop_assert_eq!(bytes, packet.bytes());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), six in any::<bool>(),
                                       udp in any::<bool>(), size in any::<u16>(), word in any::<[u16; 2]>()) {
            if bytes.len() > 9 {
                bytes[0] = if six { 0x60 } else { 0x45 };
                bytes[if six { 6 } else { 9 }] = if udp { 17 } else { 6 };
                if !six { bytes[2] = 0; bytes[6] = 0; bytes[7] = 0; }
            }
            if let Ok(ip) = Ip::parse(&bytes) {
                let kind = if udp { Segmented::Udp } else { Segmented::Tcp };
                if let Ok(segments) = Segments::new(&bytes, &ip, kind, size) {
                    for index in 0..segments.count() {
                        segments.write(index, &mut vec![0; segments.length(index)]);
                    }
                }
                finish_checksum(&mut bytes, &ip, word[0] % 500, word[1] % 500);
            }
        }
    }
}
