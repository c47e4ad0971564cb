//! Watches of the API server as a stream of changes that also says what a fresh list does *not* hold.

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt as _, watcher::Config};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

/// Objects per page of a list: bounds what one list pins in memory at a time.
const PAGE_SIZE: u32 = 100;
/// Changes of [`Scoped`] watches that wait to be taken; beyond that the watches wait.
const NEWS_QUEUE: usize = 256;

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

/// A watch with its number; it ends when this is dropped.
#[derive(Debug)]
struct Numbered {
    number: u64,
    task: JoinHandle<()>,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A watch that can begin anew, from the beginning. What it tells has the number of the watch, so that news of an earlier one
/// that is still on its way can be told from that of the current one.
#[derive(Debug, Default)]
pub struct Renewable(Option<Numbered>);

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
        let number = self.0.take().map_or(0, |before| before.number + 1);
        let task = tokio::spawn(async move {
            let mut news = changes(api, Config::default()).boxed();
            while let Some(change) = news.next().await {
                if receiver.send((number, told(change))).await.is_err() {
                    return;
                }
            }
        });
        self.0 = Some(Numbered { number, task });
    }

    /// Number of the current watch; none before the first.
    #[must_use]
    pub fn current(&self) -> Option<u64> {
        self.0.as_ref().map(|watch| watch.number)
    }
}

/// Watches that are about a scope each, for as long as it is wanted.
#[derive(Debug)]
pub struct Scoped<S, T> {
    watches: BTreeMap<S, Numbered>,
    /// Watches begun so far.
    begun: u64,
    told: mpsc::Sender<(S, u64, T)>,
    heard: mpsc::Receiver<(S, u64, T)>,
}

impl<S, T> Default for Scoped<S, T> {
    fn default() -> Self {
        let (told, heard) = mpsc::channel(NEWS_QUEUE);
        Self { watches: BTreeMap::new(), begun: 0, told, heard }
    }
}

impl<S: Clone + Ord + Send + 'static, T: Send + 'static> Scoped<S, T> {
    /// Follows these scopes, and no others; `news` begins what there is to follow of one.
    pub fn follow(
        &mut self,
        scopes: impl IntoIterator<Item = S>,
        news: impl Fn(&S) -> BoxStream<'static, T>,
    ) {
        let scopes: BTreeSet<S> = scopes.into_iter().collect();
        self.watches.retain(|scope, _| scopes.contains(scope));
        for scope in scopes {
            self.watches.entry(scope.clone()).or_insert_with(|| {
                self.begun += 1;
                let (mut news, told, number) = (news(&scope), self.told.clone(), self.begun);
                let task = tokio::spawn(async move {
                    while let Some(news) = news.next().await {
                        if told.send((scope.clone(), number, news)).await.is_err() {
                            return;
                        }
                    }
                });
                Numbered { number, task }
            });
        }
    }

    /// The next news of a scope that is followed. Nothing is lost if this is not waited for to its end.
    pub async fn next(&mut self) -> (S, T) {
        loop {
            let (scope, number, news) = self.heard.recv().await.expect("a sender is kept in this");
            // An earlier watch of the same scope may have left something behind.
            if self.watches.get(&scope).is_some_and(|watch| watch.number == number) {
                return (scope, news);
            }
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
