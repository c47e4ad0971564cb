//! Join tokens: what a provider's administrator hands to a consumer's.

use crate::digest::{decode_hex, hex, sha256};
use crate::gateways;
use crate::text::{self, NoText};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use liquid_crds::{ClusterId, ClusterName, PeerGateway};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};

const KIND: &str = "liquid1";
/// Most endpoints of a link; a load balancer or three nodes are usual.
const MAX_ENDPOINTS: usize = 16;
/// Bytes of a token's secret: as strong as the keys it stands in for.
pub const SECRET_BYTES: usize = 32;
/// Bytes of a token's identifier.
const ID_BYTES: usize = 5;

/// Why a text is no usable join token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It is something else.
    #[error(
        "this is no join token: one starts with \"{KIND}.\" (make one with `liquidctl invite` in the provider)"
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
    /// Addresses (host:port) of its link endpoint, tried in order; none if it is reached through a tunnel.
    #[serde(rename = "e", default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// How it is reached through a tunnel, if that is how.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
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

/// The provider's end of a tunnel, and by which key it knows the consumer's.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Gateways of the provider.
    #[serde(rename = "g")]
    pub gateways: Vec<PeerGateway>,
    /// WireGuard private key, base64, that the provider's gateways answer to until the token has been used. None: they know
    /// the keys of the consumer's gateways.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    guest_key: Option<String>,
}

impl Tunnel {
    /// The private key of the guest, base64.
    pub fn guest_key(&self) -> Option<&str> {
        self.guest_key.as_deref()
    }

    /// The public key of the guest, base64.
    pub fn guest(&self) -> Option<String> {
        let private: [u8; gateways::KEY] = STANDARD.decode(self.guest_key.as_ref()?).ok()?.try_into().ok()?;
        Some(STANDARD.encode(PublicKey::from(&StaticSecret::from(private)).as_bytes()))
    }
}

/// How the provider of a new token is reached.
#[derive(Debug, Clone)]
pub enum Reach {
    /// At these addresses (host:port) of its link endpoint.
    Direct(Vec<String>),
    /// Through its gateways, which learn a key that is made for this token, or know those of the consumer.
    InBand {
        /// Gateways of the provider.
        gateways: Vec<PeerGateway>,
        /// Whether a key is made.
        guest: bool,
    },
}

impl JoinToken {
    /// Makes a token with a fresh identifier and secret.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn generate(
        cluster_name: ClusterName,
        cluster_id: ClusterId,
        reach: Reach,
        ca_sha256: String,
        expires: u64,
    ) -> Result<Self, TokenError> {
        let (endpoints, tunnel) = match reach {
            Reach::Direct(endpoints) => (endpoints, None),
            Reach::InBand { gateways, guest } => {
                let guest_key =
                    if guest { Some(STANDARD.encode(random::<{ gateways::KEY }>()?)) } else { None };
                (Vec::new(), Some(Tunnel { gateways, guest_key }))
            }
        };
        Ok(Self {
            cluster_name,
            cluster_id,
            endpoints,
            tunnel,
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
        let token: Self = text::read(KIND, text).map_err(|why| match why {
            NoText::Other => TokenError::NotAToken,
            NoText::Damaged => TokenError::Damaged,
            NoText::Contents(what) => TokenError::Contents(what),
        })?;
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
        match &self.tunnel {
            None if self.endpoints.is_empty() || self.endpoints.len() > MAX_ENDPOINTS => {
                return wrong(&format!("it must name 1 to {MAX_ENDPOINTS} endpoints"));
            }
            Some(_) if !self.endpoints.is_empty() => return wrong("it names both endpoints and gateways"),
            Some(tunnel) => {
                gateways::check(&tunnel.gateways).map_err(|error| TokenError::Contents(error.to_string()))?;
                if tunnel.gateways.is_empty() {
                    return wrong("it names no gateway");
                }
                if tunnel.guest_key.is_some() && tunnel.guest().is_none() {
                    return wrong("the key of its guest has the wrong length");
                }
            }
            None => {}
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
        f.write_str(&text::write(KIND, self).map_err(|_| fmt::Error)?)
    }
}

/// Shows everything but the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("cluster_name", &self.cluster_name)
            .field("endpoints", &self.endpoints)
            .field("tunnel", &self.tunnel)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Shows everything but the secret.
impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("gateways", &self.gateways).finish_non_exhaustive()
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
            Reach::Direct(vec!["192.0.2.1:7443".to_owned()]),
            "ab".repeat(32),
            expires,
        )
        .unwrap()
    }

    fn in_band(guest: bool) -> JoinToken {
        let gateway = PeerGateway {
            name: Some("liquid-gateway-0".to_owned()),
            public_key: STANDARD.encode([7; gateways::KEY]),
            endpoints: vec!["192.0.2.1:31820".to_owned()],
            probes: true,
        };
        let reach = Reach::InBand { gateways: vec![gateway], guest };
        let (name, id) = (token(1).cluster_name, token(1).cluster_id);
        JoinToken::generate(name, id, reach, "ab".repeat(32), 1000).unwrap()
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
        let token = in_band(true);
        assert!(!format!("{token:?}").contains(token.tunnel.as_ref().unwrap().guest_key().unwrap()));
    }

    #[test]
    fn a_token_for_a_tunnel_has_a_key_of_its_own_unless_the_gateways_know_each_other() {
        let made = in_band(true);
        assert_eq!(JoinToken::parse(&made.to_string(), 999), Ok(made.clone()));
        let keys = |token: &JoinToken| token.tunnel.clone().unwrap().guest().unwrap();
        assert_ne!(keys(&made), keys(&in_band(true)), "each token has another");
        assert_eq!(in_band(false).tunnel.unwrap().guest(), None);
    }

    /// RFC 7748, section 6.1: Alice's keys.
    #[test]
    fn the_public_key_of_a_guest_is_that_of_curve25519() {
        let guest_key = Some("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".to_owned());
        let guest = Tunnel { gateways: Vec::new(), guest_key }.guest();
        assert_eq!(guest.as_deref(), Some("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="));
    }

    #[test]
    fn a_token_leads_either_to_endpoints_or_to_gateways() {
        let parse = |token: JoinToken| JoinToken::parse(&token.to_string(), 0);
        let broken = |change: &dyn Fn(&mut JoinToken)| {
            let mut token = in_band(true);
            change(&mut token);
            parse(token)
        };
        let tunnel = |token: &mut JoinToken, change: &dyn Fn(&mut Tunnel)| {
            change(token.tunnel.as_mut().unwrap());
        };
        assert!(broken(&|token| token.endpoints.push("192.0.2.1:7443".to_owned())).is_err());
        assert!(broken(&|token| token.tunnel = None).is_err());
        assert!(broken(&|token| tunnel(token, &|tunnel| tunnel.gateways.clear())).is_err());
        assert!(
            broken(&|token| tunnel(token, &|tunnel| tunnel.guest_key = Some("short".to_owned()))).is_err()
        );
        assert!(
            broken(&|token| tunnel(token, &|t| t.gateways[0].endpoints.push("nowhere".to_owned()))).is_err()
        );
        assert!(broken(&|_| {}).is_ok());
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
