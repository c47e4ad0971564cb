//! Which peers have namespaces of this cluster in common, and the addresses of its pods in these: packets between them are
//! passed on. And the addresses of its pods in peers that are offered hosts outside: their packets to these are let through.
//! Gateways may not read pods, so they are told by a ConfigMap. Other pods are not followed.

use super::transit::{Shared, own_pods};
use futures::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{GATEWAY_TRANSIT, MANAGED_BY, MANAGED_BY_LIQUID, OUTWARD_PODS, TRANSIT_PODS};
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

/// Changes that come within this time are told together.
const GATHER: Duration = Duration::from_millis(200);
/// Pause after addresses were told, for each: every gateway reads them all. With as many as there can be it is five seconds.
const PAUSE_PER_ADDRESS: Duration = Duration::from_micros(250);
/// Pause after the addresses could not be told.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Addresses told, of 40 bytes at most: less than the MiB that a ConfigMap takes.
const MAX_ADDRESSES: usize = 20_000;

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
    let only = Config::default().fields(&format!("metadata.name={GATEWAY_TRANSIT}"));
    let mut published = changes(config_maps.clone(), only).boxed();
    let mut offloadings = changes(Api::<NamespaceOffloading>::all(client.clone()), Config::default()).boxed();
    let mut watches = Scoped::default();
    let mut index = Index::default();
    // What the ConfigMap holds; nothing is written before that was read.
    let mut written: Option<Written> = None;
    let mut publish: Option<Instant> = None;
    let mut paused_until = Instant::now();
    peers.mark_changed();
    let gathered = || Instant::now() + GATHER;
    loop {
        tokio::select! {
            change = offloadings.next() => {
                let Some(change) = change else { return };
                if index.offloaded(change) {
                    shared.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&index.shared);
                        *known = Some(index.shared.clone());
                        changed
                    });
                    watches.follow(index.narrowed(), |scope| pods::pods(&client, scope.as_deref()));
                    publish.get_or_insert_with(gathered);
                }
            }
            (scope, news) = watches.next() => {
                if index.learn(scope, news) {
                    publish.get_or_insert_with(gathered);
                }
            }
            change = published.next() => {
                let Some(change) = change else { return };
                match change {
                    Change::Applied(config_map) => written = Some(Written::read(&config_map)),
                    Change::Deleted(_) => written = Some(Written::default()),
                    Change::Listed(seen) if seen.is_empty() => written = Some(Written::default()),
                    Change::Listed(_) => {}
                }
                publish.get_or_insert_with(gathered);
            }
            changed = peers.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Some(peers) = &*peers.borrow_and_update() && index.offer(peers) {
                    watches.follow(index.narrowed(), |scope| pods::pods(&client, scope.as_deref()));
                }
                publish.get_or_insert_with(gathered);
            }
            () = sleep_until(publish.unwrap_or(paused_until).max(paused_until)), if publish.is_some() => {
                publish = None;
                let Some(before) = &written else { continue };
                let wanted = peers.borrow().as_ref().and_then(|peers| index.wanted(peers));
                let Some(wanted) = wanted.filter(|wanted| wanted.texts() != before.texts()) else { continue };
                match write(&config_maps, &wanted).await {
                    Ok(()) => {
                        info!(
                            addresses = wanted.count,
                            "pods in peers whose packets are let through to other peers or hosts outside published"
                        );
                        if wanted.is_cut {
                            warn!("there are more of them than fit: the others reach no pod in another peer, or no host outside");
                        }
                        paused_until = Instant::now() + PAUSE_PER_ADDRESS * wanted.count;
                        written = Some(wanted);
                    }
                    Err(error) => {
                        warn!(%error, "pods whose packets are let through not published; trying again");
                        publish = Some(Instant::now() + RETRY_PAUSE);
                    }
                }
            }
        }
    }
}

/// What the ConfigMap holds: addresses in their order, with spaces between them. There is none if there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Written {
    transit: String,
    outward: String,
    /// Addresses, and whether there are more for which there is no room.
    count: u32,
    is_cut: bool,
}

impl Written {
    fn read(config_map: &ConfigMap) -> Self {
        let text = |key| config_map.data.as_ref().and_then(|data| data.get(key)).cloned().unwrap_or_default();
        Self::new(text(TRANSIT_PODS), text(OUTWARD_PODS))
    }

    fn new(transit: String, outward: String) -> Self {
        let count = [&transit, &outward].into_iter().flat_map(|text| text.split_whitespace()).count();
        Self { transit, outward, count: u32::try_from(count).unwrap_or(u32::MAX), is_cut: false }
    }

    fn texts(&self) -> [(&str, &str); 2] {
        [(TRANSIT_PODS, &self.transit), (OUTWARD_PODS, &self.outward)]
    }
}

async fn write(config_maps: &Api<ConfigMap>, wanted: &Written) -> Result<(), kube::Error> {
    if wanted.count == 0 {
        return match config_maps.delete(GATEWAY_TRANSIT, &DeleteParams::default()).await {
            Err(error) if !matches!(&error, kube::Error::Api(status) if status.is_not_found()) => Err(error),
            _ => Ok(()),
        };
    }
    let texts = wanted.texts().into_iter().filter(|(_, text)| !text.is_empty());
    let texts = texts.map(|(key, text)| (key.to_owned(), text.to_owned()));
    let published = ConfigMap {
        metadata: ObjectMeta {
            name: Some(GATEWAY_TRANSIT.to_owned()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(texts.collect()),
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
    /// The peers that are offered hosts outside.
    offered: BTreeSet<String>,
    pods: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// What was listed to the end.
    complete: BTreeSet<Scope>,
}

impl Index {
    /// Takes note; returns whether what is shared may be another one, which it is not before everything was listed.
    fn offloaded(&mut self, change: Change<NamespaceOffloading>) -> bool {
        let peers = |offloading: &NamespaceOffloading| -> BTreeSet<String> {
            let remote = offloading.status.iter().flat_map(|status| &status.remote_namespaces);
            remote.map(|namespace| namespace.peer.clone()).collect()
        };
        let changed = match change {
            Change::Applied(offloading) => {
                let (name, peers) = (offloading.namespace().unwrap_or_default(), peers(&offloading));
                self.namespaces.insert(name, peers.clone()) != Some(peers)
            }
            Change::Deleted(offloading) => {
                self.namespaces.remove(&offloading.namespace().unwrap_or_default()).is_some()
            }
            Change::Listed(seen) => {
                let seen: BTreeSet<&str> = seen.iter().map(|(namespace, _)| namespace.as_str()).collect();
                self.namespaces.retain(|name, _| seen.contains(name.as_str()));
                self.listed = true;
                true
            }
        };
        if !changed || !self.listed {
            return false;
        }
        self.shared = Shared::new(self.namespaces.values());
        true
    }

    /// Takes note of who is offered hosts outside; returns whether these are others.
    fn offer(&mut self, peers: &BTreeMap<String, Peer>) -> bool {
        let is_offered = |peer: &Peer| {
            let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
            network.is_some_and(|network| !network.our_external_cidrs.is_empty())
        };
        let offered =
            peers.iter().filter(|(_, peer)| is_offered(peer)).map(|(name, _)| name.clone()).collect();
        let changed = self.offered != offered;
        self.offered = offered;
        changed
    }

    /// Confines itself to pods that matter; returns where these are.
    fn narrowed(&mut self) -> BTreeSet<Scope> {
        let scopes = self.scopes();
        self.keep(&scopes);
        scopes
    }

    /// Where pods that matter are.
    fn scopes(&self) -> BTreeSet<Scope> {
        let shared = self.shared.peers();
        let matters = |peer: &String| shared.contains(peer.as_str()) || self.offered.contains(peer);
        let followed = self.namespaces.iter().filter(|(_, peers)| peers.iter().any(matters));
        let scopes: BTreeSet<Scope> = followed.map(|(name, _)| Some(name.clone())).collect();
        if scopes.len() > MAX_WATCHES { BTreeSet::from([None]) } else { scopes }
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

    /// What is to be written of the pods in peers that have something in common, and in those that are offered hosts outside;
    /// nothing while not all of them are known.
    fn wanted(&self, peers: &BTreeMap<String, Peer>) -> Option<Written> {
        if !self.listed || !self.scopes().iter().all(|scope| self.complete.contains(scope)) {
            return None;
        }
        let shared = self.shared.peers();
        let (transit, cut) = self.within(&shared, peers, MAX_ADDRESSES);
        let offered = self.offered.iter().map(String::as_str).collect();
        let (outward, cut_too) = self.within(&offered, peers, MAX_ADDRESSES - transit.len());
        let text = |addresses: &BTreeSet<IpAddr>| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        Some(Written { is_cut: cut || cut_too, ..Written::new(text(&transit), text(&outward)) })
    }

    /// Addresses in these peers of pods in their namespaces, as many as there is room for, and whether there are more.
    fn within(
        &self,
        of: &BTreeSet<&str>,
        peers: &BTreeMap<String, Peer>,
        room: usize,
    ) -> (BTreeSet<IpAddr>, bool) {
        let prefixes: Vec<IpNet> = of.iter().filter_map(|name| peers.get(*name)).flat_map(own_pods).collect();
        let there = |address: &&IpAddr| prefixes.iter().any(|prefix| prefix.contains(*address));
        let takes_part = |namespace: &String| {
            self.namespaces
                .get(namespace)
                .is_some_and(|peers| peers.iter().any(|peer| of.contains(peer.as_str())))
        };
        let mut all = BTreeSet::new();
        for (_, addresses) in self.pods.iter().filter(|((namespace, _), _)| takes_part(namespace)) {
            let addresses = addresses.iter().filter(there);
            // A pod with all its addresses, or not at all.
            if all.len() + addresses.clone().count() > room {
                return (all, true);
            }
            all.extend(addresses.copied());
        }
        (all, false)
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
        assert_eq!(index.wanted(&peers()), None, "there may be more");
        index.offloaded(Change::Listed(names(&[("shop", "offloading"), ("alone", "offloading")])));
        assert_eq!(index.narrowed(), [scope("shop")].into());
        assert_eq!(index.wanted(&peers()), None, "no pod is known");
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
        let addresses = |index: &Index| index.wanted(&peers()).unwrap().transit;
        assert_eq!(addresses(&index), "10.201.0.5 10.202.0.5");
        assert!(index.learn(scope("shop"), pod("shop", "in-b", "10.201.0.5", "Failed")));
        assert_eq!(addresses(&index), "10.202.0.5");
        index.offloaded(offloading("shop", &["b"]));
        assert_eq!(index.narrowed(), [].into());
        assert!(
            addresses(&index).is_empty() && index.pods.is_empty(),
            "they have nothing in common any more"
        );
    }

    #[test]
    fn pods_in_peers_that_are_offered_hosts_outside_reach_them_and_no_others() {
        let mut index = Index::default();
        index.offloaded(offloading("shop", &["b"]));
        index.offloaded(offloading("other", &["c"]));
        index.offloaded(Change::Listed(names(&[("shop", "offloading"), ("other", "offloading")])));
        assert_eq!(index.narrowed(), [].into());
        let mut peers = peers();
        assert!(!index.offer(&peers));
        let network = peers.get_mut("b").unwrap().status.as_mut().unwrap().network.as_mut().unwrap();
        network.our_external_cidrs = vec!["198.51.100.0/24".to_owned()];
        assert!(index.offer(&peers) && !index.offer(&peers));
        assert_eq!(index.narrowed(), [scope("shop")].into());
        index.learn(scope("shop"), pod("shop", "in-b", "10.201.0.5", "Running"));
        index.learn(scope("shop"), pod("shop", "in-c", "10.202.0.5", "Running"));
        index.learn(scope("shop"), pod("shop", "home", "10.244.0.5", "Running"));
        assert_eq!(index.wanted(&peers), None, "there may be more");
        let pods = [("shop", "in-b"), ("shop", "in-c"), ("shop", "home")];
        index.learn(scope("shop"), Change::Listed(names(&pods)));
        let written = index.wanted(&peers).unwrap();
        assert_eq!((written.transit.as_str(), written.outward.as_str()), ("", "10.201.0.5"));
        let data = written.texts().map(|(key, text)| (key.to_owned(), text.to_owned())).into();
        assert_eq!(Written::read(&ConfigMap { data: Some(data), ..ConfigMap::default() }), written);
    }

    #[test]
    fn there_are_as_many_addresses_as_fit_and_pods_have_all_of_theirs_or_none() {
        let mut index = Index::default();
        index.offloaded(offloading("shop", &["b", "c"]));
        index.offloaded(Change::Listed(names(&[("shop", "offloading")])));
        index.narrowed();
        index.learn(scope("shop"), Change::Listed(BTreeSet::new()));
        let address = |number: usize, second: u8| -> IpAddr {
            let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
            [10, second, high, low].into()
        };
        // The first one has an address, all others two.
        index.pods.insert(("shop".to_owned(), String::new()), vec![address(0, 201)]);
        for number in 1..=MAX_ADDRESSES / 2 {
            let both = vec![address(number, 201), address(number, 202)];
            index.pods.insert(("shop".to_owned(), format!("{number:05}")), both);
        }
        let mut written = index.wanted(&peers()).unwrap();
        assert_eq!((written.count as usize, written.is_cut), (MAX_ADDRESSES - 1, true));
        let last = [201, 202].map(|second| address(MAX_ADDRESSES / 2, second).to_string());
        assert!(!written.transit.split(' ').any(|address| last.iter().any(|last| last == address)));
        written.is_cut = false;
        let config_map = |text: &str| {
            let data = BTreeMap::from([(TRANSIT_PODS.to_owned(), text.to_owned())]);
            ConfigMap { data: Some(data), ..ConfigMap::default() }
        };
        assert_eq!(Written::read(&config_map(&written.transit)), written);
        assert_eq!(Written::read(&ConfigMap::default()), Written::default(), "as if there were none");
    }

    #[test]
    fn many_namespaces_are_followed_by_one_watch() {
        let mut index = Index::default();
        for number in 0..=MAX_WATCHES {
            assert!(!index.offloaded(offloading(&format!("n{number}"), &["b", "c"])), "there may be more");
        }
        let seen = (0..=MAX_WATCHES).map(|number| (format!("n{number}"), "offloading".to_owned())).collect();
        assert!(index.offloaded(Change::Listed(seen)));
        assert!(!index.offloaded(offloading("n1", &["b", "c"])), "it was so before");
        assert_eq!(index.narrowed(), [None].into());
        index.learn(None, pod("n1", "p", "10.201.0.5", "Running"));
        index.learn(None, pod("elsewhere", "p", "10.201.0.6", "Running"));
        index.learn(None, Change::Listed(names(&[("n1", "p"), ("elsewhere", "p")])));
        assert_eq!(index.wanted(&peers()).unwrap().count, 1);
    }
}
