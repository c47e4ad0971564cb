//! The connection to a provider while all is well: its offers, and fresh certificates.

use super::credentials::{Credentials, renew_at, store, validity};
use super::join::request;
use crate::cluster::Cluster;
use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{MANAGED_BY, MANAGED_BY_LIQUID};
use liquid_crds::{ClusterName, ConsumeSpec, Offer, Peer, VirtualNode, VirtualNodeSpec};
use liquid_link::client::{Dialer, EndpointError, Unreachable};
use liquid_link::proto;
use liquid_link::proto::peering_client::PeeringClient;
use liquid_link::proto::{RenewRequest, WatchRequest, peering_event};
use liquid_link::tls::{ClientCredentials, client_config};
use rcgen::KeyPair;
use std::collections::BTreeMap;
use std::time::Duration;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

/// How often a certificate that could not be renewed is tried again.
const RENEW_RETRY: Duration = Duration::from_secs(60);
/// Largest offer taken in: a provider is not trusted to be reasonable.
const MAX_OFFER_ENTRIES: usize = 128;

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
}

impl LinkError {
    /// CamelCase reason for the condition.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            LinkError::Unreachable(_) => "Unreachable",
            LinkError::NotThePeer(_) => "NotThePeer",
            LinkError::Refused(_) => "Refused",
            LinkError::Credentials(_) => "CredentialsInvalid",
        }
    }
}

impl From<Unreachable> for LinkError {
    fn from(error: Unreachable) -> Self {
        let message = error.to_string();
        let impostor = |e: &EndpointError| matches!(e, EndpointError::NotThePeer { .. });
        if error.0.iter().any(impostor) { Self::NotThePeer(message) } else { Self::Unreachable(message) }
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
    Offers(Offer, Vec<String>),
    /// It has ended the peering on purpose.
    Ended(String),
}

/// Connects with `credentials`.
pub(super) async fn dial(
    peer: &Peer,
    consume: &ConsumeSpec,
    credentials: &Credentials,
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
    Ok(PeeringClient::new(Dialer::new(peer.endpoints(consume), tls, name).connect().await?))
}

/// Opens the stream of offers.
pub(super) async fn open(
    peer: &Peer,
    consume: &ConsumeSpec,
    credentials: &Credentials,
    cluster: &Cluster,
) -> Result<Session, LinkError> {
    let mut client = dial(peer, consume, credentials).await?;
    let watch = WatchRequest { consumer: Some(cluster.info()) };
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
                return Ok(Said::Offers(from_wire(offer), endpoints));
            }
            Some(peering_event::Event::Ended(ended)) => {
                return Ok(Said::Ended(ended.reason.chars().take(256).collect()));
            }
            // Something newer than this version.
            None => {}
        }
    }
}

fn from_wire(offer: proto::Offer) -> Offer {
    let sorted = |map: std::collections::HashMap<String, String>| -> BTreeMap<String, String> {
        map.into_iter().collect::<BTreeMap<_, _>>().into_iter().take(MAX_OFFER_ENTRIES).collect()
    };
    let amounts = sorted(offer.resources).into_iter().map(|(name, amount)| (name, Quantity(amount)));
    Offer {
        // An amount that is no quantity would make the Node unwritable.
        resources: amounts.filter(|(_, amount)| liquid_crds::quantity::parse(amount).is_ok()).collect(),
        // They become labels.
        architectures: offer
            .architectures
            .into_iter()
            .filter(|name| is_word(name, 63))
            .take(MAX_OFFER_ENTRIES)
            .collect(),
        labels: sorted(offer.labels).into_iter().filter(|(key, value)| may_label(key, value)).collect(),
        kubernetes_version: offer.kubernetes_version.chars().take(64).collect(),
        cordoned: offer.cordoned,
        pressures: offer
            .pressures
            .into_iter()
            .filter(|name| is_word(name, 63))
            .take(MAX_OFFER_ENTRIES)
            .collect(),
    }
}

/// Whether a text may be the value of a label, or the last part of its key.
fn is_word(text: &str, longest: usize) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.len() <= longest
        && text.bytes().all(inner)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// Domains of Kubernetes whose labels a provider may set on the Node that stands for it.
const OFFERED_DOMAINS: [&str; 2] = ["topology.kubernetes.io", "node.kubernetes.io"];

/// Whether a label of the provider may be put on a Node: an invalid one would make the Node unwritable, and those of
/// Kubernetes and Liquid say what the Node is here.
fn may_label(key: &str, value: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    let allowed = domain.is_none_or(|domain| {
        let reserved = ["kubernetes.io", "k8s.io", "liquid.mesh"]
            .iter()
            .any(|top| domain == *top || domain.strip_suffix(top).is_some_and(|rest| rest.ends_with('.')));
        is_word(domain, 253)
            && !domain.bytes().any(|b| b.is_ascii_uppercase() || b == b'_')
            && (!reserved || OFFERED_DOMAINS.contains(&domain))
    });
    allowed && is_word(name, 63) && (value.is_empty() || is_word(value, 63))
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

/// Makes the virtual node of `peer` unless it is there.
pub(super) async fn ensure_virtual_node(client: &Client, peer: &Peer) -> Result<(), kube::Error> {
    let Ok(name) = peer.name_any().parse::<ClusterName>() else { return Ok(()) };
    let nodes: Api<VirtualNode> = Api::all(client.clone());
    let name = name.virtual_node();
    if nodes.get_opt(&name).await?.is_some() {
        return Ok(());
    }
    let spec = VirtualNodeSpec {
        peer: peer.name_any(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        drain_timeout_seconds: None,
    };
    let mut node = VirtualNode::new(&name, spec);
    node.metadata = ObjectMeta {
        labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
        owner_references: Some(vec![OwnerReference {
            api_version: <Peer as kube::Resource>::api_version(&()).into_owned(),
            kind: <Peer as kube::Resource>::kind(&()).into_owned(),
            name: peer.name_any(),
            uid: peer.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        }]),
        ..node.metadata
    };
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => {
            info!(peer = %peer.name_any(), node = %name, "virtual node made");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_make_the_node_unwritable_is_left_out_of_an_offer() {
        let offer = from_wire(proto::Offer {
            architectures: vec!["arm64".to_owned(), "no label".to_owned(), String::new()],
            resources: [("cpu".to_owned(), "many".to_owned()), ("memory".to_owned(), "1Gi".to_owned())]
                .into(),
            pressures: vec!["MemoryPressure".to_owned(), "x\n".to_owned()],
            ..proto::Offer::default()
        });
        assert_eq!(offer.architectures, ["arm64"]);
        assert_eq!(offer.resources.keys().collect::<Vec<_>>(), ["memory"]);
        assert_eq!(offer.pressures, ["MemoryPressure"]);
    }

    #[test]
    fn a_provider_may_say_where_it_is_but_not_what_its_node_is() {
        for (key, value, may) in [
            ("region", "eu", true),
            ("topology.kubernetes.io/region", "eu-south", true),
            ("example.org/tier", "", true),
            ("node-role.kubernetes.io/control-plane", "", false),
            ("kubernetes.io/hostname", "a", false),
            ("liquid.mesh/type", "x", false),
            ("bad key", "x", false),
            ("key", "bad value", false),
            ("", "x", false),
            ("a/b/c", "x", false),
        ] {
            assert_eq!(may_label(key, value), may, "{key}={value}");
        }
    }
}
