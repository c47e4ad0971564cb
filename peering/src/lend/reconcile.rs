//! The lending half of every `Peer`: admits its consumer, reports its state, and when it ends removes everything that
//! ran for it before the `Peer` may go.

use super::book::{Book, Slices};
use super::consumers::{Consumer, Consumers, consumer_of};
use super::peering_service::{Connection, Connections};
use super::shadows::Shadows;
use crate::finalizers;
use crate::status::{Report, report};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{CONSUMER_AUTHORITY, FINALIZER_LEND};
use liquid_crds::{ClusterId, ConditionUpdate, LendStatus, Peer};
use liquid_reflection::Prefixes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// How often it is checked whether everything of an ending consumer is gone.
const END_INTERVAL: Duration = Duration::from_millis(100);
/// Pause after a failed request.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The lending half.
#[derive(Clone)]
pub(crate) struct Lending {
    pub(crate) client: Client,
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) shadows: Shadows,
    pub(crate) book: Book,
    /// Names of peers whose end is being seen to.
    pub(crate) ending: Arc<Mutex<BTreeMap<String, ClusterId>>>,
}

impl Lending {
    /// A `Peer` has appeared or changed.
    pub(crate) fn applied(&self, peer: &Peer) {
        let name = peer.name_any();
        let held = peer.finalizers().iter().any(|finalizer| finalizer == FINALIZER_LEND);
        match consumer_of(peer) {
            Some(consumer) if !consumer.ending => {
                let recorded =
                    peer.status.as_ref().and_then(|status| status.lend.as_ref()?.slices.as_deref());
                self.book.recall(&consumer.id, &consumer.peering, recorded);
                self.consumers.insert(consumer);
                if !held {
                    let (client, peer) = (self.client.clone(), peer.clone());
                    tokio::spawn(async move {
                        // A conflict means that the `Peer` has changed, and with that comes another try.
                        if let Err(error) = finalizers::add(&Api::all(client), &peer, FINALIZER_LEND).await {
                            warn!(peer = %peer.name_any(), %error, "finalizer not added");
                        }
                    });
                }
            }
            _ if held => {
                let Ok(id) = peer.spec.cluster_id.parse::<ClusterId>() else { return };
                // What runs is removed with the rights it was made with, also after the lending half was taken off.
                self.consumers.insert(Consumer {
                    id: id.clone(),
                    name: name.clone(),
                    peering: peer.metadata.uid.clone().unwrap_or_default(),
                    lend: peer.spec.lend.clone().unwrap_or_default(),
                    authority: peer.annotations().get(CONSUMER_AUTHORITY).cloned(),
                    prefixes: Prefixes::default(),
                    sources: Prefixes::default(),
                    ending: true,
                });
                self.end(name, id);
            }
            _ => self.consumers.remove(&name),
        }
    }

    /// A `Peer` is gone.
    pub(crate) fn deleted(&self, name: &str) {
        self.consumers.remove(name);
    }

    fn end(&self, name: String, id: ClusterId) {
        let first = {
            let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            ending.insert(name.clone(), id.clone()).is_none()
        };
        if !first {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            info!(peer = %name, "lending ends: removing what ran for it");
            this.shadows.end(id.clone()).await;
            while !this.shadows.summary(&id).await.empty {
                sleep(END_INTERVAL).await;
            }
            while let Err(error) =
                finalizers::remove(&Api::all(this.client.clone()), &name, FINALIZER_LEND).await
            {
                warn!(peer = %name, %error, "finalizer not removed; trying again");
                sleep(RETRY_PAUSE).await;
            }
            this.consumers.remove(&name);
            this.book.forget(&id);
            this.ending.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            info!(peer = %name, "lending ended; nothing is left");
        });
    }
}

/// Writes who is connected into the status of the `Peer`s.
pub(crate) async fn report_connections(
    client: Client,
    consumers: Arc<Consumers>,
    connections: Connections,
    book: Book,
) {
    let mut known = consumers.subscribe();
    let mut connected = connections.subscribe();
    let mut offers = book.changes();
    let mut written: BTreeMap<String, (Option<Connection>, Option<Arc<Slices>>)> = BTreeMap::new();
    loop {
        let peers: Vec<_> = known.borrow_and_update().values().cloned().collect();
        let current = connected.borrow_and_update().clone();
        offers.mark_unchanged();
        written.retain(|name, _| peers.iter().any(|peer| peer.name == *name));
        let mut failed = false;
        for consumer in peers.iter().filter(|consumer| !consumer.ending) {
            let connection = current.get(&consumer.id).cloned();
            let slices = book.slices(&consumer.id, &consumer.peering);
            let state = (connection, slices);
            if written.get(&consumer.name) == Some(&state) {
                continue;
            }
            match write(&client, &consumer.name, state.0.as_ref(), state.1.as_deref()).await {
                Ok(()) => {
                    written.insert(consumer.name.clone(), state);
                }
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => {
                    warn!(peer = %consumer.name, %error, "status not written; trying again");
                    failed = true;
                }
            }
        }
        tokio::select! {
            changed = known.changed() => if changed.is_err() { return },
            changed = connected.changed() => if changed.is_err() { return },
            changed = offers.changed() => if changed.is_err() { return },
            () = sleep(RETRY_PAUSE), if failed => {}
        }
    }
}

async fn write(
    client: &Client,
    name: &str,
    connection: Option<&Connection>,
    slices: Option<&Slices>,
) -> Result<(), kube::Error> {
    let peer: Peer = Api::all(client.clone()).get(name).await?;
    let (connected, reason, message) = match connection {
        Some(_) => (true, "Connected", "the consumer is connected"),
        None => (
            false,
            "Disconnected",
            "the consumer is not connected; what runs for it goes on, and is kept alive here",
        ),
    };
    let lend = LendStatus {
        consumer_version: connection.map(|c| c.version.clone()),
        offer: connection.and_then(|c| c.offer.clone()),
        slices: slices.map(|slices| slices.iter().map(|(name, slice)| slice.record(name)).collect()),
    };
    let update = ConditionUpdate {
        type_: "ConsumerConnected",
        status: Some(connected),
        reason,
        message: message.to_owned(),
    };
    report(client, &peer, &Report::Lend(lend), vec![update]).await?;
    Ok(())
}
