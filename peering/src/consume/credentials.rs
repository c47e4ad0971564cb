//! The client certificate of this cluster for one provider, kept in a Secret.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use liquid_crds::vocabulary::{CREDENTIALS_CONSUME, MANAGED_BY, MANAGED_BY_LIQUID, credentials_secret};
use liquid_crds::{ConsumeSpec, Peer};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A key, and its certificate once there is one. PEM.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) key: String,
    pub(super) chain: Option<String>,
}

impl Credentials {
    /// Whether there is a certificate that is of no more use.
    pub(super) fn is_expired(&self) -> bool {
        let ended = |chain: &str| validity(chain).is_none_or(|(_, end)| end <= OffsetDateTime::now_utc());
        self.chain.as_deref().is_some_and(ended)
    }
}

/// Reads the credentials for `peer`.
pub(super) async fn load(
    client: &Client,
    namespace: &str,
    peer: &Peer,
) -> Result<Option<Credentials>, kube::Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let Some(secret) = secrets.get_opt(&credentials_secret(&peer.name_any())).await? else {
        return Ok(None);
    };
    // Left over from an earlier `Peer` of this name: its certificate is worthless.
    let ours = secret.owner_references().iter().any(|owner| Some(&owner.uid) == peer.metadata.uid.as_ref());
    if !ours {
        return Ok(None);
    }
    let field = |key: &str| {
        let value = secret.data.as_ref()?.get(key)?;
        String::from_utf8(value.0.clone()).ok().filter(|text| !text.is_empty())
    };
    Ok(field("tls.key").map(|key| Credentials { key, chain: field("tls.crt") }))
}

/// How the provider of `peer` was reached when the credentials were written: what leaving it takes after the user has
/// taken `spec.consume` away.
pub(super) async fn way(
    client: &Client,
    namespace: &str,
    peer: &Peer,
) -> Result<Option<ConsumeSpec>, kube::Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets.get_opt(&credentials_secret(&peer.name_any())).await?;
    let text = secret.and_then(|secret| secret.data?.remove(CREDENTIALS_CONSUME));
    Ok(text.and_then(|text| serde_json::from_slice(&text.0).ok()).flatten())
}

/// Deletes the credentials for `peer`.
pub(super) async fn discard(client: &Client, namespace: &str, peer: &Peer) -> Result<(), kube::Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    match secrets.delete(&credentials_secret(&peer.name_any()), &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes the credentials for `peer`. The Secret goes when the `Peer` does.
pub(super) async fn store(
    client: &Client,
    namespace: &str,
    peer: &Peer,
    credentials: &Credentials,
) -> Result<(), kube::Error> {
    let name = credentials_secret(&peer.name_any());
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            owner_references: peer.owner_ref(&()).map(|peer| vec![peer]),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            ("tls.key".to_owned(), bytes(&credentials.key)),
            ("tls.crt".to_owned(), bytes(credentials.chain.as_deref().unwrap_or_default())),
            (
                CREDENTIALS_CONSUME.to_owned(),
                bytes(&serde_json::to_string(&peer.spec.consume).unwrap_or_default()),
            ),
        ])),
        ..Secret::default()
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let apply = PatchParams::apply("liquid-controller").force();
    api.patch(&name, &apply, &Patch::Apply(&secret)).await?;
    Ok(())
}

/// First and last moment of a certificate (PEM, leaf first).
pub(super) fn validity(chain_pem: &str) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let chain = liquid_runtime::tls::certificates(chain_pem.as_bytes()).ok()?;
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let validity = leaf.validity();
    Some((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}

/// When the certificate is to be renewed: after two thirds of its life.
pub(super) fn renew_at(validity: (OffsetDateTime, OffsetDateTime)) -> OffsetDateTime {
    validity.0 + (validity.1 - validity.0) * 2 / 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_link::ca::{ClusterCa, certificate_request};
    use liquid_link::identity::PeerIdentity;

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let id: liquid_crds::ClusterId = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (_, csr) = certificate_request().unwrap();
        let identity = PeerIdentity { cluster_id: id.clone(), peering: id.to_string() };
        let signed = ClusterCa::generate(&id, now).unwrap().issue_peer(&csr, &identity, now).unwrap();
        let validity = validity(&signed.chain_pem).unwrap();
        assert_eq!(validity.1, signed.not_after);
        let renew = renew_at(validity);
        assert!(renew > now + time::Duration::days(4) && renew < now + time::Duration::days(5), "{renew}");
    }
}
