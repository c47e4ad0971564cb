//! Companions of pods: which ConfigMaps, Secrets, Services and EndpointSlices the provider shall have, and what is in them.
//!
//! Of each kind and namespace the metadata is watched; what is wanted of it is read, at first and after each change.
//! Nothing is kept but names, versions and UIDs, and no Secret is read that no pod refers to (unless all are wanted).

mod references;
mod watched;

use super::actor::WantedNamespace;
use crate::request::within;
use crate::translate::Reference;
use bytes::Bytes;
use futures::StreamExt as _;
use ipnet::IpNet;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client};
use liquid_crds::{ConfigurationReflection, Reflection, ServiceReflection};
use liquid_link::digest::Hash;
use liquid_reflection::companion::{is_reflected, portable, translate_endpoints};
use liquid_reflection::frame::{Ref, Refusal, Wanted};
use liquid_reflection::{Consumer, Key, Kind, SetRef, Uid};
use liquid_runtime::backoff::{Backoff, entropy};
use liquid_runtime::watch::{Change, changes_of};
use references::{Companion, References};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, warn};
use watched::{Heard, Watched};

/// Changes that wait for the actor; beyond that the watches wait.
const NEWS_QUEUE: usize = 64;
/// Objects being read at once.
const MAX_READS: usize = 16;
/// First and longest pause after an object could not be read.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(30);

/// Which companions of a kind are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Referenced,
    All,
}

/// The rule for a kind; `None` if it is not reflected.
fn rule(kind: Kind, reflection: &Reflection, network: bool) -> Option<Rule> {
    let services = reflection.services == ServiceReflection::All;
    let configuration = |which| match which {
        ConfigurationReflection::Referenced => Some(Rule::Referenced),
        ConfigurationReflection::All => Some(Rule::All),
        ConfigurationReflection::None => None,
    };
    match kind {
        Kind::ConfigMap => configuration(reflection.config_maps),
        Kind::Secret => configuration(reflection.secrets),
        Kind::Service => services.then_some(Rule::All),
        // Without a network between the clusters nobody there reaches what is in them.
        Kind::EndpointSlice => (services && network).then_some(Rule::All),
        Kind::Namespace | Kind::Pod => None,
    }
}

/// What goes back to [`Companions::learn`].
pub(super) enum News {
    /// Of the watch with this number.
    Changed(SetRef, u64, Change<PartialObjectMeta<DynamicObject>>),
    /// What the API server has of it by now.
    Read(Companion, Option<DynamicObject>),
}

/// A set of companions that is being followed.
struct Followed {
    rule: Rule,
    watched: Watched,
    number: u64,
    watch: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// The companions of all pods in one provider.
pub(super) struct Companions {
    client: Client,
    news: mpsc::Sender<News>,
    /// By kind and namespace.
    followed: BTreeMap<SetRef, Followed>,
    /// Number of the last watch: what an earlier one of the same set has left behind is passed over.
    watches: u64,
    references: References,
    /// Prefixes of the pods that are endpoints over there.
    own_prefixes: Vec<IpNet>,
    /// All pods of all virtual nodes are known: what none of them refers to is not wanted.
    pods_known: bool,
    /// Objects being read, and whether that is to be done once more.
    reading: BTreeMap<Companion, bool>,
    /// Bodies the provider waits for.
    owed: BTreeMap<Ref, Hash>,
    reads: Arc<Semaphore>,
}

/// What follows from news for the actor.
#[derive(Debug)]
pub(super) enum Effect {
    /// The body of an object, should it be asked for now. It is owed if `true`.
    AtHand(Ref, Bytes, bool),
    /// It is not reflected, and why.
    Refused(Ref, Refusal),
}

impl Companions {
    /// What comes out of the receiver is for [`Companions::learn`].
    pub(super) fn new(client: Client) -> (Self, mpsc::Receiver<News>) {
        let (news, learned) = mpsc::channel(NEWS_QUEUE);
        let companions = Self {
            client,
            news,
            followed: BTreeMap::new(),
            watches: 0,
            references: References::default(),
            own_prefixes: Vec::new(),
            pods_known: false,
            reading: BTreeMap::new(),
            owed: BTreeMap::new(),
            reads: Arc::new(Semaphore::new(MAX_READS)),
        };
        (companions, learned)
    }

    /// The provider has these namespaces; its pods reach pods of this cluster with these prefixes.
    pub(super) fn keep(
        &mut self,
        namespaces: &BTreeMap<String, WantedNamespace>,
        own_prefixes: Vec<IpNet>,
        consumer: &mut Consumer,
    ) {
        let network = !own_prefixes.is_empty();
        let renumbered = std::mem::replace(&mut self.own_prefixes, own_prefixes) != self.own_prefixes;
        let mut rules = BTreeMap::new();
        for (name, namespace) in namespaces.iter().filter(|(_, namespace)| !namespace.leaving) {
            for kind in Kind::COMPANIONS {
                if let Some(rule) = rule(kind, &namespace.reflection, network) {
                    rules.insert(SetRef::companions(kind, name), rule);
                }
            }
        }
        let given_up: Vec<_> =
            self.followed.keys().filter(|set| !rules.contains_key(*set)).cloned().collect();
        for set in given_up {
            self.followed.remove(&set);
            consumer.remove_set(&set);
        }
        for (set, rule) in rules {
            match self.followed.get_mut(&set) {
                None => {
                    consumer.add_set(set.clone());
                    self.watches += 1;
                    let number = self.watches;
                    let watch =
                        tokio::spawn(follow(self.client.clone(), set.clone(), number, self.news.clone()));
                    self.followed.insert(set, Followed { rule, watched: Watched::default(), number, watch });
                }
                Some(followed)
                    if followed.rule != rule || (renumbered && set.kind == Kind::EndpointSlice) =>
                {
                    followed.rule = rule;
                    let known: Vec<Companion> = followed
                        .watched
                        .names()
                        .map(|name| (set.kind, Key { namespace: set.scope.clone(), name: name.clone() }))
                        .collect();
                    for companion in known {
                        self.judge(&companion, consumer);
                    }
                    self.announce(&set, consumer);
                }
                Some(_) => {}
            }
        }
    }

    /// A pod on a virtual node refers to these.
    pub(super) fn pod(
        &mut self,
        node: &str,
        pod: &Key,
        references: BTreeSet<Reference>,
        consumer: &mut Consumer,
    ) {
        for companion in self.references.set(node, pod, references) {
            self.judge(&companion, consumer);
        }
    }

    /// Of the pods on a virtual node, only these are left.
    pub(super) fn retain_pods(&mut self, node: &str, left: impl Fn(&Key) -> bool, consumer: &mut Consumer) {
        for companion in self.references.retain(node, left) {
            self.judge(&companion, consumer);
        }
    }

    /// All pods of all virtual nodes are known, or not (yet).
    pub(super) fn pods_known(&mut self, known: bool, consumer: &mut Consumer) {
        if self.pods_known != known {
            self.pods_known = known;
            for set in self.followed.keys().cloned().collect::<Vec<_>>() {
                self.announce(&set, consumer);
            }
        }
    }

    /// The provider asks for the body of an object: it is read.
    pub(super) fn owe(&mut self, target: Ref, hash: Hash) {
        let companion = (target.set.kind, target.key.clone());
        self.owed.insert(target, hash);
        self.read(&companion);
    }

    /// The stream is lost, and what was under way in it.
    pub(super) fn disconnected(&mut self) {
        self.owed.clear();
    }

    /// Something has changed, or was read.
    pub(super) fn learn(&mut self, news: News, consumer: &mut Consumer) -> Option<Effect> {
        match news {
            News::Changed(set, number, change) => {
                if self.followed.get(&set).is_some_and(|followed| followed.number == number) {
                    self.changed(&set, change, consumer);
                }
                None
            }
            News::Read(companion, found) => self.was_read(&companion, found, consumer),
        }
    }

    fn changed(
        &mut self,
        set: &SetRef,
        change: Change<PartialObjectMeta<DynamicObject>>,
        consumer: &mut Consumer,
    ) {
        let Some(followed) = self.followed.get_mut(set) else { return };
        let companion = |name: Arc<str>| (set.kind, Key { namespace: set.scope.clone(), name });
        match change {
            Change::Applied(object) => {
                let meta = object.metadata;
                let name: Arc<str> = Arc::from(meta.name.unwrap_or_default());
                if !is_reflected(set.kind, &set.scope, &name) {
                    return;
                }
                let (uid, version) =
                    (meta.uid.unwrap_or_default(), meta.resource_version.unwrap_or_default());
                if followed.watched.applied(name.clone(), &uid, &version) == Heard::News {
                    self.judge(&companion(name), consumer);
                }
            }
            Change::Deleted(object) => {
                let name: Arc<str> = Arc::from(object.metadata.name.unwrap_or_default());
                if let Some(uid) = followed.watched.deleted(&name) {
                    consumer.removed(set, &companion(name).1, &Uid::from(&*uid), None);
                }
            }
            Change::Listed(seen) => {
                for (name, uid) in
                    followed.watched.listed(|name| seen.contains(&(set.scope.to_string(), name.to_owned())))
                {
                    consumer.removed(set, &companion(name).1, &Uid::from(&*uid), None);
                }
            }
        }
        self.announce(set, consumer);
    }

    fn is_wanted(&self, companion: &Companion) -> bool {
        let set = SetRef::companions(companion.0, &companion.1.namespace);
        self.followed.get(&set).is_some_and(|followed| match followed.rule {
            Rule::All => true,
            Rule::Referenced => self.references.contains(companion),
        })
    }

    /// An object has changed, or who refers to it.
    fn judge(&mut self, companion: &Companion, consumer: &mut Consumer) {
        let set = SetRef::companions(companion.0, &companion.1.namespace);
        let wanted = self.is_wanted(companion);
        let Some(followed) = self.followed.get_mut(&set) else { return };
        let Some(uid) = followed.watched.uid(&companion.1.name) else { return };
        if wanted {
            followed.watched.unread(&companion.1.name);
            self.read(companion);
        } else {
            consumer.removed(&set, &companion.1, &Uid::from(&*uid), None);
        }
    }

    /// Reads an object, or once more after the read that is under way.
    fn read(&mut self, companion: &Companion) {
        if let Some(again) = self.reading.get_mut(companion) {
            *again = true;
            return;
        }
        self.reading.insert(companion.clone(), false);
        let (client, news, reads) = (self.client.clone(), self.news.clone(), self.reads.clone());
        let companion = companion.clone();
        tokio::spawn(async move {
            let permit = reads.acquire_owned().await;
            let found = get(client, &companion).await;
            drop(permit);
            // The actor is gone only when the process ends.
            drop(news.send(News::Read(companion, found)).await);
        });
    }

    fn was_read(
        &mut self,
        companion: &Companion,
        found: Option<DynamicObject>,
        consumer: &mut Consumer,
    ) -> Option<Effect> {
        if self.reading.remove(companion) == Some(true) {
            self.read(companion);
            return None;
        }
        let set = SetRef::companions(companion.0, &companion.1.namespace);
        let wanted = self.is_wanted(companion);
        let followed = self.followed.get_mut(&set)?;
        followed.watched.was_read(&companion.1.name);
        let effect = match found {
            // Its deletion comes over the watch, too; but who waits for it must not wait for that.
            None => {
                self.owed.retain(|target, _| target.set != set || target.key != companion.1);
                if let Some(uid) = followed.watched.uid(&companion.1.name) {
                    consumer.removed(&set, &companion.1, &Uid::from(&*uid), None);
                }
                None
            }
            Some(_) if !wanted => None,
            Some(object) => {
                let uid = Uid::from(object.metadata.uid.as_deref().unwrap_or_default());
                let target = Ref { set: set.clone(), key: companion.1.clone(), uid };
                let whole = serde_json::to_value(&object).unwrap_or_default();
                match body(companion.0, &whole, &self.own_prefixes) {
                    Ok(Some(body)) => {
                        let hash = Hash::of(&body);
                        consumer.observe(target.clone(), Wanted::Present(hash), None);
                        let owed = self.owed.remove(&target) == Some(hash);
                        Some(Effect::AtHand(target, body, owed))
                    }
                    Ok(None) => {
                        self.owed.remove(&target);
                        consumer.removed(&set, &target.key, &target.uid, None);
                        None
                    }
                    Err(why) => {
                        consumer.removed(&set, &target.key, &target.uid, None);
                        let refusal = Refusal { reason: "NotReflected".to_owned(), message: why };
                        Some(Effect::Refused(target, refusal))
                    }
                }
            }
        };
        self.announce(&set, consumer);
        effect
    }

    /// The inventory of a set may be sent when everything that is wanted of it has been read.
    fn announce(&self, set: &SetRef, consumer: &mut Consumer) {
        let Some(followed) = self.followed.get(set) else { return };
        if followed.watched.is_read() && (self.pods_known || followed.rule == Rule::All) {
            consumer.synced(set);
        }
    }
}

/// The body of an object as the provider shall have it; `None` if there is nothing in it for it.
fn body(kind: Kind, object: &Value, own_prefixes: &[IpNet]) -> Result<Option<Bytes>, String> {
    let mut body = portable(kind, object)?;
    if kind == Kind::EndpointSlice {
        // Endpoints on virtual nodes are pods of providers: each finds its own by the selector.
        let own =
            |address: IpAddr| own_prefixes.iter().any(|prefix| prefix.contains(&address)).then_some(address);
        if !translate_endpoints(&mut body, own) {
            return Ok(None);
        }
    }
    Ok(Some(Bytes::from(body.to_string())))
}

/// Follows the metadata of a kind in a namespace.
async fn follow(client: Client, set: SetRef, number: u64, news: mpsc::Sender<News>) {
    let objects: Api<PartialObjectMeta<DynamicObject>> =
        Api::namespaced_with(client, &set.scope, &resource(set.kind));
    let mut changes = changes_of(objects, set.kind.as_str(), watcher::Config::default()).boxed();
    while let Some(change) = changes.next().await {
        if news.send(News::Changed(set.clone(), number, change)).await.is_err() {
            return;
        }
    }
}

/// Reads an object, for as long as it takes; `None` if there is none.
async fn get(client: Client, (kind, key): &Companion) -> Option<DynamicObject> {
    let api: Api<DynamicObject> = Api::namespaced_with(client, &key.namespace, &resource(*kind));
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        match within(api.get_opt(&key.name)).await {
            Ok(found) => return found,
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                debug!(kind = kind.as_str(), %key, message = %status.message, "not read; trying again");
            }
            Err(error) => warn!(kind = kind.as_str(), %key, %error, "not read; trying again"),
        }
        sleep(backoff.next(entropy())).await;
    }
}

fn resource(kind: Kind) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(kind.group(), "v1", kind.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_go_where_they_are_reached() {
        let slice = |addresses: &[&str]| {
            let endpoints: Vec<Value> = addresses.iter().map(|ip| json!({"addresses": [ip]})).collect();
            json!({"addressType": "IPv4", "endpoints": endpoints})
        };
        let own: Vec<IpNet> = vec!["10.244.0.0/16".parse().unwrap()];
        let kept = body(Kind::EndpointSlice, &slice(&["10.244.0.7", "100.64.0.7"]), &own).unwrap().unwrap();
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        assert_eq!(kept["endpoints"], json!([{"addresses": ["10.244.0.7"]}]));
        assert_eq!(body(Kind::EndpointSlice, &slice(&["100.64.0.7"]), &own), Ok(None), "pods of a provider");
        assert_eq!(body(Kind::EndpointSlice, &slice(&[]), &own), Ok(None));
    }

    #[test]
    fn endpoints_are_of_no_use_without_a_network_or_their_services() {
        let reflection = Reflection::default();
        assert_eq!(rule(Kind::EndpointSlice, &reflection, true), Some(Rule::All));
        assert_eq!(rule(Kind::EndpointSlice, &reflection, false), None);
        assert_eq!(rule(Kind::Service, &reflection, false), Some(Rule::All));
        let none = Reflection { services: ServiceReflection::None, ..reflection };
        assert_eq!(rule(Kind::EndpointSlice, &none, true), None);
    }
}
