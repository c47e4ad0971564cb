//! The connection to a provider while all is well: its offers, and fresh certificates.

use super::credentials::{Credentials, renew_at, store, validity};
use super::join::request;
use super::offer;
use crate::cluster::Cluster;
use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use liquid_crds::{ConsumeSpec, NoTunnel, Offer, Peer};
use liquid_link::client::{Dialer, EndpointError, Unreachable};
use liquid_link::proto;
use liquid_link::proto::peering_client::PeeringClient;
use liquid_link::proto::{RenewRequest, WatchRequest, peering_event};
use liquid_link::tls::{ClientCredentials, client_config};
use rcgen::KeyPair;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::time::Duration;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

/// How often a certificate that could not be renewed is tried again.
const RENEW_RETRY: Duration = Duration::from_secs(60);

/// Why there is no connection.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// Somebody else answers.
    #[error("{0}")]
    NotThePeer(String),
    /// The provider does not let us in.
    #[error("{0}")]
    Refused(String),
    /// Our credentials cannot be used.
    #[error("{0}")]
    Credentials(String),
    /// In band: no gateway of ours has a tunnel to the provider.
    #[error(transparent)]
    NoTunnel(#[from] NoTunnel),
    /// In band: the gateways have a tunnel, and yet do not connect us.
    #[error("{0}")]
    NotRelayed(String),
}

impl LinkError {
    /// This cluster's own API server does not do what is needed.
    pub(super) fn own(error: kube::Error) -> Self {
        Self::Unreachable(format!("this cluster's API server failed: {error}"))
    }

    /// CamelCase reason for the condition.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            LinkError::Unreachable(_) => "Unreachable",
            LinkError::NotThePeer(_) => "NotThePeer",
            LinkError::Refused(_) => "Refused",
            LinkError::Credentials(_) => "CredentialsInvalid",
            LinkError::NoTunnel(_) => "NoTunnel",
            LinkError::NotRelayed(_) => "RelayRefused",
        }
    }
}

impl From<Unreachable> for LinkError {
    fn from(error: Unreachable) -> Self {
        let message = error.to_string();
        let of = |what: fn(&EndpointError) -> bool| error.0.iter().any(what);
        if of(|error| matches!(error, EndpointError::NotThePeer { .. })) {
            Self::NotThePeer(message)
        } else if of(|error| matches!(error, EndpointError::NotRelayed { .. })) {
            Self::NotRelayed(message)
        } else {
            Self::Unreachable(message)
        }
    }
}

impl From<Status> for LinkError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => Self::Refused(status.message().to_owned()),
            _ => Self::Unreachable(format!("the link broke: {}", status.message())),
        }
    }
}

/// A connection to a provider.
pub(super) struct Session {
    pub(super) client: PeeringClient<Channel>,
    pub(super) events: Streaming<proto::PeeringEvent>,
}

/// Longest wait for the provider to begin its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// What the provider said.
#[derive(Debug)]
pub(super) enum Said {
    /// What it offers, and where it can be reached.
    Offers(Box<Offer>, Vec<String>),
    /// It has ended the peering on purpose.
    Ended(String),
}

/// Connects with `credentials`.
pub(super) async fn dial(
    peer: &Peer,
    consume: &ConsumeSpec,
    credentials: &Credentials,
    cluster: &Cluster,
) -> Result<PeeringClient<Channel>, LinkError> {
    let invalid = |error: &dyn std::fmt::Display| LinkError::Credentials(error.to_string());
    let provider = peer.spec.cluster_id.parse().map_err(|e| invalid(&e))?;
    let chain = credentials.chain.as_deref().unwrap_or_default();
    if credentials.is_expired() {
        return Err(LinkError::Credentials(
            "the client certificate has expired: run `liquidctl peer` with a new token".to_owned(),
        ));
    }
    let with = ClientCredentials { chain_pem: chain.as_bytes(), key_pem: credentials.key.as_bytes() };
    let (tls, name) = client_config(&provider, &consume.ca_sha256, Some(with)).map_err(|e| invalid(&e))?;
    Ok(PeeringClient::new(dialer(cluster, peer, consume, tls, name)?.connect().await?))
}

/// Who dials the provider: at its endpoints or, in band, at our gateways.
pub(super) fn dialer(
    cluster: &Cluster,
    peer: &Peer,
    consume: &ConsumeSpec,
    tls: ClientConfig,
    name: ServerName<'static>,
) -> Result<Dialer, LinkError> {
    Ok(Dialer::new(peer.dial(consume)?, tls, name).noticing(cluster.liveness.patient()))
}

/// Opens the stream of offers.
pub(super) async fn open(
    peer: &Peer,
    consume: &ConsumeSpec,
    credentials: &Credentials,
    cluster: &Cluster,
) -> Result<Session, LinkError> {
    let mut client = dial(peer, consume, credentials, cluster).await?;
    let watch = cluster.liveness.patient().request(WatchRequest { consumer: Some(cluster.info()) });
    let events = timeout(CALL_TIMEOUT, client.watch(watch))
        .await
        .map_err(|_| LinkError::Unreachable("the provider does not answer".to_owned()))??
        .into_inner();
    Ok(Session { client, events })
}

/// Reads the next thing the provider says.
pub(super) async fn next(events: &mut Streaming<proto::PeeringEvent>) -> Result<Said, LinkError> {
    loop {
        let event = events.message().await?;
        let event = event.ok_or_else(|| LinkError::Unreachable("the provider hung up".to_owned()))?;
        match event.event {
            Some(peering_event::Event::Offer(offer)) => {
                let endpoints = offer.endpoints.iter().take(16).cloned().collect();
                return Ok(Said::Offers(Box::new(offer::from_wire(offer)), endpoints));
            }
            Some(peering_event::Event::Ended(ended)) => {
                return Ok(Said::Ended(ended.reason.chars().take(256).collect()));
            }
            // A beat, or something newer than this version.
            None => {}
        }
    }
}

/// Renews the certificate whenever two thirds of its life are over; returns the new credentials each time it did.
pub(super) async fn renew(
    client: &Client,
    cluster: &Cluster,
    peer: &Peer,
    link: &mut PeeringClient<Channel>,
    current: &Credentials,
) -> Credentials {
    loop {
        let due = current.chain.as_deref().and_then(validity).map(renew_at);
        let wait = due.map(|due| due - OffsetDateTime::now_utc()).unwrap_or(time::Duration::ZERO);
        tokio::time::sleep(wait.try_into().unwrap_or(Duration::ZERO)).await;
        match try_renew(client, cluster, peer, link).await {
            Ok(renewed) => {
                info!(peer = %peer.name_any(), "link certificate renewed");
                return renewed;
            }
            Err(error) => {
                warn!(peer = %peer.name_any(), %error, "link certificate not renewed; trying again");
                tokio::time::sleep(RENEW_RETRY).await;
            }
        }
    }
}

async fn try_renew(
    client: &Client,
    cluster: &Cluster,
    peer: &Peer,
    link: &mut PeeringClient<Channel>,
) -> anyhow::Result<Credentials> {
    let key = KeyPair::generate()?.serialize_pem();
    let renewal = link.renew(RenewRequest { csr: request(&key)?.into() });
    let renewed = timeout(CALL_TIMEOUT, renewal).await.context("the provider does not answer")??.into_inner();
    let chain = String::from_utf8(renewed.certificate_chain.to_vec())?;
    let credentials = Credentials { key, chain: Some(chain) };
    store(client, &cluster.namespace, peer, &credentials).await?;
    Ok(credentials)
}

/// End of validity of a certificate, for the status.
pub(super) fn not_after(credentials: &Credentials) -> Option<Time> {
    let (_, end) = validity(credentials.chain.as_deref()?)?;
    Some(Time(Timestamp::from_second(end.unix_timestamp()).ok()?))
}
