//! What is offered for a request: which nodes are behind it, and what they have in common. Pure.

use super::machine::Machine;
use super::request::{Declined, SliceRequest, check_selector, nodes_hidden};
use super::share::{Bounds, Source, share};
use liquid_crds::quantity::{Amounts, parse, quantities};
use liquid_crds::{LendSpec, LendState, NodeTaint, Offer, OfferedImage, OfferedNode, Placement};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// The operating system that is meant where none is asked for.
const LINUX: &str = "linux";
/// Names of an image that are passed on: as many as kubelets report.
const MAX_IMAGE_NAMES: usize = 5;

/// What the cluster has to lend.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Capacity {
    /// Its nodes, by name.
    pub(crate) machines: BTreeMap<String, Arc<Machine>>,
    /// What its own pods ask for on each of them.
    pub(crate) used: BTreeMap<String, Amounts>,
    /// What its own pods ask for that are on no node yet.
    pub(crate) unbound: Amounts,
    /// Labels of the cluster.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) kubernetes_version: String,
}

impl Capacity {
    /// All that is lent, whoever asks.
    pub(crate) fn whole(&self, lend: &LendSpec) -> Offer {
        let all = SliceRequest::default();
        match self.offers(&[&all], lend).pop() {
            Some(Ok(offer)) => offer,
            // There is no node, so there is nothing.
            Some(Err(_)) | None => self.frame(&all, &[], lend),
        }
    }

    /// What is offered for each of the requests of one consumer, shared out among them.
    pub(crate) fn offers(&self, requests: &[&SliceRequest], lend: &LendSpec) -> Vec<Result<Offer, Declined>> {
        let behind: Vec<Result<Vec<(&str, &Machine)>, Declined>> =
            requests.iter().map(|request| self.behind(request, lend)).collect();
        let mut serves: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for (index, machines) in behind.iter().enumerate() {
            for (name, _) in machines.iter().flatten() {
                serves.entry(name).or_default().insert(index);
            }
        }
        let free: BTreeMap<&str, Amounts> =
            self.machines.iter().map(|(name, machine)| (name.as_str(), self.free(name, machine))).collect();
        // Nodes behind no slice are not counted on for own pods that wait for a node, either.
        let sources: Vec<Source<'_>> = serves
            .into_iter()
            .filter_map(|(name, slices)| {
                let usable = self.machines.get(name)?.usable();
                Some(Source { free: free.get(name)?, usable, slices })
            })
            .collect();
        let limits = limits(lend);
        let bounds =
            Bounds { limits: &limits, unbound: &self.unbound, overcommit_percent: lend.overcommit_percent() };
        let asked: Vec<&Amounts> = requests.iter().map(|request| &request.resources).collect();
        let shares = share(&sources, &asked, bounds);
        let offers = behind.into_iter().zip(requests).zip(shares);
        offers
            .map(|((machines, request), share)| {
                let offer = self.frame(request, &machines?, lend);
                Ok(Offer { resources: quantities(&share), ..offer })
            })
            .collect()
    }

    /// Names of the nodes a consumer hears of.
    ///
    /// # Errors
    /// If it may not.
    pub(crate) fn names(
        &self,
        selector: &BTreeMap<String, String>,
        lend: &LendSpec,
    ) -> Result<Vec<String>, Declined> {
        if !lend.nodes.exposed {
            return Err(nodes_hidden());
        }
        check_selector(selector, lend)?;
        let named = self.machines.iter().filter(|(_, machine)| has(machine, selector));
        Ok(named.map(|(name, _)| name.clone()).collect())
    }

    fn free(&self, name: &str, machine: &Machine) -> Amounts {
        let used = self.used.get(name);
        let left = |(resource, amount): (&String, &i128)| {
            let used = used.and_then(|used| used.get(resource)).copied().unwrap_or(0);
            (resource.clone(), (amount - used).max(0))
        };
        machine.allocatable.iter().map(left).collect()
    }

    /// The nodes on which pods of a slice may run.
    fn behind(&self, request: &SliceRequest, lend: &LendSpec) -> Result<Vec<(&str, &Machine)>, Declined> {
        request.check(lend)?;
        let Placement { node_selector, node } = &request.placement;
        if let Some(node) = node {
            let found = self.machines.get_key_value(node);
            return found.map(|(name, machine)| vec![(name.as_str(), &**machine)]).ok_or_else(|| Declined {
                reason: "NoSuchNode",
                message: format!("the provider has no node {node}"),
            });
        }
        let system = wanted_system(node_selector);
        let selected: Vec<(&str, &Machine)> = self
            .machines
            .iter()
            .map(|(name, machine)| (name.as_str(), &**machine))
            .filter(|(_, machine)| machine.operating_system == system && has(machine, node_selector))
            .collect();
        if selected.is_empty() && !node_selector.is_empty() {
            let labels: Vec<String> =
                node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
            return Err(Declined {
                reason: "NoSuchNode",
                message: format!("the provider has no node with the labels {}", labels.join(",")),
            });
        }
        let usable: Vec<(&str, &Machine)> =
            selected.into_iter().filter(|(_, machine)| machine.usable()).collect();
        // Pods that tolerate nothing in particular run on nodes without taints. Where all nodes have one, so has the
        // virtual node, and its pods tolerate it.
        let common = common_taints(&usable);
        Ok(usable.into_iter().filter(|(_, machine)| machine.taints.len() == common.len()).collect())
    }

    /// An offer without amounts.
    fn frame(&self, request: &SliceRequest, machines: &[(&str, &Machine)], lend: &LendSpec) -> Offer {
        let node = request.placement.node.as_ref().and_then(|_| machines.first());
        let mut labels = common_labels(machines, lend);
        labels.extend(self.labels.clone());
        let price = lend.price.clone().filter(|price| price.is_valid() && !price.is_free());
        Offer {
            resources: BTreeMap::new(),
            architectures: architectures(machines),
            labels,
            kubernetes_version: self.kubernetes_version.clone(),
            cordoned: lend.state == LendState::Cordoned,
            // Conditions that leave no node without them.
            pressures: common(machines, |machine| &machine.pressures),
            storage_classes: Vec::new(),
            terms: request.terms(price.as_ref()),
            price,
            taints: common_taints(machines),
            images: if lend.nodes.exposed || node.is_some() { images(machines) } else { Vec::new() },
            operating_system: match node {
                Some((_, machine)) => machine.operating_system.clone(),
                None => wanted_system(&request.placement.node_selector).to_owned(),
            },
            node: node.map(|(_, machine)| OfferedNode {
                message: if machine.told.ready { String::new() } else { machine.told.message.clone() },
                ..machine.told.clone()
            }),
        }
    }
}

/// What a consumer may have. A limit that cannot be read bounds it to nothing: that is seen at once, and no bound at all
/// might never be.
pub(crate) fn limits(lend: &LendSpec) -> Amounts {
    lend.limits.iter().map(|(resource, limit)| (resource.clone(), parse(limit).unwrap_or(0))).collect()
}

fn has(machine: &Machine, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| machine.labels.get(key) == Some(value))
}

fn wanted_system(selector: &BTreeMap<String, String>) -> &str {
    selector.get("kubernetes.io/os").map_or(LINUX, String::as_str)
}

/// What all of them have.
fn common<T: Clone + PartialEq>(machines: &[(&str, &Machine)], list: fn(&Machine) -> &Vec<T>) -> Vec<T> {
    let mut all = machines.iter().map(|(_, machine)| list(machine));
    let mut common = all.next().cloned().unwrap_or_default();
    for has in all {
        common.retain(|it| has.contains(it));
    }
    common
}

fn common_taints(machines: &[(&str, &Machine)]) -> Vec<NodeTaint> {
    common(machines, |machine| &machine.taints)
}

/// Labels that all of them have, of those the consumer may see.
fn common_labels(machines: &[(&str, &Machine)], lend: &LendSpec) -> BTreeMap<String, String> {
    let mut all = machines.iter();
    let mut common = all.next().map(|(_, machine)| machine.labels.clone()).unwrap_or_default();
    common.retain(|key, _| lend.may_select(key));
    for (_, machine) in all {
        common.retain(|key, value| machine.labels.get(key) == Some(value));
    }
    common
}

/// Architectures, the one of most nodes first.
fn architectures(machines: &[(&str, &Machine)]) -> Vec<String> {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, machine) in machines {
        *count.entry(&machine.architecture).or_default() += 1;
    }
    let mut architectures: Vec<_> = count.into_iter().collect();
    architectures.sort_by_key(|(name, nodes)| (std::cmp::Reverse(*nodes), *name));
    architectures.into_iter().map(|(name, _)| name.to_owned()).collect()
}

/// The largest images that are on every node: a scheduler that prefers a node for an image must find it wherever the pod
/// comes to run.
fn images(machines: &[(&str, &Machine)]) -> Vec<OfferedImage> {
    let Some(((_, first), others)) = machines.split_first() else { return Vec::new() };
    let mut everywhere: HashSet<&str> = names(first).collect();
    for (_, machine) in others {
        let here: HashSet<&str> = names(machine).collect();
        everywhere.retain(|name| here.contains(name));
    }
    let mut images: Vec<OfferedImage> = first
        .images
        .iter()
        .map(|image| {
            let names = image.names.iter().filter(|name| everywhere.contains(name.as_str()));
            OfferedImage {
                names: names.take(MAX_IMAGE_NAMES).cloned().collect(),
                size_bytes: image.size_bytes,
            }
        })
        .filter(|image| !image.names.is_empty())
        .collect();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    images
}

fn names(machine: &Machine) -> impl Iterator<Item = &str> {
    machine.images.iter().flat_map(|image| &image.names).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::super::machine::Images;
    use super::super::machine::tests::node;
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use liquid_crds::{NodeExposure, Price};
    use serde_json::{Value, json};

    fn capacity(nodes: &[(&str, Value)]) -> Capacity {
        let machine = |(name, change): &(&str, Value)| {
            let machine = Machine::of(&node(name, change.clone()), &mut Images::default());
            ((*name).to_owned(), Arc::new(machine))
        };
        Capacity { machines: nodes.iter().map(machine).collect(), ..Capacity::default() }
    }

    fn on(selector: &[(&str, &str)], node: Option<&str>) -> SliceRequest {
        let node_selector =
            selector.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let placement = Placement { node_selector, node: node.map(str::to_owned) };
        SliceRequest { placement, ..SliceRequest::default() }
    }

    fn open() -> LendSpec {
        LendSpec { nodes: NodeExposure { exposed: true, labels: Vec::new() }, ..LendSpec::default() }
    }

    fn cpu(offer: &Offer) -> &str {
        &offer.resources["cpu"].0
    }

    #[test]
    fn own_pods_and_nodes_that_take_none_are_not_lent() {
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let mut capacity = capacity(&[
            ("a", json!({})),
            ("b", unready),
            ("c", json!({"spec": {"unschedulable": true}})),
            (
                "d",
                json!({"metadata": {"labels": {"kubernetes.io/os": "windows"}}, "status": {"nodeInfo": {"operatingSystem": "windows"}}}),
            ),
        ]);
        let of = |cpu| Amounts::from([("cpu".to_owned(), cpu), ("pods".to_owned(), 1000)]);
        capacity.used = BTreeMap::from([("a".to_owned(), of(1500)), ("b".to_owned(), of(2000))]);
        capacity.unbound = of(500);
        let offer = capacity.whole(&LendSpec::default());
        assert_eq!((cpu(&offer), offer.resources["pods"].0.as_str()), ("2", "108"));
        let windows = capacity.offers(&[&on(&[("kubernetes.io/os", "windows")], None)], &LendSpec::default());
        let windows = windows[0].as_ref().unwrap();
        assert_eq!((cpu(windows), windows.operating_system.as_str()), ("3500m", "windows"));
    }

    #[test]
    fn limits_bound_the_offer_and_nothing_is_negative() {
        let mut capacity = capacity(&[("a", json!({}))]);
        capacity.used = BTreeMap::from([("a".to_owned(), Amounts::from([("cpu".to_owned(), 9000)]))]);
        let limits = BTreeMap::from([("memory".to_owned(), Quantity("1Gi".to_owned()))]);
        let offer = capacity.whole(&LendSpec { limits, ..LendSpec::default() });
        assert_eq!((cpu(&offer), offer.resources["memory"].0.as_str()), ("0", "1Gi"));
    }

    #[test]
    fn there_is_pressure_when_no_node_is_without() {
        let under = |pressures: &[&str]| {
            let ready = json!({"type": "Ready", "status": "True"});
            let pressures = pressures.iter().map(|type_| json!({"type": type_, "status": "True"}));
            let conditions: Vec<Value> = std::iter::once(ready).chain(pressures).collect();
            json!({"status": {"conditions": conditions}})
        };
        let pressures = |nodes: &[(&str, Value)]| capacity(nodes).whole(&LendSpec::default()).pressures;
        let (both, one) = (under(&["MemoryPressure", "DiskPressure"]), under(&["DiskPressure"]));
        assert_eq!(pressures(&[("a", both.clone())]), ["MemoryPressure", "DiskPressure"]);
        assert_eq!(pressures(&[("a", both.clone()), ("b", one)]), ["DiskPressure"]);
        assert!(pressures(&[("a", both), ("b", under(&[]))]).is_empty());
    }

    #[test]
    fn nodes_with_taints_count_only_where_all_have_them() {
        let gpu = json!({"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}});
        let pool = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z2"}}});
        let mut in_pool = gpu;
        json_patch::merge(&mut in_pool, &pool);
        let capacity = capacity(&[("a", json!({})), ("b", in_pool.clone()), ("c", in_pool)]);
        let requests = [on(&[], None), on(&[("topology.kubernetes.io/zone", "z2")], None)];
        let offers = capacity.offers(&requests.iter().collect::<Vec<_>>(), &LendSpec::default());
        let [all, pool] = [offers[0].as_ref().unwrap(), offers[1].as_ref().unwrap()];
        assert_eq!((cpu(all), all.taints.len()), ("4", 0));
        assert_eq!((cpu(pool), pool.taints[0].key.as_str()), ("8", "gpu"));
        assert_eq!(pool.labels["topology.kubernetes.io/zone"], "z2");
        assert!(!all.labels.contains_key("topology.kubernetes.io/zone"));
    }

    #[test]
    fn a_single_node_is_shown_as_it_is_if_it_may_be() {
        let state = json!({
            "metadata": {"labels": {"example.org/secret": "x"}},
            "spec": {"unschedulable": true, "taints": [{"key": "t", "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": "False", "message": "no disk"}]},
        });
        let capacity = capacity(&[("a", json!({})), ("b", state)]);
        let offer = capacity.offers(&[&on(&[], Some("b"))], &open()).pop().unwrap().unwrap();
        let node = offer.node.clone().unwrap();
        assert_eq!((node.name.as_str(), node.ready, node.unschedulable), ("b", false, true));
        assert_eq!(
            (node.message.as_str(), node.capacity["cpu"].0.as_str(), cpu(&offer)),
            ("no disk", "5", "4")
        );
        assert_eq!(offer.taints[0].key, "t");
        assert!(!offer.labels.contains_key("example.org/secret"));
        let reason = |request: &SliceRequest, lend: &LendSpec| {
            capacity.offers(&[request], lend).pop().unwrap().unwrap_err().reason
        };
        assert_eq!(reason(&on(&[], Some("b")), &LendSpec::default()), "NodesNotExposed");
        assert_eq!(reason(&on(&[], Some("z")), &open()), "NoSuchNode");
        assert_eq!(reason(&on(&[("topology.kubernetes.io/zone", "z9")], None), &open()), "NoSuchNode");
        assert_eq!(capacity.names(&BTreeMap::new(), &open()).unwrap(), ["a", "b"]);
        assert!(capacity.names(&BTreeMap::new(), &LendSpec::default()).is_err());
    }

    #[test]
    fn images_are_those_of_every_node_the_largest_first() {
        let with = |images: &[(&[&str], i64)]| {
            let images: Vec<Value> =
                images.iter().map(|(names, size)| json!({"names": names, "sizeBytes": size})).collect();
            json!({"status": {"images": images}})
        };
        let a = with(&[(&["app@sha256:1", "app:1"], 10), (&["db:1"], 50), (&["only-here"], 90)]);
        let b = with(&[(&["db:1"], 50), (&["app:1"], 10)]);
        let both = capacity(&[("a", a), ("b", b)]);
        let images = both.whole(&open()).images;
        let names: Vec<&str> = images.iter().flat_map(|image| &image.names).map(String::as_str).collect();
        assert_eq!(names, ["db:1", "app:1"]);
        assert!(both.whole(&LendSpec::default()).images.is_empty(), "what runs here is nobody's business");
    }

    #[test]
    fn a_price_is_told_if_it_is_one() {
        let price = |cpu: &str| Price {
            currency: "EUR".to_owned(),
            per_hour: BTreeMap::from([("cpu".to_owned(), cpu.to_owned())]),
        };
        let told = |cpu: &str| {
            capacity(&[("a", json!({}))])
                .whole(&LendSpec { price: Some(price(cpu)), ..LendSpec::default() })
                .price
        };
        assert_eq!(told("0.5"), Some(price("0.5")));
        assert_eq!((told("0.0"), told("much")), (None, None));
    }
}
