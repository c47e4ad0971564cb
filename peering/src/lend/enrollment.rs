//! `Join`: a token becomes a `Peer` and a client certificate. Everything is checked before anything is made.

use super::consumers::{Consumer, Consumers, consumer_of};
use crate::cluster::Cluster;
use crate::network::Network;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{CONSUMER_AUTHORITY, CONSUMER_KEYS, FINALIZER_LEND};
use liquid_crds::{ClusterId, ClusterName, LendSpec, NetworkSpec, Peer, PeerSpec, Verdict};
use liquid_link::ca::{check_proof, check_request};
use liquid_link::digest::{hex, sha256};
use liquid_link::identity::PeerIdentity;
use liquid_link::proto::enrollment_server::Enrollment;
use liquid_link::proto::{JoinRequest, JoinResponse};
use liquid_link::token_secret::{Presenter, TokenRefused, access, redeem, secret_name};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};
use tracing::{info, warn};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// Largest certificate request read; one with a P-256 key has about 300 bytes.
const MAX_CSR: usize = 8 * 1024;

/// The enrollment service.
pub(crate) struct EnrollmentService {
    pub(crate) client: Client,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) network: Network,
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let JoinRequest { token_id, secret, csr, consumer, network, authority, proof } = request.into_inner();
        let mut applicant = Applicant::check(consumer, &csr, &self.cluster)?;
        // Without one it may join, but gets nothing that is kept of an earlier peering.
        if !authority.is_empty() {
            let known = check_proof(&authority, &proof, &token_id, &csr);
            applicant.authority = Some(known.map_err(|error| Status::invalid_argument(error.to_string()))?);
        }
        // Whoever has no token learns nothing, not even who is peered.
        let used = self.verify(&token_id, &secret, &applicant).await?;
        let existing = self.check_peers(&applicant).await?;
        self.mark_used(&token_id, &used).await?;
        let consumer = self.admit(&applicant, existing, access(&used)).await?;
        let identity = PeerIdentity { cluster_id: consumer.id.clone(), peering: consumer.peering.clone() };
        let signed = self
            .cluster
            .ca
            .issue_peer(&csr, &identity, OffsetDateTime::now_utc())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        info!(peer = %consumer.name, cluster = %consumer.id, token = %token_id, "consumer joined");
        let id = consumer.id.clone();
        self.consumers.insert(consumer);
        // It goes on under the keys of its own gateways, and could not come back if ours did not know them.
        if let Some(network) = network {
            self.network.record(&id, network).await?;
        }
        Ok(Response::new(JoinResponse {
            certificate_chain: signed.chain_pem.into_bytes().into(),
            provider: Some(self.cluster.info()),
        }))
    }
}

/// Who asks to join, checked.
struct Applicant {
    id: ClusterId,
    name: ClusterName,
    key_digest: String,
    /// Digest of the key of its certificate authority, which it has shown.
    authority: Option<String>,
}

impl Applicant {
    /// What a `Peer` keeps of it.
    fn annotations(&self) -> BTreeMap<String, String> {
        let authority = self.authority.clone().map(|digest| (CONSUMER_AUTHORITY.to_owned(), digest));
        let keys = (CONSUMER_KEYS.to_owned(), self.key_digest.clone());
        [keys].into_iter().chain(authority).collect()
    }

    fn check(
        info: Option<liquid_link::proto::ClusterInfo>,
        csr: &[u8],
        cluster: &Cluster,
    ) -> Result<Self, Status> {
        let info = info.ok_or_else(|| Status::invalid_argument("the consumer does not say who it is"))?;
        let id: ClusterId =
            info.cluster_id.try_into().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let name: ClusterName =
            info.name.try_into().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        if id == cluster.id {
            return Err(Status::invalid_argument("a cluster cannot peer with itself"));
        }
        if name == cluster.name {
            return Err(Status::already_exists(format!(
                "both clusters are called {name}: one needs another --cluster-name"
            )));
        }
        if csr.len() > MAX_CSR {
            return Err(Status::invalid_argument("the certificate request is too large"));
        }
        check_request(csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Self { id, name, key_digest: key_digest(csr)?, authority: None })
    }
}

/// SHA-256 of the public key of a certificate request, hexadecimal.
pub(super) fn key_digest(csr: &[u8]) -> Result<String, Status> {
    let (_, request) = X509CertificationRequest::from_der(csr)
        .map_err(|error| Status::invalid_argument(format!("the certificate request is damaged: {error}")))?;
    Ok(hex(&sha256(request.certification_request_info.subject_pki.raw)))
}

/// Digests of the keys the consumer of `peer` may have.
pub(super) fn keys(peer: &Peer) -> impl Iterator<Item = &str> {
    let keys = peer.annotations().get(CONSUMER_KEYS).map(String::as_str).unwrap_or_default();
    keys.split(',').filter(|key| !key.is_empty())
}

impl EnrollmentService {
    /// Refuses an applicant whose name belongs to another cluster, or that cannot show that it is the cluster it says;
    /// returns its `Peer` if it is known already.
    async fn check_peers(&self, applicant: &Applicant) -> Result<Option<Peer>, Status> {
        let peers: Api<Peer> = Api::all(self.client.clone());
        let known = peers.list(&ListParams::default()).await.map_err(unavailable)?;
        for peer in known {
            let same_cluster = peer.spec.cluster_id == applicant.id.as_str();
            if peer.name_any() == applicant.name.as_str() && !same_cluster {
                return Err(Status::already_exists(format!(
                    "another cluster is known here as {}: the consumer needs another --cluster-name",
                    applicant.name
                )));
            }
            if same_cluster && peer.metadata.deletion_timestamp.is_some() {
                return Err(Status::unavailable(format!(
                    "the earlier peering with {} is still being removed: try again in a moment",
                    peer.name_any()
                )));
            }
            if same_cluster {
                // A token lets a cluster begin to borrow. It must not let anybody continue in the place of one that does.
                if peer.spec.lend.is_some() && !keys(&peer).any(|key| key == applicant.key_digest) {
                    warn!(peer = %peer.name_any(), "join refused: the cluster borrows already, with another key");
                    return Err(Status::permission_denied(format!(
                        "cluster {} borrows here already, with another key: if that was you, the provider's \
                         administrator has to run `liquidctl unpeer {}` first",
                        peer.name_any(),
                        peer.name_any()
                    )));
                }
                return Ok(Some(peer));
            }
        }
        Ok(None)
    }

    /// Checks a token; returns its Secret as it is to be once the token is used.
    async fn verify(&self, id: &str, presented: &[u8], applicant: &Applicant) -> Result<Secret, Status> {
        let wrong = || Status::permission_denied(TokenRefused::Unknown.to_string());
        // The identifier becomes part of a name; anything but hexadecimal digits was never one of ours.
        if id.is_empty() || id.len() > 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.cluster.namespace);
        let kept = secrets.get_opt(&secret_name(id)).await.map_err(unavailable)?.ok_or_else(wrong)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(u64::MAX);
        let by = Presenter { cluster_id: applicant.id.as_str(), key_digest: &applicant.key_digest };
        redeem(kept, presented, by, now).map_err(|refused| {
            warn!(token = %id, cluster = %applicant.id, %refused, "join refused");
            Status::permission_denied(refused.to_string())
        })
    }

    async fn mark_used(&self, id: &str, used: &Secret) -> Result<(), Status> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.cluster.namespace);
        // The resource version makes sure that of two who present it at once only one succeeds.
        match secrets.replace(&secret_name(id), &PostParams::default(), used).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                Err(Status::permission_denied("the join token is being used by somebody else"))
            }
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Makes the `Peer` of an applicant, or adds the lending half to the one it has. Rules of access that there are stay.
    async fn admit(
        &self,
        applicant: &Applicant,
        existing: Option<Peer>,
        access: Verdict,
    ) -> Result<Consumer, Status> {
        let peers: Api<Peer> = Api::all(self.client.clone());
        let peer = match existing {
            Some(peer) if peer.spec.lend.is_some() => match peer.spec.restriction(access) {
                None => peer,
                Some(network) => {
                    let patch = json!({
                        "metadata": {"resourceVersion": peer.metadata.resource_version},
                        "spec": {"network": network},
                    });
                    let params = PatchParams::default();
                    peers
                        .patch(&peer.name_any(), &params, &Patch::Merge(&patch))
                        .await
                        .map_err(unavailable)?
                }
            },
            Some(peer) => {
                let mut finalizers = peer.metadata.finalizers.clone().unwrap_or_default();
                finalizers.push(FINALIZER_LEND.to_owned());
                // What an earlier consumer has shown is not shown by this one.
                let mut annotations = json!({ CONSUMER_AUTHORITY: null });
                for (name, value) in applicant.annotations() {
                    annotations[name] = json!(value);
                }
                let mut spec = json!({"lend": LendSpec::default()});
                if let Some(network) = peer.spec.restriction(access) {
                    spec["network"] = json!(network);
                }
                let patch = json!({
                    "metadata": {
                        "resourceVersion": peer.metadata.resource_version,
                        "finalizers": finalizers,
                        "annotations": annotations,
                    },
                    "spec": spec,
                });
                let params = PatchParams::default();
                peers.patch(&peer.name_any(), &params, &Patch::Merge(&patch)).await.map_err(unavailable)?
            }
            None => {
                let spec = PeerSpec {
                    cluster_id: applicant.id.to_string(),
                    consume: None,
                    lend: Some(LendSpec::default()),
                    network: NetworkSpec::at_first(access),
                };
                let mut peer = Peer::new(applicant.name.as_str(), spec);
                peer.metadata = ObjectMeta {
                    finalizers: Some(vec![FINALIZER_LEND.to_owned()]),
                    annotations: Some(applicant.annotations()),
                    ..peer.metadata
                };
                peers.create(&PostParams::default(), &peer).await.map_err(unavailable)?
            }
        };
        consumer_of(&peer).ok_or_else(|| Status::internal("the Peer of the consumer is not usable"))
    }
}

/// An API server that does not answer is nothing the peer can mend; it tries again.
fn unavailable(error: kube::Error) -> Status {
    warn!(%error, "API server request for a join failed");
    Status::unavailable("the provider's API server did not do what was asked; try again")
}
