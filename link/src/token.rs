//! Join tokens: what a provider's administrator hands to a consumer's.
//!
//! A token is one line of text, `liquid1.<payload>.<check>`: the payload is base64url of JSON, the check the
//! first four bytes of its SHA-256, so that a cut or mistyped token is told from a wrong one.

use crate::digest::{decode_hex, hex, sha256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use liquid_crds::{ClusterId, ClusterName};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

const PREFIX: &str = "liquid1";
const CHECK_BYTES: usize = 4;
/// Longest token read: 16 endpoints of 261 characters fit three times over.
const MAX_LENGTH: usize = 16 * 1024;
/// Bytes of a token's secret: as strong as the keys it stands in for.
pub const SECRET_BYTES: usize = 32;
/// Bytes of a token's identifier.
const ID_BYTES: usize = 5;

/// Why a text is no usable join token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It is something else.
    #[error(
        "this is no join token: one starts with \"{PREFIX}.\" (make one with `liquidctl invite` in the provider)"
    )]
    NotAToken,
    /// It was cut or mistyped.
    #[error(
        "the join token is damaged (cut or mistyped): copy the whole line that `liquidctl invite` printed"
    )]
    Damaged,
    /// It was made by another version.
    #[error("the join token has contents this version does not understand: {0}")]
    Contents(String),
    /// It is too old.
    #[error("the join token expired {} ago: make a new one with `liquidctl invite`", Age(*.0))]
    Expired(u64),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// What a consumer needs to find a provider, know it, and be let in once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Name of the provider.
    #[serde(rename = "n")]
    pub cluster_name: ClusterName,
    /// Identity of the provider.
    #[serde(rename = "c")]
    pub cluster_id: ClusterId,
    /// Addresses (host:port) of its link endpoint, tried in order.
    #[serde(rename = "e")]
    pub endpoints: Vec<String>,
    /// SHA-256 of its CA certificate (DER), hexadecimal.
    #[serde(rename = "h")]
    pub ca_sha256: String,
    /// Which token this is, hexadecimal; not secret.
    #[serde(rename = "i")]
    pub id: String,
    /// The secret, hexadecimal.
    #[serde(rename = "s")]
    secret: String,
    /// When it expires, seconds since 1970.
    #[serde(rename = "x")]
    pub expires: u64,
}

impl JoinToken {
    /// Makes a token with a fresh identifier and secret.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn generate(
        cluster_name: ClusterName,
        cluster_id: ClusterId,
        endpoints: Vec<String>,
        ca_sha256: String,
        expires: u64,
    ) -> Result<Self, TokenError> {
        Ok(Self {
            cluster_name,
            cluster_id,
            endpoints,
            ca_sha256,
            id: hex(&random::<ID_BYTES>()?),
            secret: hex(&random::<SECRET_BYTES>()?),
            expires,
        })
    }

    /// Reads a token; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// If it is no token, damaged, from another version, or expired.
    pub fn parse(text: &str, now: u64) -> Result<Self, TokenError> {
        let text = text.trim();
        let rest = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.'));
        let rest = rest.ok_or(TokenError::NotAToken)?;
        if text.len() > MAX_LENGTH {
            return Err(TokenError::Damaged);
        }
        let (payload, check) = rest.split_once('.').ok_or(TokenError::Damaged)?;
        let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Damaged)?;
        let mut expected = [0; CHECK_BYTES];
        decode_hex(check, &mut expected).ok_or(TokenError::Damaged)?;
        if sha256(&json)[..CHECK_BYTES] != expected {
            return Err(TokenError::Damaged);
        }
        let token: Self = serde_json::from_slice(&json).map_err(|e| TokenError::Contents(e.to_string()))?;
        token.validate()?;
        if token.expires <= now {
            return Err(TokenError::Expired(now - token.expires));
        }
        Ok(token)
    }

    /// The secret as it is sent.
    pub fn secret(&self) -> [u8; SECRET_BYTES] {
        let mut secret = [0; SECRET_BYTES];
        // `validate` and `generate` make sure that it decodes; an empty secret is refused by any provider.
        let _ = decode_hex(&self.secret, &mut secret);
        secret
    }

    fn validate(&self) -> Result<(), TokenError> {
        let wrong = |what: &str| Err(TokenError::Contents(what.to_owned()));
        if self.endpoints.is_empty() || self.endpoints.len() > 16 {
            return wrong("it must name 1 to 16 endpoints");
        }
        if decode_hex(&self.secret, &mut [0; SECRET_BYTES]).is_none() {
            return wrong("its secret has the wrong length");
        }
        if decode_hex(&self.id, &mut [0; ID_BYTES]).is_none() {
            return wrong("its identifier has the wrong length");
        }
        if decode_hex(&self.ca_sha256, &mut [0; 32]).is_none() {
            return wrong("its CA digest has the wrong length");
        }
        Ok(())
    }
}

/// Shows the token as text: this is the secret itself.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        let check = hex(&sha256(&json)[..CHECK_BYTES]);
        write!(f, "{PREFIX}.{}.{check}", URL_SAFE_NO_PAD.encode(json))
    }
}

/// Shows everything but the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("cluster_name", &self.cluster_name)
            .field("endpoints", &self.endpoints)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What a provider stores of a token's secret: its SHA-256, hexadecimal.
pub fn secret_digest(secret: &[u8]) -> String {
    hex(&sha256(secret))
}

fn random<const N: usize>() -> Result<[u8; N], TokenError> {
    use ring::rand::{SecureRandom as _, SystemRandom};
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| TokenError::NoRandomness)?;
    Ok(bytes)
}

/// A span of time for people.
struct Age(u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds @ 0..120 => write!(f, "{seconds} s"),
            seconds @ 120..7200 => write!(f, "{} min", seconds / 60),
            seconds => write!(f, "{} h", seconds / 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(expires: u64) -> JoinToken {
        JoinToken::generate(
            "milan".parse().unwrap(),
            "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap(),
            vec!["192.0.2.1:7443".to_owned()],
            "ab".repeat(32),
            expires,
        )
        .unwrap()
    }

    #[test]
    fn a_token_survives_the_trip_as_text() {
        let made = token(1000);
        assert_eq!(JoinToken::parse(&format!("  {made}\n"), 999), Ok(made));
    }

    #[test]
    fn two_tokens_share_neither_identifier_nor_secret() {
        let (a, b) = (token(1), token(1));
        assert_ne!(a.id, b.id);
        assert_ne!(a.secret(), b.secret());
    }

    #[test]
    fn an_expired_token_says_since_when() {
        let text = token(1000).to_string();
        assert_eq!(JoinToken::parse(&text, 1000), Err(TokenError::Expired(0)));
        let error = JoinToken::parse(&text, 1000 + 7200).unwrap_err();
        assert!(error.to_string().contains("2 h ago"), "{error}");
    }

    #[test]
    fn the_secret_is_not_shown_by_accident() {
        let token = token(1);
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn something_else_is_told_from_a_damaged_token() {
        assert_eq!(JoinToken::parse("abcdef.0123456789abcdef", 0), Err(TokenError::NotAToken));
        assert_eq!(JoinToken::parse("", 0), Err(TokenError::NotAToken));
        assert_eq!(JoinToken::parse("liquid1.", 0), Err(TokenError::Damaged));
    }

    proptest! {
        #[test]
        fn every_cut_or_changed_character_is_noticed(position in 0usize..400, cut: bool, other in "[A-Za-z0-9.]") {
            let text = token(u64::MAX).to_string();
            let position = position % text.len();
            let mut damaged = text.clone();
            if cut {
                damaged.truncate(position);
            } else {
                damaged.replace_range(position..=position, &other);
            }
            // The last base64 character of a group may carry unused bits, so another letter can mean the same bytes;
            // anything that parses must mean the same token.
            if let Ok(parsed) = JoinToken::parse(&damaged, 0) {
                prop_assert_eq!(parsed.to_string(), text);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
            let _ = JoinToken::parse(&text, 0);
            let _ = JoinToken::parse(&format!("liquid1.{text}"), 0);
        }
    }
}
