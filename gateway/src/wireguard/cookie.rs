//! The two MACs of handshake messages and the cookies behind the second (paper, section 5.4.4 and 5.4.7): a responder
//! that is busy first makes a sender prove that it receives at its address.

use super::key::PublicKey;
use super::message::COOKIE_REPLY;
use super::random::Random;
use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, KeyInit as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a secret makes cookies, and how long a cookie is used.
pub const LIFETIME: Duration = Duration::from_secs(120);
const MAC: usize = 16;

/// A 16-byte MAC.
pub type Mac16 = [u8; MAC];

/// What messages to one recipient are authenticated with: derived from its public key.
#[derive(Clone)]
pub struct Recipient {
    mac_key: [u8; 32],
    cookie_key: [u8; 32],
}

impl Recipient {
    /// The keys for messages to the owner of `public`.
    #[must_use]
    pub fn new(public: &PublicKey) -> Self {
        let derive =
            |label: &[u8]| Blake2s256::new().chain_update(label).chain_update(public.0).finalize().into();
        Self { mac_key: derive(b"mac1----"), cookie_key: derive(b"cookie--") }
    }

    /// Writes both MACs of a handshake message, the second with a cookie, if there is one; returns the first.
    pub fn sign(&self, message: &mut [u8], cookie: Option<&Mac16>) -> Mac16 {
        let at = message.len() - 2 * MAC;
        let first = mac(&self.mac_key, &[&message[..at]]);
        message[at..at + MAC].copy_from_slice(&first);
        let second = cookie.map_or([0; MAC], |cookie| mac(cookie, &[&message[..at + MAC]]));
        message[at + MAC..].copy_from_slice(&second);
        first
    }

    /// Whether the first MAC of a handshake message is right: its sender knows the public key.
    #[must_use]
    pub fn first_is_right(&self, message: &[u8]) -> bool {
        let Some((body, first)) = split(message) else { return false };
        equal(&mac(&self.mac_key, &[body]), first)
    }

    /// Opens a cookie reply to the message whose first MAC is `first`.
    #[must_use]
    pub fn open_reply(&self, reply: &[u8; COOKIE_REPLY], first: &Mac16) -> Option<Mac16> {
        let mut cookie: Mac16 = *reply[32..].first_chunk()?;
        let (nonce, tag) = (XNonce::from_slice(&reply[8..32]), Tag::from_slice(&reply[48..]));
        let cipher = XChaCha20Poly1305::new(&self.cookie_key.into());
        cipher.decrypt_in_place_detached(nonce, first, &mut cookie, tag).ok()?;
        Some(cookie)
    }
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recipient(..)")
    }
}

/// Makes cookies and knows them again.
#[derive(Debug)]
pub struct Jar {
    own: Recipient,
    secret: [u8; 32],
    previous: [u8; 32],
    made: Instant,
}

impl Jar {
    /// A jar for messages to the owner of `public`.
    #[must_use]
    pub fn new(public: &PublicKey, now: Instant, random: &mut Random) -> Self {
        let secret = random.bytes();
        Self { own: Recipient::new(public), secret, previous: secret, made: now }
    }

    /// Whether the first MAC of a message to us is right.
    #[must_use]
    pub fn first_is_right(&self, message: &[u8]) -> bool {
        self.own.first_is_right(message)
    }

    /// Whether the second MAC shows that its sender receives at `from`.
    #[must_use]
    pub fn proves_address(&self, message: &[u8], from: SocketAddr) -> bool {
        let Some(at) = message.len().checked_sub(MAC) else { return false };
        let (signed, second) = message.split_at(at);
        // A sender may hold a cookie made just before the secret changed.
        [&self.secret, &self.previous]
            .into_iter()
            .any(|secret| equal(&mac(&cookie(secret, from), &[signed]), second))
    }

    /// The reply that gives the sender of `message` a cookie.
    pub fn reply(
        &mut self,
        message: &[u8],
        from: SocketAddr,
        now: Instant,
        random: &mut Random,
    ) -> Option<[u8; COOKIE_REPLY]> {
        if now.saturating_duration_since(self.made) >= LIFETIME {
            self.previous = self.secret;
            self.secret = random.bytes();
            self.made = now;
        }
        let (_, first) = split(message)?;
        let mut reply = [0; COOKIE_REPLY];
        reply[0] = 3;
        reply[4..8].copy_from_slice(message.get(4..8)?);
        reply[8..32].copy_from_slice(&random.bytes()[..24]);
        let mut cookie = cookie(&self.secret, from);
        let cipher = XChaCha20Poly1305::new(&self.own.cookie_key.into());
        let tag =
            cipher.encrypt_in_place_detached(XNonce::from_slice(&reply[8..32]), first, &mut cookie).ok()?;
        reply[32..48].copy_from_slice(&cookie);
        reply[48..].copy_from_slice(&tag);
        Some(reply)
    }
}

/// The part of a handshake message before its MACs, and the first MAC.
fn split(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = message.len().checked_sub(2 * MAC)?;
    Some((&message[..at], &message[at..at + MAC]))
}

/// Of address and port, as the paper has it: behind one address there may be many.
fn cookie(secret: &[u8; 32], from: SocketAddr) -> Mac16 {
    let port = from.port().to_be_bytes();
    match from.ip() {
        IpAddr::V4(address) => mac(secret, &[&address.octets(), &port]),
        IpAddr::V6(address) => mac(secret, &[&address.octets(), &port]),
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Mac16 {
    let mut mac = <Blake2sMac<U16> as blake2::digest::KeyInit>::new_from_slice(key)
        .expect("BLAKE2s takes keys of up to 32 bytes");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn equal(a: &Mac16, b: &[u8]) -> bool {
    // In constant time: how far a guess was right must not show.
    b.len() == MAC && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_proves_address_and_port_and_outlives_one_change_of_the_secret() {
        let now = Instant::now();
        let mut random = Random::new([1; 32]);
        let public = PublicKey([9; 32]);
        let (recipient, mut jar) = (Recipient::new(&public), Jar::new(&public, now, &mut random));
        let from: SocketAddr = "192.0.2.1:5000".parse().unwrap();
        let mut message = [7; 148];
        let first = recipient.sign(&mut message, None);
        assert!(jar.first_is_right(&message) && !jar.proves_address(&message, from));

        let reply = jar.reply(&message, from, now, &mut random).unwrap();
        let cookie = recipient.open_reply(&reply, &first).unwrap();
        recipient.sign(&mut message, Some(&cookie));
        assert!(jar.proves_address(&message, from));
        assert!(!jar.proves_address(&message, "192.0.2.1:5001".parse().unwrap()));

        jar.reply(&message, from, now + LIFETIME, &mut random).unwrap();
        assert!(jar.proves_address(&message, from));
        jar.reply(&message, from, now + LIFETIME * 2, &mut random).unwrap();
        assert!(!jar.proves_address(&message, from));

        message[3] ^= 1;
        assert!(!jar.first_is_right(&message));
        assert_eq!(recipient.open_reply(&reply, &[0; 16]), None);
    }
}
