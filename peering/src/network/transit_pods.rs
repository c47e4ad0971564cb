//! Which peers have namespaces of this cluster in common, and the addresses of its pods in these: packets between them are
//! passed on. Gateways may not read pods, so they are told by a ConfigMap. Where no two peers have a namespace in common,
//! no pod is followed.

use super::transit::{Shared, own_pods};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DeleteParams, Object, Patch, PatchParams};
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{GATEWAY_TRANSIT, MANAGED_BY, MANAGED_BY_LIQUID, TRANSIT_PODS};
use liquid_crds::{NamespaceOffloading, Peer};
use liquid_runtime::watch::{Change, ObjectName, changes, changes_of};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// Namespaces followed by a watch each. Beyond that one watch of all pods costs less than the connections.
const MAX_WATCHES: usize = 8;
/// Changes that come within this time are told together: each is read by every gateway.
const GATHER: Duration = Duration::from_millis(200);
/// Pause after the addresses could not be told.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Changes that wait; beyond that the watches do.
const NEWS_QUEUE: usize = 256;
/// Addresses told, of 40 bytes at most: less than the MiB that a ConfigMap takes.
const MAX_PODS: usize = 20_000;

/// A pod without most of it.
type PodView = Object<SpecView, StatusView>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecView {
    host_network: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StatusView {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<AddressView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AddressView {
    ip: IpAddr,
}

/// What one watch is about: the pods of a namespace, or all.
type Scope = Option<String>;

/// A watch; it ends when this is dropped.
struct Watching {
    number: u64,
    task: JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps `shared` and the ConfigMap up to date, for ever.
pub(super) async fn observe(
    client: Client,
    namespace: String,
    mut peers: watch::Receiver<Option<BTreeMap<String, Peer>>>,
    shared: watch::Sender<Option<Shared>>,
) {
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let mut offloadings = changes(Api::<NamespaceOffloading>::all(client.clone()), Config::default()).boxed();
    let (told, mut heard) = mpsc::channel(NEWS_QUEUE);
    let (mut watches, mut numbers) = (BTreeMap::<Scope, Watching>::new(), 0);
    let mut index = Index::default();
    let mut written: Option<BTreeSet<IpAddr>> = None;
    let mut publish: Option<Instant> = None;
    loop {
        let gathered = Instant::now() + GATHER;
        tokio::select! {
            change = offloadings.next() => {
                let Some(change) = change else { return };
                index.offloaded(change);
                if index.listed {
                    let now = index.shared();
                    shared.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&now);
                        *known = Some(now);
                        changed
                    });
                }
                let scopes = index.scopes();
                watches.retain(|scope, _| scopes.contains(scope));
                index.keep(&scopes);
                for scope in scopes {
                    watches.entry(scope.clone()).or_insert_with(|| {
                        numbers += 1;
                        let (mut news, told, number) = (news(&client, scope.as_deref()), told.clone(), numbers);
                        let task = tokio::spawn(async move {
                            while let Some(news) = news.next().await {
                                if told.send((scope.clone(), number, news)).await.is_err() {
                                    return;
                                }
                            }
                        });
                        Watching { number, task }
                    });
                }
                publish.get_or_insert(gathered);
            }
            Some((scope, number, news)) = heard.recv() => {
                // An earlier watch of the same scope may have left something behind.
                let current = watches.get(&scope).is_some_and(|watching| watching.number == number);
                if current && index.learn(scope, news) {
                    publish.get_or_insert(gathered);
                }
            }
            changed = peers.changed() => {
                if changed.is_err() {
                    return;
                }
                publish.get_or_insert(gathered);
            }
            () = sleep_until(publish.unwrap_or(gathered)), if publish.is_some() => {
                publish = None;
                let known = peers.borrow_and_update().clone();
                let wanted = known.and_then(|peers| index.addresses(&peers));
                let Some(wanted) = wanted.filter(|wanted| written.as_ref() != Some(wanted)) else { continue };
                match write(&config_maps, &wanted).await {
                    Ok(()) => {
                        info!(addresses = wanted.len(), "pods whose packets are passed on from peer to peer published");
                        written = Some(wanted);
                    }
                    Err(error) => {
                        warn!(%error, "pods whose packets are passed on not published; trying again");
                        publish = Some(Instant::now() + RETRY_PAUSE);
                    }
                }
            }
        }
    }
}

fn news(client: &Client, namespace: Option<&str>) -> BoxStream<'static, Change<PodView>> {
    let resource = ApiResource::erase::<Pod>(&());
    let api: Api<PodView> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    changes_of(api, "Pod", Config::default()).boxed()
}

async fn write(config_maps: &Api<ConfigMap>, addresses: &BTreeSet<IpAddr>) -> Result<(), kube::Error> {
    if addresses.is_empty() {
        return match config_maps.delete(GATEWAY_TRANSIT, &DeleteParams::default()).await {
            Err(error) if !matches!(&error, kube::Error::Api(status) if status.is_not_found()) => Err(error),
            _ => Ok(()),
        };
    }
    if addresses.len() > MAX_PODS {
        warn!(
            pods = addresses.len(),
            "packets are passed on between the first {MAX_PODS} pods in peers only"
        );
    }
    let text: Vec<String> = addresses.iter().take(MAX_PODS).map(ToString::to_string).collect();
    let published = ConfigMap {
        metadata: ObjectMeta {
            name: Some(GATEWAY_TRANSIT.to_owned()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(TRANSIT_PODS.to_owned(), text.join(" "))])),
        ..ConfigMap::default()
    };
    let apply = PatchParams::apply("liquid-controller").force();
    config_maps.patch(GATEWAY_TRANSIT, &apply, &Patch::Apply(&published)).await.map(drop)
}

/// What the watches have told.
#[derive(Debug, Default)]
struct Index {
    /// The peers that have a namespace, by its name.
    namespaces: BTreeMap<String, BTreeSet<String>>,
    /// The list of offloaded namespaces was read to its end.
    listed: bool,
    pods: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// What was listed to the end.
    complete: BTreeSet<Scope>,
}

impl Index {
    fn offloaded(&mut self, change: Change<NamespaceOffloading>) {
        let peers = |offloading: &NamespaceOffloading| -> BTreeSet<String> {
            let remote = offloading.status.iter().flat_map(|status| &status.remote_namespaces);
            remote.map(|namespace| namespace.peer.clone()).collect()
        };
        match change {
            Change::Applied(offloading) => {
                let name = offloading.namespace().unwrap_or_default();
                self.namespaces.insert(name, peers(&offloading));
            }
            Change::Deleted(offloading) => {
                self.namespaces.remove(&offloading.namespace().unwrap_or_default());
            }
            Change::Listed(seen) => {
                self.namespaces.retain(|name, _| seen.iter().any(|(namespace, _)| namespace == name));
                self.listed = true;
            }
        }
    }

    fn shared(&self) -> Shared {
        Shared::new(self.namespaces.values())
    }

    /// Namespaces with pods that may take part: those in one of the peers.
    fn followed(&self) -> BTreeSet<&str> {
        let shared = self.shared();
        let peers = shared.peers();
        let followed =
            self.namespaces.iter().filter(|(_, of)| of.iter().any(|it| peers.contains(it.as_str())));
        followed.map(|(name, _)| name.as_str()).collect()
    }

    fn scopes(&self) -> BTreeSet<Scope> {
        let followed = self.followed();
        if followed.len() > MAX_WATCHES {
            return BTreeSet::from([None]);
        }
        followed.into_iter().map(|name| Some(name.to_owned())).collect()
    }

    /// What none of these is about is known no more.
    fn keep(&mut self, scopes: &BTreeSet<Scope>) {
        self.complete.retain(|scope| scopes.contains(scope));
        if !scopes.contains(&None) {
            self.pods.retain(|(namespace, _), _| scopes.contains(&Some(namespace.clone())));
        }
    }

    /// Takes note; returns whether something has changed.
    fn learn(&mut self, scope: Scope, news: Change<PodView>) -> bool {
        match news {
            Change::Applied(pod) => {
                let addresses = counted(&pod);
                let name = (pod.namespace().unwrap_or_default(), pod.name_any());
                if addresses.is_empty() {
                    return self.pods.remove(&name).is_some();
                }
                self.pods.insert(name, addresses.clone()) != Some(addresses)
            }
            Change::Deleted(pod) => {
                self.pods.remove(&(pod.namespace().unwrap_or_default(), pod.name_any())).is_some()
            }
            Change::Listed(seen) => {
                let before = self.pods.len();
                let covers = |namespace: &str| scope.as_deref().is_none_or(|only| only == namespace);
                self.pods.retain(|name, _| !covers(&name.0) || seen.contains(name));
                self.complete.insert(scope.clone()) || self.pods.len() != before
            }
        }
    }

    /// The addresses of pods in peers that have something in common; none while not all of them are known.
    fn addresses(&self, peers: &BTreeMap<String, Peer>) -> Option<BTreeSet<IpAddr>> {
        if !self.listed || !self.scopes().iter().all(|scope| self.complete.contains(scope)) {
            return None;
        }
        let (shared, followed) = (self.shared(), self.followed());
        let of_shared = shared.peers().into_iter().filter_map(|name| peers.get(name));
        let prefixes: Vec<IpNet> = of_shared.flat_map(own_pods).collect();
        let pods = self.pods.iter().filter(|((namespace, _), _)| followed.contains(namespace.as_str()));
        let addresses = pods.flat_map(|(_, addresses)| addresses).copied();
        Some(addresses.filter(|address| prefixes.iter().any(|prefix| prefix.contains(address))).collect())
    }
}

/// The addresses of a pod, if it has some of its own and has not ended: then they are somebody else's soon.
fn counted(pod: &PodView) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let ended = matches!(status.phase.as_str(), "Succeeded" | "Failed");
    let own = !pod.spec.host_network && !ended;
    status.pod_ips.iter().filter(|_| own).map(|address| address.ip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(namespace: &str, name: &str, address: &str, phase: &str) -> Change<PodView> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name},
            "spec": {}, "status": {"phase": phase, "podIPs": [{"ip": address}]},
        });
        Change::Applied(serde_json::from_value(pod).unwrap())
    }

    fn offloading(namespace: &str, peers: &[&str]) -> Change<NamespaceOffloading> {
        let remote: Vec<_> =
            peers.iter().map(|peer| json!({"peer": peer, "name": "x", "ready": true})).collect();
        let object = json!({
            "apiVersion": "liquid.mesh/v1alpha1", "kind": "NamespaceOffloading",
            "metadata": {"namespace": namespace, "name": "offloading"},
            "spec": {}, "status": {"remoteNamespaces": remote},
        });
        Change::Applied(serde_json::from_value(object).unwrap())
    }

    fn names(names: &[(&str, &str)]) -> BTreeSet<ObjectName> {
        names.iter().map(|(namespace, name)| ((*namespace).to_owned(), (*name).to_owned())).collect()
    }

    fn peers() -> BTreeMap<String, Peer> {
        let peer = |name: &str, seen: &str| {
            let peer = json!({
                "apiVersion": "liquid.mesh/v1alpha1", "kind": "Peer", "metadata": {"name": name},
                "spec": {"clusterID": "6a9f0d5e-0000-4000-8000-000000000001"},
                "status": {"network": {"podCIDRs": [
                    {"real": "10.244.0.0/16", "seen": seen},
                    {"real": "10.99.0.0/16", "seen": "10.99.0.0/16", "transit": true},
                ]}},
            });
            (name.to_owned(), serde_json::from_value(peer).unwrap())
        };
        BTreeMap::from([peer("b", "10.201.0.0/16"), peer("c", "10.202.0.0/16")])
    }

    fn scope(namespace: &str) -> Scope {
        Some(namespace.to_owned())
    }

    #[test]
    fn pods_in_peers_with_a_namespace_in_common_take_part_and_no_others() {
        let mut index = Index::default();
        index.offloaded(offloading("shop", &["b", "c"]));
        index.offloaded(offloading("alone", &["d"]));
        assert_eq!(index.addresses(&peers()), None, "there may be more");
        index.offloaded(Change::Listed(names(&[("shop", "offloading"), ("alone", "offloading")])));
        assert_eq!(index.scopes(), [scope("shop")].into());
        assert_eq!(index.addresses(&peers()), None, "no pod is known");
        for (name, address, phase) in [
            ("in-b", "10.201.0.5", "Running"),
            ("in-c", "10.202.0.5", "Pending"),
            ("home", "10.244.0.5", "Running"),
            ("elsewhere", "10.99.0.5", "Running"),
            ("over", "10.201.0.6", "Succeeded"),
        ] {
            index.learn(scope("shop"), pod("shop", name, address, phase));
        }
        assert!(index.learn(
            scope("shop"),
            Change::Listed(names(&[("shop", "in-b"), ("shop", "in-c"), ("shop", "home")]))
        ));
        let addresses = |index: &Index| -> Vec<String> {
            index.addresses(&peers()).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(addresses(&index), ["10.201.0.5", "10.202.0.5"]);
        assert!(index.learn(scope("shop"), pod("shop", "in-b", "10.201.0.5", "Failed")));
        assert_eq!(addresses(&index), ["10.202.0.5"]);
        index.offloaded(offloading("shop", &["b"]));
        index.keep(&index.scopes());
        assert!(
            addresses(&index).is_empty() && index.pods.is_empty(),
            "they have nothing in common any more"
        );
    }

    #[test]
    fn many_namespaces_are_followed_by_one_watch() {
        let mut index = Index::default();
        for number in 0..=MAX_WATCHES {
            index.offloaded(offloading(&format!("n{number}"), &["b", "c"]));
        }
        assert_eq!(index.scopes(), [None].into());
        let seen = (0..=MAX_WATCHES).map(|number| (format!("n{number}"), "offloading".to_owned())).collect();
        index.offloaded(Change::Listed(seen));
        index.learn(None, pod("n1", "p", "10.201.0.5", "Running"));
        index.learn(None, pod("elsewhere", "p", "10.201.0.6", "Running"));
        index.learn(None, Change::Listed(names(&[("n1", "p"), ("elsewhere", "p")])));
        assert_eq!(index.addresses(&peers()).unwrap().len(), 1);
    }
}
