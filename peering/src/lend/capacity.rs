//! What this cluster has to lend: watches its nodes and its own pods.

use super::demand::demand;
use super::slices::{Capacity, Images, Machine};
use futures::stream::{StreamExt as _, select};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::quantity::Amounts;
use liquid_crds::vocabulary::{ORIGIN_CLUSTER, TYPE};
use liquid_runtime::watch::{Change, ObjectName, changes, object_name};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Offers follow the cluster with this delay, so that a burst of pods makes one new offer and not hundreds.
const SETTLE: Duration = Duration::from_secs(1);

/// Keeps `capacity` up to date.
pub(crate) async fn observe(
    client: Client,
    labels: BTreeMap<String, String>,
    kubernetes_version: String,
    capacity: watch::Sender<Option<Arc<Capacity>>>,
) {
    let physical = watcher::Config::default().labels(&format!("!{TYPE}"));
    let own = watcher::Config::default()
        .labels(&format!("!{ORIGIN_CLUSTER}"))
        .fields("status.phase!=Succeeded,status.phase!=Failed");
    let mut news = select(
        changes(Api::<Node>::all(client.clone()), physical)
            .map(|change| News::Node(Box::new(change)))
            .boxed(),
        changes(Api::<Pod>::all(client), own).map(|change| News::Pod(Box::new(change))).boxed(),
    );
    let mut inventory = Inventory::default();
    while let Some(first) = news.next().await {
        inventory.learn(first);
        let settled = Instant::now() + SETTLE;
        // The first list of nodes is news worth telling at once: a consumer may be waiting for its node.
        while !inventory.first_complete() {
            match timeout_at(settled, news.next()).await {
                Ok(Some(more)) => inventory.learn(more),
                Ok(None) | Err(_) => break,
            }
        }
        // Half of the picture would be an offer of too much or of nothing.
        if inventory.listed != (true, true) {
            continue;
        }
        let current = Capacity {
            labels: labels.clone(),
            kubernetes_version: kubernetes_version.clone(),
            ..inventory.capacity()
        };
        capacity.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&current);
            *known = Some(Arc::new(current));
            changed
        });
    }
}

enum News {
    Node(Box<Change<Node>>),
    Pod(Box<Change<Pod>>),
}

#[derive(Debug, Default)]
struct Inventory {
    nodes: BTreeMap<String, Arc<Machine>>,
    images: Images,
    /// What pods ask for, and on which node; pods that are not bound yet count as well.
    pods: BTreeMap<ObjectName, (Option<String>, Amounts)>,
    listed: (bool, bool),
    told: bool,
}

impl Inventory {
    /// Whether both lists have been read and this was not told before.
    fn first_complete(&mut self) -> bool {
        let first = self.listed == (true, true) && !self.told;
        self.told |= first;
        first
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Node(change) => match *change {
                Change::Applied(node) => {
                    let machine = Machine::of(&node, &mut self.images);
                    self.nodes.insert(node.name_any(), Arc::new(machine));
                    self.images.tidy();
                }
                Change::Deleted(node) => drop(self.nodes.remove(&node.name_any())),
                Change::Listed(seen) => {
                    self.nodes.retain(|name, _| seen.contains(&(String::new(), name.clone())));
                    self.listed.0 = true;
                }
            },
            News::Pod(change) => match *change {
                Change::Applied(pod) => {
                    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                    let requests = pod.spec.as_ref().map(|spec| demand(&spec.into())).unwrap_or_default();
                    self.pods.insert(object_name(&pod), (node, requests));
                }
                Change::Deleted(pod) => drop(self.pods.remove(&object_name(&pod))),
                Change::Listed(seen) => {
                    self.pods.retain(|name, _| seen.contains(name));
                    self.listed.1 = true;
                }
            },
        }
    }

    fn capacity(&self) -> Capacity {
        let mut capacity = Capacity { machines: self.nodes.clone(), ..Capacity::default() };
        for (node, requests) in self.pods.values() {
            let sum = match node {
                Some(node) if self.nodes.contains_key(node) => capacity.used.entry(node.clone()).or_default(),
                // On a node that does not count it takes nothing from those that do.
                Some(_) => continue,
                None => &mut capacity.unbound,
            };
            for (resource, amount) in requests {
                let sum = sum.entry(resource.clone()).or_default();
                *sum = sum.saturating_add(*amount);
            }
        }
        capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str) -> News {
        let node = json!({"metadata": {"name": name}});
        News::Node(Box::new(Change::Applied(serde_json::from_value(node).unwrap())))
    }

    fn pod(name: &str, node: Option<&str>, cpu: &str) -> News {
        let pod = json!({
            "metadata": {"name": name, "namespace": "x"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        });
        News::Pod(Box::new(Change::Applied(serde_json::from_value(pod).unwrap())))
    }

    #[test]
    fn own_pods_count_where_they_are_or_as_waiting_for_a_node() {
        let mut inventory = Inventory::default();
        for news in [
            node("a"),
            pod("p", Some("a"), "1500m"),
            pod("q", Some("a"), "1"),
            pod("virtual", Some("liquid-milan"), "2"),
            pod("waiting", None, "500m"),
        ] {
            inventory.learn(news);
        }
        let capacity = inventory.capacity();
        assert_eq!(capacity.used.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!((capacity.used["a"]["cpu"], capacity.used["a"]["pods"]), (2500, 2000));
        assert_eq!(capacity.unbound["cpu"], 500);
    }
}
