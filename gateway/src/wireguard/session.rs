//! A pair of keys and what has been sealed and opened with them (paper, section 5.4.6).

use super::message::{DATA_HEADER, PADDING, TAG};
use super::replay::Replay;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use std::time::{Duration, Instant};

/// After this many packets a new session is wanted (paper, section 6.1).
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// After this many packets nothing more is sent or taken.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// After this time the initiator wants a new session when it sends.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// After this time nothing more is sent or taken.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// The outcome of a handshake.
pub struct Keys {
    /// What we seal with.
    pub sending: [u8; 32],
    /// What we open with.
    pub receiving: [u8; 32],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    /// The index we gave it; the peer writes it into what it sends.
    pub local: u32,
    /// The index the peer gave it.
    pub remote: u32,
    /// Whether we began the handshake.
    pub initiator: bool,
    /// When it began.
    pub created: Instant,
    sending: LessSafeKey,
    receiving: LessSafeKey,
    sent: u64,
    replay: Replay,
}

/// Why a data message is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It has been taken before, or is too late.
    Replayed,
    /// It is not from the peer.
    Forged,
    /// The session is over.
    Expired,
}

impl Session {
    /// A session of these keys.
    #[must_use]
    pub fn new(keys: &Keys, local: u32, remote: u32, initiator: bool, now: Instant) -> Self {
        let key = |bytes: &[u8]| {
            LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("the key has 32 bytes"))
        };
        Self {
            local,
            remote,
            initiator,
            created: now,
            sending: key(&keys.sending),
            receiving: key(&keys.receiving),
            sent: 0,
            replay: Replay::default(),
        }
    }

    /// Whether nothing more may be sent or taken at `now`.
    #[must_use]
    pub fn is_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created) >= REJECT_AFTER_TIME || self.sent >= REJECT_AFTER_MESSAGES
    }

    /// Whether it has been used for so long that what is sent should ask for a new one.
    #[must_use]
    pub fn wants_rekey_on_sending(&self, now: Instant) -> bool {
        let old = now.saturating_duration_since(self.created) >= REKEY_AFTER_TIME;
        self.sent >= REKEY_AFTER_MESSAGES || (self.initiator && old)
    }

    /// Seals the data message in `message`, whose packet, with its padding, lies between header and tag.
    ///
    /// The caller has asked [`Session::is_expired`].
    pub fn seal(&mut self, message: &mut [u8]) {
        let counter = self.sent;
        self.sent += 1;
        let Some((header, rest)) = message.split_first_chunk_mut::<DATA_HEADER>() else { return };
        let Some((packet, tag)) = rest.split_last_chunk_mut::<TAG>() else { return };
        header[..4].copy_from_slice(&[4, 0, 0, 0]);
        header[4..8].copy_from_slice(&self.remote.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        let sealed = self.sending.seal_in_place_separate_tag(nonce(counter), Aad::empty(), packet);
        *tag = *sealed
            .expect("packets are far below the 256 GiB limit of the cipher")
            .as_ref()
            .first_chunk()
            .expect("tags have 16 bytes");
    }

    /// Opens the data message in `message` with `counter`; the packet, perhaps padded, is then at `DATA_HEADER`, and
    /// its length is returned.
    ///
    /// # Errors
    /// If the message is not to be taken; its bytes are then undefined.
    pub fn open(&mut self, counter: u64, message: &mut [u8], now: Instant) -> Result<usize, Refused> {
        if counter >= REJECT_AFTER_MESSAGES
            || now.saturating_duration_since(self.created) >= REJECT_AFTER_TIME
        {
            return Err(Refused::Expired);
        }
        if !self.replay.may_accept(counter) {
            return Err(Refused::Replayed);
        }
        let rest = message.get_mut(DATA_HEADER..).ok_or(Refused::Forged)?;
        let (packet, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(Refused::Forged)?;
        let tag = Tag::from(*tag);
        let opened =
            self.receiving.open_in_place_separate_tag(nonce(counter), Aad::empty(), tag, packet, 0..);
        let length = opened.map_err(|_| Refused::Forged)?.len();
        if self.replay.accept(counter) { Ok(length) } else { Err(Refused::Replayed) }
    }
}

const _: () = assert!(PADDING.is_power_of_two());

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::message::DATA_OVERHEAD;

    fn pair(now: Instant) -> (Session, Session) {
        let keys = |sending, receiving| Keys { sending: [sending; 32], receiving: [receiving; 32] };
        (Session::new(&keys(1, 2), 10, 20, true, now), Session::new(&keys(2, 1), 20, 10, false, now))
    }

    fn sealed(session: &mut Session, packet: &[u8]) -> Vec<u8> {
        let mut message = vec![0; packet.len() + DATA_OVERHEAD];
        message[DATA_HEADER..DATA_HEADER + packet.len()].copy_from_slice(packet);
        session.seal(&mut message);
        message
    }

    #[test]
    fn what_is_sealed_opens_once() {
        let now = Instant::now();
        let (mut a, mut b) = pair(now);
        let mut message = sealed(&mut a, b"hello");
        let mut copy = message.clone();
        assert_eq!(b.open(0, &mut copy, now), Ok(5));
        assert_eq!(&copy[16..21], b"hello");
        assert_eq!(b.open(0, &mut message.clone(), now), Err(Refused::Replayed));
        assert_eq!(b.open(1, &mut message, now), Err(Refused::Forged));
        assert_eq!(
            b.open(1, &mut sealed(&mut a, b"second"), now),
            Ok(6),
            "a forgery takes no place in the window"
        );
    }

    #[test]
    fn nothing_is_taken_after_the_limits() {
        let now = Instant::now();
        let (mut a, mut b) = pair(now);
        let late = now + REJECT_AFTER_TIME;
        assert_eq!(b.open(0, &mut sealed(&mut a, b"x"), late), Err(Refused::Expired));
        a.sent = REJECT_AFTER_MESSAGES - 1;
        let mut message = sealed(&mut a, b"last");
        assert!(a.is_expired(now) && a.wants_rekey_on_sending(now));
        assert_eq!(b.open(REJECT_AFTER_MESSAGES - 1, &mut message.clone(), now), Ok(4));
        assert_eq!(b.open(REJECT_AFTER_MESSAGES, &mut message, now), Err(Refused::Expired));
    }
}
