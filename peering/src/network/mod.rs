//! The network between this cluster and its peers: what each tells the other, under which prefixes they see each other,
//! and how it is. One per peer, whichever borrows.
//!
//! `ipam`, `announcement`, `transit`, `direct`, `condition`, `guest` and `wanted`, which brings them together, are pure; `own`, `keys` and
//! `transit_pods` read and write this cluster; `exchange` is the link; `invitation` is what a join token tells before there is one; `reconcile`
//! writes what is wanted into the status of the Peers, from which gateways and nodes take what they need.

mod announcement;
mod condition;
mod direct;
mod exchange;
mod guest;
mod invitation;
mod ipam;
mod keys;
mod own;
mod reconcile;
mod transit;
mod transit_pods;
mod wanted;

use crate::args::NetworkArgs;
use announcement::Announcement;
pub(crate) use announcement::{MAX_EXTERNAL, outside};
use futures::Stream;
use invitation::Invited;
use kube::{Client, ResourceExt as _};
use liquid_crds::vocabulary::{FINALIZER_CONSUME, FINALIZER_LEND};
use liquid_crds::{ClusterId, Peer, PeerGateway};
use own::Own;
use std::collections::BTreeMap;
use tokio::sync::watch;
use transit::Shared;

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
    /// This cluster.
    me: ClusterId,
    own: watch::Sender<Option<Own>>,
    peers: watch::Sender<Option<BTreeMap<String, Peer>>>,
    heard: watch::Sender<BTreeMap<ClusterId, Heard>>,
    invited: watch::Sender<BTreeMap<ClusterId, Invited>>,
    /// Unknown until all offloaded namespaces were read.
    shared: watch::Sender<Option<Shared>>,
}

impl Network {
    /// A network of which nothing is known.
    pub(crate) fn new(settings: &NetworkArgs, me: ClusterId) -> Self {
        Self {
            enabled: settings.enabled,
            me,
            own: watch::Sender::new(None),
            peers: watch::Sender::new(None),
            heard: watch::Sender::new(BTreeMap::new()),
            invited: watch::Sender::new(BTreeMap::new()),
            shared: watch::Sender::new(None),
        }
    }

    /// This cluster's gateways, now and at each change; nothing without a network.
    pub(crate) fn own_gateways(&self) -> impl Stream<Item = Vec<PeerGateway>> + Send + 'static {
        own::parts(self.own.subscribe(), |own| &own.announcement.gateways)
    }

    /// All `Peer`s, once they are known; nothing without a network.
    pub(crate) fn known_peers(&self) -> watch::Receiver<Option<BTreeMap<String, Peer>>> {
        self.peers.subscribe()
    }

    /// Works for ever.
    pub(crate) async fn run(self, client: Client, namespace: String, settings: NetworkArgs) {
        if !self.enabled {
            return reconcile::clear(client, self.peers.subscribe()).await;
        }
        let pools = settings.remap_pool.clone();
        let (peers, shared) = (self.peers.subscribe(), self.shared.clone());
        tokio::join!(
            own::observe(client.clone(), namespace.clone(), settings, self.own.clone()),
            transit_pods::observe(client.clone(), namespace, peers, shared),
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
        self.invited.send_if_modified(|invited| {
            invited.retain(|id, _| ids().any(|known| known == id.as_str()));
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

/// Whether there is a peering in either direction, or something of one is still to be given back: what is said of that
/// may have no other way than the tunnel.
fn is_peered(peer: &Peer) -> bool {
    let held = |finalizer: &String| [FINALIZER_CONSUME, FINALIZER_LEND].contains(&finalizer.as_str());
    peer.spec.consume.is_some() || peer.spec.lend.is_some() || peer.finalizers().iter().any(held)
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
