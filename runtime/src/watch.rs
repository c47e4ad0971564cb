//! Watches of the API server as a stream of changes that also says what a fresh list does *not* hold.

use futures::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt as _, watcher::Config};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

/// Objects per page of a list: bounds what one list pins in memory at a time.
const PAGE_SIZE: u32 = 100;

/// Namespace (empty for cluster-scoped objects) and name of an object.
pub type ObjectName = (String, String);

/// One change.
#[derive(Debug)]
pub enum Change<K> {
    /// The object exists, like this.
    Applied(K),
    /// The object is gone; this is its last state.
    Deleted(K),
    /// A list was read to its end (at the start, and after each interruption): these objects exist.
    Listed(BTreeSet<ObjectName>),
}

/// A watch that can begin anew, from the beginning. What it tells has the number of the watch, so that news of an earlier one
/// that is still on its way can be told from that of the current one.
#[derive(Debug, Default)]
pub struct Renewable(Option<(u64, JoinHandle<()>)>);

impl Renewable {
    /// Begins, or begins anew: `told` says how the receiver takes a change.
    pub fn begin<K, T>(
        &mut self,
        api: Api<K>,
        receiver: mpsc::Sender<(u64, T)>,
        told: impl Fn(Change<K>) -> T + Send + 'static,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Default,
        T: Send + 'static,
    {
        let number = self.0.take().map_or(0, |(number, watch)| {
            watch.abort();
            number + 1
        });
        let watch = tokio::spawn(async move {
            let mut news = changes(api, Config::default()).boxed();
            while let Some(change) = news.next().await {
                if receiver.send((number, told(change))).await.is_err() {
                    return;
                }
            }
        });
        self.0 = Some((number, watch));
    }

    /// Number of the current watch; none before the first.
    #[must_use]
    pub fn current(&self) -> Option<u64> {
        self.0.as_ref().map(|(number, _)| *number)
    }
}

impl Drop for Renewable {
    fn drop(&mut self) {
        if let Some((_, watch)) = &self.0 {
            watch.abort();
        }
    }
}

/// Namespace and name of `object`.
pub fn object_name<K: Resource>(object: &K) -> ObjectName {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Watches objects for ever, through errors and interruptions, with growing pauses.
pub fn changes<K>(api: Api<K>, config: Config) -> impl Stream<Item = Change<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    follow(watcher(api, config.page_size(PAGE_SIZE)), K::kind(&K::DynamicType::default()).into_owned())
}

/// As [`changes`], for kinds known only at run time.
pub fn changes_of<K>(api: Api<K>, kind: &str, config: Config) -> impl Stream<Item = Change<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    follow(watcher(api, config.page_size(PAGE_SIZE)), kind.to_owned())
}

fn follow<K: Resource + Clone + Send + 'static>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send,
    kind: String,
) -> impl Stream<Item = Change<K>> + Send {
    let mut listed = BTreeSet::new();
    events.default_backoff().filter_map(move |event| {
        let change = match event {
            Ok(Event::Init) => {
                listed.clear();
                None
            }
            Ok(Event::InitApply(object)) => {
                listed.insert(object_name(&object));
                Some(Change::Applied(object))
            }
            Ok(Event::InitDone) => Some(Change::Listed(std::mem::take(&mut listed))),
            Ok(Event::Apply(object)) => Some(Change::Applied(object)),
            Ok(Event::Delete(object)) => Some(Change::Deleted(object)),
            Err(error) => {
                warn!(%kind, %error, "watch interrupted; trying again");
                None
            }
        };
        std::future::ready(change)
    })
}
