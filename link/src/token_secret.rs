//! How a provider keeps its join tokens: one Secret each, without the secret itself.

use crate::gateways;
use crate::introduction::Introduction;
use crate::token::{JoinToken, Tunnel, secret_digest};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use liquid_crds::vocabulary::{JOIN_TOKEN, MANAGED_BY, MANAGED_BY_LIQUID};
use liquid_crds::{PeerGateway, Verdict};
use std::collections::BTreeMap;
use thiserror::Error;

const DIGEST: &str = "digest";
const EXPIRES: &str = "expires";
const USED_BY: &str = "used-by";
const USED_KEY: &str = "used-key";
const ONLY_FOR: &str = "only-for";
const ACCESS: &str = "access";
const DENY: &str = "Deny";
/// Entry of a token's Secret that says whom the gateways let in, or call.
pub const GUESTS: &str = "guests";

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenRefused {
    /// There is no such token, or its secret is another one.
    #[error("the join token is wrong or was revoked")]
    Unknown,
    /// It is too old.
    #[error("the join token has expired")]
    Expired,
    /// Somebody has used it.
    #[error("the join token was used already, by cluster {0}")]
    Used(String),
    /// It was made for another cluster.
    #[error("the join token was made for another cluster")]
    ForAnother,
    /// The Secret it is kept in was damaged.
    #[error("the join token's Secret {0} is damaged: delete it and make a new token")]
    Damaged(String),
}

/// Who presents a token.
#[derive(Debug, Clone, Copy)]
pub struct Presenter<'a> {
    /// Identity of the cluster.
    pub cluster_id: &'a str,
    /// SHA-256 of the public key it asks a certificate for, hexadecimal.
    pub key_digest: &'a str,
}

/// Name of the Secret of token `id`.
pub fn secret_name(id: &str) -> String {
    format!("liquid-token-{id}")
}

/// What is kept with a token.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms<'a> {
    /// For people.
    pub description: Option<&'a str>,
    /// The token is for this cluster only, whose gateways are let in, or called.
    pub introduction: Option<&'a Introduction>,
    /// What becomes of connections of its pods, until its Peer says otherwise.
    pub access: Verdict,
}

/// The Secret that keeps `token`.
pub fn secret_for(token: &JoinToken, namespace: &str, terms: Terms<'_>) -> Secret {
    let Terms { description, introduction, access } = terms;
    let mut data = BTreeMap::from([
        (DIGEST.to_owned(), secret_digest(&token.secret())),
        (EXPIRES.to_owned(), token.expires.to_string()),
    ]);
    let guest = token.tunnel.as_ref().and_then(Tunnel::guest);
    let guest = guest.map(|public_key| PeerGateway { public_key, ..nameless() });
    let guests: Vec<PeerGateway> = match introduction {
        Some(introduction) => {
            data.insert(ONLY_FOR.to_owned(), introduction.cluster_id.to_string());
            introduction.gateways.clone()
        }
        None => guest.into_iter().collect(),
    };
    if token.tunnel.is_some() {
        data.insert(GUESTS.to_owned(), serde_json::to_string(&guests).unwrap_or_default());
    }
    if access == Verdict::Deny {
        data.insert(ACCESS.to_owned(), DENY.to_owned());
    }
    if let Some(description) = description {
        data.insert("description".to_owned(), description.to_owned());
    }
    Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(&token.id)),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([
                (MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned()),
                (JOIN_TOKEN.to_owned(), token.id.clone()),
            ])),
            ..ObjectMeta::default()
        },
        string_data: Some(data),
        type_: Some("liquid.mesh/join-token".to_owned()),
        ..Secret::default()
    }
}

/// A gateway that has to call, of this version.
fn nameless() -> PeerGateway {
    PeerGateway { name: None, public_key: String::new(), endpoints: Vec::new(), probes: true }
}

/// Redeems a token: returns its Secret marked as used, to be written back with its resource version before
/// anything is granted. The same presenter may redeem again (its first answer may have been lost).
///
/// # Errors
/// If the secret is wrong, or the token expired, or somebody else used it.
pub fn redeem(
    mut kept: Secret,
    presented: &[u8],
    by: Presenter<'_>,
    now: u64,
) -> Result<Secret, TokenRefused> {
    let name = kept.metadata.name.clone().unwrap_or_default();
    let field = |key: &str| field(&kept, key);
    let digest = field(DIGEST).ok_or_else(|| TokenRefused::Damaged(name.clone()))?;
    let expires: u64 = field(EXPIRES)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| TokenRefused::Damaged(name.clone()))?;
    // Digests are compared, not secrets: how far they agree tells nothing about the secret.
    if digest != secret_digest(presented) {
        return Err(TokenRefused::Unknown);
    }
    if field(ONLY_FOR).is_some_and(|cluster| cluster != by.cluster_id) {
        return Err(TokenRefused::ForAnother);
    }
    match (field(USED_BY), field(USED_KEY)) {
        (None, _) => {}
        (Some(cluster), Some(key)) if cluster == by.cluster_id && key == by.key_digest => {}
        (Some(cluster), _) => return Err(TokenRefused::Used(cluster)),
    }
    if expires <= now {
        return Err(TokenRefused::Expired);
    }
    let used = kept.string_data.get_or_insert_default();
    used.insert(USED_BY.to_owned(), by.cluster_id.to_owned());
    used.insert(USED_KEY.to_owned(), by.key_digest.to_owned());
    Ok(kept)
}

/// What becomes of connections of pods of the cluster that uses the token.
pub fn access(kept: &Secret) -> Verdict {
    if field(kept, ACCESS).is_some_and(|access| access == DENY) { Verdict::Deny } else { Verdict::Allow }
}

/// When the token expires, in seconds since 1970.
pub fn expires(kept: &Secret) -> Option<u64> {
    field(kept, EXPIRES)?.parse().ok()
}

/// Identity of the cluster that has used the token.
pub fn used_by(kept: &Secret) -> Option<String> {
    field(kept, USED_BY)
}

/// Whom this cluster's gateways let in, or call, so that the token can be used through a tunnel; `None` if it is not for
/// that, or damaged.
pub fn guests(kept: &Secret) -> Option<Vec<PeerGateway>> {
    let guests: Vec<PeerGateway> = serde_json::from_str(&field(kept, GUESTS)?).ok()?;
    gateways::check(&guests).ok()?;
    Some(guests)
}

fn field(kept: &Secret, key: &str) -> Option<String> {
    String::from_utf8(kept.data.as_ref()?.get(key)?.0.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Reach;
    use k8s_openapi::ByteString;

    const CLUSTER: &str = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab";

    fn token_with(reach: Reach) -> JoinToken {
        let (name, id) = ("milan".parse().unwrap(), CLUSTER.parse().unwrap());
        JoinToken::generate(name, id, reach, "ab".repeat(32), 1000).unwrap()
    }

    fn token() -> JoinToken {
        token_with(Reach::Direct(vec!["192.0.2.1:7443".to_owned()]))
    }

    /// What the API server makes of a written Secret.
    fn stored(mut secret: Secret) -> Secret {
        let written = secret.string_data.take().unwrap_or_default();
        let data = secret.data.get_or_insert_default();
        data.extend(written.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))));
        secret
    }

    const ME: Presenter<'static> = Presenter { cluster_id: "me", key_digest: "k1" };

    #[test]
    fn what_the_holder_may_reach_is_kept_with_the_token() {
        for verdict in [Verdict::Allow, Verdict::Deny] {
            let terms = Terms { access: verdict, ..Terms::default() };
            let token = token();
            let kept = stored(secret_for(&token, "liquid-system", terms));
            assert_eq!(access(&redeem(kept, &token.secret(), ME, 999).unwrap()), verdict);
        }
    }

    #[test]
    fn a_token_is_redeemed_once_and_again_only_by_the_same_key() {
        let token = token();
        let kept = stored(secret_for(&token, "liquid-system", Terms::default()));
        let used = stored(redeem(kept, &token.secret(), ME, 999).unwrap());

        assert!(redeem(used.clone(), &token.secret(), ME, 999).is_ok());
        for other in [
            Presenter { cluster_id: "other", key_digest: "k1" },
            Presenter { cluster_id: "me", key_digest: "k2" },
        ] {
            let refused = redeem(used.clone(), &token.secret(), other, 999).unwrap_err();
            assert_eq!(refused, TokenRefused::Used("me".to_owned()));
        }
    }

    #[test]
    fn wrong_secrets_and_late_comers_are_refused() {
        let token = token();
        let kept = stored(secret_for(
            &token,
            "liquid-system",
            Terms { description: Some("for milan"), ..Terms::default() },
        ));
        assert_eq!(redeem(kept.clone(), &[0; 32], ME, 999), Err(TokenRefused::Unknown));
        assert_eq!(redeem(kept.clone(), &[], ME, 999), Err(TokenRefused::Unknown));
        assert_eq!(redeem(kept.clone(), &token.secret(), ME, 1000), Err(TokenRefused::Expired));
        assert_eq!(expires(&kept), Some(1000));
    }

    #[test]
    fn the_secret_itself_is_not_kept() {
        let token = token();
        let kept = format!("{:?}", secret_for(&token, "liquid-system", Terms::default()).string_data);
        assert!(!kept.contains(&crate::digest::hex(&token.secret())));
    }

    #[test]
    fn gateways_let_the_guest_of_a_token_in_or_those_who_were_introduced() {
        assert_eq!(guests(&stored(secret_for(&token(), "liquid-system", Terms::default()))), None);
        let token = token_with(Reach::InBand { gateways: Vec::new(), guest: true });
        let kept = stored(secret_for(&token, "liquid-system", Terms::default()));
        let guest = token.tunnel.as_ref().and_then(Tunnel::guest).unwrap();
        assert_eq!(guests(&kept), Some(vec![PeerGateway { public_key: guest, ..nameless() }]));
        let private = token.tunnel.as_ref().and_then(Tunnel::guest_key).unwrap();
        assert!(!format!("{:?}", secret_for(&token, "liquid-system", Terms::default())).contains(private));

        let token = token_with(Reach::InBand { gateways: Vec::new(), guest: false });
        let gateway = PeerGateway {
            public_key: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(),
            endpoints: vec!["192.0.2.9:31820".to_owned()],
            ..nameless()
        };
        let introduction = Introduction {
            cluster_name: "turin".parse().unwrap(),
            cluster_id: CLUSTER.parse().unwrap(),
            gateways: vec![gateway.clone()],
        };
        let kept = stored(secret_for(
            &token,
            "liquid-system",
            Terms { introduction: Some(&introduction), ..Terms::default() },
        ));
        assert_eq!(guests(&kept), Some(vec![gateway]));
        let refused = redeem(kept.clone(), &token.secret(), ME, 999).unwrap_err();
        assert_eq!(refused, TokenRefused::ForAnother);
        let introduced = Presenter { cluster_id: CLUSTER, key_digest: "k1" };
        assert_eq!(
            used_by(&stored(redeem(kept, &token.secret(), introduced, 999).unwrap())).as_deref(),
            Some(CLUSTER)
        );
    }
}
