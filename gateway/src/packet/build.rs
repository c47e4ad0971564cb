//! Packets built from nothing, every checksum computed over all bytes: what tests compare with.

use super::checksum::Sum;
use super::ip::{Ip, protocol};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) body: Body,
    /// IPv4 options or an IPv6 destination options header.
    pub(crate) options: bool,
    /// More fragments, and the offset in units of 8 bytes.
    pub(crate) fragment: Option<(bool, u16)>,
    pub(crate) identification: u16,
    pub(crate) dont_fragment: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Tcp {
        ports: [u16; 2],
        sequence: u32,
        acknowledgement: u32,
        flags: u8,
        options: Vec<u8>,
        payload: Vec<u8>,
    },
    Udp {
        ports: [u16; 2],
        checksum: bool,
        payload: Vec<u8>,
    },
    Icmp {
        kind: u8,
        rest: Vec<u8>,
    },
    Other {
        protocol: u8,
        payload: Vec<u8>,
    },
}

impl Packet {
    pub(crate) fn new(source: &str, destination: &str, body: Body) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            body,
            options: false,
            fragment: None,
            identification: 7,
            dont_fragment: true,
        }
    }

    fn protocol(&self) -> u8 {
        match &self.body {
            Body::Tcp { .. } => protocol::TCP,
            Body::Udp { .. } => protocol::UDP,
            Body::Icmp { .. } if self.source.is_ipv4() => protocol::ICMP,
            Body::Icmp { .. } => protocol::ICMPV6,
            Body::Other { protocol, .. } => *protocol,
        }
    }

    /// The transport part with no checksum, and where the checksum goes.
    fn transport(&self) -> (Vec<u8>, Option<usize>) {
        let mut bytes = Vec::new();
        match &self.body {
            Body::Tcp { ports, sequence, acknowledgement, flags, options, payload } => {
                ports.iter().for_each(|port| bytes.extend(port.to_be_bytes()));
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledgement.to_be_bytes());
                let words = u8::try_from(5 + options.len() / 4).unwrap();
                bytes.extend([words << 4, *flags, 0x20, 0, 0, 0, 0, 0]);
                bytes.extend(options);
                bytes.extend(payload);
                (bytes, Some(16))
            }
            Body::Udp { ports, checksum, payload } => {
                ports.iter().for_each(|port| bytes.extend(port.to_be_bytes()));
                bytes.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                (bytes, Some(6).filter(|_| *checksum))
            }
            Body::Icmp { kind, rest } => {
                bytes.extend([*kind, 0, 0, 0]);
                bytes.extend(rest);
                (bytes, Some(2))
            }
            Body::Other { payload, .. } => (payload.clone(), None),
        }
    }

    fn pseudo_header(&self, length: usize) -> Sum {
        let sum = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Sum::of(&source.octets()).with(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Sum::of(&source.octets()).with(&destination.octets())
            }
            _ => unreachable!("one family"),
        };
        sum.with_word(u16::from(self.protocol())).with_word(u16::try_from(length).unwrap())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (mut transport, field) = self.transport();
        if let Some(field) = field {
            let sum = if self.protocol() == protocol::ICMP {
                Sum::default()
            } else {
                self.pseudo_header(transport.len())
            };
            let mut checksum = sum.with(&transport).checksum();
            if self.protocol() == protocol::UDP && checksum == [0, 0] {
                checksum = [0xff, 0xff];
            }
            transport[field..field + 2].copy_from_slice(&checksum);
        }
        self.wrap(&transport)
    }

    /// With the sum of the pseudo header where the checksum would be.
    pub(crate) fn partial_bytes(&self) -> Vec<u8> {
        let (mut transport, field) = self.transport();
        let field = field.unwrap_or(6);
        let sum = self.pseudo_header(transport.len()).folded();
        transport[field..field + 2].copy_from_slice(&sum);
        self.wrap(&transport)
    }

    fn wrap(&self, transport: &[u8]) -> Vec<u8> {
        // A later fragment carries the part of the transport bytes at its offset.
        let transport = match self.fragment {
            Some((_, offset)) => &transport[(usize::from(offset) * 8).min(transport.len())..],
            None => transport,
        };
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let options: &[u8] = if self.options { &[1; 8] } else { &[] };
                let header = 20 + options.len();
                let mut bytes = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
                bytes.extend(u16::try_from(header + transport.len()).unwrap().to_be_bytes());
                bytes.extend(self.identification.to_be_bytes());
                let fragment = match self.fragment {
                    Some((more, offset)) => offset | if more { 0x2000 } else { 0 },
                    None if self.dont_fragment => 0x4000,
                    None => 0,
                };
                bytes.extend(fragment.to_be_bytes());
                bytes.extend([64, self.protocol(), 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(options);
                let sum = Sum::of(&bytes).checksum();
                bytes[10..12].copy_from_slice(&sum);
                bytes.extend(transport);
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions: Vec<u8> = Vec::new();
                let after_options = if self.fragment.is_some() { 44 } else { self.protocol() };
                if self.options {
                    extensions.extend([after_options, 0, 1, 4, 0, 0, 0, 0]);
                }
                if let Some((more, offset)) = self.fragment {
                    extensions.extend([self.protocol(), 0]);
                    extensions.extend((offset << 3 | u16::from(more)).to_be_bytes());
                    extensions.extend([0, 0, 0, 1]);
                }
                let mut bytes = vec![0x60, 0, 0, 0];
                bytes.extend(u16::try_from(extensions.len() + transport.len()).unwrap().to_be_bytes());
                bytes.extend([if self.options { 60 } else { after_options }, 64]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(extensions);
                bytes.extend(transport);
                bytes
            }
            _ => unreachable!("one family"),
        }
    }
}

pub(crate) fn address(v4: bool, seed: u128) -> IpAddr {
    if v4 {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(seed & 0xffff_ffff).unwrap()))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(seed))
    }
}

/// "Destination unreachable" or "packet too big" about a packet of which `keep` bytes are quoted.
pub(crate) fn error_about(inner: &Packet, keep: usize) -> Packet {
    let quoted = inner.bytes();
    let mut rest = vec![0; 4];
    rest.extend(&quoted[..keep.min(quoted.len())]);
    let kind = if inner.source.is_ipv4() { 3 } else { 2 };
    Packet {
        source: address(inner.source.is_ipv4(), 0xfd00_0001),
        destination: address(inner.source.is_ipv4(), 0xfd00_0002),
        body: Body::Icmp { kind, rest },
        options: false,
        fragment: None,
        identification: 7,
        dont_fragment: true,
    }
}

pub(crate) fn any_packet() -> impl Strategy<Value = Packet> {
    let payload = || prop::collection::vec(any::<u8>(), 0..100);
    let ports = any::<[u16; 2]>;
    let body = prop_oneof![
        (ports(), any::<u32>(), any::<u8>(), 0usize..10, payload()).prop_map(
            |(ports, sequence, flags, words, payload)| {
                Body::Tcp {
                    ports,
                    sequence,
                    acknowledgement: !sequence,
                    flags,
                    options: vec![1; words * 4],
                    payload,
                }
            }
        ),
        (ports(), any::<bool>(), payload()).prop_map(|(ports, checksum, payload)| Body::Udp {
            ports,
            checksum,
            payload
        }),
        // Echo request and reply of both families: no errors, which quote.
        (prop::sample::select(vec![0u8, 8, 128, 129]), payload()).prop_map(|(kind, mut rest)| {
            rest.extend([0; 4]);
            Body::Icmp { kind, rest }
        }),
        payload().prop_map(|payload| Body::Other { protocol: 132, payload }),
    ];
    // A later fragment starts after the transport header: the checksum is in the first.
    let fragment = prop::option::weighted(0.3, (any::<bool>(), prop::sample::select(vec![0u16, 3, 4, 6])));
    (any::<bool>(), any::<[u128; 2]>(), body, any::<bool>(), fragment, any::<u16>()).prop_map(
        |(v4, [source, destination], body, options, fragment, identification)| {
            // ICMP types below 128 are errors in ICMPv6.
            let body = match body {
                Body::Icmp { kind, rest } => {
                    Body::Icmp { kind: if v4 { kind & 8 } else { kind | 128 }, rest }
                }
                body => body,
            };
            Packet {
                source: address(v4, source | 1),
                destination: address(v4, destination | 1),
                body,
                options,
                fragment: fragment.filter(|&(more, offset)| more || offset > 0),
                identification,
                dont_fragment: identification & 1 == 0,
            }
        },
    )
}

/// Whether every checksum of a packet is right, by summing all that it covers.
pub(crate) fn checksums_are_right(bytes: &[u8]) -> bool {
    let ip = Ip::parse(bytes).unwrap();
    if ip.is_v4() && Sum::of(&bytes[..ip.payload]).checksum() != [0, 0] {
        return false;
    }
    let transport = &bytes[ip.payload..ip.length];
    let mut sum = Sum::of(transport);
    if ip.protocol != protocol::ICMP {
        let addresses = if ip.is_v4() { &bytes[12..20] } else { &bytes[8..40] };
        sum = sum
            .with(addresses)
            .with_word(u16::from(ip.protocol))
            .with_word(u16::try_from(transport.len()).unwrap());
    }
    sum.checksum() == [0, 0]
}
