//! The four messages (paper, section 5.4), as far as they can be read without keys.

/// Length of a handshake initiation.
pub const INITIATION: usize = 148;
/// Length of a handshake response.
pub const RESPONSE: usize = 92;
/// Length of a cookie reply.
pub const COOKIE_REPLY: usize = 64;
/// Length of what precedes the sealed packet of a data message.
pub const DATA_HEADER: usize = 16;
/// Length of the authentication tag that follows it.
pub const TAG: usize = 16;
/// What a data message adds to a packet, without padding.
pub const DATA_OVERHEAD: usize = DATA_HEADER + TAG;
/// Packets are padded to a multiple of this, so that their exact length does not show.
pub const PADDING: usize = 16;

/// What a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A handshake initiation.
    Initiation,
    /// A handshake response to the initiation with this index.
    Response {
        /// Chosen by us.
        receiver: u32,
    },
    /// A cookie for the handshake message with this index.
    CookieReply {
        /// Chosen by us.
        receiver: u32,
    },
    /// A sealed packet for the session with this index.
    Data {
        /// Chosen by us.
        receiver: u32,
        /// Counts the packets of the session.
        counter: u64,
    },
}

impl Message {
    /// Reads type, length and index of a datagram; `None` if it is no message of WireGuard.
    #[must_use]
    pub fn read(datagram: &[u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_first_chunk::<4>()?;
        let receiver = || rest.first_chunk().map(|index| u32::from_le_bytes(*index));
        match (*kind, datagram.len()) {
            ([4, 0, 0, 0], DATA_OVERHEAD..) => {
                let counter = u64::from_le_bytes(*datagram[8..].first_chunk()?);
                Some(Self::Data { receiver: receiver()?, counter })
            }
            ([1, 0, 0, 0], INITIATION) => Some(Self::Initiation),
            ([2, 0, 0, 0], RESPONSE) => {
                Some(Self::Response { receiver: u32::from_le_bytes(*datagram[8..].first_chunk()?) })
            }
            ([3, 0, 0, 0], COOKIE_REPLY) => Some(Self::CookieReply { receiver: receiver()? }),
            _ => None,
        }
    }
}

/// Length of a packet with its padding, which never makes it longer than the MTU (paper, section 5.4.6).
#[must_use]
pub fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(PADDING).min(mtu.max(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn padding_stays_within_the_mtu() {
        assert_eq!(
            (padded(0, 1420), padded(1, 1420), padded(1420, 1420), padded(1430, 1420)),
            (0, 16, 1420, 1430)
        );
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_never_panic(datagram in prop::collection::vec(0u8..5, 0..160)) {
            prop_assert!(Message::read(&datagram).is_none() || datagram.len() >= DATA_OVERHEAD);
        }
    }
}
