//! Both ends of the peer link over loopback: who is let in, who is not, and what they are told.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use liquid_crds::ClusterId;
use liquid_link::ca::{ClusterCa, certificate_request};
use liquid_link::client::{Dialer, EndpointError};
use liquid_link::identity::PeerIdentity;
use liquid_link::proto::enrollment_client::EnrollmentClient;
use liquid_link::proto::enrollment_server::{Enrollment, EnrollmentServer};
use liquid_link::proto::{ClusterInfo, JoinRequest, JoinResponse};
use liquid_link::server::{self, Caller};
use liquid_link::tls::{ClientCredentials, client_config, server_config};
use liquid_runtime::tls::{ReloadableCert, certified_key};
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};

const PROVIDER: &str = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab";
const CONSUMER: &str = "11111111-8c1e-4a8e-9d55-0123456789ab";
const PEERING: &str = "22222222-8c1e-4a8e-9d55-0123456789ab";

/// Answers with the identity the server saw.
struct WhoAmI;

#[tonic::async_trait]
impl Enrollment for WhoAmI {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let peer = caller.and_then(|caller| caller.peer).map(|peer| peer.uri()).unwrap_or_default();
        Ok(Response::new(JoinResponse {
            provider: Some(ClusterInfo { name: peer, ..ClusterInfo::default() }),
            ..JoinResponse::default()
        }))
    }
}

struct Provider {
    ca: ClusterCa,
    endpoint: String,
}

async fn provider() -> Provider {
    liquid_runtime::tls::install_crypto_provider();
    let id: ClusterId = PROVIDER.parse().unwrap();
    let now = OffsetDateTime::now_utc();
    let ca = ClusterCa::generate(&id, now).unwrap();
    let own = ca.issue_link_server(&id, now).unwrap();
    let cert = Arc::new(ReloadableCert::default());
    cert.set(certified_key(own.chain_pem.as_bytes(), own.key_pem.as_bytes()).unwrap());
    let tls = TlsAcceptor::from(Arc::new(server_config(ca.certificate_pem(), cert).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let connections = server::accept(listener, tls);
    tokio::spawn(
        server::builder().add_service(EnrollmentServer::new(WhoAmI)).serve_with_incoming(connections),
    );
    Provider { ca, endpoint }
}

fn dialer(provider: &Provider, id: &str, digest: &str, credentials: Option<(&str, &str)>) -> Dialer {
    let credentials = credentials
        .map(|(chain, key)| ClientCredentials { chain_pem: chain.as_bytes(), key_pem: key.as_bytes() });
    let (tls, name) = client_config(&id.parse().unwrap(), digest, credentials).unwrap();
    // The first endpoint answers nothing: the second must be tried.
    Dialer::new(vec!["127.0.0.1:1".to_owned(), provider.endpoint.clone()], tls, name)
}

async fn who_am_i(dialer: &Dialer) -> Result<String, Status> {
    let channel = dialer.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let response = EnrollmentClient::new(channel).join(JoinRequest::default()).await?;
    Ok(response.into_inner().provider.unwrap().name)
}

#[tokio::test]
async fn a_guest_reaches_the_provider_without_a_name() {
    let provider = provider().await;
    let guest = dialer(&provider, PROVIDER, &provider.ca.fingerprint(), None);
    assert_eq!(who_am_i(&guest).await.unwrap(), "");
}

#[tokio::test]
async fn a_peer_is_known_by_its_certificate() {
    let provider = provider().await;
    let identity = PeerIdentity { cluster_id: CONSUMER.parse().unwrap(), peering: PEERING.to_owned() };
    let (key, csr) = certificate_request().unwrap();
    let signed = provider.ca.issue_peer(&csr, &identity, OffsetDateTime::now_utc()).unwrap();
    let key = key.serialize_pem();
    let peer = dialer(&provider, PROVIDER, &provider.ca.fingerprint(), Some((&signed.chain_pem, &key)));
    assert_eq!(who_am_i(&peer).await.unwrap(), identity.uri());
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let provider = provider().await;
    let other = ClusterCa::generate(&PROVIDER.parse().unwrap(), OffsetDateTime::now_utc()).unwrap();
    let identity = PeerIdentity { cluster_id: CONSUMER.parse().unwrap(), peering: PEERING.to_owned() };
    let (key, csr) = certificate_request().unwrap();
    let signed = other.issue_peer(&csr, &identity, OffsetDateTime::now_utc()).unwrap();
    let key = key.serialize_pem();
    let stranger = dialer(&provider, PROVIDER, &provider.ca.fingerprint(), Some((&signed.chain_pem, &key)));
    assert!(who_am_i(&stranger).await.is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let provider = provider().await;
    let identity = PeerIdentity { cluster_id: CONSUMER.parse().unwrap(), peering: PEERING.to_owned() };
    let (key, csr) = certificate_request().unwrap();
    let long_ago = OffsetDateTime::now_utc() - std::time::Duration::from_secs(30 * 24 * 3600);
    let signed = provider.ca.issue_peer(&csr, &identity, long_ago).unwrap();
    let key = key.serialize_pem();
    let late = dialer(&provider, PROVIDER, &provider.ca.fingerprint(), Some((&signed.chain_pem, &key)));
    assert!(who_am_i(&late).await.is_err());
}

#[tokio::test]
async fn a_consumer_talks_to_nobody_but_the_pinned_cluster() {
    let provider = provider().await;
    for (id, digest) in [(PROVIDER, "0".repeat(64)), (CONSUMER, provider.ca.fingerprint())] {
        let error = dialer(&provider, id, &digest, None).connect().await.unwrap_err();
        assert!(matches!(error.0[0], EndpointError::Unreachable { .. }), "{error}");
        assert!(matches!(error.0[1], EndpointError::NotThePeer { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_peer_certificate_cannot_pose_as_the_provider() {
    let provider = provider().await;
    let identity = PeerIdentity { cluster_id: PROVIDER.parse().unwrap(), peering: PEERING.to_owned() };
    let (key, csr) = certificate_request().unwrap();
    let signed = provider.ca.issue_peer(&csr, &identity, OffsetDateTime::now_utc()).unwrap();
    let cert = Arc::new(ReloadableCert::default());
    cert.set(certified_key(signed.chain_pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap());
    let tls = TlsAcceptor::from(Arc::new(server_config(provider.ca.certificate_pem(), cert).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let impostor = Provider { endpoint: listener.local_addr().unwrap().to_string(), ..provider };
    let connections = server::accept(listener, tls);
    tokio::spawn(
        server::builder().add_service(EnrollmentServer::new(WhoAmI)).serve_with_incoming(connections),
    );
    let guest = dialer(&impostor, PROVIDER, &impostor.ca.fingerprint(), None);
    let error = guest.connect().await.unwrap_err();
    assert!(matches!(error.0[1], EndpointError::NotThePeer { .. }), "{error}");
}
