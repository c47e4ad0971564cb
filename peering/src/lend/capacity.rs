//! What this cluster has to lend: what its ready nodes can allocate, less what its own pods ask for.

use futures::stream::{StreamExt as _, select};
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::Offer;
use liquid_crds::quantity::{Amounts, add_requests, format, parse};
use liquid_crds::vocabulary::{ORIGIN_CLUSTER, TYPE};
use liquid_runtime::watch::{Change, ObjectName, changes, object_name};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Offers follow the cluster with this delay, so that a burst of pods makes one new offer and not hundreds.
const SETTLE: Duration = Duration::from_secs(1);

/// What the cluster has to lend.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Capacity {
    free: Amounts,
    architectures: Vec<String>,
    labels: BTreeMap<String, String>,
    kubernetes_version: String,
}

impl Capacity {
    /// The offer within `limits`.
    pub(crate) fn offer(&self, limits: &BTreeMap<String, Quantity>) -> Offer {
        let bounded = |(resource, free): (&String, &i128)| {
            let limit = limits.get(resource).and_then(|limit| parse(limit).ok());
            let amount = limit.map_or(*free, |limit| limit.min(*free)).max(0);
            (resource.clone(), format(amount))
        };
        Offer {
            resources: self.free.iter().map(bounded).collect(),
            architectures: self.architectures.clone(),
            labels: self.labels.clone(),
            kubernetes_version: self.kubernetes_version.clone(),
            cordoned: false,
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
        let (free, architectures) = (inventory.free(), inventory.architectures());
        let current = Capacity {
            free,
            architectures,
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
                    let requests = pod.spec.as_ref().map(requests).unwrap_or_default();
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
    (ready && schedulable).then(|| NodeShare { allocatable: allocatable.collect(), architecture })
}

/// What the scheduler counts for a pod: the larger of the sum over its containers and sidecars, and the need of any
/// init container together with the sidecars started before it; plus the overhead of its runtime.
fn requests(spec: &PodSpec) -> Amounts {
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    let raise = |peak: &mut Amounts, candidate: &Amounts| {
        for (resource, amount) in candidate {
            let highest = peak.entry(resource.clone()).or_default();
            *highest = (*highest).max(*amount);
        }
    };
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, container);
            raise(&mut peak, &sidecars);
        } else {
            let mut during = sidecars.clone();
            add(&mut during, container);
            raise(&mut peak, &during);
        }
    }
    let mut running = sidecars;
    for container in &spec.containers {
        add(&mut running, container);
    }
    raise(&mut peak, &running);
    for (resource, overhead) in spec.overhead.iter().flatten() {
        *peak.entry(resource.clone()).or_default() += parse(overhead).unwrap_or(0);
    }
    *peak.entry("pods".to_owned()).or_default() += 1000;
    peak
}

fn add(sum: &mut Amounts, container: &Container) {
    add_requests(sum, container.resources.as_ref());
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
        let offer = capacity.offer(&BTreeMap::from([("memory".to_owned(), Quantity("1Gi".to_owned()))]));
        assert_eq!(offer.resources["memory"].0, "1Gi");
        assert_eq!(offer.resources["cpu"].0, "0");
    }

    #[test]
    fn sidecars_count_with_the_init_containers_after_them() {
        let container = |cpu: &str, policy: Option<&str>| json!({"name": "c", "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
        let spec = json!({
            "initContainers": [container("1", None), container("200m", Some("Always")), container("2", None)],
            "containers": [container("500m", None), container("600m", None)],
            "overhead": {"cpu": "10m"},
        });
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(requests(&spec)["cpu"], 2_210);
    }
}
