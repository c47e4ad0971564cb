//! The Nodes of all virtual nodes, by one watch: each task hears of its own.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{TYPE, TYPE_VIRTUAL_NODE};
use liquid_runtime::watch::{Change, changes};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// What is known of the Node of a virtual node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    /// The first list has not been read.
    Unknown,
    /// There is none with the label of virtual nodes.
    Absent,
    /// It is like this, without images and the history of its fields.
    Node(Arc<Node>),
}

/// Who wants to hear of which Node.
#[derive(Clone, Default)]
pub(crate) struct WatchedNodes {
    heard: Arc<Mutex<BTreeMap<String, watch::Sender<Seen>>>>,
}

impl WatchedNodes {
    /// News of the Node `name`.
    pub(super) fn hear(&self, name: &str) -> watch::Receiver<Seen> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.retain(|_, sender| sender.receiver_count() > 0);
        heard.entry(name.to_owned()).or_insert_with(|| watch::Sender::new(Seen::Unknown)).subscribe()
    }

    fn tell(&self, name: &str, seen: Seen) {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = heard.get(name) {
            sender.send_replace(seen);
        }
    }

    /// Follows the Nodes for ever. Those that lose our label count as absent, upon which they are looked at.
    pub(crate) async fn follow(self, client: Client) {
        let ours = watcher::Config::default().labels(&format!("{TYPE}={TYPE_VIRTUAL_NODE}"));
        let mut news = changes(Api::<Node>::all(client), ours).boxed();
        while let Some(change) = news.next().await {
            match change {
                Change::Applied(mut node) => {
                    node.metadata.managed_fields = None;
                    if let Some(status) = node.status.as_mut() {
                        status.images = None;
                    }
                    self.tell(&node.name_any(), Seen::Node(Arc::new(node)));
                }
                Change::Deleted(node) => self.tell(&node.name_any(), Seen::Absent),
                Change::Listed(seen) => {
                    let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                    for (name, sender) in heard.iter() {
                        if !seen.contains(&(String::new(), name.clone())) {
                            sender.send_replace(Seen::Absent);
                        }
                    }
                }
            }
        }
    }
}
