//! The VirtualNodes of this cluster, as far as negotiations go by them.

use futures::StreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{MANAGED_BY, MANAGED_BY_LIQUID, OFFER_ACCEPTED};
use liquid_crds::{Peer, VirtualNode, VirtualNodeSpec, is_true};
use liquid_runtime::watch::{Change, changes};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// A VirtualNode without what it was offered: images make that large.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KnownNode {
    pub(super) uid: String,
    pub(super) spec: VirtualNodeSpec,
    /// UID of the `Peer` for which it was made by this process or one before.
    pub(super) made_for: Option<String>,
    pub(super) deleting: bool,
    /// Terms of the offer that was accepted before this process began.
    pub(super) accepted_terms: Option<String>,
}

impl KnownNode {
    fn of(node: &VirtualNode) -> Self {
        let labelled = node.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGED_BY_LIQUID);
        let kind = <Peer as kube::Resource>::kind(&());
        let owner = node.owner_references().iter().find(|owner| owner.kind == kind);
        let status = node.status.as_ref();
        let accepted = status.filter(|status| is_true(&status.conditions, OFFER_ACCEPTED));
        Self {
            uid: node.metadata.uid.clone().unwrap_or_default(),
            spec: node.spec.clone(),
            made_for: owner.filter(|_| labelled).map(|owner| owner.uid.clone()),
            deleting: node.metadata.deletion_timestamp.is_some(),
            accepted_terms: accepted.and_then(|status| Some(status.offer.as_ref()?.terms.clone())),
        }
    }
}

/// All VirtualNodes, by name; `None` before they have been read.
pub(crate) type KnownNodes = Option<Arc<BTreeMap<String, KnownNode>>>;

/// Follows the VirtualNodes for ever.
pub(crate) async fn follow(client: Client, known: watch::Sender<KnownNodes>) {
    let mut news = changes(Api::<VirtualNode>::all(client), watcher::Config::default()).boxed();
    let mut nodes: BTreeMap<String, KnownNode> = BTreeMap::new();
    let mut listed = false;
    while let Some(change) = news.next().await {
        let changed = match change {
            Change::Applied(node) => {
                let known = KnownNode::of(&node);
                nodes.insert(node.name_any(), known.clone()) != Some(known)
            }
            Change::Deleted(node) => nodes.remove(&node.name_any()).is_some(),
            Change::Listed(seen) => {
                nodes.retain(|name, _| seen.contains(&(String::new(), name.clone())));
                listed = true;
                true
            }
        };
        if listed && changed {
            known.send_replace(Some(Arc::new(nodes.clone())));
        }
    }
}
