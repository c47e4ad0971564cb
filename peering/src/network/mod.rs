//! The network between this cluster and its peers: what each tells the other, under which prefixes they see each other,
//! and how it is. One per peer, whichever borrows.
//!
//! `ipam`, `announcement` and `condition` are pure; `own` and `keys` read and write this cluster; `exchange` is the
//! link; `reconcile` brings it all together in the status of the Peers, from which gateways and nodes take what they need.

mod announcement;
mod condition;
mod exchange;
mod ipam;
mod keys;
mod own;
mod reconcile;

use crate::args::NetworkArgs;
use announcement::Announcement;
use kube::{Client, ResourceExt as _};
use liquid_crds::{ClusterId, Peer};
use own::Own;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// The condition that says whether pods of both clusters reach each other.
const CONDITION: &str = "NetworkReady";

/// What a peer said of its network.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    /// This is it.
    Told(Announcement),
    /// It has none.
    Absent(String),
    /// Something that is not taken.
    Invalid(String),
}

/// The network, for everything that has to do with it.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    enabled: bool,
    own: watch::Sender<Option<Own>>,
    peers: watch::Sender<Option<BTreeMap<String, Peer>>>,
    heard: watch::Sender<BTreeMap<ClusterId, Heard>>,
}

impl Network {
    /// A network of which nothing is known.
    pub(crate) fn new(settings: &NetworkArgs) -> Self {
        Self {
            enabled: settings.enabled,
            own: watch::Sender::new(None),
            peers: watch::Sender::new(None),
            heard: watch::Sender::new(BTreeMap::new()),
        }
    }

    /// Works for ever.
    pub(crate) async fn run(self, client: Client, namespace: String, settings: NetworkArgs) {
        if !self.enabled {
            return reconcile::clear(client, self.peers.subscribe()).await;
        }
        let pools = settings.remap_pool.clone();
        tokio::join!(
            own::observe(client.clone(), namespace, settings, self.own.clone()),
            reconcile::reconcile(client, self, pools),
        );
    }

    /// All `Peer`s, after each change.
    pub(crate) fn peers(&self, peers: &BTreeMap<String, Peer>) {
        let ids = || peers.values().map(|peer| peer.spec.cluster_id.as_str());
        self.heard.send_if_modified(|heard| {
            let gone: Vec<ClusterId> =
                heard.keys().filter(|id| !ids().any(|known| known == id.as_str())).cloned().collect();
            gone.iter().for_each(|id| drop(heard.remove(id)));
            false
        });
        self.peers.send_replace(Some(peers.clone()));
    }

    fn hear(&self, from: &ClusterId, heard: Heard) {
        self.heard.send_if_modified(|known| {
            let changed = known.get(from) != Some(&heard);
            known.insert(from.clone(), heard);
            changed
        });
    }
}

/// Whether there is a peering in either direction.
fn is_peered(peer: &Peer) -> bool {
    peer.spec.consume.is_some() || peer.spec.lend.is_some()
}

/// Where a peer's addresses begin in the pool: its identity is random enough.
fn seed(peer: &Peer) -> u64 {
    let digits: String = peer.spec.cluster_id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or_default()
}

/// The name of a `Peer`, for logs.
fn name(peer: &Peer) -> String {
    peer.name_any()
}
