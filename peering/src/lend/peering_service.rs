//! `Peering`: offers, fresh certificates, and the end of it on the consumer's wish.

use super::book::Book;
use super::classes;
use super::consumers::{Consumer, Consumers};
use super::enrollment::{key_digest, keys};
use super::negotiation::Negotiation;
use super::shadows::Shadows;
use super::slices::Capacity;
use super::wire;
use crate::cluster::Cluster;
use crate::network::Network;
use futures::{Stream, StreamExt as _};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use liquid_crds::vocabulary::CONSUMER_KEYS;
use liquid_crds::{ClusterId, Offer, Peer};
use liquid_link::ca::check_request;
use liquid_link::identity::PeerIdentity;
use liquid_link::liveness::{self, Beating};
use liquid_link::proto;
use liquid_link::proto::peering_server::Peering;
use liquid_link::proto::{
    Ask, Bid, LeaveProgress, LeaveRequest, NetworkInfo, PeeringEvent, RenewRequest, RenewResponse,
    WatchRequest, peering_event,
};
use liquid_runtime::storage_classes::StorageClasses;
use serde_json::json;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

/// Offers on their way to one consumer; a newer one makes an older one worthless, so few are enough.
const EVENT_QUEUE: usize = 4;
/// How often a leaving consumer is told how far the removal is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The peering service.
pub(crate) struct PeeringService {
    pub(crate) client: Client,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) shadows: Shadows,
    pub(crate) capacity: watch::Receiver<Option<Arc<Capacity>>>,
    pub(crate) classes: watch::Receiver<Option<StorageClasses>>,
    pub(crate) book: Book,
    /// Negotiations that have begun.
    pub(crate) negotiations: AtomicU64,
    pub(crate) endpoints: watch::Receiver<Vec<String>>,
    pub(crate) connections: Connections,
    pub(crate) network: Network,
    /// Cancelled when the process is to end.
    pub(crate) draining: CancellationToken,
}

/// Which consumers watch their offers now, for the status of their `Peer`.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    known: watch::Sender<BTreeMap<ClusterId, Connection>>,
}

/// A consumer that is connected.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Connection {
    /// Streams open now; for a moment there may be two when it reconnects.
    streams: usize,
    /// Version of Liquid it speaks.
    pub(crate) version: String,
    /// The offer it was sent last.
    pub(crate) offer: Option<Offer>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { known: watch::Sender::new(BTreeMap::new()) }
    }
}

impl Connections {
    /// Changes of the connections.
    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<ClusterId, Connection>> {
        self.known.subscribe()
    }

    fn open(&self, id: &ClusterId, version: String) {
        self.known.send_modify(|known| {
            let connection = known.entry(id.clone()).or_insert_with(|| Connection {
                streams: 0,
                version: String::new(),
                offer: None,
            });
            connection.streams += 1;
            connection.version = version;
        });
    }

    fn offered(&self, id: &ClusterId, offer: &Offer) {
        self.known.send_modify(|known| {
            if let Some(connection) = known.get_mut(id) {
                connection.offer = Some(offer.clone());
            }
        });
    }

    fn close(&self, id: &ClusterId) {
        self.known.send_modify(|known| {
            if let Some(connection) = known.get_mut(id) {
                connection.streams = connection.streams.saturating_sub(1);
                if connection.streams == 0 {
                    known.remove(id);
                }
            }
        });
    }
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn stream_of<T: Send + 'static>(mut events: mpsc::Receiver<Result<T, Status>>) -> EventStream<T> {
    Box::pin(futures::stream::poll_fn(move |cx| events.poll_recv(cx)))
}

#[tonic::async_trait]
impl Peering for PeeringService {
    type WatchStream = EventStream<PeeringEvent>;
    type NetworkStream = EventStream<NetworkInfo>;
    type NegotiateStream = EventStream<Bid>;
    type LeaveStream = EventStream<LeaveProgress>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let consumer = self.consumers.authorize(request.extensions())?;
        let beat = liveness::asked(&request);
        let version = request.into_inner().consumer.map(|info| info.version).unwrap_or_default();
        let version = version.chars().take(32).collect();
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let offers = Offers {
            consumers: self.consumers.subscribe(),
            capacity: self.capacity.clone(),
            classes: self.classes.clone(),
            endpoints: self.endpoints.clone(),
        };
        let connections = self.connections.clone();
        tokio::spawn(async move {
            info!(peer = %consumer.name, "consumer connected");
            connections.open(&consumer.id, version);
            offers.send(&consumer, &events, &connections).await;
            connections.close(&consumer.id);
            info!(peer = %consumer.name, "consumer disconnected");
        });
        Ok(Response::new(Box::pin(Beating::new(stream_of(receiver), beat))))
    }

    async fn network(
        &self,
        request: Request<Streaming<NetworkInfo>>,
    ) -> Result<Response<Self::NetworkStream>, Status> {
        let consumer = self.consumers.authorize(request.extensions())?;
        let told = self.network.answer(self.consumers.clone(), consumer, request.into_inner())?;
        Ok(Response::new(Box::pin(told.take_until(self.draining.clone().cancelled_owned()))))
    }

    async fn negotiate(
        &self,
        request: Request<Streaming<Ask>>,
    ) -> Result<Response<Self::NegotiateStream>, Status> {
        let consumer = self.consumers.authorize(request.extensions())?;
        let negotiation = Negotiation {
            consumers: self.consumers.clone(),
            capacity: self.capacity.clone(),
            book: self.book.clone(),
            number: self.negotiations.fetch_add(1, Ordering::Relaxed) + 1,
            draining: self.draining.clone(),
        };
        let (bids, receiver) = mpsc::channel(EVENT_QUEUE);
        tokio::spawn(negotiation.run(consumer, request.into_inner(), bids));
        Ok(Response::new(stream_of(receiver)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let consumer = self.consumers.authorize(request.extensions())?;
        let csr = request.into_inner().csr;
        check_request(&csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.remember_key(&consumer, &key_digest(&csr)?).await?;
        let identity = PeerIdentity { cluster_id: consumer.id, peering: consumer.peering };
        let signed = self
            .cluster
            .ca
            .issue_peer(&csr, &identity, OffsetDateTime::now_utc())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        info!(peer = %consumer.name, not_after = %signed.not_after, "certificate renewed");
        Ok(Response::new(RenewResponse { certificate_chain: signed.chain_pem.into_bytes().into() }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<Self::LeaveStream>, Status> {
        let consumer = self.consumers.authorize(request.extensions())?;
        info!(peer = %consumer.name, "consumer leaves");
        self.end_lending(&consumer).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (progress, receiver) = mpsc::channel(EVENT_QUEUE);
        let (consumers, shadows) = (self.consumers.clone(), self.shadows.clone());
        tokio::spawn(async move {
            loop {
                let done = consumers.get(&consumer.id).is_none_or(|c| c.peering != consumer.peering);
                let left = shadows.summary(&consumer.id).await;
                let remaining = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
                let report = LeaveProgress {
                    remaining_pods: remaining(left.pods),
                    remaining_namespaces: remaining(left.namespaces),
                    done,
                };
                if progress.send(Ok(report)).await.is_err() || done {
                    return;
                }
                tokio::time::sleep(PROGRESS_INTERVAL).await;
            }
        });
        Ok(Response::new(stream_of(receiver)))
    }
}

impl PeeringService {
    /// Remembers the key a certificate is issued for, and the one before: the answer may not arrive.
    async fn remember_key(&self, consumer: &Consumer, key: &str) -> Result<(), Status> {
        let unavailable = |error: kube::Error| Status::unavailable(error.to_string());
        let peers: Api<Peer> = Api::all(self.client.clone());
        let peer = peers.get(&consumer.name).await.map_err(unavailable)?;
        let mut known: Vec<&str> = keys(&peer).filter(|known| *known != key).collect();
        known.insert(0, key);
        known.truncate(2);
        let patch = json!({
            "metadata": {
                "uid": consumer.peering,
                "resourceVersion": peer.metadata.resource_version,
                "annotations": {CONSUMER_KEYS: known.join(",")},
            },
        });
        peers
            .patch(&consumer.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(unavailable)?;
        Ok(())
    }

    /// Takes the lending half off the `Peer`; what is left to do is the reconciler's.
    async fn end_lending(&self, consumer: &Consumer) -> Result<(), kube::Error> {
        let peers: Api<Peer> = Api::all(self.client.clone());
        let Some(peer) = peers.get_opt(&consumer.name).await? else { return Ok(()) };
        if peer.metadata.uid.as_deref() != Some(&consumer.peering) {
            return Ok(());
        }
        if peer.spec.consume.is_some() {
            let patch = json!({
                "metadata": {"uid": consumer.peering},
                "spec": {"lend": null},
            });
            peers.patch(&consumer.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        } else {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(consumer.peering.clone()),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            peers.delete(&consumer.name, &params).await?;
        }
        Ok(())
    }
}

/// What makes up an offer, and when it changes.
struct Offers {
    consumers: watch::Receiver<BTreeMap<ClusterId, Consumer>>,
    capacity: watch::Receiver<Option<Arc<Capacity>>>,
    classes: watch::Receiver<Option<StorageClasses>>,
    endpoints: watch::Receiver<Vec<String>>,
}

impl Offers {
    /// Sends the offer of `consumer` now and at each change, until it hangs up or the peering ends.
    async fn send(
        mut self,
        consumer: &Consumer,
        events: &mpsc::Sender<Result<PeeringEvent, Status>>,
        connections: &Connections,
    ) {
        let mut sent: Option<proto::Offer> = None;
        loop {
            let current = self.consumers.borrow_and_update().get(&consumer.id).cloned();
            let Some(current) = current.filter(|c| c.peering == consumer.peering && !c.ending) else {
                let reason = "the provider has ended the peering".to_owned();
                let ended = peering_event::Event::Ended(proto::Ended { reason });
                drop(events.send(Ok(PeeringEvent { event: Some(ended) })).await);
                return;
            };
            let capacity = self.capacity.borrow_and_update().clone();
            // Until it is known the consumer goes by the last offer.
            if let Some(capacity) = capacity {
                let classes = self.classes.borrow_and_update().clone().unwrap_or_default();
                let offer = Offer {
                    storage_classes: classes::offered(&classes, current.lend.storage.as_ref()),
                    ..capacity.whole(&current.lend)
                };
                let endpoints = self.endpoints.borrow_and_update().clone();
                let message = wire::offer(&offer, endpoints);
                if sent.as_ref() != Some(&message) {
                    debug!(peer = %consumer.name, ?offer, "offer");
                    let event = peering_event::Event::Offer(message.clone());
                    if events.send(Ok(PeeringEvent { event: Some(event) })).await.is_err() {
                        return;
                    }
                    connections.offered(&consumer.id, &offer);
                    sent = Some(message);
                }
            }
            let changed = tokio::select! {
                changed = self.consumers.changed() => changed.is_ok(),
                changed = self.capacity.changed() => changed.is_ok(),
                changed = self.classes.changed() => changed.is_ok(),
                changed = self.endpoints.changed() => changed.is_ok(),
                () = events.closed() => false,
            };
            if !changed {
                return;
            }
        }
    }
}
