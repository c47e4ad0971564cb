//! Follows all `Peer`s and tells both halves.

use crate::consume::Borrowing;
use crate::lend::reconcile::Lending;
use futures::StreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::Peer;
use liquid_runtime::health::Part;
use liquid_runtime::watch::{Change, changes};
use std::collections::BTreeSet;

/// Follows the `Peer`s until the stream ends, which it does not.
pub(crate) async fn follow(client: Client, mut borrowing: Borrowing, lending: Lending, ready: Part) {
    let mut news = changes(Api::<Peer>::all(client), watcher::Config::default()).boxed();
    let mut known: BTreeSet<String> = BTreeSet::new();
    while let Some(change) = news.next().await {
        match change {
            Change::Applied(peer) => {
                known.insert(peer.name_any());
                lending.applied(&peer);
                borrowing.applied(&peer);
            }
            Change::Deleted(peer) => {
                known.remove(&peer.name_any());
                lending.deleted(&peer.name_any());
                borrowing.deleted(&peer.name_any());
            }
            Change::Listed(seen) => {
                known.retain(|name| {
                    let there = seen.contains(&(String::new(), name.clone()));
                    if !there {
                        lending.deleted(name);
                        borrowing.deleted(name);
                    }
                    there
                });
                ready.ready();
            }
        }
    }
}
