//! A node of this cluster, as far as it matters to those who borrow. Pure.

use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use liquid_crds::quantity::{Amounts, amounts, quantities};
use liquid_crds::{NodeTaint, OfferedImage, OfferedNode, TaintEffect};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Conditions of nodes that consumers hear of.
const PRESSURES: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// Images of a node that count: as many as kubelets report by default.
const MAX_IMAGES: usize = 50;

/// Taints of this domain say what conditions and `kubectl cordon` say: consumers hear of these.
const CONDITION_TAINTS: &str = "node.kubernetes.io/";

/// A node of this cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Machine {
    pub(super) labels: BTreeMap<String, String>,
    /// Those that keep pods off, but for what conditions say.
    pub(super) taints: Vec<NodeTaint>,
    pub(super) allocatable: Amounts,
    pub(super) architecture: String,
    pub(super) operating_system: String,
    pub(super) pressures: Vec<String>,
    pub(super) images: Vec<Arc<OfferedImage>>,
    /// What a consumer that may know of single nodes hears.
    pub(super) told: OfferedNode,
}

/// Images of all nodes; most are on several of them, and are held once.
#[derive(Debug, Default)]
pub(crate) struct Images(HashSet<Arc<OfferedImage>>);

impl Machine {
    /// Whether pods can be placed there now.
    pub(super) fn usable(&self) -> bool {
        self.told.ready && !self.told.unschedulable
    }

    /// Reads a Node.
    pub(crate) fn of(node: &Node, images: &mut Images) -> Self {
        let status = node.status.clone().unwrap_or_default();
        let spec = node.spec.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        let of = |all: Option<BTreeMap<String, Quantity>>| amounts(&all.unwrap_or_default());
        let holds = |condition: &&NodeCondition| {
            condition.status == "True" && PRESSURES.contains(&condition.type_.as_str())
        };
        let info = status.node_info.unwrap_or_default();
        let taints =
            spec.taints.into_iter().flatten().filter(|taint| !taint.key.starts_with(CONDITION_TAINTS));
        let told = OfferedNode {
            name: node.name_any(),
            ready: ready.is_some_and(|ready| ready.status == "True"),
            message: ready.and_then(|ready| ready.message.clone()).unwrap_or_default(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            capacity: quantities(&of(status.capacity)),
            kubelet_version: info.kubelet_version,
            kernel_version: info.kernel_version,
            os_image: info.os_image,
            container_runtime_version: info.container_runtime_version,
        };
        Self {
            labels: node.labels().clone(),
            taints: taints
                .filter_map(|taint| {
                    let effect = TaintEffect::keeping_off(&taint.effect)?;
                    Some(NodeTaint { key: taint.key, value: taint.value, effect })
                })
                .collect(),
            allocatable: of(status.allocatable),
            architecture: info.architecture,
            operating_system: info.operating_system,
            pressures: conditions.iter().filter(holds).map(|condition| condition.type_.clone()).collect(),
            images: images.of(status.images.unwrap_or_default()),
            told,
        }
    }
}

impl Images {
    /// The images of one node, each held once among all nodes.
    fn of(&mut self, images: Vec<ContainerImage>) -> Vec<Arc<OfferedImage>> {
        let images = images.into_iter().take(MAX_IMAGES).map(|image| OfferedImage {
            names: image.names.unwrap_or_default(),
            size_bytes: image.size_bytes.unwrap_or(0),
        });
        let images = images.map(|image| match self.0.get(&image) {
            Some(known) => known.clone(),
            None => {
                let image = Arc::new(image);
                self.0.insert(image.clone());
                image
            }
        });
        images.collect()
    }

    /// Forgets those that are on no node any more.
    pub(crate) fn tidy(&mut self) {
        self.0.retain(|image| Arc::strong_count(image) > 1);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A node as its kubelet would report it; `change` is merged into it.
    pub(crate) fn node(name: &str, change: Value) -> Node {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
            "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "message": "kubelet is posting ready status"}],
                "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
                "capacity": {"cpu": "5", "memory": "10Gi", "pods": "110"},
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "containerd://2.1.0", "kernelVersion": "6.1",
                    "kubeProxyVersion": "", "kubeletVersion": "v1.35.4", "machineID": "", "operatingSystem": "linux",
                    "osImage": "Debian", "systemUUID": "",
                },
            },
        });
        json_patch::merge(&mut node, &change);
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn what_a_kubelet_reports_is_known_and_what_conditions_say_is_no_taint() {
        let found = Machine::of(
            &node(
                "n1",
                json!({
                    "spec": {"unschedulable": true, "taints": [
                        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
                        {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
                        {"key": "slow", "effect": "PreferNoSchedule"},
                    ]},
                    "status": {"conditions": [
                        {"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status."},
                        {"type": "DiskPressure", "status": "True"}, {"type": "Strange", "status": "True"},
                    ]},
                }),
            ),
            &mut Images::default(),
        );
        assert!(!found.told.ready && found.told.unschedulable && !found.usable());
        assert_eq!(found.told.message, "Kubelet stopped posting node status.");
        assert_eq!(found.taints.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(), ["gpu"]);
        assert_eq!(found.pressures, ["DiskPressure"]);
        assert_eq!((found.allocatable["cpu"], found.told.capacity["cpu"].0.as_str()), (4000, "5"));
    }

    #[test]
    fn images_of_many_nodes_are_held_once_and_go_with_the_last_node() {
        let mut images = Images::default();
        let with = json!({"status": {"images": [{"names": ["nginx:1"], "sizeBytes": 7}]}});
        let machines: Vec<Machine> =
            (0..3).map(|index| Machine::of(&node(&format!("n{index}"), with.clone()), &mut images)).collect();
        assert_eq!(images.0.len(), 1);
        assert!(Arc::ptr_eq(&machines[0].images[0], &machines[2].images[0]));
        drop(machines);
        images.tidy();
        assert!(images.0.is_empty());
    }
}
