//! What a gateway has to know of its cluster besides the Peers: whom it lets in for a join token, between whom it
//! relays the link, and whose packets it passes on from peer to peer.

use futures::StreamExt as _;
use futures::stream::select_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::Guests;
use liquid_crds::vocabulary::{
    COMPONENT, COMPONENTS_WITH_LINKS, GATEWAY_GUESTS, GATEWAY_TRANSIT, LINK_SERVICE, OUTWARD_PODS,
    TRANSIT_PODS,
};
use liquid_gateway::transit::Pods;
use liquid_runtime::watch::{Change, changes};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::watch;
use tracing::warn;

/// What is around. Before it was read, there is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Around {
    /// Guests by the identifiers of their tokens.
    pub(crate) guests: BTreeMap<String, Guests>,
    /// Addresses of this cluster's processes that have links.
    pub(crate) clients: BTreeSet<IpAddr>,
    /// Where this cluster's link endpoint is.
    pub(crate) link: Option<SocketAddr>,
    /// This cluster's pods in peers whose packets are let through.
    pub(crate) pods: Arc<Pods>,
}

enum News {
    Guests(Box<Change<ConfigMap>>),
    Transit(Box<Change<ConfigMap>>),
    Link(Box<Change<Service>>),
    Pod(Box<Change<Pod>>),
}

/// Keeps `around` up to date, for ever.
pub(crate) async fn follow(client: Client, namespace: String, around: watch::Sender<Around>) {
    let named = |name: &str| Config::default().fields(&format!("metadata.name={name}"));
    let processes = format!("{COMPONENT} in ({})", COMPONENTS_WITH_LINKS.join(", "));
    let guests = changes(Api::<ConfigMap>::namespaced(client.clone(), &namespace), named(GATEWAY_GUESTS));
    let transit = changes(Api::<ConfigMap>::namespaced(client.clone(), &namespace), named(GATEWAY_TRANSIT));
    let link = changes(Api::<Service>::namespaced(client.clone(), &namespace), named(LINK_SERVICE));
    let pods = changes(Api::<Pod>::namespaced(client, &namespace), Config::default().labels(&processes));
    let mut news = select_all([
        guests.map(|change| News::Guests(Box::new(change))).boxed(),
        transit.map(|change| News::Transit(Box::new(change))).boxed(),
        link.map(|change| News::Link(Box::new(change))).boxed(),
        pods.map(|change| News::Pod(Box::new(change))).boxed(),
    ]);
    let mut processes: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    while let Some(news) = news.next().await {
        around.send_if_modified(|around| {
            let before = around.clone();
            match news {
                News::Guests(change) => take(&mut around.guests, *change, guests_of),
                News::Transit(change) => {
                    take(&mut around.pods, *change, |published| Arc::new(pods_of(published)));
                }
                News::Link(change) => take(&mut around.link, *change, address_of),
                News::Pod(change) => {
                    match *change {
                        Change::Applied(pod) => drop(processes.insert(pod.name_any(), addresses_of(&pod))),
                        Change::Deleted(pod) => drop(processes.remove(&pod.name_any())),
                        Change::Listed(seen) => {
                            processes.retain(|name, _| seen.iter().any(|(_, listed)| listed == name));
                        }
                    }
                    around.clients = processes.values().flatten().copied().collect();
                }
            }
            *around != before
        });
    }
}

/// Takes note of the one object that a watch is about.
fn take<K, T: Default>(known: &mut T, change: Change<K>, read: impl FnOnce(&K) -> T) {
    match change {
        Change::Applied(object) => *known = read(&object),
        Change::Listed(seen) if !seen.is_empty() => {}
        Change::Deleted(_) | Change::Listed(_) => *known = T::default(),
    }
}

fn guests_of(published: &ConfigMap) -> BTreeMap<String, Guests> {
    let entries = published.data.iter().flatten();
    let read = entries.filter_map(|(token, text)| match serde_json::from_str(text) {
        Ok(guests) => Some((token.clone(), guests)),
        Err(error) => {
            warn!(%token, %error, "guests of a token cannot be read");
            None
        }
    });
    read.collect()
}

/// What is no address is nobody's.
fn pods_of(published: &ConfigMap) -> Pods {
    let addresses = |key| -> HashSet<IpAddr> {
        let text = published.data.as_ref().and_then(|data| data.get(key)).map_or("", String::as_str);
        text.split_whitespace().filter_map(|address| address.parse().ok()).collect()
    };
    Pods { transit: addresses(TRANSIT_PODS), outward: addresses(OUTWARD_PODS) }
}

fn address_of(service: &Service) -> Option<SocketAddr> {
    let spec = service.spec.as_ref()?;
    let address: IpAddr = spec.cluster_ip.as_ref()?.parse().ok()?;
    let port = u16::try_from(spec.ports.as_ref()?.first()?.port).ok()?;
    Some(SocketAddr::new(address, port))
}

/// A pod that has ended has an address that may be another's by now.
fn addresses_of(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = pod.status.as_ref() else { return Vec::new() };
    let over = status.phase.as_deref().is_some_and(|phase| ["Succeeded", "Failed"].contains(&phase));
    let addresses = status.pod_ips.iter().flatten().filter(|_| !over);
    addresses.filter_map(|address| address.ip.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_link_endpoint_is_where_its_service_is() {
        let service = json!({"spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "link", "port": 7443}]}});
        let service: Service = serde_json::from_value(service).unwrap();
        assert_eq!(address_of(&service), Some("10.96.0.7:7443".parse().unwrap()));
        let headless = json!({"spec": {"clusterIP": "None", "ports": [{"port": 7443}]}});
        assert_eq!(address_of(&serde_json::from_value(headless).unwrap()), None);
    }

    #[test]
    fn pods_that_have_ended_have_no_address_any_more() {
        let pod = |phase: &str| -> Pod {
            let status = json!({"phase": phase, "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]});
            serde_json::from_value(json!({"status": status})).unwrap()
        };
        assert_eq!(addresses_of(&pod("Running")).len(), 2);
        assert!(addresses_of(&pod("Failed")).is_empty());
    }

    #[test]
    fn addresses_of_pods_in_peers_are_a_list() {
        let published = |data: serde_json::Value| -> ConfigMap {
            serde_json::from_value(json!({ "data": data })).unwrap()
        };
        let pods = pods_of(&published(json!({"pods": "10.201.0.5 fd00::5 x", "outward": "10.201.0.6"})));
        assert_eq!(pods.transit, HashSet::from(["10.201.0.5".parse().unwrap(), "fd00::5".parse().unwrap()]));
        assert_eq!(pods.outward, HashSet::from(["10.201.0.6".parse().unwrap()]));
        assert_eq!(pods_of(&published(json!({}))), Pods::default());
    }

    #[test]
    fn an_entry_that_cannot_be_read_does_not_concern_the_others() {
        let data = json!({"aa": "{\"expires\": 7, \"gateways\": []}", "bb": "?"});
        let published: ConfigMap = serde_json::from_value(json!({"data": data})).unwrap();
        let guests = guests_of(&published);
        assert_eq!(guests.keys().collect::<Vec<_>>(), ["aa"]);
        assert_eq!(guests["aa"].expires, 7);
    }
}
