//! Answers to packets that do not fit the tunnel: "fragmentation needed" (RFC 1191) and "packet too big" (RFC 4443).

use super::checksum::Sum;
use super::ip::{Fragment, IPV4_HEADER, IPV6_HEADER, Ip, protocol};
use crate::nat::Quoted;
use std::net::IpAddr;

/// Longest answer: RFC 1812, section 4.3.2.3 for IPv4, the IPv6 minimum MTU for IPv6.
pub const MAX_ANSWER: usize = 1280;
const MAX_ANSWER_V4: usize = 576;
const HOP_LIMIT: u8 = 64;
const ICMP_HEADER: usize = 8;

/// Whether the sender wants its packet whole or not at all.
#[must_use]
pub fn must_stay_whole(packet: &[u8], ip: &Ip) -> bool {
    !ip.is_v4() || packet.get(6).is_some_and(|flags| flags & 0x40 != 0)
}

/// Writes the answer to `packet` into `answer`, and returns its length; `None` if none may be sent.
///
/// The answer comes from the address the packet was for: the gateway needs no address of its own in the network of
/// the sender, whose reverse-path filter takes the answer for what it is, a message from that direction.
#[must_use]
pub fn answer(packet: &[u8], ip: &Ip, mtu: u16, answer: &mut [u8; MAX_ANSWER]) -> Option<usize> {
    // RFC 1122, section 3.2.2 and RFC 4443, section 2.4 (e).
    let unwanted = ip.fragment == Fragment::Later
        || ip.source.is_multicast()
        || ip.source.is_unspecified()
        || ip.destination.is_multicast()
        || Quoted::find(packet, ip).is_some();
    if unwanted {
        return None;
    }
    match (ip.source, ip.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let quoted =
                &packet[..ip.length.min(MAX_ANSWER_V4 - IPV4_HEADER - ICMP_HEADER).min(packet.len())];
            let length = IPV4_HEADER + ICMP_HEADER + quoted.len();
            let (header, icmp) = answer.split_at_mut(IPV4_HEADER);
            let total = u16::try_from(length).ok()?.to_be_bytes();
            header.copy_from_slice(&[
                0x45,
                0,
                total[0],
                total[1],
                0,
                0,
                0,
                0,
                HOP_LIMIT,
                protocol::ICMP,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ]);
            header[12..16].copy_from_slice(&destination.octets());
            header[16..20].copy_from_slice(&source.octets());
            let sum = Sum::of(header).checksum();
            header[10..12].copy_from_slice(&sum);
            let mtu = mtu.to_be_bytes();
            icmp[..ICMP_HEADER].copy_from_slice(&[3, 4, 0, 0, 0, 0, mtu[0], mtu[1]]);
            icmp[ICMP_HEADER..ICMP_HEADER + quoted.len()].copy_from_slice(quoted);
            let sum = Sum::of(&icmp[..ICMP_HEADER + quoted.len()]).checksum();
            icmp[2..4].copy_from_slice(&sum);
            Some(length)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let quoted = &packet[..ip.length.min(MAX_ANSWER - IPV6_HEADER - ICMP_HEADER).min(packet.len())];
            let (header, icmp) = answer.split_at_mut(IPV6_HEADER);
            let payload = u16::try_from(ICMP_HEADER + quoted.len()).ok()?;
            let length = payload.to_be_bytes();
            header[..8].copy_from_slice(&[0x60, 0, 0, 0, length[0], length[1], protocol::ICMPV6, HOP_LIMIT]);
            header[8..24].copy_from_slice(&destination.octets());
            header[24..40].copy_from_slice(&source.octets());
            let mtu = u32::from(mtu).to_be_bytes();
            icmp[..ICMP_HEADER].copy_from_slice(&[2, 0, 0, 0, mtu[0], mtu[1], mtu[2], mtu[3]]);
            icmp[ICMP_HEADER..ICMP_HEADER + quoted.len()].copy_from_slice(quoted);
            let sum = Sum::of(&header[8..40]).with_word(payload).with_word(u16::from(protocol::ICMPV6));
            let sum = sum.with(&icmp[..usize::from(payload)]).checksum();
            icmp[2..4].copy_from_slice(&sum);
            Some(IPV6_HEADER + usize::from(payload))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::{Body, Packet, any_packet, checksums_are_right, error_about};
    use proptest::prelude::*;

    #[test]
    fn the_answer_quotes_the_packet_and_names_the_mtu() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let body = Body::Udp { ports: [1, 2], checksum: true, payload: vec![7; 1450] };
            let bytes = Packet::new(source, destination, body).bytes();
            let ip = Ip::parse(&bytes).unwrap();
            assert!(must_stay_whole(&bytes, &ip));
            let mut buffer = [0; MAX_ANSWER];
            let length = answer(&bytes, &ip, 1400, &mut buffer).unwrap();
            let reply = &buffer[..length];
            assert!(checksums_are_right(reply));
            let answered = Ip::parse(reply).unwrap();
            assert_eq!((answered.source, answered.destination), (ip.destination, ip.source));
            let quoted = Quoted::find(reply, &answered).unwrap();
            assert_eq!((quoted.ip.source, quoted.ip.length), (ip.source, bytes.len()));
            assert_eq!(reply[answered.payload + 6..answered.payload + 8], 1400_u16.to_be_bytes());
        }
    }

    #[test]
    fn errors_are_not_answered_with_errors() {
        let body = Body::Udp { ports: [1, 2], checksum: true, payload: vec![7; 50] };
        let error = error_about(&Packet::new("10.0.0.1", "10.0.0.2", body), 60).bytes();
        let ip = Ip::parse(&error).unwrap();
        assert_eq!(answer(&error, &ip, 60, &mut [0; MAX_ANSWER]), None);
    }

    proptest! {
        #[test]
        fn every_answer_is_well_formed(packet in any_packet(), mtu in 68u16..1500) {
            let bytes = packet.bytes();
            let ip = Ip::parse(&bytes).unwrap();
            let mut buffer = [0; MAX_ANSWER];
            if let Some(length) = answer(&bytes, &ip, mtu, &mut buffer) {
                prop_assert!(checksums_are_right(&buffer[..length]));
            }
        }
    }
}
