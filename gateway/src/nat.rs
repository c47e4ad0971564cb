//! Stateless 1:1 prefix translation: addresses change, checksums follow by RFC 1624, and nothing is remembered.
//!
//! The packet an ICMP error quotes is translated too (RFC 5508, section 4.2 asks it of every NAT), or the host that
//! sent the packet would not know it again.

use crate::packet::checksum::{update, update_partial};
use crate::packet::ip::{Ip, protocol};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One prefix of a peer: where we see it, and what it really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Remap {
    view: IpNet,
    real: IpNet,
}

/// Why two prefixes cannot stand for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{view} cannot stand for {real}: both must be IPv4 or IPv6 prefixes of equal length")]
pub struct Mismatch {
    view: IpNet,
    real: IpNet,
}

impl Remap {
    /// `view` stands for `real` on this side.
    ///
    /// # Errors
    /// If the prefixes are of different sizes or families.
    pub fn new(view: IpNet, real: IpNet) -> Result<Self, Mismatch> {
        if view.prefix_len() != real.prefix_len() || view.addr().is_ipv4() != real.addr().is_ipv4() {
            return Err(Mismatch { view, real });
        }
        Ok(Self { view: view.trunc(), real: real.trunc() })
    }

    /// A prefix that is seen as it is.
    #[must_use]
    pub fn identity(prefix: IpNet) -> Self {
        Self { view: prefix.trunc(), real: prefix.trunc() }
    }

    /// The prefix as seen on this side.
    #[must_use]
    pub fn view(&self) -> IpNet {
        self.view
    }

    /// The prefix as its owner has it.
    #[must_use]
    pub fn real(&self) -> IpNet {
        self.real
    }

    /// The real address for one in the view.
    #[must_use]
    pub fn to_real(&self, address: IpAddr) -> Option<IpAddr> {
        swap(address, self.view, self.real)
    }

    /// The address in the view for a real one.
    #[must_use]
    pub fn to_view(&self, address: IpAddr) -> Option<IpAddr> {
        swap(address, self.real, self.view)
    }
}

fn swap(address: IpAddr, from: IpNet, to: IpNet) -> Option<IpAddr> {
    if !from.contains(&address) {
        return None;
    }
    match (address, from.hostmask(), to.network()) {
        (IpAddr::V4(host), IpAddr::V4(mask), IpAddr::V4(network)) => {
            Some(IpAddr::V4(Ipv4Addr::from_bits(host.to_bits() & mask.to_bits() | network.to_bits())))
        }
        (IpAddr::V6(host), IpAddr::V6(mask), IpAddr::V6(network)) => {
            Some(IpAddr::V6(Ipv6Addr::from_bits(host.to_bits() & mask.to_bits() | network.to_bits())))
        }
        // `contains` and the constructor leave only equal families.
        _ => None,
    }
}

/// One of the two addresses of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// What the transport checksum field of a packet holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A checksum.
    Finished,
    /// The sum of the pseudo header, not complemented: a device shall finish it.
    Partial,
}

/// The packet that an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Where it starts in the packet.
    pub offset: usize,
    /// What it is.
    pub ip: Ip,
}

impl Quoted {
    /// The packet quoted by `packet`, if that is an ICMP error.
    #[must_use]
    pub fn find(packet: &[u8], ip: &Ip) -> Option<Self> {
        if !ip.has_transport() {
            return None;
        }
        let kind = *packet.get(ip.payload)?;
        let error = match ip.protocol {
            // RFC 792: unreachable, source quench, redirect, time exceeded, parameter problem.
            protocol::ICMP if ip.is_v4() => matches!(kind, 3 | 4 | 5 | 11 | 12),
            // RFC 4443, section 2.1: errors have the high bit of the type clear.
            protocol::ICMPV6 if !ip.is_v4() => kind < 128,
            _ => false,
        };
        let offset = ip.payload + 8;
        let quoted = packet.get(offset..ip.length).filter(|_| error)?;
        Ip::parse_quoted(quoted)
            .ok()
            .filter(|inner| inner.is_v4() == ip.is_v4())
            .map(|ip| Self { offset, ip })
    }

    /// Whether the error is one that routers on the way of a packet send to its sender, and is no longer than they make it.
    #[must_use]
    pub fn is_of_router(&self, packet: &[u8], ip: &Ip) -> bool {
        let kind = packet.get(ip.payload).copied().unwrap_or_default();
        // RFC 1812, section 4.3.2.3, and RFC 4443, section 2.4.
        let (kinds, longest) = if ip.is_v4() { (&[3, 11, 12][..], 576) } else { (&[1, 2, 3, 4][..], 1280) };
        self.ip.source == ip.destination && kinds.contains(&kind) && ip.length <= longest
    }
}

/// Changes one address of a packet, and the checksums that cover it.
///
/// `packet` must be what `ip` was read from, and `new` of its family.
pub fn rewrite(packet: &mut [u8], ip: &Ip, end: End, new: IpAddr, transport: Transport) {
    let Some(change) = Change::apply(packet, ip, end, new) else { return };
    change.fix_transport(packet, ip, transport);
}

/// Changes one address of the packet quoted by an ICMP error: there, in the checksums inside it, and in that of the
/// error itself.
pub fn rewrite_quoted(
    packet: &mut [u8],
    ip: &Ip,
    quoted: &Quoted,
    end: End,
    new: IpAddr,
    transport: Transport,
) {
    let Some(inner) = packet.get_mut(quoted.offset..ip.length) else { return };
    let old_header = checksum_of(inner, Some(10).filter(|_| quoted.ip.is_v4()));
    let field = quoted.ip.checksum_offset().filter(|_| quoted.ip.has_transport());
    let field = field.map(|offset| quoted.ip.payload + offset);
    let old_transport = checksum_of(inner, field);
    let Some(change) = Change::apply(inner, &quoted.ip, end, new) else { return };
    change.fix_transport(inner, &quoted.ip, Transport::Finished);
    if transport == Transport::Partial {
        // The device sums the payload as it is then.
        return;
    }
    let new_header = checksum_of(inner, Some(10).filter(|_| quoted.ip.is_v4()));
    let new_transport = checksum_of(inner, field);
    let Some(sum) = word_at(packet, ip.payload + 2) else { return };
    update(sum, change.before(), change.after());
    for (old, new) in [(old_header, new_header), (old_transport, new_transport)] {
        if let (Some(old), Some(new)) = (old, new) {
            update(sum, &old, &new);
        }
    }
}

fn checksum_of(packet: &[u8], field: Option<usize>) -> Option<[u8; 2]> {
    packet.get(field?..).and_then(|rest| rest.first_chunk()).copied()
}

fn word_at(packet: &mut [u8], offset: usize) -> Option<&mut [u8; 2]> {
    packet.get_mut(offset..).and_then(|rest| rest.first_chunk_mut())
}

/// An address that has been replaced.
struct Change {
    old: [u8; 16],
    new: [u8; 16],
    length: usize,
}

impl Change {
    /// Replaces the address and corrects the IPv4 header checksum; `None` if nothing changes.
    fn apply(packet: &mut [u8], ip: &Ip, end: End, new: IpAddr) -> Option<Self> {
        let (mut change, offset) = match new {
            IpAddr::V4(_) => (Self { old: [0; 16], new: [0; 16], length: 4 }, 12),
            IpAddr::V6(_) => (Self { old: [0; 16], new: [0; 16], length: 16 }, 8),
        };
        if new.is_ipv4() != ip.is_v4() {
            return None;
        }
        let offset = if end == End::Source { offset } else { offset + change.length };
        match new {
            IpAddr::V4(new) => change.new[..4].copy_from_slice(&new.octets()),
            IpAddr::V6(new) => change.new = new.octets(),
        }
        let field = packet.get_mut(offset..offset + change.length)?;
        change.old[..change.length].copy_from_slice(field);
        if change.old == change.new {
            return None;
        }
        field.copy_from_slice(&change.new[..change.length]);
        if ip.is_v4() {
            update(word_at(packet, 10)?, change.before(), change.after());
        }
        Some(change)
    }

    fn before(&self) -> &[u8] {
        &self.old[..self.length]
    }

    fn after(&self) -> &[u8] {
        &self.new[..self.length]
    }

    /// Corrects the transport checksum, if there is one and it covers addresses.
    fn fix_transport(&self, packet: &mut [u8], ip: &Ip, transport: Transport) {
        let Some(offset) = ip.checksum_offset().filter(|_| ip.has_transport()) else { return };
        let Some(field) = word_at(packet, ip.payload + offset) else { return };
        let udp = ip.protocol == protocol::UDP;
        match transport {
            Transport::Partial => update_partial(field, self.before(), self.after()),
            // RFC 768: zero says that there is no checksum, and a sum that comes out as zero is sent as all ones.
            Transport::Finished if udp && *field == [0, 0] => {}
            Transport::Finished => {
                update(field, self.before(), self.after());
                if udp && *field == [0, 0] {
                    *field = [0xff, 0xff];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::{self, Body, Packet};
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_remap_keeps_the_host_part() {
        let remap = Remap::new(net("10.71.0.0/16"), net("10.244.0.0/16")).unwrap();
        assert_eq!(remap.to_real("10.71.3.9".parse().unwrap()), Some("10.244.3.9".parse().unwrap()));
        assert_eq!(remap.to_view("10.244.3.9".parse().unwrap()), Some("10.71.3.9".parse().unwrap()));
        assert_eq!(remap.to_view("10.71.3.9".parse().unwrap()), None);
        assert!(Remap::new(net("10.0.0.0/8"), net("11.0.0.0/9")).is_err());
        assert!(Remap::new(net("10.0.0.0/32"), net("fd00::/32")).is_err());
    }

    fn end() -> impl Strategy<Value = End> {
        prop::sample::select(vec![End::Source, End::Destination])
    }

    fn readdressed(mut packet: Packet, end: End, new: IpAddr) -> Packet {
        match end {
            End::Source => packet.source = new,
            End::Destination => packet.destination = new,
        }
        packet
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// The naive implementation is to build the packet with the other address from nothing.
        #[test]
        fn rewriting_is_building_with_the_other_address(packet in build::any_packet(), end in end(), seed in any::<u128>()) {
            let new = build::address(packet.source.is_ipv4(), seed);
            let mut bytes = packet.bytes();
            let ip = Ip::parse(&bytes).unwrap();
            rewrite(&mut bytes, &ip, end, new, Transport::Finished);
            prop_assert_eq!(bytes, readdressed(packet, end, new).bytes());
        }

        #[test]
        fn so_it_is_when_a_device_shall_finish_the_checksum(packet in build::any_packet(), end in end(), seed in any::<u128>()) {
            let mut packet = packet;
            packet.fragment = None;
            if !matches!(packet.body, Body::Tcp { .. }) {
                packet.body = Body::Udp { ports: [1, 2], checksum: true, payload: vec![3; 9] };
            }
            let new = build::address(packet.source.is_ipv4(), seed);
            let mut bytes = packet.partial_bytes();
            let ip = Ip::parse(&bytes).unwrap();
            rewrite(&mut bytes, &ip, end, new, Transport::Partial);
            prop_assert_eq!(bytes, readdressed(packet, end, new).partial_bytes());
        }

        #[test]
        fn quoted_packets_are_rewritten_as_if_quoted_anew(
            inner in build::any_packet(), keep in 28usize..120, end in end(), seed in any::<u128>()
        ) {
            let new = build::address(inner.source.is_ipv4(), seed);
            // Even: half a checksum cannot be corrected, nor told from a right one.
            let keep = keep & !1;
            let error = |inner: &Packet| build::error_about(inner, keep);
            let mut bytes = error(&inner).bytes();
            let ip = Ip::parse(&bytes).unwrap();
            let Some(quoted) = Quoted::find(&bytes, &ip) else {
                // So little of an IPv6 packet that its header is not whole.
                prop_assert!(keep < 72 && !ip.is_v4());
                return Ok(());
            };
            rewrite_quoted(&mut bytes, &ip, &quoted, end, new, Transport::Finished);
            prop_assert_eq!(bytes, error(&readdressed(inner, end, new)).bytes());
        }

        #[test]
        fn there_and_back_changes_nothing(packet in build::any_packet(), seed in any::<u128>()) {
            let before = packet.bytes();
            let mut bytes = before.clone();
            let ip = Ip::parse(&bytes).unwrap();
            rewrite(&mut bytes, &ip, End::Source, build::address(ip.is_v4(), seed), Transport::Finished);
            rewrite(&mut bytes, &ip, End::Source, ip.source, Transport::Finished);
            prop_assert_eq!(bytes, before);
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), six in any::<bool>(),
                                       protocol in prop::sample::select(vec![1u8, 6, 17, 58])) {
            if bytes.len() > 9 {
                bytes[0] = if six { 0x60 } else { 0x45 };
                bytes[if six { 6 } else { 9 }] = protocol;
            }
            if let Ok(ip) = Ip::parse(&bytes) {
                rewrite(&mut bytes, &ip, End::Source, build::address(ip.is_v4(), 7), Transport::Finished);
                if let Some(quoted) = Quoted::find(&bytes, &ip) {
                    rewrite_quoted(&mut bytes, &ip, &quoted, End::Destination, build::address(ip.is_v4(), 9),
                                   Transport::Finished);
                }
            }
        }
    }
}
