//! Probes as bytes: `LQPB`, version, flags, and the number as 64 bits in network byte order.

const MAGIC: [u8; 4] = *b"LQPB";
const VERSION: u8 = 1;
const ANSWER: u8 = 1;
const SERVES: u8 = 2;
/// Length of a probe, and of an answer: an answer is never longer than what it answers.
pub const LENGTH: usize = 14;

/// What is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram {
    /// A node asks.
    Probe {
        /// Number of the probe.
        sequence: u64,
    },
    /// A gateway answers.
    Answer {
        /// Number of the probe it answers.
        sequence: u64,
        /// Whether it has a tunnel.
        serves: bool,
    },
}

impl Datagram {
    /// The bytes.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        let (flags, sequence) = match self {
            Self::Probe { sequence } => (0, sequence),
            Self::Answer { sequence, serves } => (ANSWER | if serves { SERVES } else { 0 }, sequence),
        };
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = flags;
        bytes[6..].copy_from_slice(&sequence.to_be_bytes());
        bytes
    }

    /// Reads bytes; none if they are something else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        if bytes[..4] != MAGIC || bytes[4] != VERSION {
            return None;
        }
        let sequence = u64::from_be_bytes(*bytes[6..].first_chunk()?);
        match bytes[5] {
            0 => Some(Self::Probe { sequence }),
            flags if flags & ANSWER != 0 => Some(Self::Answer { sequence, serves: flags & SERVES != 0 }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(sequence in any::<u64>(), serves in any::<bool>()) {
            for datagram in [Datagram::Probe { sequence }, Datagram::Answer { sequence, serves }] {
                prop_assert_eq!(Datagram::decode(&datagram.encode()), Some(datagram));
            }
        }

        #[test]
        fn anything_else_is_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = Datagram::decode(&bytes);
            let mut longer = Datagram::Probe { sequence: 1 }.encode().to_vec();
            longer.extend(&bytes);
            prop_assert_eq!(Datagram::decode(&longer).is_some(), bytes.is_empty());
        }
    }
}
