//! Both ends of the peer link over loopback: who is let in, who is not, what they are told, and how soon either notices
//! that the other is out of reach.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use liquid_crds::ClusterId;
use liquid_link::ca::{ClusterCa, certificate_request};
use liquid_link::client::{Dialer, EndpointError};
use liquid_link::identity::PeerIdentity;
use liquid_link::limits::HANDSHAKE_TIMEOUT;
use liquid_link::liveness::Liveness;
use liquid_link::proto::enrollment_client::EnrollmentClient;
use liquid_link::proto::enrollment_server::{Enrollment, EnrollmentServer};
use liquid_link::proto::{ClusterInfo, JoinRequest, JoinResponse};
use liquid_link::server::{self, Caller};
use liquid_link::tls::{ClientCredentials, client_config, server_config};
use liquid_runtime::tls::{ReloadableCert, certified_key};
use std::sync::Arc;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
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
    let connections = server::accept(listener, tls, Liveness::default());
    tokio::spawn(
        server::builder(Liveness::default())
            .add_service(EnrollmentServer::new(WhoAmI))
            .serve_with_incoming(connections),
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

/// Would catch: waiting for an endpoint behind which nothing answers until its time is over, with others there.
#[tokio::test]
async fn an_endpoint_that_is_silent_keeps_nobody_waiting() {
    let provider = provider().await;
    // Connections to it are made, and nothing is ever said.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = vec![silent.local_addr().unwrap().to_string(), provider.endpoint.clone()];
    let (tls, name) = client_config(&PROVIDER.parse().unwrap(), &provider.ca.fingerprint(), None).unwrap();
    let dialer = Dialer::new(endpoints, tls, name);
    let asked = tokio::time::timeout(HANDSHAKE_TIMEOUT / 2, who_am_i(&dialer)).await;
    assert!(asked.expect("the second answers").is_ok());
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
    let long_ago = OffsetDateTime::now_utc() - Duration::from_secs(30 * 24 * 3600);
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
    let connections = server::accept(listener, tls, Liveness::default());
    tokio::spawn(
        server::builder(Liveness::default())
            .add_service(EnrollmentServer::new(WhoAmI))
            .serve_with_incoming(connections),
    );
    let guest = dialer(&impostor, PROVIDER, &impostor.ca.fingerprint(), None);
    let error = guest.connect().await.unwrap_err();
    assert!(matches!(error.0[1], EndpointError::NotThePeer { .. }), "{error}");
}

/// Does not answer, and says when it is given up.
struct Hangs(mpsc::Sender<()>);

#[tonic::async_trait]
impl Enrollment for Hangs {
    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let _given_up = GivenUp(self.0.clone());
        std::future::pending().await
    }
}

struct GivenUp(mpsc::Sender<()>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// A wire to `to`: it can be cut, upon which nothing gets through and nobody is told.
async fn wire(to: String) -> (String, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let (cut, is_cut) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&to).await.unwrap();
            let mut is_cut = is_cut.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = async { drop(is_cut.wait_for(|cut| *cut).await) } => {}
                }
                // Both sockets stay open, and nobody reads them.
                std::future::pending::<()>().await;
            });
        }
    });
    (endpoint, cut)
}

#[tokio::test]
async fn either_end_notices_a_cut_wire_in_the_time_it_was_given() {
    let (asked, mut given_up) = mpsc::channel(1);
    let mut provider = provider().await;
    let own = provider.ca.issue_link_server(&PROVIDER.parse().unwrap(), OffsetDateTime::now_utc()).unwrap();
    let cert = Arc::new(ReloadableCert::default());
    cert.set(certified_key(own.chain_pem.as_bytes(), own.key_pem.as_bytes()).unwrap());
    let tls = TlsAcceptor::from(Arc::new(server_config(provider.ca.certificate_pem(), cert).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (endpoint, cut) = wire(listener.local_addr().unwrap().to_string()).await;
    provider.endpoint = endpoint;
    // The wire acknowledges what it does not pass on: the provider has to ask.
    let (near, far) = (Duration::from_millis(600), Duration::from_millis(150));
    tokio::spawn(
        server::builder(Liveness::within(far))
            .add_service(EnrollmentServer::new(Hangs(asked)))
            .serve_with_incoming(server::accept(listener, tls, Liveness::within(far))),
    );
    let guest =
        dialer(&provider, PROVIDER, &provider.ca.fingerprint(), None).noticing(Liveness::within(near));
    let channel = guest.connect().await.unwrap();
    let call = tokio::spawn(async move { EnrollmentClient::new(channel).join(JoinRequest::default()).await });
    // Idle for longer than either would wait for a sign of life: signs come.
    tokio::time::sleep(far * 13 + near).await;
    assert!(!call.is_finished() && given_up.try_recv().is_err(), "the wire is not cut");

    let since = Instant::now();
    cut.send(true).unwrap();
    assert!(call.await.unwrap().is_err());
    let noticed = since.elapsed();
    assert!(noticed < near + Duration::from_millis(400), "the consumer noticed after {noticed:?}");
    given_up.recv().await.unwrap();
    let noticed = since.elapsed();
    assert!(noticed < far * 13 + Duration::from_millis(400), "the provider noticed after {noticed:?}");
}
