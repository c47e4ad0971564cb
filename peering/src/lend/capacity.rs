//! What this cluster has to lend: what its ready nodes can allocate, less what its own pods ask for.

use super::demand::demand;
use futures::stream::{StreamExt as _, select};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::Offer;
use liquid_crds::quantity::{Amounts, format, parse};
use liquid_crds::vocabulary::{ORIGIN_CLUSTER, TYPE};
use liquid_runtime::watch::{Change, ObjectName, changes, object_name};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Offers follow the cluster with this delay, so that a burst of pods makes one new offer and not hundreds.
const SETTLE: Duration = Duration::from_secs(1);

/// Conditions of nodes that consumers hear of.
const PRESSURES: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// What the cluster has to lend.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Capacity {
    free: Amounts,
    architectures: Vec<String>,
    pressures: Vec<String>,
    labels: BTreeMap<String, String>,
    kubernetes_version: String,
}

impl Capacity {
    /// The offer within `limits`.
    pub(crate) fn offer(&self, limits: &Amounts) -> Offer {
        let bounded = |(resource, free): (&String, &i128)| {
            let amount = limits.get(resource).map_or(*free, |limit| *limit.min(free)).max(0);
            (resource.clone(), format(amount))
        };
        Offer {
            resources: self.free.iter().map(bounded).collect(),
            architectures: self.architectures.clone(),
            labels: self.labels.clone(),
            kubernetes_version: self.kubernetes_version.clone(),
            cordoned: false,
            pressures: self.pressures.clone(),
        }
    }
}

/// Keeps `capacity` up to date.
pub(crate) async fn observe(
    client: Client,
    labels: BTreeMap<String, String>,
    kubernetes_version: String,
    capacity: watch::Sender<Option<Capacity>>,
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
            free: inventory.free(),
            architectures: inventory.architectures(),
            pressures: inventory.pressures(),
            labels: labels.clone(),
            kubernetes_version: kubernetes_version.clone(),
        };
        capacity.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&current);
            *known = Some(current);
            changed
        });
    }
}

enum News {
    Node(Box<Change<Node>>),
    Pod(Box<Change<Pod>>),
}

#[derive(Debug)]
struct NodeShare {
    allocatable: Amounts,
    architecture: String,
    pressures: Vec<String>,
}

#[derive(Debug, Default)]
struct Inventory {
    /// Ready and schedulable nodes only.
    nodes: BTreeMap<String, NodeShare>,
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
                Change::Applied(node) => match share(&node) {
                    Some(share) => drop(self.nodes.insert(node.name_any(), share)),
                    None => drop(self.nodes.remove(&node.name_any())),
                },
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

    fn free(&self) -> Amounts {
        let mut free = Amounts::new();
        for (resource, amount) in self.nodes.values().flat_map(|node| &node.allocatable) {
            *free.entry(resource.clone()).or_default() += amount;
        }
        for (node, requests) in self.pods.values() {
            // Pods on nodes that do not count take nothing from those that do.
            if node.as_ref().is_some_and(|node| !self.nodes.contains_key(node)) {
                continue;
            }
            for (resource, amount) in requests {
                if let Some(free) = free.get_mut(resource) {
                    *free -= amount;
                }
            }
        }
        free
    }

    /// Conditions that leave no node without them.
    fn pressures(&self) -> Vec<String> {
        let mut nodes = self.nodes.values();
        let mut common = nodes.next().map(|node| node.pressures.clone()).unwrap_or_default();
        for node in nodes {
            common.retain(|pressure| node.pressures.contains(pressure));
        }
        common
    }

    /// Architectures, the one of most nodes first.
    fn architectures(&self) -> Vec<String> {
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for node in self.nodes.values() {
            *count.entry(&node.architecture).or_default() += 1;
        }
        let mut architectures: Vec<_> = count.into_iter().collect();
        architectures.sort_by_key(|(name, nodes)| (std::cmp::Reverse(*nodes), *name));
        architectures.into_iter().map(|(name, _)| name.to_owned()).collect()
    }
}

fn share(node: &Node) -> Option<NodeShare> {
    let status = node.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let schedulable = !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let allocatable = status.allocatable.iter().flatten();
    let allocatable = allocatable.filter_map(|(name, amount)| Some((name.clone(), parse(amount).ok()?)));
    let architecture = status.node_info.as_ref().map(|info| info.architecture.clone()).unwrap_or_default();
    let holds = status.conditions.iter().flatten().filter(|c| c.status == "True").map(|c| c.type_.clone());
    let pressures = holds.filter(|type_| PRESSURES.contains(&type_.as_str())).collect();
    (ready && schedulable).then(|| NodeShare { allocatable: allocatable.collect(), architecture, pressures })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, ready: &str, cpu: &str) -> News {
        let node = json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "110"},
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux",
                    "osImage": "", "systemUUID": "",
                },
            },
        });
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
    fn own_pods_and_unready_nodes_are_not_lent() {
        let mut inventory = Inventory::default();
        for news in [
            node("a", "True", "4"),
            node("b", "False", "8"),
            pod("p", Some("a"), "1500m"),
            pod("q", Some("b"), "2"),
            pod("waiting", None, "500m"),
        ] {
            inventory.learn(news);
        }
        let free = inventory.free();
        assert_eq!((free["cpu"], free["pods"]), (2000, 108_000));
    }

    #[test]
    fn limits_bound_the_offer_and_nothing_is_negative() {
        let mut inventory = Inventory::default();
        inventory.learn(node("a", "True", "1"));
        inventory.learn(pod("p", Some("a"), "3"));
        let capacity = Capacity { free: inventory.free(), ..Capacity::default() };
        let offer = capacity.offer(&Amounts::from([("memory".to_owned(), (1 << 30) * 1000)]));
        assert_eq!(offer.resources["memory"].0, "1Gi");
        assert_eq!(offer.resources["cpu"].0, "0");
    }

    #[test]
    fn there_is_pressure_when_no_node_is_without() {
        let mut inventory = Inventory::default();
        let under = |name: &str, pressures: &[&str]| {
            let mut node = serde_json::to_value(match node(name, "True", "1") {
                News::Node(change) => match *change {
                    Change::Applied(node) => node,
                    Change::Deleted(_) | Change::Listed(_) => unreachable!(),
                },
                News::Pod(_) => unreachable!(),
            })
            .unwrap();
            for pressure in pressures {
                let condition = json!({"type": pressure, "status": "True"});
                node["status"]["conditions"].as_array_mut().unwrap().push(condition);
            }
            News::Node(Box::new(Change::Applied(serde_json::from_value(node).unwrap())))
        };
        inventory.learn(under("a", &["MemoryPressure", "DiskPressure", "Unheard"]));
        assert_eq!(inventory.pressures(), ["MemoryPressure", "DiskPressure"]);
        inventory.learn(under("b", &["DiskPressure"]));
        assert_eq!(inventory.pressures(), ["DiskPressure"]);
        inventory.learn(under("c", &[]));
        assert!(inventory.pressures().is_empty());
    }
}
