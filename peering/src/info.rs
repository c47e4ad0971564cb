//! What this cluster publishes of itself: the ConfigMap from which `liquidctl invite` makes tokens, with the addresses
//! under which peers reach the link endpoint, and the gateways.

use crate::cluster::Cluster;
use anyhow::Result;
use futures::stream::{Stream, StreamExt as _, select_all};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::PeerGateway;
use liquid_crds::vocabulary::{CLUSTER_INFO, LINK_SERVICE, MANAGED_BY, MANAGED_BY_LIQUID, TYPE};
use liquid_runtime::watch::{Change, changes};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

/// Addresses of nodes advertised for a NodePort: enough to survive the loss of two, few enough for a token.
const MAX_NODE_ADDRESSES: usize = 3;
/// Changes of nodes come in bursts, and addresses are not urgent.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);

/// Publishes what peers need to know, and keeps the advertised addresses and the `gateways` up to date; `configured`
/// (host:port) wins over what the Service says.
pub(crate) async fn publish(
    client: Client,
    cluster: Arc<Cluster>,
    configured: Vec<String>,
    gateways: impl Stream<Item = Vec<PeerGateway>> + Send + 'static,
    endpoints: watch::Sender<Vec<String>>,
) {
    let services = Api::namespaced(client.clone(), &cluster.namespace);
    let only_link = watcher::Config::default().fields(&format!("metadata.name={LINK_SERVICE}"));
    let only_physical = watcher::Config::default().labels(&format!("!{TYPE}"));
    let mut news = select_all([
        changes(services, only_link).map(|change| News::Service(Box::new(change))).boxed(),
        changes(Api::all(client.clone()), only_physical).map(|change| News::Node(Box::new(change))).boxed(),
        gateways.map(News::Gateways).boxed(),
    ]);
    let mut picture = Picture::default();
    let mut published = None;
    while let Some(first) = news.next().await {
        picture.learn(first);
        let settled = Instant::now() + SETTLE;
        while let Ok(Some(more)) = timeout_at(settled, news.next()).await {
            picture.learn(more);
        }
        let found = if configured.is_empty() { picture.advertised() } else { configured.clone() };
        let found = (found, picture.gateways.clone());
        if published.as_ref() == Some(&found) {
            continue;
        }
        match write(&client, &cluster, &found.0, &found.1).await {
            Ok(()) => {
                info!(endpoints = ?found.0, gateways = found.1.len(), "cluster information published");
                endpoints.send_replace(found.0.clone());
                published = Some(found);
            }
            Err(error) => warn!(%error, "cluster information not published; trying again at the next change"),
        }
    }
}

enum News {
    Service(Box<Change<Service>>),
    Node(Box<Change<Node>>),
    Gateways(Vec<PeerGateway>),
}

#[derive(Default)]
struct Picture {
    gateways: Vec<PeerGateway>,
    service: Option<Service>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
}

impl Picture {
    fn learn(&mut self, news: News) {
        match news {
            News::Gateways(gateways) => self.gateways = gateways,
            News::Service(change) => match *change {
                Change::Applied(service) => self.service = Some(service),
                Change::Deleted(_) => self.service = None,
                Change::Listed(seen) if seen.is_empty() => self.service = None,
                Change::Listed(_) => {}
            },
            News::Node(change) => match *change {
                Change::Applied(node) => drop(self.nodes.insert(node.name_any(), addresses(&node))),
                Change::Deleted(node) => drop(self.nodes.remove(&node.name_any())),
                Change::Listed(seen) => {
                    self.nodes.retain(|name, _| seen.contains(&(String::new(), name.clone())));
                }
            },
        }
    }

    fn advertised(&self) -> Vec<String> {
        self.service
            .as_ref()
            .map(|service| outside(service, self.nodes.values().flatten()))
            .unwrap_or_default()
    }
}

/// Addresses (host:port) under which the first port of `service` is reachable from outside, at nodes with the addresses
/// `hosts` if it has no balancer; none for a ClusterIP. Those of the family that comes first in the cluster come first.
pub(crate) fn outside<'a>(service: &Service, hosts: impl Iterator<Item = &'a IpAddr>) -> Vec<String> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let Some(port) = ports.and_then(|ports| ports.first()) else { return Vec::new() };
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let balanced: Vec<String> = status
        .and_then(|balancer| balancer.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|ingress| ingress.hostname.clone().or_else(|| ingress.ip.clone()))
        .map(|host| host_port(&host, port.port))
        .collect();
    if !balanced.is_empty() {
        return balanced;
    }
    let Some(node_port) = port.node_port else { return Vec::new() };
    let hosts: Vec<&IpAddr> = hosts.collect();
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let of_family = |family: &String| {
        let is_v6 = family == "IPv6";
        let of_it = hosts.iter().filter(move |host| host.is_ipv6() == is_v6);
        of_it.take(MAX_NODE_ADDRESSES).map(|host| host_port(&host.to_string(), node_port))
    };
    families.iter().flat_map(of_family).collect()
}

/// The addresses of a ready node that are best reachable from elsewhere, one of each family.
pub(crate) fn addresses(node: &Node) -> Vec<IpAddr> {
    let Some(status) = &node.status else { return Vec::new() };
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let best = |is_v6: bool| {
        ["ExternalIP", "InternalIP"].iter().find_map(|type_| {
            let of_type = status.addresses.iter().flatten().filter(|address| address.type_ == *type_);
            of_type.filter_map(|it| it.address.parse().ok()).find(|it: &IpAddr| it.is_ipv6() == is_v6)
        })
    };
    [false, true].into_iter().filter(|_| ready).filter_map(best).collect()
}

fn host_port(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn write(
    client: &Client,
    cluster: &Cluster,
    endpoints: &[String],
    gateways: &[PeerGateway],
) -> Result<()> {
    let data = BTreeMap::from([
        ("clusterID".to_owned(), cluster.id.to_string()),
        ("clusterName".to_owned(), cluster.name.to_string()),
        ("caSHA256".to_owned(), cluster.ca.fingerprint()),
        ("endpoints".to_owned(), endpoints.join("\n")),
        ("gateways".to_owned(), serde_json::to_string(gateways)?),
        ("version".to_owned(), liquid_runtime::VERSION.to_owned()),
    ]);
    let published = ConfigMap {
        metadata: ObjectMeta {
            name: Some(CLUSTER_INFO.to_owned()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &cluster.namespace);
    let apply = PatchParams::apply("liquid-controller").force();
    api.patch(CLUSTER_INFO, &apply, &Patch::Apply(&published)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn picture(service: serde_json::Value) -> Picture {
        let node = |name: &str, ready: &str, addresses: serde_json::Value| -> News {
            let node = json!({
                "metadata": {"name": name},
                "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": addresses},
            });
            News::Node(Box::new(Change::Applied(serde_json::from_value(node).unwrap())))
        };
        let mut picture = Picture::default();
        picture.learn(News::Service(Box::new(Change::Applied(serde_json::from_value(service).unwrap()))));
        picture.learn(node(
            "a",
            "True",
            json!([
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "Hostname", "address": "a"},
            ]),
        ));
        picture.learn(node("b", "False", json!([{"type": "InternalIP", "address": "10.0.0.2"}])));
        picture.learn(node(
            "c",
            "True",
            json!([{"type": "InternalIP", "address": "10.0.0.3"}, {"type": "ExternalIP", "address": "2001:db8::3"}]),
        ));
        picture
    }

    #[test]
    fn a_load_balancer_comes_before_nodes() {
        let service = json!({
            "spec": {"ports": [{"port": 7443, "nodePort": 30443}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"hostname": "lb.example"}]}},
        });
        assert_eq!(picture(service).advertised(), ["192.0.2.7:7443", "lb.example:7443"]);
    }

    #[test]
    fn a_node_port_is_advertised_on_ready_nodes() {
        let of = |families: &[&str]| {
            let spec = json!({"ipFamilies": families, "ports": [{"port": 7443, "nodePort": 30443}]});
            picture(json!({"spec": spec})).advertised()
        };
        let (v4, v6) = (["192.0.2.1:30443", "10.0.0.3:30443"], ["[2001:db8::3]:30443"]);
        assert_eq!(of(&["IPv4"]), v4);
        assert_eq!(of(&["IPv6"]), v6);
        assert_eq!(of(&["IPv4", "IPv6"]), [&v4[..], &v6].concat());
        assert_eq!(of(&["IPv6", "IPv4"]), [&v6[..], &v4].concat());
    }

    #[test]
    fn a_cluster_ip_is_not_advertised() {
        assert!(picture(json!({"spec": {"ports": [{"port": 7443}]}})).advertised().is_empty());
    }
}
