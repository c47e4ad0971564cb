//! Packets out of arbitrary bytes, and their checksums as the standards have them, word for word.

use liquid_gateway::packet::ip::{Fragment, Ip, protocol};
use std::net::IpAddr;

/// How arbitrary bytes are made to look like a packet: a bit for each thing that is put right.
#[derive(Debug, Clone, Copy)]
pub struct Dress(pub u8);

impl Dress {
    fn has(self, bit: u8) -> bool {
        self.0 & 1 << bit != 0
    }

    /// Whether the packet is one of IPv6.
    #[must_use]
    pub fn v6(self) -> bool {
        self.has(0)
    }

    /// Puts right what is to be put right; `ends` are source and destination, of IPv4 and of IPv6.
    pub fn put_on(self, packet: &mut [u8], ends: [[IpAddr; 2]; 2]) {
        let header = if self.v6() { 40 } else { 20 };
        if packet.len() < header {
            return;
        }
        packet[0] = if self.v6() { 0x60 | packet[0] & 0x0f } else { 0x45 };
        if self.has(1) {
            let total = if self.v6() { packet.len() - header } else { packet.len() };
            let total = u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes();
            let at = if self.v6() { 4 } else { 2 };
            packet[at..at + 2].copy_from_slice(&total);
        }
        if self.has(2) {
            let at = if self.v6() { 6 } else { 9 };
            let kinds = [protocol::TCP, protocol::UDP, protocol::ICMP, protocol::ICMPV6];
            packet[at] = kinds[usize::from(packet[at] & 3)];
        }
        if self.has(3) && !self.v6() {
            // No fragment.
            packet[6] &= 0x40;
            packet[7] = 0;
        }
        for (bit, end, v4, v6) in [(4, 0, 12, 8), (5, 1, 16, 24)] {
            if self.has(bit) {
                match ends[usize::from(self.v6())][end] {
                    IpAddr::V4(address) => packet[v4..v4 + 4].copy_from_slice(&address.octets()),
                    IpAddr::V6(address) => packet[v6..v6 + 16].copy_from_slice(&address.octets()),
                }
            }
        }
        if self.has(6)
            && let Ok(ip) = Ip::parse(packet)
        {
            repair(packet, &ip);
        }
    }
}

/// RFC 1071, section 4.1.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for word in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// Sum of everything the transport checksum covers, and where in the packet that is; `None` if it has none, or not all of it is
/// there.
fn transport(packet: &[u8], ip: &Ip) -> Option<(u16, usize)> {
    let offset = match ip.protocol {
        protocol::ICMP if ip.is_v4() => 2,
        _ => ip.checksum_offset()?,
    };
    let body = packet.get(ip.payload..ip.length)?;
    if ip.fragment != Fragment::Whole || body.len() < offset + 2 {
        return None;
    }
    let length = u32::try_from(body.len()).ok()?.to_be_bytes();
    let kind = [0, 0, 0, ip.protocol];
    let sum = match (ip.source, ip.destination) {
        _ if ip.protocol == protocol::ICMP && ip.is_v4() => sum(&[body]),
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum(&[&source.octets(), &destination.octets(), &length, &kind, body])
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum(&[&source.octets(), &destination.octets(), &length, &kind, body])
        }
        _ => return None,
    };
    Some((sum, ip.payload + offset))
}

/// Gives a packet the checksums it should have. A datagram without one stays without.
pub fn repair(packet: &mut [u8], ip: &Ip) {
    if ip.is_v4() {
        packet[10..12].fill(0);
        let right = !sum(&[&packet[..ip.payload]]);
        packet[10..12].copy_from_slice(&right.to_be_bytes());
    }
    let Some((_, at)) = transport(packet, ip) else { return };
    if ip.protocol == protocol::UDP && packet[at..at + 2] == [0, 0] {
        return;
    }
    packet[at..at + 2].fill(0);
    let right = transport(packet, ip).map_or(0, |(sum, _)| !sum);
    let right = if right == 0 && ip.protocol == protocol::UDP { 0xffff } else { right };
    packet[at..at + 2].copy_from_slice(&right.to_be_bytes());
}

/// Whether the checksums of a packet are right, as far as it has any and is whole.
#[must_use]
pub fn is_right(packet: &[u8], ip: &Ip) -> bool {
    // Zero has two forms. Of something with a bit set, senders make the one that has none; UDP keeps that for no checksum.
    let is_ones = |at: usize| packet[at..at + 2] == [0xff, 0xff];
    let header = !ip.is_v4() || (sum(&[&packet[..ip.payload]]) == 0xffff && !is_ones(10));
    let body = transport(packet, ip).is_none_or(|(sum, at)| {
        let is_udp = ip.protocol == protocol::UDP;
        (sum == 0xffff && (is_udp || !is_ones(at))) || (is_udp && packet[at..at + 2] == [0, 0])
    });
    header && body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repaired_is_right_and_what_is_damaged_then_is_not() {
        let ends = [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]];
        let ends = ends.map(|ends| ends.map(|end| end.parse().expect("an address")));
        for how in [0b111_1110, 0b111_1111] {
            for kind in 0..4 {
                let mut packet = [7; 90];
                packet[if how & 1 == 0 { 9 } else { 6 }] = kind;
                Dress(how).put_on(&mut packet, ends);
                let ip = Ip::parse(&packet).expect("a packet");
                assert!(is_right(&packet, &ip), "{how} {kind}");
                packet[ip.payload + 9] ^= 1;
                assert_eq!(is_right(&packet, &ip), transport(&packet, &ip).is_none(), "{how} {kind}");
            }
        }
    }
}
