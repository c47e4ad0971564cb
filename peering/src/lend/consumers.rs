//! Who may borrow: the peers with a `lend` part, by their identity.

use super::slices::limits;
use kube::ResourceExt as _;
use liquid_crds::quantity::Amounts;
use liquid_crds::vocabulary::CONSUMER_AUTHORITY;
use liquid_crds::{ClusterId, LendSpec, Peer, PodCidr};
use liquid_link::identity::PeerIdentity;
use liquid_link::server::Caller;
use liquid_reflection::Prefixes;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;
use tonic::{Extensions, Status};

/// A peer that borrows from this cluster.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Consumer {
    /// Identity of its cluster.
    pub(crate) id: ClusterId,
    /// Its name, which is also the name of its `Peer`.
    pub(crate) name: String,
    /// UID of its `Peer`; certificates issued for an earlier one are not accepted.
    pub(crate) peering: String,
    /// What it is lent.
    pub(crate) lend: LendSpec,
    /// Digest of the key of its certificate authority, which it has shown when it joined.
    pub(crate) authority: Option<String>,
    /// How the addresses of its pods are seen here.
    pub(crate) prefixes: Prefixes,
    /// All addresses from which they send: those in further clusters may come two ways.
    pub(crate) sources: Prefixes,
    /// The peering is over on purpose; what it runs is being removed.
    pub(crate) ending: bool,
}

impl Consumer {
    /// One of which nothing is known but what is kept here for it.
    pub(crate) fn gone(id: &ClusterId) -> Self {
        Self {
            id: id.clone(),
            name: id.to_string(),
            peering: String::new(),
            lend: LendSpec::default(),
            authority: None,
            prefixes: Prefixes::default(),
            sources: Prefixes::default(),
            ending: true,
        }
    }

    /// Upper bounds of what it is lent.
    pub(crate) fn limits(&self) -> Amounts {
        limits(&self.lend)
    }
}

#[cfg(test)]
impl Consumer {
    pub(crate) fn for_tests() -> Self {
        Self {
            id: "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap(),
            name: "milan".to_owned(),
            peering: "p".to_owned(),
            lend: LendSpec::default(),
            authority: Some("a".to_owned()),
            prefixes: Prefixes::default(),
            sources: Prefixes::default(),
            ending: false,
        }
    }
}

/// The consumers, as a snapshot that can be waited on.
#[derive(Debug)]
pub(crate) struct Consumers {
    known: watch::Sender<BTreeMap<ClusterId, Consumer>>,
    // `send_modify` takes a closure per change; this keeps read-then-write changes apart from each other.
    changes: Mutex<()>,
}

impl Default for Consumers {
    fn default() -> Self {
        Self { known: watch::Sender::new(BTreeMap::new()), changes: Mutex::new(()) }
    }
}

impl Consumers {
    /// Learns of a consumer, or of a change of it.
    pub(crate) fn insert(&self, consumer: Consumer) {
        let _guard = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.known.send_if_modified(|known| {
            let changed = known.get(&consumer.id) != Some(&consumer);
            known.insert(consumer.id.clone(), consumer);
            changed
        });
    }

    /// Forgets the consumer whose `Peer` has this name.
    pub(crate) fn remove(&self, name: &str) {
        let _guard = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.known.send_if_modified(|known| {
            let before = known.len();
            known.retain(|_, consumer| consumer.name != name);
            known.len() != before
        });
    }

    /// The consumer with this identity.
    pub(crate) fn get(&self, id: &ClusterId) -> Option<Consumer> {
        self.known.borrow().get(id).cloned()
    }

    /// Changes of the consumers.
    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<ClusterId, Consumer>> {
        self.known.subscribe()
    }

    /// The consumer that sent a request.
    ///
    /// # Errors
    /// If the caller has no certificate, or the peering it was issued for is no more.
    pub(crate) fn authorize(&self, extensions: &Extensions) -> Result<Consumer, Status> {
        let caller = extensions.get::<Caller>().and_then(|caller| caller.peer.clone());
        let PeerIdentity { cluster_id, peering } = caller.ok_or_else(|| {
            Status::unauthenticated("this needs a client certificate: join with a token first")
        })?;
        match self.get(&cluster_id) {
            Some(consumer) if consumer.peering == peering => Ok(consumer),
            Some(_) => Err(Status::permission_denied(
                "the certificate belongs to an earlier peering of this cluster: join again with a new token",
            )),
            None => Err(Status::permission_denied(
                "this provider knows no peering with your cluster; it may have been ended here: join again with a new token",
            )),
        }
    }
}

/// The lending half of a `Peer`, if it has one.
pub(crate) fn consumer_of(peer: &Peer) -> Option<Consumer> {
    let lend = peer.spec.lend.clone()?;
    let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
    let cidrs = || network.into_iter().flat_map(|network| &network.pod_cidrs);
    let listed = |it: &PodCidr| match it.used_direct() {
        Some(_) => it.direct_prefixes(),
        None => it.prefixes(),
    };
    Some(Consumer {
        id: peer.spec.cluster_id.parse().ok()?,
        name: peer.metadata.name.clone()?,
        peering: peer.metadata.uid.clone()?,
        lend,
        authority: peer.annotations().get(CONSUMER_AUTHORITY).cloned(),
        prefixes: Prefixes::new(cidrs().filter_map(listed)),
        sources: Prefixes::new(
            cidrs().flat_map(|it| [it.prefixes(), it.direct_prefixes()].into_iter().flatten()),
        ),
        ending: peer.metadata.deletion_timestamp.is_some(),
    })
}
