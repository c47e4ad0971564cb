//! Companions of pods: what the provider shall have beside them, and what is in it.
//!
//! Of each kind and namespace the metadata is watched; what is wanted of it is read, at first and after each change.
//! Nothing is kept but names, versions and UIDs, and no Secret is read that nothing refers to (unless all are wanted).
//! NetworkPolicies are kept, for what they mean depends on more than themselves. Tokens of pods, and the way to home's API
//! server, are companions that do not exist at home: they are made when the provider asks for them.

mod issue;
mod policies;
mod references;
mod requests;
mod rules;
mod tokens;
mod watched;

pub(super) use tokens::Asked;

use super::actor::WantedNamespace;
use crate::neighbours::{Neighbours, Want};
use crate::translate::{Access, Reference};
use bytes::Bytes;
use ipnet::IpNet;
use issue::Issued;
use kube::Client;
use kube::api::{DynamicObject, PartialObjectMeta};
use liquid_crds::IngressReflection;
use liquid_link::digest::Hash;
use liquid_reflection::companion::{
    HOME_API_SERVER, HOME_ROOT_CA, ROOT_CA, certificates, is_made_for_pods, is_reflected, portable,
    translate_endpoints,
};
use liquid_reflection::frame::{Ref, Refusal, Wanted};
use liquid_reflection::policy::Census;
use liquid_reflection::{Consumer, Key, Kind, Prefixes, SetRef, Uid};
use liquid_runtime::watch::Change;
use policies::{Picture, Policies};
use references::{Companion, References, User};
use rules::{Rule, access, rule};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokens::{Tokens, is_tokens};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use watched::{Heard, Watched};

/// Changes that wait for the actor; beyond that the watches wait.
const NEWS_QUEUE: usize = 64;
/// Objects being read, and tokens being asked for, at once.
const MAX_READS: usize = 16;
/// The port of an API server in its own cluster.
const API_SERVER_PORT: u16 = 443;

/// What goes back to [`Companions::learn`].
pub(super) enum News {
    /// Of the watch with this number.
    Changed(SetRef, u64, Change<PartialObjectMeta<DynamicObject>>),
    /// What the API server has of it by now.
    Read(Companion, Option<DynamicObject>),
    /// The tokens for this Secret.
    Issued(Ref, Issued),
    /// There are none for this pod so far, and why.
    NotIssued(Ref, String),
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
    /// The provider's name, under which it is said what has to be known of home.
    provider: String,
    neighbours: Neighbours,
    /// By kind and namespace.
    followed: BTreeMap<SetRef, Followed>,
    /// Number of the last watch: what an earlier one of the same set has left behind is passed over.
    watches: u64,
    references: References,
    /// What pods of a namespace have of home's API server; nothing in those not named.
    access: BTreeMap<String, Access>,
    tokens: Tokens,
    /// Tokens being asked for, by the names of their Secrets.
    issuing: BTreeMap<Key, JoinHandle<()>>,
    /// Where pods at home reach the API server on behalf of those in providers.
    server: SocketAddr,
    /// Namespaces with a way there, by the UIDs of what they are offloaded by.
    led: BTreeMap<String, Uid>,
    policies: Policies,
    picture: Picture,
    network: Network,
    /// Namespaces whose Ingresses are in the provider, too.
    let_in: BTreeSet<String>,
    /// All pods of all virtual nodes are known: what none of them refers to is not wanted.
    pods_known: bool,
    /// Objects being read, and whether that is to be done once more.
    reading: BTreeMap<Companion, bool>,
    /// Bodies the provider waits for.
    owed: BTreeMap<Ref, Hash>,
    /// Claims that pods have begun or ceased to refer to, since they were taken.
    claims: BTreeSet<Key>,
    reads: Arc<Semaphore>,
    effects: Vec<Effect>,
}

impl Drop for Companions {
    fn drop(&mut self) {
        self.neighbours.want(&self.provider, Want::default());
    }
}

/// What follows for the actor.
pub(super) enum Effect {
    /// The body of an object, should it be asked for now. It is owed if `owed`.
    AtHand { target: Ref, hash: Hash, body: Bytes, owed: bool },
    /// There is something to know about it.
    Told(Ref, Refusal),
    /// Tokens of the pod are on their way.
    Served(Ref),
    /// The policies of the namespace are in the provider.
    Closed(Arc<str>),
}

/// How pods of both clusters reach each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Network {
    /// Prefixes of this cluster's pods, which the provider's may reach.
    pub(super) own: Vec<IpNet>,
    /// Prefixes of hosts outside of this cluster. Pods of this cluster in the provider reach them through it.
    pub(super) outside: Vec<IpNet>,
    /// Prefixes of pods in other providers. Those of this cluster's are reached through it.
    pub(super) transit: Vec<IpNet>,
    /// Prefixes of the provider's pods, and how they are seen here.
    pub(super) seen: Prefixes,
}

impl Network {
    /// Which endpoints are reached from the provider.
    fn addresses(&self) -> [&[IpNet]; 3] {
        [&self.own, &self.outside, &self.transit]
    }
}

impl Companions {
    /// The companions of the pods in `provider`; `server` leads to this cluster's API server. What comes out of the receiver
    /// is for [`Companions::learn`].
    pub(super) fn new(
        client: Client,
        provider: String,
        neighbours: Neighbours,
        server: SocketAddr,
    ) -> (Self, mpsc::Receiver<News>) {
        let (news, learned) = mpsc::channel(NEWS_QUEUE);
        let companions = Self {
            client,
            news,
            provider,
            neighbours,
            followed: BTreeMap::new(),
            watches: 0,
            references: References::default(),
            access: BTreeMap::new(),
            tokens: Tokens::default(),
            issuing: BTreeMap::new(),
            server,
            led: BTreeMap::new(),
            policies: Policies::default(),
            picture: Picture::default(),
            network: Network::default(),
            let_in: BTreeSet::new(),
            pods_known: false,
            reading: BTreeMap::new(),
            owed: BTreeMap::new(),
            claims: BTreeSet::new(),
            reads: Arc::new(Semaphore::new(MAX_READS)),
            effects: Vec::new(),
        };
        (companions, learned)
    }

    /// What has followed since it was last asked for.
    pub(super) fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What is known of home, for [`Companions::learn_census`].
    pub(super) fn census(&self) -> watch::Receiver<Census> {
        self.neighbours.census()
    }

    /// What pods of `namespace` have of this cluster's API server.
    pub(super) fn access(&self, namespace: &str) -> Access {
        self.access.get(namespace).copied().unwrap_or_default()
    }

    /// The provider has these namespaces. Returns those whose pods have another access than before.
    pub(super) fn keep(
        &mut self,
        namespaces: &BTreeMap<String, WantedNamespace>,
        network: Network,
        consumer: &mut Consumer,
    ) -> Vec<String> {
        let renumbered = network.addresses() != self.network.addresses();
        let Network { own, outside, transit, seen } = network.clone();
        let way = own.iter().any(|prefix| prefix.contains(&self.server.ip()));
        let kept = || namespaces.iter().filter(|(_, namespace)| !namespace.leaving);
        let offloaded: BTreeSet<String> = kept().map(|(name, _)| name.clone()).collect();
        let repictured = renumbered || seen != self.picture.seen || offloaded != self.picture.offloaded;
        let (mut rules, mut accesses) = (BTreeMap::new(), BTreeMap::new());
        for (name, namespace) in kept() {
            let access = access(&namespace.reflection, way);
            for kind in Kind::COMPANIONS {
                if let Some(rule) = rule(kind, &namespace.reflection, access, !own.is_empty()) {
                    rules.insert(SetRef::companions(kind, name), rule);
                }
            }
            if access != Access::None {
                accesses.insert(name.clone(), access);
            }
        }
        self.picture.own = own.into_iter().chain(transit).collect();
        self.picture.outside = outside;
        (self.picture.seen, self.picture.offloaded) = (seen, offloaded);
        self.network = network;
        let let_in = kept().filter(|(_, it)| it.reflection.ingresses == IngressReflection::All);
        let let_in: BTreeSet<String> = let_in.map(|(name, _)| name.clone()).collect();
        let earlier_in = std::mem::replace(&mut self.let_in, let_in);
        let earlier = std::mem::replace(&mut self.access, accesses);
        self.give_up(&rules, consumer);
        for (set, rule) in rules {
            let scope = &*set.scope;
            let anew = renumbered || earlier_in.contains(scope) != self.let_in.contains(scope);
            self.follow(set, rule, anew, consumer);
        }
        let names: BTreeSet<&String> = earlier.keys().chain(self.access.keys()).collect();
        let names: Vec<String> = names.into_iter().cloned().collect();
        for name in &names {
            let changes = match self.access(name) {
                Access::None => self.tokens.revoke(name),
                Access::Tokens | Access::Server => self.tokens.wanted(name),
            };
            self.apply(changes, consumer);
        }
        self.lead(namespaces, consumer);
        if repictured {
            self.read_policies(consumer);
        }
        names.into_iter().filter(|name| earlier.get(name) != self.access.get(name)).collect()
    }

    fn give_up(&mut self, rules: &BTreeMap<SetRef, Rule>, consumer: &mut Consumer) {
        let given_up: Vec<_> =
            self.followed.keys().filter(|set| !rules.contains_key(*set)).cloned().collect();
        for set in given_up {
            let Some(followed) = self.followed.remove(&set) else { continue };
            consumer.remove_set(&set);
            match set.kind {
                Kind::NetworkPolicy => {
                    self.policies.remove_all(&set.scope);
                    self.tell_closed(&set.scope);
                }
                Kind::Ingress => {
                    for name in followed.watched.names() {
                        let ingress = Key { namespace: set.scope.clone(), name: name.clone() };
                        self.refer(User::Ingress(ingress), BTreeSet::new(), consumer);
                    }
                }
                _ => {}
            }
        }
        self.want_census();
    }

    fn follow(&mut self, set: SetRef, rule: Rule, renumbered: bool, consumer: &mut Consumer) {
        match self.followed.get_mut(&set) {
            None => {
                consumer.add_set(set.clone());
                self.watches += 1;
                let number = self.watches;
                let following = requests::follow(self.client.clone(), set.clone(), number, self.news.clone());
                let watch = tokio::spawn(following);
                self.followed.insert(set, Followed { rule, watched: Watched::default(), number, watch });
            }
            Some(followed) if followed.rule != rule || (renumbered && set.kind == Kind::EndpointSlice) => {
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

    /// Lets the provider have the way to this cluster's API server where pods have access to it.
    fn lead(&mut self, namespaces: &BTreeMap<String, WantedNamespace>, consumer: &mut Consumer) {
        let mut led = BTreeMap::new();
        for (name, _) in self.access.iter().filter(|(_, access)| **access == Access::Server) {
            if let Some(namespace) = namespaces.get(name) {
                led.insert(name.clone(), Uid::from(namespace.uid.as_str()));
            }
        }
        let earlier = std::mem::replace(&mut self.led, led);
        for kind in [Kind::Service, Kind::EndpointSlice] {
            let target = |name: &str, uid: &Uid| Ref {
                set: SetRef::companions(kind, name),
                key: Key::new(name, HOME_API_SERVER),
                uid: uid.clone(),
            };
            for (name, uid) in earlier.iter().filter(|(name, uid)| self.led.get(*name) != Some(uid)) {
                let gone = target(name, uid);
                consumer.removed(&gone.set, &gone.key, &gone.uid, None);
            }
            for (name, uid) in &self.led {
                let hash = Hash::of(&way(kind, self.server));
                consumer.observe(target(name, uid), Wanted::Present(hash), None);
            }
        }
    }

    /// A pod on a virtual node refers to these, and asks for these tokens.
    pub(super) fn pod(
        &mut self,
        node: &str,
        pod: &Key,
        references: BTreeSet<Reference>,
        asked: Option<Asked>,
        now: i64,
        consumer: &mut Consumer,
    ) {
        self.refer(User::pod(node, pod), references, consumer);
        let changes = self.tokens.set(node, pod, asked, now);
        self.apply(changes, consumer);
    }

    /// Of the pods on a virtual node, only these are left.
    pub(super) fn retain_pods(&mut self, node: &str, left: impl Fn(&Key) -> bool, consumer: &mut Consumer) {
        for companion in self.references.retain(node, &left) {
            self.judge(&companion, consumer);
        }
        let changes = self.tokens.retain(node, left);
        self.apply(changes, consumer);
    }

    fn refer(&mut self, user: User, references: BTreeSet<Reference>, consumer: &mut Consumer) {
        for companion in self.references.set(user, references) {
            self.judge(&companion, consumer);
        }
    }

    /// Claims that pods have begun (`true`) or ceased to refer to since the last call: they are followed elsewhere.
    pub(super) fn take_claims(&mut self) -> Vec<(Key, bool)> {
        let claims = std::mem::take(&mut self.claims);
        let referred = |claim: Key| {
            let companion = (Kind::PersistentVolumeClaim, claim);
            let referred = self.references.contains(&companion);
            (companion.1, referred)
        };
        claims.into_iter().map(referred).collect()
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

    /// Whether this is a pod that must not be in the provider yet: it would wait there for tokens that are not on their way,
    /// or be open to everybody until the policies of its namespace are there, too.
    pub(super) fn is_ahead(&self, target: &Ref) -> bool {
        target.set.kind == Kind::Pod && (self.tokens.waits(target) || !self.is_closed(&target.key.namespace))
    }

    /// Whether the provider has the policies of a namespace (or does not take them, which was told).
    fn is_closed(&self, namespace: &Arc<str>) -> bool {
        let followed = self.followed.get(&SetRef::companions(Kind::NetworkPolicy, namespace));
        followed.is_none_or(|followed| followed.watched.is_read() && self.policies.are_answered(namespace))
    }

    /// The provider has this object as it shall be.
    pub(super) fn settled(&mut self, target: &Ref) {
        if is_tokens(&(target.set.kind, target.key.clone())) {
            self.tokens.settled(target);
            self.effects.extend(self.tokens.owner(target).map(Effect::Served));
        }
        self.answered(target);
    }

    /// The provider has said something of this object.
    pub(super) fn answered(&mut self, target: &Ref) {
        if target.set.kind == Kind::NetworkPolicy {
            self.policies.answered(&target.key);
            self.tell_closed(&target.set.scope);
        }
    }

    fn tell_closed(&mut self, namespace: &Arc<str>) {
        if self.is_closed(namespace) {
            self.effects.push(Effect::Closed(namespace.clone()));
        }
    }

    /// What users know an object by: of tokens, the pod they are for.
    pub(super) fn known_as(&self, target: Ref) -> Ref {
        self.tokens.owner(&target).unwrap_or(target)
    }

    /// When there is something to do, in seconds since 1970.
    pub(super) fn poll_timeout(&self) -> Option<i64> {
        self.tokens.poll_timeout()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: i64, consumer: &mut Consumer) {
        let changes = self.tokens.handle_timeout(now);
        self.apply(changes, consumer);
    }

    fn apply(&mut self, changes: Vec<tokens::Change>, consumer: &mut Consumer) {
        for change in changes {
            match change {
                tokens::Change::Wanted(target, hash) => {
                    consumer.observe(target, Wanted::Present(hash), None);
                }
                tokens::Change::Unwanted(target) => {
                    self.stop_issuing(&target.key);
                    self.owed.remove(&target);
                    consumer.removed(&target.set, &target.key, &target.uid, None);
                }
                tokens::Change::Overdue(pod) => {
                    let message = "the provider cannot be given new tokens of the pod's service account; those the pod has expire".to_owned();
                    let told = Refusal { reason: "TokenNotRenewed".to_owned(), message };
                    self.effects.push(Effect::Told(pod, told));
                }
            }
        }
    }

    fn stop_issuing(&mut self, secret: &Key) {
        if let Some(task) = self.issuing.remove(secret) {
            task.abort();
        }
    }

    /// The provider asks for the body of an object: returns it, or gets it.
    pub(super) fn owe(&mut self, target: Ref, hash: Hash) -> Option<Bytes> {
        let companion = (target.set.kind, target.key.clone());
        if *target.key.name == *HOME_API_SERVER {
            return Some(way(target.set.kind, self.server)).filter(|body| Hash::of(body) == hash);
        }
        if target.set.kind == Kind::NetworkPolicy {
            // If it means something else by now, it is asked for anew.
            return self.policies.body(&target.key, hash, &self.picture);
        }
        if !is_tokens(&companion) {
            self.owed.insert(target, hash);
            self.read(&companion);
            return None;
        }
        let order = self.tokens.order(&target)?;
        self.owed.insert(target.clone(), hash);
        let (client, slots, news) = (self.client.clone(), self.reads.clone(), self.news.clone());
        // Those that are being asked for are as good as others.
        self.issuing
            .entry(target.key.clone())
            .or_insert_with(|| tokio::spawn(requests::issue_for(client, target, order, slots, news)));
        None
    }

    /// The stream is lost, and what was under way in it.
    pub(super) fn disconnected(&mut self) {
        self.owed.clear();
        for task in std::mem::take(&mut self.issuing).into_values() {
            task.abort();
        }
    }

    /// Something has changed, or was read.
    pub(super) fn learn(&mut self, news: News, now: i64, consumer: &mut Consumer) {
        match news {
            News::Changed(set, number, change) => {
                if self.followed.get(&set).is_some_and(|followed| followed.number == number) {
                    self.changed(&set, change, consumer);
                }
            }
            News::Read(companion, found) => self.was_read(&companion, found, consumer),
            News::Issued(target, issued) => self.issued(target, issued, now, consumer),
            News::NotIssued(pod, why) => {
                let told = Refusal { reason: "FailedTokenRequest".to_owned(), message: why };
                self.effects.push(Effect::Told(pod, told));
            }
        }
    }

    /// Home has changed.
    pub(super) fn learn_census(&mut self, census: Census, consumer: &mut Consumer) {
        self.picture.census = census;
        self.read_policies(consumer);
    }

    fn issued(&mut self, target: Ref, issued: Issued, now: i64, consumer: &mut Consumer) {
        self.issuing.remove(&target.key);
        for (asked, seconds) in issued.lives {
            let changes = self.tokens.granted(asked, seconds, now);
            self.apply(changes, consumer);
        }
        let Some(hash) = self.owed.remove(&target) else { return };
        self.tokens.sent(&target);
        let owner = self.tokens.owner(&target);
        self.effects.push(Effect::AtHand { target, hash, body: issued.body, owed: true });
        self.effects.extend(owner.map(Effect::Served));
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
                let Some(name) = name_there(set, meta.name.as_deref().unwrap_or_default()) else { return };
                let (uid, version) =
                    (meta.uid.unwrap_or_default(), meta.resource_version.unwrap_or_default());
                if followed.watched.applied(name.clone(), &uid, &version) == Heard::News {
                    self.judge(&companion(name), consumer);
                }
            }
            Change::Deleted(object) => {
                let name = object.metadata.name.unwrap_or_default();
                let name = name_there(set, &name).unwrap_or_else(|| Arc::from(name));
                if let Some(uid) = followed.watched.deleted(&name) {
                    self.gone(&companion(name), &uid, consumer);
                }
            }
            Change::Listed(seen) => {
                let seen: BTreeSet<Arc<str>> =
                    seen.iter().filter_map(|(_, name)| name_there(set, name)).collect();
                for (name, uid) in followed.watched.listed(|name| seen.contains(name)) {
                    self.gone(&companion(name), &uid, consumer);
                }
            }
        }
        self.announce(set, consumer);
    }

    /// An object is gone at home.
    fn gone(&mut self, companion: &Companion, uid: &str, consumer: &mut Consumer) {
        let set = SetRef::companions(companion.0, &companion.1.namespace);
        consumer.removed(&set, &companion.1, &Uid::from(uid), None);
        match companion.0 {
            Kind::NetworkPolicy => {
                self.policies.remove(&companion.1);
                self.want_census();
            }
            Kind::Ingress => self.refer(User::Ingress(companion.1.clone()), BTreeSet::new(), consumer),
            _ => {}
        }
    }

    fn is_wanted(&self, companion: &Companion) -> bool {
        let set = SetRef::companions(companion.0, &companion.1.namespace);
        let referenced = || self.references.contains(companion);
        self.followed.get(&set).is_some_and(|followed| match followed.rule {
            _ if is_made_for_pods(companion.0, &companion.1.name) => referenced(),
            Rule::All => true,
            Rule::Referenced => referenced(),
            Rule::Own => false,
        })
    }

    /// An object has changed, or who refers to it.
    fn judge(&mut self, companion: &Companion, consumer: &mut Consumer) {
        if companion.0 == Kind::PersistentVolumeClaim {
            self.claims.insert(companion.1.clone());
            return;
        }
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
        let (client, slots, news) = (self.client.clone(), self.reads.clone(), self.news.clone());
        tokio::spawn(requests::read(client, companion.clone(), slots, news));
    }

    fn was_read(&mut self, companion: &Companion, found: Option<DynamicObject>, consumer: &mut Consumer) {
        if self.reading.remove(companion) == Some(true) {
            self.read(companion);
            return;
        }
        let set = SetRef::companions(companion.0, &companion.1.namespace);
        let wanted = self.is_wanted(companion);
        let Some(followed) = self.followed.get_mut(&set) else { return };
        followed.watched.was_read(&companion.1.name);
        match found {
            // Its deletion comes over the watch, too; but who waits for it must not wait for that.
            None => {
                self.owed.retain(|target, _| target.set != set || target.key != companion.1);
                if let Some(uid) = followed.watched.uid(&companion.1.name) {
                    self.gone(companion, &uid, consumer);
                }
            }
            Some(_) if !wanted => {}
            Some(object) => {
                let uid = Uid::from(object.metadata.uid.as_deref().unwrap_or_default());
                let target = Ref { set: set.clone(), key: companion.1.clone(), uid };
                let whole = serde_json::to_value(&object).unwrap_or_default();
                self.found(target, &whole, consumer);
            }
        }
        self.announce(&set, consumer);
    }

    /// An object that is wanted is there, like this.
    fn found(&mut self, target: Ref, object: &Value, consumer: &mut Consumer) {
        if target.set.kind == Kind::Ingress {
            let secrets = certificates(object).map(|name| (Kind::Secret, name.to_owned())).collect();
            self.refer(User::Ingress(target.key.clone()), secrets, consumer);
        }
        let let_in = self.let_in.contains(&*target.set.scope);
        match body(target.set.kind, object, &self.network, let_in) {
            Ok(Some(body)) if target.set.kind == Kind::NetworkPolicy => {
                self.policies.insert(target.key, target.uid, body);
                self.want_census();
                self.read_policies(consumer);
            }
            Ok(Some(body)) => {
                let body = Bytes::from(body.to_string());
                let hash = Hash::of(&body);
                consumer.observe(target.clone(), Wanted::Present(hash), None);
                let owed = self.owed.remove(&target) == Some(hash);
                self.effects.push(Effect::AtHand { target, hash, body, owed });
            }
            Ok(None) => {
                self.owed.remove(&target);
                consumer.removed(&target.set, &target.key, &target.uid, None);
            }
            Err(why) => {
                consumer.removed(&target.set, &target.key, &target.uid, None);
                let refusal = Refusal { reason: "NotReflected".to_owned(), message: why };
                self.effects.push(Effect::Told(target, refusal));
            }
        }
    }

    /// Says what has to be known of home to read the policies.
    fn want_census(&self) {
        self.neighbours.want(&self.provider, self.policies.want(&self.picture.census));
    }

    /// Reads the policies anew, and tells what has changed in them.
    fn read_policies(&mut self, consumer: &mut Consumer) {
        self.want_census();
        for changed in self.policies.read(&self.picture) {
            let set = SetRef::companions(Kind::NetworkPolicy, &changed.key.namespace);
            let target = Ref { set, key: changed.key, uid: changed.uid };
            consumer.observe(target.clone(), Wanted::Present(changed.hash), None);
            if let Some(notes) = changed.notes.filter(|notes| !notes.is_empty()) {
                let message = format!("in {}: {}", self.provider, notes.join("; "));
                let told = Refusal { reason: "PolicyNarrowed".to_owned(), message };
                self.effects.push(Effect::Told(target, told));
            }
        }
        let sets: Vec<SetRef> =
            self.followed.keys().filter(|set| set.kind == Kind::NetworkPolicy).cloned().collect();
        for set in sets {
            self.announce(&set, consumer);
        }
    }

    /// The inventory of a set may be sent when everything that is wanted of it is known.
    fn announce(&mut self, set: &SetRef, consumer: &mut Consumer) {
        if set.kind == Kind::NetworkPolicy {
            self.tell_closed(&set.scope);
        }
        let Some(followed) = self.followed.get(set) else { return };
        let by_pods = followed.rule != Rule::All
            || (matches!(set.kind, Kind::ConfigMap | Kind::Secret)
                && self.access(&set.scope) != Access::None);
        let policies = set.kind != Kind::NetworkPolicy || self.policies.is_read(&set.scope);
        if followed.watched.is_read() && (self.pods_known || !by_pods) && policies {
            consumer.synced(set);
        }
    }
}

/// The name in the provider of an object of this name at home, if it is reflected.
fn name_there(set: &SetRef, name: &str) -> Option<Arc<str>> {
    if set.kind == Kind::ConfigMap && name == ROOT_CA {
        return Some(Arc::from(HOME_ROOT_CA));
    }
    let reflected = is_reflected(set.kind, &set.scope, name) && !is_made_for_pods(set.kind, name);
    reflected.then(|| Arc::from(name))
}

/// The body of an object as the provider shall have it; `None` if there is nothing in it for it.
/// What is behind an Ingress (`let_in`) is reached by pods of the provider, whose packets nobody passes on.
fn body(kind: Kind, object: &Value, network: &Network, let_in: bool) -> Result<Option<Value>, String> {
    let mut body = portable(kind, object)?;
    if kind == Kind::EndpointSlice {
        let pods = addresses_of_pods(object);
        let within = |prefixes: &[IpNet], address| prefixes.iter().any(|prefix| prefix.contains(&address));
        // Of endpoints on virtual nodes, the provider finds its own by the selector; those in others are told of where they
        // are reached, which pods are and nothing else.
        let passed_on = |address| {
            within(&network.outside, address)
                || (within(&network.transit, address) && pods.contains(&address))
        };
        let reached = |address| within(&network.own, address) || (!let_in && passed_on(address));
        if !translate_endpoints(&mut body, |address| reached(address).then_some(address)) {
            return Ok(None);
        }
    }
    Ok(Some(body))
}

/// Addresses in an EndpointSlice that are said to be those of pods.
fn addresses_of_pods(slice: &Value) -> BTreeSet<IpAddr> {
    let endpoints = slice.get("endpoints").and_then(Value::as_array).into_iter().flatten();
    let pods = endpoints
        .filter(|endpoint| endpoint.pointer("/targetRef/kind").and_then(Value::as_str) == Some("Pod"));
    let addresses = pods.filter_map(|endpoint| endpoint.get("addresses")?.as_array()).flatten();
    addresses.filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// The Service that leads to this cluster's API server, and where it leads: to `server`, a pod here.
fn way(kind: Kind, server: SocketAddr) -> Bytes {
    let (name, family) = ("https", if server.is_ipv4() { "IPv4" } else { "IPv6" });
    let object = match kind {
        Kind::Service => json!({"spec": {
            "type": "ClusterIP",
            "ports": [{"name": name, "protocol": "TCP", "port": API_SERVER_PORT, "targetPort": server.port()}],
        }}),
        _ => json!({
            "metadata": {"labels": {"kubernetes.io/service-name": HOME_API_SERVER}},
            "addressType": family,
            "ports": [{"name": name, "protocol": "TCP", "port": server.port()}],
            "endpoints": [{"addresses": [server.ip()], "conditions": {"ready": true}}],
        }),
    };
    // Nothing in it belongs to one cluster alone.
    Bytes::from(portable(kind, &object).unwrap_or_default().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_go_where_they_are_reached() {
        let slice = |addresses: &[&str]| {
            let endpoints: Vec<Value> = addresses.iter().map(|ip| json!({"addresses": [ip]})).collect();
            json!({"addressType": "IPv4", "endpoints": endpoints})
        };
        let own = Network { own: vec!["10.244.0.0/16".parse().unwrap()], ..Network::default() };
        let body = |slice: &Value, transit: &[IpNet]| {
            body(Kind::EndpointSlice, slice, &Network { transit: transit.to_vec(), ..own.clone() }, false)
        };
        let kept = body(&slice(&["10.244.0.7", "100.64.0.7"]), &[]).unwrap().unwrap();
        assert_eq!(kept["endpoints"], json!([{"addresses": ["10.244.0.7"]}]));
        assert_eq!(body(&slice(&["100.64.0.7"]), &[]), Ok(None), "pods of a provider");
        assert_eq!(body(&slice(&[]), &[]), Ok(None));

        let transit: Vec<IpNet> = vec!["100.64.0.0/16".parse().unwrap()];
        let mut pods = slice(&["10.244.0.7", "100.64.0.7", "100.65.0.7"]);
        for endpoint in pods["endpoints"].as_array_mut().unwrap() {
            endpoint["targetRef"] = json!({"kind": "Pod", "name": "p"});
            endpoint["conditions"] = json!({"ready": false});
        }
        let kept = body(&pods, &transit).unwrap().unwrap();
        let unready = |ip: &str| json!({"addresses": [ip], "conditions": {"ready": false}});
        assert_eq!(kept["endpoints"], json!([unready("10.244.0.7"), unready("100.64.0.7")]));
        assert_eq!(body(&slice(&["100.64.0.7"]), &transit), Ok(None), "whatever that is, it is no pod");

        let network = Network { outside: vec!["192.0.2.7/32".parse().unwrap()], ..own.clone() };
        let kept =
            |let_in| super::body(Kind::EndpointSlice, &slice(&["192.0.2.7", "192.0.2.8"]), &network, let_in);
        assert_eq!(kept(false).unwrap().unwrap()["endpoints"], json!([{"addresses": ["192.0.2.7"]}]));
        assert_eq!(kept(true), Ok(None), "what comes from an ingress controller is let through to nobody");
    }

    #[test]
    fn homes_authority_has_a_name_of_its_own_there() {
        let there = |kind, name: &str| name_there(&SetRef::companions(kind, "shop"), name);
        assert_eq!(there(Kind::ConfigMap, ROOT_CA).as_deref(), Some(HOME_ROOT_CA));
        assert_eq!(there(Kind::ConfigMap, HOME_ROOT_CA), None, "nobody takes its place");
        assert_eq!(there(Kind::Secret, "token-x.home.liquid.mesh"), None);
        assert_eq!(there(Kind::Service, HOME_API_SERVER), None);
        assert_eq!(there(Kind::Secret, "db").as_deref(), Some("db"));
    }

    #[test]
    fn the_way_home_is_a_service_and_an_endpoint() {
        let server = "10.244.0.9:6443".parse().unwrap();
        let made = |kind| -> Value { serde_json::from_slice(&way(kind, server)).unwrap() };
        assert_eq!(made(Kind::Service)["spec"]["ports"][0]["port"], 443);
        assert!(made(Kind::Service)["spec"].get("selector").is_none());
        assert_eq!(made(Kind::EndpointSlice)["endpoints"][0]["addresses"], json!(["10.244.0.9"]));
        assert_eq!(made(Kind::EndpointSlice)["ports"][0]["port"], 6443);
    }
}
