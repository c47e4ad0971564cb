//! The handshake: Noise `IKpsk2` in two messages (paper, section 5.4.2 and 5.4.3).

use super::cookie::{Mac16, Recipient};
use super::key::{PresharedKey, PrivateKey, PublicKey};
use super::message::{INITIATION, RESPONSE};
use super::session::Keys;
use snow::{Builder, HandshakeState};
use std::time::Duration;

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const NO_PRESHARED_KEY: [u8; 32] = [0; 32];
/// Where the pattern mixes the pre-shared key in.
const PSK_POSITION: u8 = 2;
/// 2^62 + 10: TAI is that much ahead in its label of the Unix epoch.
const TAI64_EPOCH: u64 = 0x4000_0000_0000_000a;
/// Nanoseconds are cut to 16.8 ms, so that the clock's exact state does not show.
const WHITEN: u32 = !0x00ff_ffff;

/// A TAI64N label, which grows as time does: keeps initiations from being replayed.
pub type Timestamp = [u8; 12];

/// The label of a time since the Unix epoch.
#[must_use]
pub fn timestamp(since_epoch: Duration) -> Timestamp {
    let mut label = [0; 12];
    label[..8].copy_from_slice(&(TAI64_EPOCH + since_epoch.as_secs()).to_be_bytes());
    label[8..].copy_from_slice(&(since_epoch.subsec_nanos() & WHITEN).to_be_bytes());
    label
}

/// A message that does not belong to a handshake with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a handshake with us")]
pub struct Invalid;

fn builder() -> Builder<'static> {
    Builder::new(PATTERN.parse().expect("a pattern snow knows"))
}

/// A handshake we began.
pub struct Initiator {
    state: Box<HandshakeState>,
    /// The index in the initiation.
    pub local: u32,
    /// The first MAC of the initiation, to which a cookie reply refers.
    pub first_mac: Mac16,
}

impl Initiator {
    /// Begins a handshake: returns the message to send.
    ///
    /// # Errors
    /// If a key is none that can be used: public keys of low order are refused.
    pub fn begin(
        own: &PrivateKey,
        peer: &PublicKey,
        preshared: Option<&PresharedKey>,
        local: u32,
        timestamp: &Timestamp,
        recipient: &Recipient,
        cookie: Option<&Mac16>,
    ) -> Result<(Self, [u8; INITIATION]), Invalid> {
        let preshared = preshared.map_or(&NO_PRESHARED_KEY, |key| &key.0);
        let mut state = builder()
            .prologue(PROLOGUE)
            .and_then(|builder| builder.local_private_key(&own.0))
            .and_then(|builder| builder.remote_public_key(&peer.0))
            .and_then(|builder| builder.psk(PSK_POSITION, preshared))
            .and_then(Builder::build_initiator)
            .map_err(|_| Invalid)?;
        let mut message = [0; INITIATION];
        message[0] = 1;
        message[4..8].copy_from_slice(&local.to_le_bytes());
        state.write_message(timestamp, &mut message[8..116]).map_err(|_| Invalid)?;
        let first_mac = recipient.sign(&mut message, cookie);
        Ok((Self { state: Box::new(state), local, first_mac }, message))
    }

    /// Ends the handshake with the peer's response: returns the keys and the peer's index. A response that is not the
    /// peer's leaves the handshake as it is.
    ///
    /// # Errors
    /// If the response is not the peer's.
    pub fn finish(&mut self, response: &[u8; RESPONSE]) -> Result<(Keys, u32), Invalid> {
        self.state.read_message(&response[8 + 4..60], &mut [0; 64]).map_err(|_| Invalid)?;
        let (sending, receiving) = self.state.dangerously_get_raw_split();
        let remote = u32::from_le_bytes([response[4], response[5], response[6], response[7]]);
        Ok((Keys { sending, receiving }, remote))
    }
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initiator").field("local", &self.local).finish_non_exhaustive()
    }
}

/// A handshake the peer began: its initiation has been read, and who it is from.
pub struct Responder {
    state: HandshakeState,
    remote: u32,
    /// Who began it.
    pub peer: PublicKey,
    /// When, by its clock.
    pub timestamp: Timestamp,
}

impl Responder {
    /// Reads an initiation.
    ///
    /// # Errors
    /// If it is none, or not for us.
    pub fn read(own: &PrivateKey, initiation: &[u8; INITIATION]) -> Result<Self, Invalid> {
        let mut state = builder()
            .prologue(PROLOGUE)
            .and_then(|builder| builder.local_private_key(&own.0))
            .and_then(Builder::build_responder)
            .map_err(|_| Invalid)?;
        let mut payload = [0; 128];
        let length = state.read_message(&initiation[8..116], &mut payload).map_err(|_| Invalid)?;
        let timestamp = *payload[..length].first_chunk().ok_or(Invalid)?;
        let peer = state.get_remote_static().and_then(|key| key.first_chunk()).ok_or(Invalid)?;
        let remote = u32::from_le_bytes([initiation[4], initiation[5], initiation[6], initiation[7]]);
        Ok(Self { peer: PublicKey(*peer), timestamp, remote, state })
    }

    /// Answers: returns the message to send, the keys, and the peer's index.
    ///
    /// # Errors
    /// If the peer's ephemeral key is of low order.
    pub fn finish(
        mut self,
        preshared: Option<&PresharedKey>,
        local: u32,
        recipient: &Recipient,
        cookie: Option<&Mac16>,
    ) -> Result<([u8; RESPONSE], Keys, u32), Invalid> {
        let preshared = preshared.map_or(&NO_PRESHARED_KEY, |key| &key.0);
        self.state.set_psk(usize::from(PSK_POSITION), preshared).map_err(|_| Invalid)?;
        let mut message = [0; RESPONSE];
        message[0] = 2;
        message[4..8].copy_from_slice(&local.to_le_bytes());
        message[8..12].copy_from_slice(&self.remote.to_le_bytes());
        self.state.write_message(&[], &mut message[12..60]).map_err(|_| Invalid)?;
        recipient.sign(&mut message, cookie);
        let (receiving, sending) = self.state.dangerously_get_raw_split();
        Ok((message, Keys { sending, receiving }, self.remote))
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder").field("peer", &self.peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(preshared: [Option<&PresharedKey>; 2]) -> Option<(Keys, Keys)> {
        let (a, b) = (PrivateKey::new([1; 32]), PrivateKey::new([2; 32]));
        let (to_a, to_b) = (Recipient::new(&a.public()), Recipient::new(&b.public()));
        let label = timestamp(Duration::from_nanos(1_700_000_000_123_456_789));
        let (mut initiator, initiation) =
            Initiator::begin(&a, &b.public(), preshared[0], 5, &label, &to_b, None).unwrap();
        assert!(to_b.first_is_right(&initiation));
        let responder = Responder::read(&b, &initiation).unwrap();
        assert_eq!((responder.peer, responder.timestamp), (a.public(), label));
        let (response, keys_b, remote) = responder.finish(preshared[1], 6, &to_a, None).unwrap();
        assert_eq!(remote, 5);
        let mut forged = response;
        forged[20] ^= 1;
        assert_eq!(initiator.finish(&forged).err(), Some(Invalid));
        let (keys_a, remote) = initiator.finish(&response).ok()?;
        assert_eq!(remote, 6);
        Some((keys_a, keys_b))
    }

    #[test]
    fn both_ends_get_the_same_keys_in_spite_of_a_forged_response() {
        let (a, b) = handshake([None, None]).unwrap();
        assert_eq!((a.sending, a.receiving), (b.receiving, b.sending));
        let key = PresharedKey::new([3; 32]);
        assert!(handshake([Some(&key), Some(&key)]).is_some());
        assert!(handshake([Some(&key), None]).is_none());
    }

    #[test]
    fn an_initiation_for_somebody_else_is_not_read() {
        let (a, b) = (PrivateKey::new([1; 32]), PrivateKey::new([2; 32]));
        let to_b = Recipient::new(&b.public());
        let (_, initiation) = Initiator::begin(&a, &b.public(), None, 5, &[0; 12], &to_b, None).unwrap();
        assert_eq!(Responder::read(&a, &initiation).err(), Some(Invalid));
    }

    #[test]
    fn labels_grow_with_time() {
        let at = |millis| timestamp(Duration::from_millis(millis));
        assert!(at(1000) < at(1020) && at(1999) < at(2000));
        assert_eq!(at(0)[..8], 0x4000_0000_0000_000a_u64.to_be_bytes());
    }
}
