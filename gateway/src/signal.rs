//! What two gateways tell each other inside a tunnel, sealed like any packet.
//!
//! ```text
//!  0      1      2        4           8       12
//!  kind   flags  held     sequence    echo            network byte order
//! ```
//! or, for the keys of lanes,
//!
//! ```text
//!  0      1      2        4
//!  kind   count  0        keys
//! ```
//! The upper half of the first byte is the version of an IP packet: a message has 0 there, so that an end that knows none
//! takes it for a broken packet and drops it. Such ends are not sent any.

use crate::lanes::MAX_LANES;
use crate::wireguard::key::{self, PublicKey};
use std::time::Duration;

/// Length of a probe.
pub const LENGTH: usize = 12;
/// Where the keys of lanes begin.
const KEYS: usize = 4;

const PROBE: u8 = 1;
const LANES: u8 = 2;
const STANDBY: u8 = 1;
/// Unit of `held`: 16 bits of it are 6.5 s.
const HELD_UNIT: Duration = Duration::from_micros(100);

/// A probe of the tunnel, or the answer to one, or both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probe {
    /// Number of the probe; 0 if this only answers.
    pub sequence: u32,
    /// Number of the latest probe the sender has heard; 0 if none.
    pub echo: u32,
    /// How long ago the sender heard it.
    pub held: Duration,
    /// The sender is about to end, or not yet ready: it forwards what comes, but others should be preferred.
    pub standby: bool,
}

impl Probe {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = PROBE;
        bytes[1] = if self.standby { STANDBY } else { 0 };
        let held = u16::try_from(self.held.as_micros() / HELD_UNIT.as_micros()).unwrap_or(u16::MAX);
        bytes[2..4].copy_from_slice(&held.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[8..].copy_from_slice(&self.echo.to_be_bytes());
        bytes
    }
}

/// The message that tells the keys of the lanes of a gateway beside the first, at most [`MAX_LANES`] - 1.
#[must_use]
pub fn encode_lanes(keys: &[PublicKey]) -> Vec<u8> {
    let keys = &keys[..keys.len().min(MAX_LANES - 1)];
    let mut bytes = vec![LANES, u8::try_from(keys.len()).unwrap_or_default(), 0, 0];
    bytes.extend(keys.iter().flat_map(|key| key.0));
    bytes
}

/// What a packet out of a tunnel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inner {
    /// One of somebody behind the tunnel.
    Packet,
    /// One of the other gateway.
    Probe(Probe),
    /// The keys of the other gateway's lanes beside the first.
    Lanes(Vec<PublicKey>),
    /// A message of a kind that is not known: of a later version.
    Unknown,
}

impl Inner {
    /// Reads what was sealed, with its padding.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        let Some(&kind) = bytes.first() else { return Self::Unknown };
        if kind >> 4 != 0 {
            return Self::Packet;
        }
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word));
        match (kind, word(4), word(8)) {
            (PROBE, Some(sequence), Some(echo)) => {
                let held = u32::from(u16::from_be_bytes([bytes[2], bytes[3]]));
                let standby = bytes[1] & STANDBY != 0;
                Self::Probe(Probe { sequence, echo, held: HELD_UNIT * held, standby })
            }
            (LANES, ..) => Self::lanes(bytes).map_or(Self::Unknown, Self::Lanes),
            _ => Self::Unknown,
        }
    }

    fn lanes(bytes: &[u8]) -> Option<Vec<PublicKey>> {
        let count = usize::from(*bytes.get(1)?);
        if count >= MAX_LANES {
            return None;
        }
        let keys = bytes.get(KEYS..KEYS + count * key::LENGTH)?;
        Some(keys.as_chunks().0.iter().map(|key| PublicKey(*key)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_of_lanes_are_read_back_and_too_many_or_too_few_are_not_read() {
        for count in [0, 1, 3, MAX_LANES - 1] {
            let keys: Vec<_> = (0..count).map(|n| PublicKey([u8::try_from(n).unwrap(); 32])).collect();
            let mut bytes = encode_lanes(&keys);
            bytes.resize(bytes.len().next_multiple_of(16), 0);
            assert_eq!(Inner::read(&bytes), Inner::Lanes(keys));
        }
        assert_eq!(encode_lanes(&[PublicKey([1; 32]); 40]).len(), KEYS + (MAX_LANES - 1) * 32);
        assert_eq!(Inner::read(&[2, 16, 0, 0].repeat(300)), Inner::Unknown);
        assert_eq!(Inner::read(&[2, 2, 0, 0, 1, 1]), Inner::Unknown);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_whatever_the_padding(
            sequence: u32, echo: u32, held in 0u32..=65_535, standby: bool, padding in 0usize..20
        ) {
            let probe = Probe { sequence, echo, held: HELD_UNIT * held, standby };
            let mut bytes = probe.encode().to_vec();
            bytes.resize(LENGTH + padding, 0);
            prop_assert_eq!(Inner::read(&bytes), Inner::Probe(probe));
        }

        #[test]
        fn packets_are_packets_and_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let is_packet = bytes.first().is_some_and(|first| first >> 4 != 0);
            prop_assert_eq!(Inner::read(&bytes) == Inner::Packet, is_packet);
        }
    }

    #[test]
    fn what_takes_longer_than_the_field_is_the_most_it_can_say() {
        let probe = Probe { held: Duration::from_secs(60), ..Probe::default() };
        let Inner::Probe(read) = Inner::read(&probe.encode()) else { panic!("a probe") };
        assert_eq!(read.held, HELD_UNIT * u32::from(u16::MAX));
    }
}
