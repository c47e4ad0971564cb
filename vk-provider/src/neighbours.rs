//! Who is where at home: namespaces and pods that NetworkPolicies are about. One task follows them for all providers, as far
//! as they are wanted; where no policy is about other pods, nothing is followed.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_reflection::policy::{Census, CensusPod, Labels, NamedPort};
use liquid_runtime::pods::{self, MAX_WATCHES};
use liquid_runtime::watch::{Change, Scoped, changes};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Changes that come within this time are told together: each is a new version of policies in the providers.
const GATHER: Duration = Duration::from_millis(200);

/// What somebody has to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Want {
    /// The labels of all namespaces.
    pub(crate) namespaces: bool,
    /// The pods of these namespaces.
    pub(crate) pods: BTreeSet<Arc<str>>,
}

/// The handle to the task.
#[derive(Debug, Clone)]
pub(crate) struct Neighbours {
    wants: watch::Sender<BTreeMap<String, Want>>,
    census: watch::Receiver<Census>,
}

impl Neighbours {
    /// Starts the task; it ends with the last handle.
    pub(crate) fn start(client: Client) -> Self {
        let (wants, wanted) = watch::channel(BTreeMap::new());
        let (census, known) = watch::channel(Census::default());
        tokio::spawn(follow(client, wanted, census));
        Self { wants, census: known }
    }

    /// `who` has to know this, and nothing else.
    pub(crate) fn want(&self, who: &str, want: Want) {
        self.wants.send_if_modified(|wants| {
            if want == Want::default() {
                return wants.remove(who).is_some();
            }
            let changed = wants.get(who) != Some(&want);
            wants.insert(who.to_owned(), want);
            changed
        });
    }

    /// What is known.
    pub(crate) fn census(&self) -> watch::Receiver<Census> {
        self.census.clone()
    }
}

type PodView = pods::PodView<SpecView>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecView {
    host_network: bool,
    containers: Vec<ContainerView>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct ContainerView {
    ports: Vec<PortView>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PortView {
    name: Option<String>,
    protocol: Option<String>,
    container_port: u16,
}

/// The pod, if it has addresses of its own and has not ended.
fn counted(pod: PodView) -> Option<CensusPod> {
    let addresses: Vec<IpAddr> = pod.status?.own_addresses(pod.spec.host_network).collect();
    if addresses.is_empty() {
        return None;
    }
    let ports = pod.spec.containers.into_iter().flat_map(|container| container.ports);
    let named = ports.filter_map(|port| {
        let protocol = port.protocol.unwrap_or_else(|| "TCP".to_owned());
        Some(NamedPort { name: port.name?, protocol, port: port.container_port })
    });
    Some(CensusPod { labels: pod.metadata.labels.unwrap_or_default(), addresses, ports: named.collect() })
}

/// What one watch is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Namespaces,
    PodsOf(Arc<str>),
    /// The pods of these namespaces, among all.
    AllPods(BTreeSet<Arc<str>>),
}

/// The watches that cover what is wanted.
fn scopes(wants: &BTreeMap<String, Want>) -> Vec<Scope> {
    let pods: BTreeSet<Arc<str>> = wants.values().flat_map(|want| want.pods.iter().cloned()).collect();
    let mut scopes: Vec<Scope> = if pods.len() > MAX_WATCHES {
        vec![Scope::AllPods(pods)]
    } else {
        pods.into_iter().map(Scope::PodsOf).collect()
    };
    if wants.values().any(|want| want.namespaces) {
        scopes.push(Scope::Namespaces);
    }
    scopes
}

enum News {
    Namespace(Change<PartialObjectMeta<Namespace>>),
    Pod(Change<PodView>),
}

fn news(client: &Client, scope: &Scope) -> BoxStream<'static, News> {
    let pods = |namespace| pods::pods(client, namespace).map(News::Pod).boxed();
    match scope {
        Scope::Namespaces => {
            let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
            changes(api, watcher::Config::default()).map(News::Namespace).boxed()
        }
        Scope::PodsOf(namespace) => pods(Some(&**namespace)),
        Scope::AllPods(_) => pods(None),
    }
}

async fn follow(
    client: Client,
    mut wanted: watch::Receiver<BTreeMap<String, Want>>,
    census: watch::Sender<Census>,
) {
    let mut watches = Scoped::default();
    let mut index = Index::default();
    let mut publish: Option<Instant> = None;
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let scopes = scopes(&wanted.borrow_and_update());
                index.keep(&scopes);
                watches.follow(scopes, |scope| news(&client, scope));
                publish.get_or_insert_with(|| Instant::now() + GATHER);
            }
            (scope, news) = watches.next() => {
                if index.learn(&scope, news) {
                    publish.get_or_insert_with(|| Instant::now() + GATHER);
                }
            }
            () = sleep_until(publish.unwrap_or_else(Instant::now)), if publish.is_some() => {
                publish = None;
                let known = index.census();
                census.send_if_modified(|census| {
                    let changed = *census != known;
                    *census = known;
                    changed
                });
            }
        }
    }
}

/// What the watches have told.
#[derive(Debug, Default)]
struct Index {
    namespaces: BTreeMap<Arc<str>, Labels>,
    /// The list of namespaces was read to its end.
    listed: bool,
    pods: BTreeMap<Arc<str>, Arc<BTreeMap<Arc<str>, CensusPod>>>,
    /// Namespaces whose pods were listed to the end.
    complete: BTreeSet<Arc<str>>,
}

impl Index {
    /// What is covered by none of these is known no more.
    fn keep(&mut self, scopes: &[Scope]) {
        let covered = |namespace: &Arc<str>| {
            scopes.iter().any(|scope| match scope {
                Scope::Namespaces => false,
                Scope::PodsOf(only) => only == namespace,
                Scope::AllPods(some) => some.contains(namespace),
            })
        };
        self.pods.retain(|namespace, _| covered(namespace));
        self.complete.retain(covered);
        if !scopes.contains(&Scope::Namespaces) {
            (self.namespaces, self.listed) = (BTreeMap::new(), false);
        }
    }

    /// Takes note; returns whether something has changed.
    fn learn(&mut self, scope: &Scope, news: News) -> bool {
        match news {
            News::Namespace(Change::Applied(namespace)) => {
                let labels = namespace.labels().clone();
                self.namespaces.insert(Arc::from(namespace.name_any()), labels.clone()) != Some(labels)
            }
            News::Namespace(Change::Deleted(namespace)) => {
                self.namespaces.remove(namespace.name_any().as_str()).is_some()
            }
            News::Namespace(Change::Listed(seen)) => {
                let seen: BTreeSet<&str> = seen.iter().map(|(_, name)| name.as_str()).collect();
                let before = self.namespaces.len();
                self.namespaces.retain(|name, _| seen.contains(&**name));
                !std::mem::replace(&mut self.listed, true) || self.namespaces.len() != before
            }
            News::Pod(Change::Applied(pod)) => {
                let (namespace, name) = names(&pod);
                if matches!(scope, Scope::AllPods(some) if !some.contains(&namespace)) {
                    return false;
                }
                self.set(namespace, name, counted(pod))
            }
            News::Pod(Change::Deleted(pod)) => {
                let (namespace, name) = names(&pod);
                self.set(namespace, name, None)
            }
            News::Pod(Change::Listed(seen)) => {
                let covered: BTreeSet<Arc<str>> = match scope {
                    Scope::Namespaces => BTreeSet::new(),
                    Scope::PodsOf(namespace) => BTreeSet::from([namespace.clone()]),
                    Scope::AllPods(some) => some.clone(),
                };
                let mut changed = false;
                for namespace in covered {
                    changed |= self.complete.insert(namespace.clone());
                    let Some(pods) = self.pods.get_mut(&namespace) else { continue };
                    let is_left = |name: &Arc<str>| seen.contains(&(namespace.to_string(), name.to_string()));
                    if !pods.keys().all(is_left) {
                        Arc::make_mut(pods).retain(|name, _| is_left(name));
                        changed = true;
                    }
                }
                changed
            }
        }
    }

    fn set(&mut self, namespace: Arc<str>, name: Arc<str>, pod: Option<CensusPod>) -> bool {
        let pods = self.pods.entry(namespace).or_default();
        if pods.get(&name) == pod.as_ref() {
            return false;
        }
        match pod {
            Some(pod) => drop(Arc::make_mut(pods).insert(name, pod)),
            None => drop(Arc::make_mut(pods).remove(&name)),
        }
        true
    }

    /// What is known for certain.
    fn census(&self) -> Census {
        let pods = |namespace: &Arc<str>| self.pods.get(namespace).cloned().unwrap_or_default();
        Census {
            namespaces: self.listed.then(|| Arc::new(self.namespaces.clone())),
            pods: self.complete.iter().map(|namespace| (namespace.clone(), pods(namespace))).collect(),
        }
    }
}

fn names(pod: &PodView) -> (Arc<str>, Arc<str>) {
    (Arc::from(pod.namespace().unwrap_or_default()), Arc::from(pod.name_any()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(namespace: &str, name: &str, fields: serde_json::Value) -> PodView {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "web"}, {"containerPort": 81}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.5"}]},
        });
        for (path, value) in fields.as_object().unwrap() {
            *pod.pointer_mut(path).unwrap() = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    fn of(namespace: &str) -> Scope {
        Scope::PodsOf(Arc::from(namespace))
    }

    #[test]
    fn pods_count_that_have_an_address_of_their_own() {
        let known = counted(pod("shop", "a", json!({}))).unwrap();
        assert_eq!((known.addresses.len(), known.ports[0].port, known.ports.len()), (1, 80, 1));
        for fields in [
            json!({"/status/phase": "Succeeded"}),
            json!({"/status/podIPs": []}),
            json!({"/spec": {"hostNetwork": true, "containers": []}}),
        ] {
            assert_eq!(counted(pod("shop", "a", fields.clone())), None, "{fields}");
        }
    }

    #[test]
    fn a_namespace_is_known_when_its_list_has_ended() {
        let mut index = Index::default();
        assert!(index.learn(&of("shop"), News::Pod(Change::Applied(pod("shop", "a", json!({}))))));
        assert!(!index.learn(&of("shop"), News::Pod(Change::Applied(pod("shop", "a", json!({}))))));
        assert!(index.census().pods.is_empty(), "there may be more");
        let seen = |name: &str| BTreeSet::from([("shop".to_owned(), name.to_owned())]);
        assert!(index.learn(&of("shop"), News::Pod(Change::Listed(seen("a")))));
        assert_eq!(index.census().pods["shop"].len(), 1);
        assert!(!index.learn(&of("shop"), News::Pod(Change::Listed(seen("a")))));
        assert!(index.learn(&of("shop"), News::Pod(Change::Listed(seen("b")))), "it is gone");
        assert_eq!(index.census().pods["shop"].len(), 0);
        index.keep(&[of("other")]);
        assert!(index.census().pods.is_empty());
    }

    #[test]
    fn many_namespaces_are_followed_by_one_watch() {
        let want = |names: usize, namespaces: bool| {
            let pods = (0..names).map(|name| Arc::from(format!("n{name}"))).collect();
            BTreeMap::from([("milan".to_owned(), Want { namespaces, pods })])
        };
        assert_eq!(scopes(&want(2, true)), [of("n0"), of("n1"), Scope::Namespaces]);
        let many = scopes(&want(MAX_WATCHES + 1, false));
        assert!(matches!(&many[..], [Scope::AllPods(some)] if some.len() == MAX_WATCHES + 1));
        let mut index = Index::default();
        assert!(!index.learn(&many[0], News::Pod(Change::Applied(pod("elsewhere", "a", json!({}))))));
        assert!(index.learn(&many[0], News::Pod(Change::Listed(BTreeSet::new()))));
        assert_eq!(index.census().pods.len(), MAX_WATCHES + 1);
    }
}
