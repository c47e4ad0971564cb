//! Joining a provider with a token.

use super::credentials::{Credentials, load, store};
use super::session::{LinkError, dialer};
use crate::cluster::Cluster;
use crate::network::Network;
use anyhow::Context as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::{ConsumeSpec, Peer, Transport};
use liquid_link::proto::JoinRequest;
use liquid_link::proto::enrollment_client::EnrollmentClient;
use liquid_link::tls::client_config;
use liquid_link::token::JoinToken;
use liquid_runtime::clock::unix_seconds;
use rcgen::{CertificateParams, KeyPair};
use std::time::Duration;
use thiserror::Error;
use tonic::{Code, Request};
use tracing::{debug, warn};

/// Time for the provider to answer.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Why this cluster could not join.
#[derive(Debug, Error)]
pub(super) enum JoinError {
    /// Trying again is of no use until somebody changes something.
    #[error("{0}")]
    Refused(String),
    /// Trying again may help.
    #[error("{0}")]
    Unreachable(String),
    /// There is no way to the provider; it may come.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl JoinError {
    /// CamelCase reason for the condition.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            JoinError::Refused(_) => "JoinRefused",
            JoinError::Unreachable(_) => "Unreachable",
            JoinError::Link(error) => error.reason(),
        }
    }
}

impl From<kube::Error> for JoinError {
    fn from(error: kube::Error) -> Self {
        Self::Unreachable(format!("the API server of this cluster failed: {error}"))
    }
}

/// Returns the credentials for `peer`, joining it with its token if there are none yet.
pub(super) async fn ensure(
    client: &Client,
    cluster: &Cluster,
    network: &Network,
    peer: &Peer,
    consume: &ConsumeSpec,
) -> Result<Credentials, JoinError> {
    let stored = load(client, &cluster.namespace, peer).await?;
    let joined = stored.clone().filter(|credentials| credentials.chain.is_some());
    let kept = kept_token(client, cluster, consume).await?;
    if let (Some(credentials), None) = (&joined, &kept) {
        network.uninvited(client, &cluster.namespace, peer).await?;
        return Ok(credentials.clone());
    }
    // The key is kept before it is used: if the answer is lost, the token may be redeemed again with the same key.
    let credentials = match stored {
        Some(credentials) => credentials,
        None => {
            let fresh = KeyPair::generate().map_err(|error| JoinError::Unreachable(error.to_string()))?;
            let credentials = Credentials { key: fresh.serialize_pem(), chain: None };
            store(client, &cluster.namespace, peer, &credentials).await?;
            credentials
        }
    };
    let redeemed = async {
        let token = token(kept, cluster, peer, consume)?;
        if let Some(tunnel) = token.tunnel.as_ref().filter(|_| consume.transport == Transport::InBand) {
            network.invited(client, &cluster.namespace, peer, tunnel).await?;
        }
        redeem(cluster, network, peer, consume, &token, &credentials.key).await
    };
    let redeemed = redeemed.await;
    if matches!(redeemed, Err(JoinError::Refused(_))) {
        network.uninvited(client, &cluster.namespace, peer).await?;
    }
    let credentials = match redeemed {
        Ok(chain) => {
            let credentials = Credentials { chain: Some(chain), ..credentials };
            store(client, &cluster.namespace, peer, &credentials).await?;
            credentials
        }
        // The token was of no use, but there is a certificate that may be.
        Err(JoinError::Refused(why)) if joined.as_ref().is_some_and(|joined| !joined.is_expired()) => {
            warn!(peer = %peer.name_any(), %why, "join token refused; going on with the certificate there is");
            credentials
        }
        Err(error) => return Err(error),
    };
    if let Err(error) = discard_token(client, cluster, consume).await {
        debug!(%error, "redeemed token not deleted; it is of no use to anyone");
    }
    network.uninvited(client, &cluster.namespace, peer).await?;
    Ok(credentials)
}

/// Deletes the Secret of a token that was redeemed.
pub(super) async fn discard_token(
    client: &Client,
    cluster: &Cluster,
    consume: &ConsumeSpec,
) -> Result<(), kube::Error> {
    let Some(name) = &consume.join_secret else { return Ok(()) };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    match secrets.delete(name, &kube::api::DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The Secret of the join token, if it is there.
async fn kept_token(
    client: &Client,
    cluster: &Cluster,
    consume: &ConsumeSpec,
) -> Result<Option<Secret>, kube::Error> {
    let Some(name) = &consume.join_secret else { return Ok(None) };
    Api::<Secret>::namespaced(client.clone(), &cluster.namespace).get_opt(name).await
}

fn token(
    secret: Option<Secret>,
    cluster: &Cluster,
    peer: &Peer,
    consume: &ConsumeSpec,
) -> Result<JoinToken, JoinError> {
    let Some(name) = &consume.join_secret else {
        return Err(JoinError::Refused(
            "there is neither a certificate nor a join token: set spec.consume.joinSecret, or peer anew"
                .to_owned(),
        ));
    };
    let text = secret.and_then(|secret| {
        let value = secret.data?.remove("token")?;
        String::from_utf8(value.0).ok()
    });
    let Some(text) = text else {
        return Err(JoinError::Refused(format!(
            "Secret {name} with the join token (key \"token\") is missing in namespace {}",
            cluster.namespace
        )));
    };
    let now = unix_seconds();
    let token = JoinToken::parse(&text, now).map_err(|error| JoinError::Refused(error.to_string()))?;
    if token.cluster_id.as_str() != peer.spec.cluster_id {
        return Err(JoinError::Refused(format!(
            "the token is for cluster {} ({}), not for {}",
            token.cluster_name,
            token.cluster_id,
            peer.name_any()
        )));
    }
    Ok(token)
}

async fn redeem(
    cluster: &Cluster,
    network: &Network,
    peer: &Peer,
    consume: &ConsumeSpec,
    token: &JoinToken,
    key: &str,
) -> Result<String, JoinError> {
    let refused = |error: &dyn std::fmt::Display| JoinError::Refused(error.to_string());
    let provider = peer.spec.cluster_id.parse().map_err(|e| refused(&e))?;
    let (tls, name) = client_config(&provider, &consume.ca_sha256, None).map_err(|e| refused(&e))?;
    let csr = request(key).map_err(|error| JoinError::Unreachable(error.to_string()))?;
    let proven = cluster.ca.prove(&token.id, &csr);
    let (authority, proof) = proven.map_err(|error| JoinError::Unreachable(error.to_string()))?;
    let introduction = match consume.transport {
        Transport::Direct => None,
        Transport::InBand => Some(network.introduction().map_err(JoinError::Unreachable)?),
    };
    let channel = dialer(cluster, peer, consume, tls, name)?.connect().await.map_err(LinkError::from)?;
    let mut join = Request::new(JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret().to_vec().into(),
        csr: csr.into(),
        consumer: Some(cluster.info()),
        network: introduction,
        authority: authority.into(),
        proof: proof.into(),
    });
    join.set_timeout(JOIN_TIMEOUT);
    let joined = EnrollmentClient::new(channel).join(join).await.map_err(|status| match status.code() {
        Code::PermissionDenied | Code::InvalidArgument | Code::AlreadyExists | Code::Unimplemented => {
            JoinError::Refused(format!("{} refuses: {}", peer.name_any(), status.message()))
        }
        _ => JoinError::Unreachable(format!("{} did not answer: {}", peer.name_any(), status.message())),
    })?;
    let chain = joined.into_inner().certificate_chain.to_vec();
    String::from_utf8(chain).map_err(|e| refused(&e))
}

/// A certificate request (DER) for the key (PEM).
pub(super) fn request(key: &str) -> anyhow::Result<Vec<u8>> {
    let key = KeyPair::from_pem(key).context("the stored key cannot be read")?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok(request.der().to_vec())
}
