//! What the data path has to know of an IP packet, read once.

use super::checksum::update;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// Length of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Length of the fixed IPv6 header.
pub const IPV6_HEADER: usize = 40;
/// IPv6 extension headers that are walked before the packet is refused; RFC 8504, section 5.3 lets hosts limit them.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Whether a packet is a fragment, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// A whole packet.
    Whole,
    /// The first fragment: the transport header is there, the payload is not complete.
    First,
    /// A later fragment: no transport header.
    Later,
}

/// Where things are in an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The protocol of the payload, after IPv6 extension headers.
    pub protocol: u8,
    /// Offset of the payload (of the transport header, unless this is a later fragment).
    pub payload: usize,
    /// Length of the packet as its header states it; at most the bytes there are, except in quoted packets.
    pub length: usize,
    /// Whether it is a fragment.
    pub fragment: Fragment,
}

/// Why bytes are no packet that can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Neither IPv4 nor IPv6.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// A header or the packet ends before it should.
    #[error("a header is cut short")]
    Truncated,
    /// A length field contradicts another.
    #[error("a length field is wrong")]
    Length,
    /// More IPv6 extension headers than anybody needs.
    #[error("too many extension headers")]
    Extensions,
    /// An IPv6 routing header with segments left: its transport checksum covers an address that is not the
    /// destination, and RFC 5095 deprecates the only kind hosts ever used.
    #[error("source-routed")]
    SourceRouted,
}

impl Ip {
    /// Reads a packet; bytes after its stated length are padding.
    ///
    /// # Errors
    /// If the bytes are no packet that can be forwarded.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let ip = Self::parse_quoted(bytes)?;
        if ip.length > bytes.len() { Err(Malformed::Truncated) } else { Ok(ip) }
    }

    /// Reads the packet an ICMP error quotes: everything but the IP header may be cut short.
    ///
    /// # Errors
    /// If the bytes do not start with an IP header.
    pub fn parse_quoted(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) => Err(Malformed::Version),
            None => Err(Malformed::Truncated),
        }
    }

    /// Whether this is IPv4.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Takes one from the hops that `packet`, which this describes, may still make; false if it was the last (RFC 1812,
    /// section 5.3.1).
    #[must_use]
    pub fn spend_hop(&self, packet: &mut [u8]) -> bool {
        let hops = if self.is_v4() { 8 } else { 7 };
        if packet[hops] <= 1 {
            return false;
        }
        let before = [packet[8], packet[9]];
        packet[hops] -= 1;
        if self.is_v4() {
            let after = [packet[8], packet[9]];
            let mut sum = [packet[10], packet[11]];
            update(&mut sum, &before, &after);
            packet[10..12].copy_from_slice(&sum);
        }
        true
    }

    /// Whether there is a transport header at [`Ip::payload`].
    #[must_use]
    pub fn has_transport(&self) -> bool {
        self.fragment != Fragment::Later
    }

    /// Offset of the transport checksum from the start of the transport header, if the checksum covers the IP
    /// addresses (RFC 9293 3.1, RFC 768, RFC 4443 2.3). ICMP for IPv4 does not.
    #[must_use]
    pub fn checksum_offset(&self) -> Option<usize> {
        match self.protocol {
            protocol::TCP => Some(16),
            protocol::UDP => Some(6),
            protocol::ICMPV6 if !self.is_v4() => Some(2),
            _ => None,
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<IPV4_HEADER>().ok_or(Malformed::Truncated)?;
        let payload = usize::from(header[0] & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if payload < IPV4_HEADER || length < payload {
            return Err(Malformed::Length);
        }
        if bytes.len() < payload {
            return Err(Malformed::Truncated);
        }
        let fragment = match u16::from_be_bytes([header[6], header[7]]) {
            field if field & 0x1fff != 0 => Fragment::Later,
            field if field & 0x2000 != 0 => Fragment::First,
            _ => Fragment::Whole,
        };
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        Ok(Self {
            source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
            destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
            protocol: header[9],
            payload,
            length,
            fragment,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<IPV6_HEADER>().ok_or(Malformed::Truncated)?;
        let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let address = |at: usize| {
            let octets: [u8; 16] = header[at..at + 16].try_into().expect("16 bytes of a 40 byte header");
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let (protocol, payload, fragment) = walk_extensions(bytes, header[6])?;
        if length < payload {
            return Err(Malformed::Length);
        }
        Ok(Self { source: address(8), destination: address(24), protocol, payload, length, fragment })
    }
}

/// Follows the chain of extension headers (RFC 8200, section 4) to the payload.
fn walk_extensions(bytes: &[u8], first: u8) -> Result<(u8, usize, Fragment), Malformed> {
    let (mut next, mut at, mut fragment) = (first, IPV6_HEADER, Fragment::Whole);
    for _ in 0..MAX_EXTENSION_HEADERS {
        let known = matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140);
        // After the fragment header of a later fragment comes payload, whatever it looks like.
        if !known || fragment == Fragment::Later {
            return Ok((next, at, fragment));
        }
        let header = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or(Malformed::Truncated)?;
        let length = match next {
            43 if header[3] != 0 => return Err(Malformed::SourceRouted),
            44 => {
                let field = u16::from_be_bytes([header[2], header[3]]);
                if field & 0xfff8 != 0 {
                    fragment = Fragment::Later;
                } else if field & 1 != 0 && fragment == Fragment::Whole {
                    fragment = Fragment::First;
                }
                8
            }
            // RFC 4302, section 2.2: in words of four bytes, less two.
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        next = header[0];
        at += length;
        if at > bytes.len() {
            return Err(Malformed::Truncated);
        }
    }
    Err(Malformed::Extensions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, u8::try_from(rest.len()).unwrap(), next, 64];
        packet.extend([1; 16]);
        packet.extend([2; 16]);
        packet.extend(rest);
        packet
    }

    #[test]
    fn walks_extension_headers_to_the_transport_header() {
        let hop_by_hop = [60, 0, 0, 0, 0, 0, 0, 0];
        let options = [44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let first = [17, 0, 0, 1, 0, 0, 0, 7];
        let packet = v6(0, &[&hop_by_hop[..], &options, &first, &[0; 8]].concat());
        let ip = Ip::parse(&packet).unwrap();
        assert_eq!((ip.protocol, ip.payload, ip.fragment), (17, 72, Fragment::First));
    }

    #[test]
    fn a_later_fragment_has_no_transport_header() {
        let packet = v6(44, &[0, 0, 0, 8, 0, 0, 0, 7, 0xff, 0xff]);
        let ip = Ip::parse(&packet).unwrap();
        assert!(!ip.has_transport() && ip.payload == 48);
    }

    #[test]
    fn chains_without_end_and_source_routes_are_refused() {
        let chain = v6(0, &[0; 128]);
        assert_eq!(Ip::parse(&chain), Err(Malformed::Extensions));
        assert_eq!(Ip::parse(&v6(43, &[17, 0, 0, 1, 0, 0, 0, 0])), Err(Malformed::SourceRouted));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_offsets_stay_inside(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), version in prop::sample::select(vec![4u8, 6])
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0xf;
            }
            if let Ok(ip) = Ip::parse(&bytes) {
                prop_assert!(ip.payload <= ip.length && ip.length <= bytes.len());
            }
            if let Ok(ip) = Ip::parse_quoted(&bytes) {
                prop_assert!(ip.payload <= bytes.len());
            }
        }
    }
}
