//! `struct virtio_net_hdr`, which precedes every packet of a TUN device with `IFF_VNET_HDR` (virtio 1.2, section 5.1.6).

/// Length of the header as Linux has it by default, in the byte order of the machine.
pub const LENGTH: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set besides the kind if a TCP segment carries CWR.
const GSO_ECN: u8 = 0x80;

/// What is left for a device to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// Finish the checksum that covers everything from `start`, at `start + offset`.
    Checksum {
        /// Where the sum begins.
        start: u16,
        /// Where the checksum is, from there.
        offset: u16,
    },
    /// Cut the payload into segments.
    Segments {
        /// TCP or UDP.
        protocol: Segmented,
        /// Payload bytes per segment.
        size: u16,
    },
}

/// Protocols that devices segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segmented {
    /// TCP over IPv4 or IPv6.
    Tcp,
    /// UDP datagrams of equal size (`UDP_SEGMENT`).
    Udp,
}

/// A header that asks for something we did not offer to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("segmentation of kind {0} was not offered")]
pub struct Unknown(u8);

impl Offload {
    /// Reads a header.
    ///
    /// # Errors
    /// If it asks for a kind of segmentation that is not known.
    pub fn read(header: &[u8; LENGTH]) -> Result<Self, Unknown> {
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        match header[1] & !GSO_ECN {
            GSO_NONE if header[0] & NEEDS_CSUM == 0 => Ok(Self::None),
            GSO_NONE => Ok(Self::Checksum { start: word(6), offset: word(8) }),
            GSO_TCPV4 | GSO_TCPV6 => Ok(Self::Segments { protocol: Segmented::Tcp, size: word(4) }),
            GSO_UDP_L4 => Ok(Self::Segments { protocol: Segmented::Udp, size: word(4) }),
            kind => Err(Unknown(kind)),
        }
    }

    /// The header of a packet with `headers` bytes before the payload, of which the first `transport` are IP.
    #[must_use]
    pub fn segments(protocol: Segmented, v4: bool, size: u16, headers: u16, transport: u16) -> [u8; LENGTH] {
        let (kind, checksum) = match (protocol, v4) {
            (Segmented::Tcp, true) => (GSO_TCPV4, 16_u16),
            (Segmented::Tcp, false) => (GSO_TCPV6, 16),
            (Segmented::Udp, _) => (GSO_UDP_L4, 6),
        };
        let mut header = [NEEDS_CSUM, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in [(2, headers), (4, size), (6, transport), (8, checksum)] {
            header[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let header = Offload::segments(Segmented::Tcp, false, 1368, 72, 40);
        assert_eq!(Offload::read(&header), Ok(Offload::Segments { protocol: Segmented::Tcp, size: 1368 }));
        assert_eq!(Offload::read(&[0; LENGTH]), Ok(Offload::None));
        assert_eq!(Offload::read(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Unknown(3)));
    }
}
