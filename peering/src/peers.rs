//! Follows all `Peer`s and tells both halves, and the network.

use crate::consume::Borrowing;
use crate::lend::reconcile::Lending;
use crate::network::Network;
use futures::StreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::Peer;
use liquid_runtime::health::Part;
use liquid_runtime::watch::{Change, changes};
use std::collections::BTreeMap;

/// Follows the `Peer`s until the stream ends, which it does not.
pub(crate) async fn follow(
    client: Client,
    mut borrowing: Borrowing,
    lending: Lending,
    network: Network,
    ready: Part,
) {
    let mut news = changes(Api::<Peer>::all(client), watcher::Config::default()).boxed();
    let mut known: BTreeMap<String, Peer> = BTreeMap::new();
    let mut listed = false;
    while let Some(change) = news.next().await {
        match change {
            Change::Applied(peer) => {
                lending.applied(&peer);
                borrowing.applied(&peer);
                known.insert(peer.name_any(), peer);
            }
            Change::Deleted(peer) => {
                known.remove(&peer.name_any());
                lending.deleted(&peer.name_any());
                borrowing.deleted(&peer.name_any());
            }
            Change::Listed(seen) => {
                known.retain(|name, _| {
                    let there = seen.contains(&(String::new(), name.clone()));
                    if !there {
                        lending.deleted(name);
                        borrowing.deleted(name);
                    }
                    there
                });
                listed = true;
                ready.ready();
            }
        }
        if listed {
            network.peers(&known);
        }
    }
}
