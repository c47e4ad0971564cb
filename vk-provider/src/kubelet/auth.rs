//! Who may use the kubelet API, decided as kubelets do: client certificates of the cluster's CA or bearer tokens say who
//! it is, and the API server says what they may do.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use liquid_link::digest::sha256;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The kubelet's own figures for how long answers of the API server hold.
const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
/// Answers kept at most, of about 200 bytes each; strangers cannot make it more, for only tokens that are valid and
/// users that exist are kept.
const MAX_CACHED: usize = 4096;

/// Why a request is not served.
#[derive(Debug, Error)]
pub(super) enum AuthError {
    /// It is not known who asks: 401.
    #[error("Unauthorized")]
    Unauthenticated,
    /// They may not: 403.
    #[error("{user} may not {verb} {} of {node}", of_nodes(.subresources))]
    Forbidden {
        /// Who asked.
        user: String,
        /// What the method means.
        verb: &'static str,
        /// What was asked for: any of these would do.
        subresources: &'static [&'static str],
        /// Of which node.
        node: String,
    },
    /// The API server could not be asked: 500.
    #[error("the API server could not be asked: {0}")]
    Undecided(#[from] kube::Error),
}

/// Somebody who is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct User {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// What a request asks to do, in the words of node authorisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Access {
    pub(super) verb: &'static str,
    /// Whoever has the right to one of these may. Since Kubernetes 1.33 (KEP-2862) some paths have one of their own,
    /// beside `proxy`, which allows everything.
    pub(super) subresources: &'static [&'static str],
}

/// Who, verb, subresource and node.
type Question = (User, &'static str, &'static str, String);

type Cache<K, V> = HashMap<K, (V, Instant)>;

/// Asks the API server, and remembers the answers for a while.
pub(crate) struct Authenticator {
    client: Client,
    /// Users by the digest of their token, and until when that holds.
    tokens: Mutex<Cache<[u8; 32], User>>,
    /// Whether a user may have this access to a node, and until when that holds.
    decisions: Mutex<Cache<Question, bool>>,
}

impl Authenticator {
    /// Nothing is remembered yet.
    pub(crate) fn new(client: Client) -> Self {
        Self { client, tokens: Mutex::default(), decisions: Mutex::default() }
    }

    /// Says who asks: by the client certificate (DER; its chain has been verified in the handshake) or the bearer token.
    pub(super) async fn authenticate(
        &self,
        certificate: Option<&[u8]>,
        authorization: Option<&str>,
    ) -> Result<User, AuthError> {
        if let Some(user) = certificate.and_then(user_of_certificate) {
            return Ok(user);
        }
        let token = authorization.and_then(|header| {
            let (scheme, token) = header.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
        });
        self.review_token(token.ok_or(AuthError::Unauthenticated)?).await
    }

    /// Says whether they may.
    pub(super) async fn authorize(&self, user: &User, access: Access, node: &str) -> Result<(), AuthError> {
        let Access { verb, subresources } = access;
        for subresource in subresources {
            if self.may(user, verb, subresource, node).await? {
                return Ok(());
            }
        }
        Err(AuthError::Forbidden { user: user.name.clone(), verb, subresources, node: node.to_owned() })
    }

    async fn may(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
        node: &str,
    ) -> Result<bool, AuthError> {
        let key = (user.clone(), verb, subresource, node.to_owned());
        let now = Instant::now();
        let known =
            lock(&self.decisions).get(&key).filter(|(_, until)| *until > now).map(|(allowed, _)| *allowed);
        if let Some(allowed) = known {
            return Ok(allowed);
        }
        let allowed = self.review_access(user, verb, subresource, node).await?;
        let until = now + if allowed { ALLOWED_TTL } else { DENIED_TTL };
        remember(&mut lock(&self.decisions), key, (allowed, until), |(_, until)| *until > now);
        Ok(allowed)
    }

    async fn review_token(&self, token: &str) -> Result<User, AuthError> {
        let digest = sha256(token.as_bytes());
        let now = Instant::now();
        let known =
            lock(&self.tokens).get(&digest).filter(|(_, until)| *until > now).map(|(user, _)| user.clone());
        if let Some(user) = known {
            return Ok(user);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: None },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let info = status.user.filter(|_| status.authenticated == Some(true));
        let info = info.ok_or(AuthError::Unauthenticated)?;
        let user = User {
            name: info.username.unwrap_or_default(),
            uid: info.uid.unwrap_or_default(),
            groups: info.groups.unwrap_or_default(),
            extra: info.extra.unwrap_or_default(),
        };
        remember(&mut lock(&self.tokens), digest, (user.clone(), now + TOKEN_TTL), |(_, until)| *until > now);
        Ok(user)
    }

    async fn review_access(
        &self,
        user: &User,
        verb: &str,
        subresource: &str,
        node: &str,
    ) -> Result<bool, AuthError> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(node.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        Ok(status.allowed && !status.denied.unwrap_or(false))
    }
}

fn of_nodes(subresources: &[&str]) -> String {
    subresources.iter().map(|name| format!("nodes/{name}")).collect::<Vec<_>>().join(" or ")
}

fn user_of_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(ToOwned::to_owned));
    // What the API server adds to whoever it has authenticated.
    let groups = groups.chain(["system:authenticated".to_owned()]).collect();
    (!name.is_empty()).then(|| User { name, uid: String::new(), groups, extra: BTreeMap::new() })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers an answer; when too many are, those that no longer hold go, and if that is not enough, all.
fn remember<K: std::hash::Hash + Eq, V>(
    cache: &mut HashMap<K, V>,
    key: K,
    value: V,
    holds: impl Fn(&V) -> bool,
) {
    if cache.len() >= MAX_CACHED {
        cache.retain(|_, value| holds(value));
    }
    if cache.len() >= MAX_CACHED {
        cache.clear();
    }
    cache.insert(key, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    #[test]
    fn a_client_certificate_says_user_and_groups() {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver-kubelet-client");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let user = user_of_certificate(certificate.der()).unwrap();
        assert_eq!(user.name, "kube-apiserver-kubelet-client");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut cache = HashMap::new();
        for index in 0..3 * MAX_CACHED {
            remember(&mut cache, index, index, |value| value % 2 == 0);
        }
        assert!(cache.len() <= MAX_CACHED);
    }
}
