//! Digests as they are sent and shown.

use ring::digest::{SHA256, digest};
use std::fmt;

/// Length of a [`struct@Hash`]: 128 bits of SHA-256, far beyond accidental collision for the objects of a cluster.
pub const HASH_LENGTH: usize = 16;

/// A short digest of a body, to tell whether it changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; HASH_LENGTH]);

impl Hash {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let full = sha256(bytes);
        let mut short = [0; HASH_LENGTH];
        short.copy_from_slice(&full[..HASH_LENGTH]);
        Self(short)
    }

    /// The digest as it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A digest as it was received; `None` unless it has the right length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// A digest from its hexadecimal form.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; HASH_LENGTH];
        decode_hex(text, &mut bytes)?;
        Some(Self(bytes))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fills `out` from hexadecimal digits; `None` if they are no digits or the length differs.
pub fn decode_hex(text: &str, out: &mut [u8]) -> Option<()> {
    if text.len() != out.len() * 2 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_form_round_trips_and_bad_forms_are_refused() {
        let hash = Hash::of(b"pod");
        assert_eq!(Hash::from_hex(&hash.to_string()), Some(hash));
        for bad in ["", "00", &"g".repeat(32), &"ü".repeat(16)] {
            assert_eq!(Hash::from_hex(bad), None, "{bad}");
        }
    }
}
