//! Keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::Blake2sMac;
use blake2::digest::consts::U32;
use blake2::digest::{KeyInit, Mac as _};
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver as _, DefaultResolver};
use std::fmt;
use std::str::FromStr;

/// Length of every key.
pub const LENGTH: usize = 32;

/// A Curve25519 public key: the name of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; LENGTH]);

/// A Curve25519 private key.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub(crate) [u8; LENGTH]);

/// A secret both ends share besides their keys (paper, section 5.2).
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(pub(crate) [u8; LENGTH]);

/// Text that is no key. It does not show the text, which may be most of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 bytes in base64, 44 characters")]
pub struct NoKey;

impl PrivateKey {
    /// The key of `bytes`.
    #[must_use]
    pub fn new(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut exchange =
            DefaultResolver.resolve_dh(&DHChoice::Curve25519).expect("compiled in by feature use-curve25519");
        exchange.set(&self.0);
        let mut public = [0; LENGTH];
        public.copy_from_slice(&exchange.pubkey()[..LENGTH]);
        PublicKey(public)
    }
}

impl PrivateKey {
    /// The key of a lane of a gateway that has this one: its own for the first.
    #[must_use]
    pub fn lane(&self, number: usize) -> Self {
        if number == 0 {
            return self.clone();
        }
        let mut mac =
            <Blake2sMac<U32> as KeyInit>::new_from_slice(&self.0).expect("BLAKE2s takes keys of 32 bytes");
        mac.update(b"liquid lane");
        mac.update(&u64::try_from(number).unwrap_or(u64::MAX).to_le_bytes());
        Self(mac.finalize().into_bytes().into())
    }
}

impl PresharedKey {
    /// The key of `bytes`.
    #[must_use]
    pub fn new(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }
}

fn decode(text: &str) -> Result<[u8; LENGTH], NoKey> {
    STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(NoKey)
}

impl FromStr for PublicKey {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        decode(text).map(Self)
    }
}

impl FromStr for PrivateKey {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        decode(text).map(Self)
    }
}

impl FromStr for PresharedKey {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        decode(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_are_those_of_rfc_7748() {
        // Section 6.1, Alice.
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse::<PrivateKey>().unwrap();
        assert_eq!(private.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(
            format!("{:?}{:?}", PrivateKey::new([7; 32]), PresharedKey::new([7; 32])),
            "PrivateKey(..)PresharedKey(..)"
        );
        assert!("short".parse::<PublicKey>().is_err());
    }
}
