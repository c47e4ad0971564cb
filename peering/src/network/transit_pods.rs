//! Which peers have namespaces of this cluster in common, and the addresses of its pods in these: packets between them are
//! passed on. Gateways may not read pods, so they are told by a ConfigMap. Where no two peers have a namespace in common,
//! no pod is followed.

use super::transit::{Shared, own_pods};
use futures::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{GATEWAY_TRANSIT, MANAGED_BY, MANAGED_BY_LIQUID, TRANSIT_PODS};
use liquid_crds::{NamespaceOffloading, Peer};
use liquid_runtime::pods::{self, MAX_WATCHES};
use liquid_runtime::watch::{Change, ObjectName, Scoped, changes};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// Changes that come within this time are told together: each is read by every gateway.
const GATHER: Duration = Duration::from_millis(200);
/// Pause after the addresses could not be told.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Addresses told, of 40 bytes at most: less than the MiB that a ConfigMap takes.
const MAX_PODS: usize = 20_000;

type PodView = pods::PodView<SpecView>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecView {
    host_network: bool,
}

/// What one watch is about: the pods of a namespace, or all.
type Scope = Option<String>;

/// Keeps `shared` and the ConfigMap up to date, for ever.
pub(super) async fn observe(
    client: Client,
    namespace: String,
    mut peers: watch::Receiver<Option<BTreeMap<String, Peer>>>,
    shared: watch::Sender<Option<Shared>>,
) {
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let mut offloadings = changes(Api::<NamespaceOffloading>::all(client.clone()), Config::default()).boxed();
    let mut watches = Scoped::default();
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
                    shared.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&index.shared);
                        *known = Some(index.shared.clone());
                        changed
                    });
                }
                let scopes = index.scopes();
                index.keep(&scopes);
                watches.follow(scopes, |scope| pods::pods(&client, scope.as_deref()));
                publish.get_or_insert(gathered);
            }
            (scope, news) = watches.next() => {
                if index.learn(scope, news) {
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
    /// What these namespaces mean: which peers have some in common, and which of them have pods that may take part, because
    /// they are in one of these peers.
    shared: Shared,
    followed: BTreeSet<String>,
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
        self.shared = Shared::new(self.namespaces.values());
        let peers = self.shared.peers();
        let followed =
            self.namespaces.iter().filter(|(_, of)| of.iter().any(|it| peers.contains(it.as_str())));
        self.followed = followed.map(|(name, _)| name.clone()).collect();
    }

    fn scopes(&self) -> BTreeSet<Scope> {
        if self.followed.len() > MAX_WATCHES {
            return BTreeSet::from([None]);
        }
        self.followed.iter().cloned().map(Some).collect()
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
        let of_shared = self.shared.peers().into_iter().filter_map(|name| peers.get(name));
        let prefixes: Vec<IpNet> = of_shared.flat_map(own_pods).collect();
        let pods = self.pods.iter().filter(|((namespace, _), _)| self.followed.contains(namespace));
        let addresses = pods.flat_map(|(_, addresses)| addresses).copied();
        Some(addresses.filter(|address| prefixes.iter().any(|prefix| prefix.contains(address))).collect())
    }
}

fn counted(pod: &PodView) -> Vec<IpAddr> {
    let status = pod.status.iter();
    status.flat_map(|status| status.own_addresses(pod.spec.host_network)).collect()
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
