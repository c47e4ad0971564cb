//! One task per provider: joins it, stays in touch, and leaves it.

use super::credentials::{self, Credentials};
use super::session::{LinkError, Said, next, not_after, open, renew};
use super::virtual_nodes::{KnownNodes, VirtualNodesOf};
use super::{join, leave};
use crate::cluster::Cluster;
use crate::finalizers;
use crate::metrics::Metrics;
use crate::network::Network;
use crate::status::{Report, report};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{ENDED_BY_PROVIDER, FINALIZER_CONSUME, credentials_secret};
use liquid_crds::{ConditionUpdate, ConsumeSpec, ConsumeStatus, Peer, Transport};
use liquid_link::proto::peering_client::PeeringClient;
use liquid_runtime::backoff::{Backoff, entropy};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tonic::transport::Channel;
use tracing::{Instrument as _, info, info_span, warn};

/// First and longest pause between two tries to reach a provider: it is back in the picture 3 s after it is back.
const DIAL_FIRST: Duration = Duration::from_millis(250);
const DIAL_CAP: Duration = Duration::from_secs(3);
/// Pause before a status is written once more.
const REPORT_RETRY: Duration = Duration::from_secs(1);

/// The tasks of all providers.
pub(crate) struct Borrowing {
    client: Client,
    cluster: Arc<Cluster>,
    network: Network,
    virtual_nodes: watch::Receiver<KnownNodes>,
    metrics: Metrics,
    tasks: BTreeMap<String, (watch::Sender<Peer>, JoinHandle<()>)>,
}

impl Borrowing {
    /// Starts without any.
    pub(crate) fn new(
        client: Client,
        cluster: Arc<Cluster>,
        network: Network,
        virtual_nodes: watch::Receiver<KnownNodes>,
        metrics: Metrics,
    ) -> Self {
        Self { client, cluster, network, virtual_nodes, metrics, tasks: BTreeMap::new() }
    }

    /// A `Peer` has appeared or changed.
    pub(crate) fn applied(&mut self, peer: &Peer) {
        let name = peer.name_any();
        let ours = peer.spec.consume.is_some() || holds(peer);
        let known_uid = self.tasks.get(&name).map(|(sender, _)| sender.borrow().metadata.uid.clone());
        if !ours || known_uid.is_some_and(|uid| uid != peer.metadata.uid) {
            self.deleted(&name);
        }
        if !ours {
            return;
        }
        if let Some((sender, task)) = self.tasks.get(&name)
            && !task.is_finished()
        {
            sender.send_replace(peer.clone());
            return;
        }
        let (sender, receiver) = watch::channel(peer.clone());
        let task = Task {
            client: self.client.clone(),
            cluster: self.cluster.clone(),
            network: self.network.clone(),
            virtual_nodes: self.virtual_nodes.clone(),
            metrics: self.metrics.clone(),
            peer: receiver,
        };
        let handle = tokio::spawn(task.run().instrument(info_span!("borrow", peer = %name)));
        self.tasks.insert(name, (sender, handle));
    }

    /// A `Peer` is gone.
    pub(crate) fn deleted(&mut self, name: &str) {
        if let Some((_, task)) = self.tasks.remove(name) {
            task.abort();
            self.metrics.forget_peer(name);
        }
    }
}

fn holds(peer: &Peer) -> bool {
    peer.finalizers().iter().any(|finalizer| finalizer == FINALIZER_CONSUME)
}

struct Task {
    client: Client,
    cluster: Arc<Cluster>,
    network: Network,
    virtual_nodes: watch::Receiver<KnownNodes>,
    metrics: Metrics,
    peer: watch::Receiver<Peer>,
}

/// What a task waits for next.
enum Next {
    /// Try again after a pause.
    Pause,
    /// Nothing until the `Peer` is changed by somebody.
    Change,
    /// It is over.
    End,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new(DIAL_FIRST, DIAL_CAP);
        // How to reach the provider, also when the user has taken that out of the Peer to leave it.
        let mut known = None;
        loop {
            let peer = self.peer.borrow_and_update().clone();
            known = peer.spec.consume.clone().or(known);
            if known.is_none() {
                known = self.way(&peer).await;
            }
            let next = match &known {
                Some(consume)
                    if peer.metadata.deletion_timestamp.is_none() && peer.spec.consume.is_some() =>
                {
                    self.borrow(&peer, consume, &mut backoff).await
                }
                consume => self.leave(&peer, consume.as_ref()).await,
            };
            self.metrics.link_up(&peer.name_any(), false);
            match next {
                Next::End => return,
                Next::Change => {
                    if self.wait_for_change(&peer).await.is_err() {
                        return;
                    }
                    backoff.reset();
                }
                Next::Pause => {
                    let pause = backoff.next(entropy());
                    tokio::select! {
                        () = sleep(pause) => {}
                        changed = self.wait_for_change(&peer) => if changed.is_err() { return },
                    }
                }
            }
        }
    }

    /// Waits until somebody else than this task has changed the `Peer`, or there is another way to it.
    async fn wait_for_change(&mut self, seen: &Peer) -> Result<(), watch::error::RecvError> {
        let relays = |peer: &Peer| {
            let in_band = peer.spec.consume.as_ref().filter(|consume| consume.transport == Transport::InBand);
            in_band.map(|consume| peer.dial(consume).ok())
        };
        let differs = |peer: &Peer| {
            peer.spec != seen.spec
                || relays(peer) != relays(seen)
                || peer.metadata.deletion_timestamp != seen.metadata.deletion_timestamp
                || peer.metadata.annotations != seen.metadata.annotations
        };
        self.peer.wait_for(differs).await.map(drop)
    }

    async fn borrow(&mut self, peer: &Peer, consume: &ConsumeSpec, backoff: &mut Backoff) -> Next {
        if let Err(error) = finalizers::add(&Api::all(self.client.clone()), peer, FINALIZER_CONSUME).await {
            warn!(%error, "finalizer not added; trying again");
            return Next::Pause;
        }
        let joined = join::ensure(&self.client, &self.cluster, &self.network, peer, consume).await;
        let credentials = match joined {
            Ok(credentials) => credentials,
            Err(error) => {
                let reason = error.reason();
                let next = match &error {
                    join::JoinError::Refused(_) => Next::Change,
                    join::JoinError::Unreachable(_) | join::JoinError::Link(_) => Next::Pause,
                };
                warn!(%error, reason, "cannot join");
                self.report(peer, None, vec![no("Joined", reason, &error), no("LinkUp", reason, &error)])
                    .await;
                return next;
            }
        };
        let error = self.stay(peer, consume, credentials, backoff).await;
        match error {
            Stayed::Lost(error) => {
                warn!(%error, reason = error.reason(), "link down");
                let mut updates = vec![no("LinkUp", error.reason(), &error)];
                if matches!(error, LinkError::Credentials(_)) {
                    updates.push(no("Joined", error.reason(), &error));
                }
                self.report(peer, None, updates).await;
                // A refusal may be over when the provider has been told something; it costs little to ask again.
                Next::Pause
            }
            Stayed::Ended(reason) => {
                warn!(%reason, "the provider has ended the peering");
                let message = format!("{reason}; run `liquidctl unpeer` to remove what is left of it here");
                self.report(peer, None, vec![no("LinkUp", ENDED_BY_PROVIDER, &message)]).await;
                // Its pods are gone or on their way out: their owners shall replace them.
                if let Err(error) = leave::remove_virtual_nodes(&self.client, peer).await {
                    warn!(%error, "virtual nodes not removed; trying again");
                    return Next::Pause;
                }
                Next::Change
            }
            Stayed::Changed => {
                backoff.reset();
                Next::Pause
            }
        }
    }

    /// Stays connected until the link breaks, the provider ends the peering, or the `Peer` is changed.
    async fn stay(
        &mut self,
        peer: &Peer,
        consume: &ConsumeSpec,
        mut credentials: Credentials,
        backoff: &mut Backoff,
    ) -> Stayed {
        let mut session = match open(peer, consume, &credentials, &self.cluster).await {
            Ok(session) => session,
            Err(error) => return Stayed::Lost(error),
        };
        let mut link = session.client.clone();
        let mut changes = self.peer.clone();
        let networks = exchange_networks(&self.network, session.client.clone(), peer);
        let mut networks = pin!(networks);
        let nodes = VirtualNodesOf { client: &self.client, peer, consume, known: self.virtual_nodes.clone() };
        let mut nodes = pin!(nodes.keep(session.client.clone()));
        loop {
            tokio::select! {
                () = &mut networks => {}
                never = &mut nodes => match never {},
                said = next(&mut session.events) => match said {
                    Ok(Said::Offers(offer, endpoints)) => {
                        backoff.reset();
                        self.metrics.link_up(&peer.name_any(), true);
                        let status = ConsumeStatus {
                            credentials_secret: Some(credentials_secret(&peer.name_any())),
                            certificate_not_after: not_after(&credentials),
                            endpoints,
                            offer: Some(*offer),
                        };
                        let version = "the client certificate is valid".to_owned();
                        let joined = ConditionUpdate { type_: "Joined", status: Some(true), reason: "Joined", message: version };
                        let message = "the link to the provider is up".to_owned();
                        let up = ConditionUpdate { type_: "LinkUp", status: Some(true), reason: "Connected", message };
                        // It comes once: without it the virtual node would have nothing to offer.
                        while !self.report(peer, Some(status.clone()), vec![joined.clone(), up.clone()]).await {
                            sleep(REPORT_RETRY).await;
                        }
                        info!("link up, offer received");
                    }
                    Ok(Said::Ended(reason)) => return Stayed::Ended(reason),
                    Err(error) => return Stayed::Lost(error),
                },
                renewed = renew(&self.client, &self.cluster, peer, &mut link, &credentials) => credentials = renewed,
                () = changed_by_others(&mut changes, consume) => return Stayed::Changed,
            }
        }
    }

    /// How the provider was reached before `spec.consume` was taken away, and this process began.
    async fn way(&self, peer: &Peer) -> Option<ConsumeSpec> {
        loop {
            match credentials::way(&self.client, &self.cluster.namespace, peer).await {
                Ok(way) => return way,
                Err(error) => warn!(%error, "credentials not read; trying again"),
            }
            sleep(REPORT_RETRY).await;
        }
    }

    async fn leave(&mut self, peer: &Peer, consume: Option<&ConsumeSpec>) -> Next {
        if !holds(peer) {
            return Next::End;
        }
        if let Err(error) = leave::remove_virtual_nodes(&self.client, peer).await {
            warn!(%error, "virtual nodes not removed; trying again");
            return Next::Pause;
        }
        let (forget, ended) = (peer.is_forgotten(), peer.ended_by_provider());
        let mut changes = self.peer.clone();
        let forgotten = changes.wait_for(Peer::is_forgotten);
        let left = async {
            let consume = consume.filter(|_| !forget && !ended);
            if consume.is_some() {
                leave::finish_volumes(&self.client, peer).await.map_err(LinkError::own)?;
            }
            match consume {
                Some(consume) => leave::leave(&self.client, &self.cluster, peer, consume).await,
                None => Ok(()),
            }
        };
        let left = tokio::select! {
            left = left => left,
            // The user gives the provider up while it has not removed everything.
            _ = forgotten, if !forget => Ok(()),
        };
        if let Err(error) = left {
            let message =
                format!("cannot leave: {error}; if it is gone for good, run `liquidctl unpeer --force`");
            warn!(%message);
            self.report(peer, None, vec![no("LinkUp", "CannotLeave", &message)]).await;
            return Next::Pause;
        }
        if let Err(error) = credentials::discard(&self.client, &self.cluster.namespace, peer).await {
            warn!(%error, "credentials not deleted; trying again");
            return Next::Pause;
        }
        // A peering that never came about has its token still, and its key.
        if let Err(error) = self.network.uninvited(&self.client, &self.cluster.namespace, peer).await {
            warn!(%error, "key of a guest not deleted; trying again");
            return Next::Pause;
        }
        if let Some(consume) = consume
            && let Err(error) = join::discard_token(&self.client, &self.cluster, consume).await
        {
            warn!(%error, "join token not deleted; trying again");
            return Next::Pause;
        }
        match finalizers::remove(&Api::all(self.client.clone()), &peer.name_any(), FINALIZER_CONSUME).await {
            Ok(()) => {
                info!(forget, "left");
                Next::End
            }
            Err(error) => {
                warn!(%error, "finalizer not removed; trying again");
                Next::Pause
            }
        }
    }

    /// Writes the borrowing half of the status; without a new one the old stays.
    /// Returns whether that is done with.
    async fn report(
        &self,
        peer: &Peer,
        status: Option<ConsumeStatus>,
        updates: Vec<ConditionUpdate<'_>>,
    ) -> bool {
        let current = match Api::<Peer>::all(self.client.clone()).get_opt(&peer.name_any()).await {
            Ok(Some(current)) if current.metadata.uid == peer.metadata.uid => current,
            Ok(_) => return true,
            Err(error) => {
                warn!(%error, "status not written");
                return false;
            }
        };
        let known = current.status.as_ref().and_then(|status| status.consume.clone()).unwrap_or_default();
        let consume = status.unwrap_or(known);
        if let Err(error) = report(&self.client, &current, &Report::Consume(consume), updates).await {
            warn!(%error, "status not written");
            return false;
        }
        true
    }
}

enum Stayed {
    Lost(LinkError),
    Ended(String),
    Changed,
}

/// Resolves when somebody wants something else of the peering, or its end.
async fn changed_by_others(peer: &mut watch::Receiver<Peer>, consume: &ConsumeSpec) {
    let differs =
        |now: &Peer| now.spec.consume.as_ref() != Some(consume) || now.metadata.deletion_timestamp.is_some();
    // The sender lives in the same table as this task: if it is gone, so is the `Peer`.
    drop(peer.wait_for(differs).await);
}

/// Does not end: the link does.
async fn exchange_networks(network: &Network, link: PeeringClient<Channel>, peer: &Peer) {
    if let Ok(provider) = peer.spec.cluster_id.parse() {
        network.exchange(link, &provider).await;
    }
    std::future::pending().await
}

fn no<'a>(type_: &'a str, reason: &'a str, message: &dyn std::fmt::Display) -> ConditionUpdate<'a> {
    ConditionUpdate { type_, status: Some(false), reason, message: message.to_string() }
}
