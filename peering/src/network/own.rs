//! What there is to know of this cluster's own network: the prefixes of its pods, its gateways, and which addresses
//! have a meaning here.

use super::announcement::{Announcement, MAX_PREFIXES, address, overlap};
use super::ipam::block;
use super::keys;
use crate::args::NetworkArgs;
use crate::info::{SETTLE, addresses as outside_addresses, outside};
use futures::stream::{BoxStream, StreamExt as _, select_all};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::PeerGateway;
use liquid_crds::vocabulary::{COMPONENT, COMPONENT_GATEWAY, GATEWAY_KEYS, TYPE};
use liquid_runtime::watch::{Change, changes};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

/// Pause after a failed request.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Tells a process in a pod where the Service `kubernetes` is.
const SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";

/// This cluster's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// What peers are told.
    pub(crate) announcement: Announcement,
    /// Addresses that mean something here.
    pub(crate) reserved: Vec<IpNet>,
    /// What is configured as outside of this cluster although addresses of this cluster are among it.
    pub(crate) withheld: Vec<IpNet>,
    /// Gateways whose pods are Ready, by their names.
    pub(crate) ready: BTreeSet<String>,
    /// All gateways there are, by their names: those with a Service, and those with a pod.
    pub(crate) gateways: BTreeSet<String>,
}

/// A part of what is known of this cluster, as soon as it is known and whenever it has changed.
pub(super) fn parts<T: Clone + PartialEq + Send + Sync + 'static>(
    own: watch::Receiver<Option<Own>>,
    part: fn(&Own) -> &T,
) -> BoxStream<'static, T> {
    let unfolded = futures::stream::unfold((own, None), move |(mut own, told): (_, Option<T>)| async move {
        let differs = |own: &Option<Own>| own.as_ref().is_some_and(|own| told.as_ref() != Some(part(own)));
        let next = part(own.wait_for(differs).await.ok()?.as_ref()?).clone();
        Some((next.clone(), (own, Some(next))))
    });
    unfolded.boxed()
}

/// Keeps `own` up to date. It is `None` until everything was read once.
pub(super) async fn observe(
    client: Client,
    namespace: String,
    settings: NetworkArgs,
    own: watch::Sender<Option<Own>>,
) {
    let gateway = format!("{COMPONENT}={COMPONENT_GATEWAY}");
    let of_gateways = || Config::default().labels(&gateway);
    let nodes = changes(Api::<Node>::all(client.clone()), Config::default().labels(&format!("!{TYPE}")));
    let services = changes(Api::<Service>::namespaced(client.clone(), &namespace), of_gateways());
    let pods = changes(Api::<Pod>::namespaced(client.clone(), &namespace), of_gateways());
    let only_keys = Config::default().fields(&format!("metadata.name={GATEWAY_KEYS}"));
    let stored_keys = changes(Api::<Secret>::namespaced(client.clone(), &namespace), only_keys);
    let mut sources: Vec<BoxStream<'static, News>> = vec![
        stored_keys.map(|_| News::Keys).boxed(),
        nodes.map(|change| News::Node(Box::new(change))).boxed(),
        services.map(|change| News::Service(Box::new(change))).boxed(),
        pods.map(|change| News::Pod(Box::new(change))).boxed(),
    ];
    let mut picture =
        Picture { missing: BTreeSet::from(["nodes", "services", "pods"]), ..Picture::default() };
    if serves_service_cidrs(&client).await {
        picture.missing.insert("service CIDRs");
        let ranges = changes(Api::<ServiceCIDR>::all(client.clone()), Config::default());
        sources.push(ranges.map(|change| News::ServiceCidr(Box::new(change))).boxed());
    } else {
        let host = std::env::var(SERVICE_HOST).ok().and_then(|host| host.parse::<IpAddr>().ok());
        picture.services_around = host.map(|host| block(&host.into()));
    }
    let mut news = select_all(sources);
    let mut keys = BTreeMap::new();
    while let Some(first) = news.next().await {
        picture.learn(first);
        let settled = Instant::now() + SETTLE;
        while let Ok(Some(more)) = timeout_at(settled, news.next()).await {
            picture.learn(more);
        }
        if std::mem::take(&mut picture.keys_changed) {
            keys.clear();
        }
        if !picture.missing.is_empty() {
            continue;
        }
        let gateways: Vec<String> = picture.services.keys().cloned().collect();
        while gateways.iter().any(|gateway| !keys.contains_key(gateway)) {
            match keys::ensure(&client, &namespace, &gateways).await {
                Ok(made) => keys = made,
                Err(error) => {
                    warn!(error = format!("{error:#}"), "keys of gateways not written; trying again");
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
        let found = picture.own(&settings, &keys);
        own.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&found);
            if changed {
                info!(pods = ?found.announcement.pod_cidrs, gateways = ?found.announcement.gateways, "network of this cluster");
                *known = Some(found);
            }
            changed
        });
    }
}

/// Whether the API server has ServiceCIDRs, as of Kubernetes 1.33.
async fn serves_service_cidrs(client: &Client) -> bool {
    loop {
        match client.list_api_group_resources("networking.k8s.io/v1").await {
            Ok(list) => return list.resources.iter().any(|resource| resource.name == "servicecidrs"),
            Err(error) => warn!(%error, "kinds of the API server not read; trying again"),
        }
        sleep(RETRY_PAUSE).await;
    }
}

enum News {
    Node(Box<Change<Node>>),
    Service(Box<Change<Service>>),
    /// The stored keys are others, or gone.
    Keys,
    Pod(Box<Change<Pod>>),
    ServiceCidr(Box<Change<ServiceCIDR>>),
}

#[derive(Debug, Default)]
struct Picture {
    /// What was not read to the end yet.
    missing: BTreeSet<&'static str>,
    nodes: BTreeMap<String, NodeNetwork>,
    services: BTreeMap<String, Service>,
    ready: BTreeMap<String, bool>,
    service_cidrs: BTreeMap<String, Vec<IpNet>>,
    /// Where Services are likely to be, if the API server does not say.
    services_around: Option<IpNet>,
    keys_changed: bool,
}

#[derive(Debug, Default)]
struct NodeNetwork {
    pod_cidrs: Vec<IpNet>,
    addresses: Vec<IpNet>,
    outside: Vec<IpAddr>,
}

impl Picture {
    fn learn(&mut self, news: News) {
        match news {
            News::Node(change) => follow(&mut self.nodes, &mut self.missing, "nodes", *change, node_network),
            News::Service(change) => {
                follow(&mut self.services, &mut self.missing, "services", *change, Service::clone);
            }
            News::Keys => self.keys_changed = true,
            News::Pod(change) => follow(&mut self.ready, &mut self.missing, "pods", *change, is_ready),
            News::ServiceCidr(change) => {
                follow(&mut self.service_cidrs, &mut self.missing, "service CIDRs", *change, service_cidrs);
            }
        }
    }

    fn own(&self, settings: &NetworkArgs, keys: &BTreeMap<String, String>) -> Own {
        let nodes = || self.nodes.values();
        let of_nodes: Vec<IpNet> = nodes().flat_map(|node| node.pod_cidrs.iter().copied()).collect();
        let mut pod_cidrs = if settings.pod_cidrs.is_empty() {
            bounded(&of_nodes)
        } else {
            let mut configured = IpNet::aggregate(&settings.pod_cidrs);
            configured.sort();
            configured
        };
        pod_cidrs.retain(|cidr| settings.ipv6 || is_v4(cidr));
        let hosts: Vec<IpAddr> = nodes().flat_map(|node| node.outside.clone()).collect();
        let gateways = self.services.iter().filter_map(|(name, service)| {
            let configured = settings.advertise.iter();
            let configured = configured.filter(|(number, _)| name.ends_with(&format!("-{number}")));
            let mut endpoints: Vec<String> = configured.map(|(_, endpoint)| endpoint.clone()).collect();
            if endpoints.is_empty() {
                endpoints = outside(service, hosts.iter());
            }
            let public_key = keys.get(name)?.clone();
            Some(PeerGateway { name: Some(name.clone()), public_key, endpoints, probes: true })
        });
        // Other nodes get their prefixes from around those there are.
        let pods =
            pod_cidrs.iter().map(|cidr| if settings.pod_cidrs.is_empty() { block(cidr) } else { *cidr });
        let mut reserved: Vec<IpNet> = pods
            .chain(self.service_cidrs.values().flatten().copied())
            .chain(self.services_around)
            .chain(nodes().flat_map(|node| node.addresses.iter().copied()))
            .collect();
        let is_ours = |cidr: &IpNet| reserved.iter().any(|ours| overlap(ours, cidr));
        let mut external = without_nested(&settings.external_cidrs);
        external.retain(|cidr| pod_cidrs.iter().any(|pods| is_v4(pods) == is_v4(cidr)));
        let (withheld, external): (Vec<_>, Vec<_>) = external.into_iter().partition(is_ours);
        reserved.extend(settings.reserved_cidrs.iter().chain(&external));
        reserved.sort();
        reserved.dedup();
        let ready = self.ready.iter().filter(|(_, ready)| **ready).map(|(name, _)| name.clone()).collect();
        let announcement =
            Announcement { pod_cidrs, gateways: gateways.collect(), external, ..Announcement::default() };
        let gateways = self.services.keys().chain(self.ready.keys()).cloned().collect();
        Own { announcement, reserved, withheld, ready, gateways }
    }
}

/// These prefixes, sorted, without those that are in others.
fn without_nested(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut apart: Vec<IpNet> = Vec::new();
    let mut sorted = prefixes.to_vec();
    sorted.sort();
    for prefix in sorted {
        // Wider ones come first.
        if !apart.last().is_some_and(|last| last.contains(&prefix)) {
            apart.push(prefix);
        }
    }
    apart
}

/// Keeps what `of` makes of the objects, by their names.
fn follow<K: kube::Resource, V>(
    known: &mut BTreeMap<String, V>,
    missing: &mut BTreeSet<&'static str>,
    kind: &'static str,
    change: Change<K>,
    of: fn(&K) -> V,
) {
    match change {
        Change::Applied(object) => drop(known.insert(object.name_any(), of(&object))),
        Change::Deleted(object) => drop(known.remove(&object.name_any())),
        Change::Listed(seen) => {
            let names: BTreeSet<&String> = seen.iter().map(|(_, name)| name).collect();
            known.retain(|name, _| names.contains(name));
            missing.remove(kind);
        }
    }
}

/// Whether a prefix is one of IPv4.
pub(super) fn is_v4(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V4(_))
}

/// At most [`MAX_PREFIXES`] prefixes that hold all of `prefixes`, with as little else as that takes. Families share the
/// number, so that none is widened because the other is scattered.
fn bounded(prefixes: &[IpNet]) -> Vec<IpNet> {
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = prefixes.iter().copied().partition(is_v4);
    let most = if v4.is_empty() || v6.is_empty() { MAX_PREFIXES } else { MAX_PREFIXES / 2 };
    let mut all = [widened(&v4, most), widened(&v6, most)].concat();
    all.sort();
    all
}

/// At most `most` prefixes of one family that hold all of `prefixes`.
fn widened(prefixes: &[IpNet], most: usize) -> Vec<IpNet> {
    let mut aggregated = IpNet::aggregate(&prefixes.to_vec());
    while aggregated.len() > most {
        let longest = aggregated.iter().map(IpNet::prefix_len).max().unwrap_or(0);
        let widened: Vec<IpNet> = aggregated
            .iter()
            .map(|net| if net.prefix_len() == longest { net.supernet().unwrap_or(*net) } else { *net })
            .collect();
        aggregated = IpNet::aggregate(&widened);
    }
    aggregated
}

fn node_network(node: &Node) -> NodeNetwork {
    let spec = node.spec.as_ref();
    let several = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten();
    let one = spec.and_then(|spec| spec.pod_cidr.as_ref()).into_iter();
    let mut pod_cidrs: Vec<IpNet> = several.chain(one).filter_map(|cidr| cidr.parse().ok()).collect();
    pod_cidrs.sort();
    pod_cidrs.dedup();
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let addresses = addresses.filter_map(|found| found.address.parse::<IpAddr>().ok()).map(IpNet::from);
    NodeNetwork { pod_cidrs, addresses: addresses.collect(), outside: outside_addresses(node) }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

fn service_cidrs(range: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = range.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    cidrs.into_iter().flatten().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Of a peer's prefixes, those of families that pods have here, too. As long as it is not known which these are, all.
pub(super) fn common_families(own: &[IpNet], theirs: &[IpNet]) -> Vec<IpNet> {
    let have = |prefix: &IpNet| own.is_empty() || own.iter().any(|own| is_v4(own) == is_v4(prefix));
    theirs.iter().filter(|prefix| have(prefix)).copied().collect()
}

/// Addresses in endpoints (host:port): what they lead to must not be behind a tunnel.
pub(super) fn addresses<'a>(endpoints: impl Iterator<Item = &'a String>) -> impl Iterator<Item = IpNet> {
    endpoints.filter_map(|endpoint| address(endpoint)).map(IpNet::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn picture() -> Picture {
        let mut picture =
            Picture { missing: BTreeSet::from(["nodes", "service CIDRs"]), ..Picture::default() };
        for (at, pods) in ["10.244.0.0/24", "10.244.1.0/24"].iter().enumerate() {
            let node: Node = object(json!({
                "metadata": {"name": format!("n{at}")},
                "spec": {"podCIDR": pods, "podCIDRs": [pods]},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{at}")}],
                },
            }));
            picture.learn(News::Node(Box::new(Change::Applied(node))));
        }
        let service: Service = object(json!({
            "metadata": {"name": "liquid-gateway-0"},
            "spec": {"ipFamilies": ["IPv4"], "ports": [{"port": 51820, "nodePort": 31820, "protocol": "UDP"}]},
        }));
        picture.learn(News::Service(Box::new(Change::Applied(service))));
        let range: ServiceCIDR =
            object(json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}));
        picture.learn(News::ServiceCidr(Box::new(Change::Applied(range))));
        picture
    }

    fn keys() -> BTreeMap<String, String> {
        BTreeMap::from([("liquid-gateway-0".to_owned(), "key".to_owned())])
    }

    #[test]
    fn peers_are_told_the_prefixes_of_the_nodes_and_where_the_gateways_are() {
        let own = picture().own(&NetworkArgs::default(), &keys());
        assert_eq!(own.announcement.pod_cidrs, nets(&["10.244.0.0/23"]));
        let endpoints = vec!["192.0.2.0:31820".to_owned(), "192.0.2.1:31820".to_owned()];
        let (name, public_key) = (Some("liquid-gateway-0".to_owned()), "key".to_owned());
        assert_eq!(own.announcement.gateways, [PeerGateway { name, public_key, endpoints, probes: true }]);
    }

    #[test]
    fn what_pods_services_and_nodes_have_is_reserved() {
        let own = picture().own(&NetworkArgs::default(), &keys());
        assert_eq!(own.reserved, nets(&["10.96.0.0/16", "10.244.0.0/16", "192.0.2.0/32", "192.0.2.1/32"]));
    }

    #[test]
    fn what_is_configured_wins() {
        let settings = NetworkArgs {
            pod_cidrs: nets(&["10.10.0.0/20"]),
            reserved_cidrs: nets(&["172.16.0.0/12"]),
            advertise: vec![(0, "gw.example:51820".to_owned()), (1, "other.example:1".to_owned())],
            ..NetworkArgs::default()
        };
        let own = picture().own(&settings, &keys());
        assert_eq!(own.announcement.pod_cidrs, nets(&["10.10.0.0/20"]));
        assert!(
            own.reserved.contains(&nets(&["10.10.0.0/20"])[0])
                && own.reserved.contains(&nets(&["172.16.0.0/12"])[0])
        );
        assert_eq!(own.announcement.gateways[0].endpoints, ["gw.example:51820"]);
    }

    #[test]
    fn hosts_outside_are_told_of_if_they_are_outside_and_pods_have_addresses_like_them() {
        let settings = NetworkArgs {
            external_cidrs: nets(&[
                "198.51.100.0/24",
                "198.51.100.9/32",
                "203.0.113.7/32",
                "2001:db8::7/128",
            ]),
            ..NetworkArgs::default()
        };
        let own = picture().own(&settings, &keys());
        assert_eq!(own.announcement.external, nets(&["198.51.100.0/24", "203.0.113.7/32"]));
        assert!(own.withheld.is_empty());
        assert!(own.announcement.external.iter().all(|cidr| own.reserved.contains(cidr)));
        for ours in ["10.244.200.0/24", "10.96.0.1/32", "192.0.2.0/24"] {
            let settings = NetworkArgs { external_cidrs: nets(&[ours]), ..NetworkArgs::default() };
            let own = picture().own(&settings, &keys());
            assert_eq!((own.announcement.external, own.withheld), (vec![], nets(&[ours])));
            assert_eq!(own.reserved.len(), 4, "and it is in nobody's way");
        }
        let nothing = Picture::default().own(&settings, &keys());
        assert!(nothing.announcement.external.is_empty(), "where there are no pods, nobody reaches them");
    }

    #[test]
    fn a_gateway_without_a_key_is_not_told_of() {
        assert!(picture().own(&NetworkArgs::default(), &BTreeMap::new()).announcement.gateways.is_empty());
    }

    #[test]
    fn scattered_nodes_are_told_of_in_few_prefixes_that_hold_them_all() {
        let scattered: Vec<IpNet> = (0..1000_u32)
            .map(|at| format!("10.{}.{}.0/24", at / 100, at % 100 * 2).parse().unwrap())
            .collect();
        let told = bounded(&scattered);
        assert!(told.len() <= MAX_PREFIXES && !told.is_empty());
        assert!(scattered.iter().all(|prefix| told.iter().any(|net| net.contains(prefix))));
        // The other family does not pay for it.
        let both = [scattered, nets(&["fd00:1::/64"])].concat();
        let told = bounded(&both);
        assert!(told.len() <= MAX_PREFIXES && told.contains(&nets(&["fd00:1::/64"])[0]), "{told:?}");
        assert!(both.iter().all(|prefix| told.iter().any(|net| net.contains(prefix))));
    }

    #[test]
    fn ipv6_is_told_of_only_if_gateways_forward_it() {
        let mut picture = picture();
        let node: Node = object(json!({
            "metadata": {"name": "n2"},
            "spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:1:2:3::/64"]},
        }));
        picture.learn(News::Node(Box::new(Change::Applied(node))));
        let told = |ipv6| {
            let settings = NetworkArgs { ipv6, ..NetworkArgs::default() };
            picture.own(&settings, &keys()).announcement.pod_cidrs
        };
        assert_eq!(told(false), nets(&["10.244.0.0/23", "10.244.2.0/24"]));
        assert_eq!(told(true), nets(&["10.244.0.0/23", "10.244.2.0/24", "fd00:1:2:3::/64"]));
    }

    #[test]
    fn nothing_is_known_before_everything_was_read() {
        let mut picture = picture();
        assert!(!picture.missing.is_empty());
        let names = (0..2).map(|at| (String::new(), format!("n{at}"))).collect();
        picture.learn(News::Node(Box::new(Change::Listed(names))));
        picture.learn(News::ServiceCidr(Box::new(Change::Listed(BTreeSet::new()))));
        assert!(picture.missing.is_empty() && picture.service_cidrs.is_empty() && picture.nodes.len() == 2);
    }
}
