//! The cluster's side: watches of the API server that end in one [`Topology`].

mod events;
mod objects;

pub use events::{Denied, Events};

use crate::topology::{Gateway, Node, Peer, Place, Topology};
use futures::StreamExt as _;
use futures::stream::{BoxStream, SelectAll};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::TYPE;
use liquid_runtime::watch::{Change, changes, object_name};
use objects::{NodeObject, PeerObject, PodObject};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::info;

/// Label of the pods of `liquid-gateway`.
const GATEWAYS: &str = "app.kubernetes.io/name=liquid,app.kubernetes.io/component=gateway";
/// How long the pods of this node are waited for: without them nothing is let in that there are rules about, but everything else
/// goes on.
const PODS_PATIENCE: Duration = Duration::from_secs(5);
const PODS_HERE: &str = "pods of this node";
/// Finalizer of an owner that is deleted while what it owns shall live on.
const ORPHAN: &str = "orphan";

/// What is known of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Knowledge {
    /// Not everything has been read. Nothing is changed meanwhile.
    #[default]
    Incomplete,
    /// All of it has been read once, and is followed.
    Complete(Topology),
    /// The DaemonSet of this process is gone, so Liquid leaves this node.
    Uninstalled,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Namespace of Liquid.
    pub namespace: String,
    /// Where this process works.
    pub place: Place,
    /// DaemonSet whose end is the end of the overlay on this node.
    pub daemon_set: Option<String>,
}

/// One change of one kind.
enum Event {
    Node(Change<NodeObject>),
    Gateway(Change<PodObject>),
    Peer(Change<PeerObject>),
    DaemonSet(Change<PartialObjectMeta<DaemonSet>>),
    Namespace(Change<PartialObjectMeta<Namespace>>),
    Pod(Change<PodObject>),
}

/// Follows the cluster for ever, and tells what is known of it.
pub async fn follow(client: Client, watched: Watched, known: watch::Sender<Knowledge>) {
    let mut index = Index::new(&watched);
    let mut events = streams(&client, &watched);
    let mut deadline: Option<Instant> = None;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => index.apply(event),
                None => return,
            },
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                deadline = None;
                index.go_on_without_pods();
            }
        }
        if let Place::Node(node) = &watched.place
            && index.begins_to_need_pods()
        {
            follow_pods(&client, node, &mut events);
            deadline = Some(Instant::now() + PODS_PATIENCE);
        }
        let knowledge = index.knowledge();
        known.send_if_modified(|before| {
            let modified = *before != knowledge;
            if modified {
                *before = knowledge;
            }
            modified
        });
    }
}

fn streams(client: &Client, watched: &Watched) -> SelectAll<BoxStream<'static, Event>> {
    let mut streams = SelectAll::new();
    let peers = changes(Api::<PeerObject>::all(client.clone()), Config::default());
    streams.push(peers.map(Event::Peer).boxed());
    let nodes = match &watched.place {
        Place::Node(name) => Config::default().fields(&format!("metadata.name={name}")),
        // Nodes that stand for a peer are not of this cluster, and on some no liquid-fabric can run.
        Place::Gateway(_) => Config::default().labels(&format!("!{TYPE},kubernetes.io/os!=windows")),
    };
    streams.push(changes(Api::<NodeObject>::all(client.clone()), nodes).map(Event::Node).boxed());
    if matches!(watched.place, Place::Node(_)) {
        let pods = Api::<PodObject>::namespaced(client.clone(), &watched.namespace);
        streams.push(changes(pods, Config::default().labels(GATEWAYS)).map(Event::Gateway).boxed());
    }
    if let Some(name) = &watched.daemon_set {
        let sets = Api::<PartialObjectMeta<DaemonSet>>::namespaced(client.clone(), &watched.namespace);
        let config = Config::default().fields(&format!("metadata.name={name}"));
        streams.push(changes(sets, config).map(Event::DaemonSet).boxed());
    }
    streams
}

fn follow_pods(client: &Client, node: &str, streams: &mut SelectAll<BoxStream<'static, Event>>) {
    let here = Config::default().fields(&format!("spec.nodeName={node}"));
    streams.push(changes(Api::<PodObject>::all(client.clone()), here).map(Event::Pod).boxed());
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
    streams.push(changes(namespaces, Config::default()).map(Event::Namespace).boxed());
}

/// What has been heard so far.
#[derive(Debug, Default)]
struct Index {
    topology: Topology,
    /// Kinds that have not been listed yet.
    missing: BTreeSet<&'static str>,
    /// The DaemonSet has been seen, and whether its pods shall outlive it.
    daemon_set: Option<bool>,
    uninstalled: bool,
    /// The pods of this node are followed.
    follows_pods: bool,
    /// Kinds that nobody waits for any more although they have not been listed.
    unread: BTreeSet<&'static str>,
}

impl Index {
    fn new(watched: &Watched) -> Self {
        let mut missing = BTreeSet::from(["Peer", "Node"]);
        if matches!(watched.place, Place::Node(_)) {
            missing.insert("Pod");
        }
        Self { missing, ..Self::default() }
    }

    fn knowledge(&self) -> Knowledge {
        match (self.uninstalled, self.missing.is_empty()) {
            (true, _) => Knowledge::Uninstalled,
            (false, true) => Knowledge::Complete(self.topology.clone()),
            (false, false) => Knowledge::Incomplete,
        }
    }

    /// True once: when pods are to be followed from now on, for some peer may not reach all of them. They are known before
    /// anything is changed because of that.
    fn begins_to_need_pods(&mut self) -> bool {
        let needed = self.topology.peers.values().any(|peer| peer.access.is_some());
        let begins = needed && !self.follows_pods;
        if begins {
            self.follows_pods = true;
            self.missing.extend([PODS_HERE, "Namespace"]);
        }
        begins
    }

    /// They may be read later.
    fn go_on_without_pods(&mut self) {
        for kind in [PODS_HERE, "Namespace"] {
            if self.missing.remove(kind) {
                self.unread.insert(kind);
            }
        }
        self.topology.pods.unknown = !self.unread.is_empty();
    }

    fn read(&mut self, kind: &'static str) {
        self.missing.remove(kind);
        self.unread.remove(kind);
        self.topology.pods.unknown = !self.unread.is_empty();
    }

    fn apply(&mut self, event: Event) {
        let topology = &mut self.topology;
        let pods = &mut topology.pods;
        match event {
            Event::Pod(Change::Applied(pod)) => {
                let name = object_name(&pod);
                match pod.pod() {
                    Some(pod) => drop(pods.pods.insert(name, pod)),
                    None => drop(pods.pods.remove(&name)),
                }
            }
            Event::Pod(Change::Deleted(pod)) => drop(pods.pods.remove(&object_name(&pod))),
            Event::Pod(Change::Listed(names)) => {
                pods.pods.retain(|name, _| names.contains(name));
                self.read(PODS_HERE);
            }
            Event::Namespace(Change::Applied(mut namespace)) => {
                let labels = namespace.metadata.labels.take().unwrap_or_default();
                pods.namespaces.insert(namespace.name_any(), labels);
            }
            Event::Namespace(Change::Deleted(namespace)) => {
                pods.namespaces.remove(&namespace.name_any());
            }
            Event::Namespace(Change::Listed(names)) => {
                pods.namespaces.retain(|name, _| names.contains(&(String::new(), name.clone())));
                self.read("Namespace");
            }
            Event::Node(Change::Applied(node)) => {
                topology.nodes.insert(node.name_any(), Node::from(node));
            }
            Event::Node(Change::Deleted(node)) => drop(topology.nodes.remove(&node.name_any())),
            Event::Node(Change::Listed(names)) => {
                topology.nodes.retain(|name, _| names.contains(&(String::new(), name.clone())));
                self.missing.remove("Node");
            }
            Event::Gateway(Change::Applied(pod)) => {
                let name = pod.name_any();
                match pod.gateway() {
                    Some(gateway) => drop::<Option<Gateway>>(topology.gateways.insert(name, gateway)),
                    None => drop(topology.gateways.remove(&name)),
                }
            }
            Event::Gateway(Change::Deleted(pod)) => drop(topology.gateways.remove(&pod.name_any())),
            Event::Gateway(Change::Listed(names)) => {
                // All of them are in one namespace.
                let names: BTreeSet<_> = names.into_iter().map(|(_, name)| name).collect();
                topology.gateways.retain(|name, _| names.contains(name));
                self.missing.remove("Pod");
            }
            Event::Peer(Change::Applied(peer)) => {
                topology.peers.insert(peer.name_any(), Peer::from(peer));
            }
            Event::Peer(Change::Deleted(peer)) => drop(topology.peers.remove(&peer.name_any())),
            Event::Peer(Change::Listed(names)) => {
                topology.peers.retain(|name, _| names.contains(&(String::new(), name.clone())));
                self.missing.remove("Peer");
            }
            Event::DaemonSet(change) => self.daemon_set(&change),
        }
    }

    /// Only a DaemonSet that was seen and is gone is a statement; one that is not found may be called otherwise.
    fn daemon_set(&mut self, change: &Change<PartialObjectMeta<DaemonSet>>) {
        let gone = match change {
            Change::Applied(set) => {
                self.daemon_set = Some(set.finalizers().iter().any(|finalizer| finalizer == ORPHAN));
                // Made anew under the same name: its pods, this one perhaps among them, are wanted.
                self.uninstalled = false;
                false
            }
            Change::Deleted(set) => !object_name(set).1.is_empty(),
            Change::Listed(names) => names.is_empty(),
        };
        if gone && self.daemon_set.take() == Some(false) {
            info!("the DaemonSet is gone: the overlay leaves this node");
            self.uninstalled = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn watched() -> Watched {
        Watched { namespace: "liquid".into(), place: Place::Node("n".into()), daemon_set: Some("f".into()) }
    }

    fn peer(name: &str, seen: &str) -> Event {
        let status = json!({"network": {"podCIDRs": [{"real": "10.244.0.0/16", "seen": seen}]}});
        let peer = json!({"metadata": {"name": name}, "status": status});
        Event::Peer(Change::Applied(from_value(peer).unwrap()))
    }

    fn listed(names: &[&str]) -> BTreeSet<(String, String)> {
        names.iter().map(|name| (String::new(), (*name).to_owned())).collect()
    }

    fn set(finalizers: &Value) -> PartialObjectMeta<DaemonSet> {
        from_value(json!({"metadata": {"name": "f", "finalizers": finalizers}})).unwrap()
    }

    fn complete() -> Index {
        let mut index = Index::new(&watched());
        for event in [
            peer("p", "10.201.0.0/16"),
            Event::Peer(Change::Listed(listed(&["p"]))),
            Event::Gateway(Change::Listed(listed(&[]))),
        ] {
            index.apply(event);
            assert_eq!(index.knowledge(), Knowledge::Incomplete);
        }
        index.apply(Event::Node(Change::Listed(listed(&[]))));
        index
    }

    fn peers(index: &Index) -> Vec<String> {
        match index.knowledge() {
            Knowledge::Complete(topology) => topology.peers.into_keys().collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_known_before_all_has_been_listed() {
        assert_eq!(peers(&complete()), ["p"]);
    }

    #[test]
    fn a_list_takes_away_what_was_deleted_unseen() {
        let mut index = complete();
        index.apply(peer("q", "10.202.0.0/16"));
        assert_eq!(peers(&index), ["p", "q"]);
        index.apply(Event::Peer(Change::Listed(listed(&["q"]))));
        assert_eq!(peers(&index), ["q"]);
    }

    #[test]
    fn only_a_daemon_set_that_was_there_and_is_gone_takes_the_overlay_along() {
        let mut index = complete();
        index.apply(Event::DaemonSet(Change::Listed(listed(&[]))));
        assert_ne!(index.knowledge(), Knowledge::Uninstalled, "never seen");

        index.apply(Event::DaemonSet(Change::Applied(set(&json!(["orphan"])))));
        index.apply(Event::DaemonSet(Change::Deleted(set(&json!(["orphan"])))));
        assert_ne!(index.knowledge(), Knowledge::Uninstalled, "its pods shall stay");

        index.apply(Event::DaemonSet(Change::Applied(set(&json!([])))));
        index.apply(Event::DaemonSet(Change::Deleted(set(&json!([])))));
        assert_eq!(index.knowledge(), Knowledge::Uninstalled);
        index.apply(Event::DaemonSet(Change::Applied(set(&json!([])))));
        assert_eq!(peers(&index), ["p"], "installed anew");
    }
}
