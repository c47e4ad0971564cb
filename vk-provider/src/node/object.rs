//! What the Node object of a virtual node looks like. Pure.

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use liquid_crds::quantity::{format, parse};
use liquid_crds::vocabulary::{
    ARCHITECTURE_PREFIX, CLUSTER_ID, MANAGED_BY, MANAGED_BY_LIQUID, PEER, PROVIDER_NODE, TAINTS, TYPE,
    TYPE_VIRTUAL_NODE, VIRTUAL_NODE_TAINT,
};
use liquid_crds::{NodeTaint, Offer, OfferedNode, VirtualNode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pods a node takes if the offer does not say: the kubelet's own default.
const DEFAULT_PODS: &str = "110";

/// Everything a Node is made from.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    /// The wanted node, without its status.
    pub(crate) node: Arc<VirtualNode>,
    /// Identity of the cluster behind it.
    pub(crate) cluster_id: String,
    /// The latest offer for it.
    pub(crate) offer: Option<Arc<Offer>>,
    /// Why the offer does not count, if it does not: the provider has taken it back, or nobody has accepted it.
    pub(crate) unaccepted: Option<String>,
    /// Why it takes no pods, if it does not: reason and message.
    pub(crate) not_ready: Option<(&'static str, String)>,
    /// Address and port of its kubelet API.
    pub(crate) endpoint: Option<(String, u16)>,
    /// It is being removed: nothing new may land on it.
    pub(crate) leaving: bool,
}

impl Picture {
    /// Labels of the Node: those of the offer, then of the user, then ours, which nobody may change.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let name = self.node.metadata.name.clone().unwrap_or_default();
        let mut labels = self.offer.as_ref().map(|offer| offer.labels.clone()).unwrap_or_default();
        labels.extend(self.node.spec.labels.clone());
        let architectures =
            self.offer.as_ref().map(|offer| offer.architectures.as_slice()).unwrap_or_default();
        for architecture in architectures {
            labels.insert(format!("{ARCHITECTURE_PREFIX}{architecture}"), "true".to_owned());
        }
        if let Some(architecture) = architectures.first() {
            labels.insert("kubernetes.io/arch".to_owned(), architecture.clone());
        }
        // Longer names fit into no label.
        if let Some(node) = self.provider_node().filter(|node| node.name.len() <= 63) {
            labels.insert(PROVIDER_NODE.to_owned(), node.name.clone());
        }
        for (key, value) in [
            ("kubernetes.io/hostname", name.as_str()),
            ("kubernetes.io/os", self.operating_system()),
            ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
            (TYPE, TYPE_VIRTUAL_NODE),
            (PEER, &self.node.spec.peer),
            (CLUSTER_ID, &self.cluster_id),
            (MANAGED_BY, MANAGED_BY_LIQUID),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }

    /// The one node of the provider behind it, if it is one.
    fn provider_node(&self) -> Option<&OfferedNode> {
        self.offer.as_ref().and_then(|offer| offer.node.as_ref())
    }

    fn operating_system(&self) -> &str {
        let known = self.offer.as_ref().map(|offer| offer.operating_system.as_str());
        known.filter(|name| !name.is_empty()).unwrap_or("linux")
    }

    /// Whether nothing new may land on it.
    fn takes_no_pods(&self) -> bool {
        let cordoned = self.offer.as_ref().is_some_and(|offer| offer.cordoned);
        let behind = self.provider_node().is_some_and(|node| node.unschedulable);
        self.leaving || self.unaccepted.is_some() || cordoned || behind
    }

    /// Our taints, those of the user, and those of the nodes behind it. Each key may be there once for every effect; ours
    /// wins over one of the user, and that over one of the provider.
    fn taints(&self) -> Vec<Taint> {
        let mut taints = vec![Taint {
            key: VIRTUAL_NODE_TAINT.to_owned(),
            value: Some(self.node.spec.peer.clone()),
            effect: "NoExecute".to_owned(),
            time_added: None,
        }];
        let offered: &[NodeTaint] =
            self.offer.as_ref().map(|offer| offer.taints.as_slice()).unwrap_or_default();
        for taint in self.node.spec.taints.iter().chain(offered) {
            let effect = taint.effect.as_str();
            if !taints.iter().any(|known| known.key == taint.key && known.effect == effect) {
                let value = taint.value.clone();
                let (key, effect) = (taint.key.clone(), effect.to_owned());
                taints.push(Taint { key, value, effect, time_added: None });
            }
        }
        taints
    }

    /// Metadata and spec of the Node, with our taints alone. Whether it takes pods is said only if it does not: else
    /// that is left to others (`kubectl cordon`).
    pub(crate) fn object(&self) -> Value {
        let taints = self.taints();
        let recorded: Vec<String> = taints.iter().map(taint_id).collect();
        let mut spec = json!({ "taints": taints });
        if self.takes_no_pods() {
            spec["unschedulable"] = json!(true);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.node.metadata.name,
                "labels": self.labels(),
                "annotations": { TAINTS: recorded.join(",") },
                "ownerReferences": self.owner_references(),
            },
            "spec": spec,
        })
    }

    fn owner_references(&self) -> Value {
        json!([{
            "apiVersion": "liquid.mesh/v1alpha1",
            "kind": "VirtualNode",
            "name": self.node.metadata.name,
            "uid": self.node.metadata.uid,
        }])
    }

    /// The Node as it is created: only what makes it ours and keeps pods away. The rest is applied afterwards, so that
    /// what is no longer wanted goes.
    pub(crate) fn seed(&self) -> Value {
        json!({
            "metadata": {
                "name": self.node.metadata.name,
                "labels": { TYPE: TYPE_VIRTUAL_NODE, PEER: self.node.spec.peer },
                "ownerReferences": self.owner_references(),
            },
            "spec": { "taints": self.taints() },
        })
    }

    /// What is applied to the Node `found`: [`Picture::object`] with the taints of others, on the condition that nobody
    /// has written it since.
    pub(crate) fn applied(&self, found: &Node) -> Value {
        let mut object = self.object();
        object["metadata"]["resourceVersion"] = json!(found.metadata.resource_version);
        object["spec"]["taints"] = json!(merged_taints(found, &self.taints()));
        object
    }

    /// Status of the Node. `since` are the transition times of its conditions as they are now.
    pub(crate) fn status(&self, current: &[(String, String, Time)], now: &Time) -> Value {
        let (status, reason, message) = match &self.not_ready {
            None => ("True", "LinkUp", "the provider is connected and takes pods".to_owned()),
            Some((reason, message)) => ("False", *reason, message.clone()),
        };
        let pressure = |type_: &'static str| {
            let offer = self.offer.as_ref();
            let holds = offer.is_some_and(|offer| offer.pressures.iter().any(|pressure| pressure == type_));
            let what = match self.provider_node() {
                Some(node) => format!("whether it holds on node {} of the provider", node.name),
                None => "whether it holds on every node behind the offer".to_owned(),
            };
            (type_, if holds { "True" } else { "False" }, "Provider", what)
        };
        let conditions = [
            ("Ready", status, reason, message),
            pressure("MemoryPressure"),
            pressure("DiskPressure"),
            pressure("PIDPressure"),
        ]
        .map(|(type_, status, reason, message)| {
            let known = current.iter().find(|(known, value, _)| known == type_ && value == status);
            json!({
                "type": type_, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": known.map_or(now, |(_, _, since)| since),
            })
        });
        // No host name: none resolves, and API servers would try it first.
        let addresses = self.endpoint.iter().map(|(ip, _)| json!({ "type": "InternalIP", "address": ip }));
        let offer = self.offer.as_deref();
        let allocatable = self.allocatable();
        let told = |of_node: fn(&OfferedNode) -> &String, otherwise: &str| {
            let known = self.provider_node().map(of_node).filter(|text| !text.is_empty());
            known.cloned().unwrap_or_else(|| otherwise.to_owned())
        };
        let version =
            offer.map(|offer| offer.kubernetes_version.clone()).filter(|version| !version.is_empty());
        let images = offer.map(|offer| offer.images.as_slice()).unwrap_or_default();
        json!({
            "status": {
                "capacity": self.capacity(&allocatable),
                "allocatable": allocatable,
                "conditions": conditions,
                // The list is written whole, or an address of an earlier kubelet would stay.
                "addresses": addresses.chain([json!({ "$patch": "replace" })]).collect::<Vec<_>>(),
                "daemonEndpoints": { "kubeletEndpoint": { "Port": self.endpoint.as_ref().map_or(0, |(_, port)| *port) } },
                "images": images,
                "nodeInfo": {
                    "architecture": offer.and_then(|offer| offer.architectures.first()).map_or("", String::as_str),
                    "operatingSystem": self.operating_system(),
                    "kubeletVersion": told(|node| &node.kubelet_version, version.as_deref().unwrap_or("unknown")),
                    "kubeProxyVersion": "",
                    "containerRuntimeVersion": told(
                        |node| &node.container_runtime_version,
                        concat!("liquid://", env!("CARGO_PKG_VERSION")),
                    ),
                    "osImage": told(|node| &node.os_image, "Liquid virtual node"),
                    "kernelVersion": told(|node| &node.kernel_version, ""),
                    // Several virtual nodes of a provider are several machines of one system.
                    "machineID": self.node.metadata.uid.clone().unwrap_or_default(),
                    "systemUUID": self.cluster_id,
                    "bootID": "",
                },
            }
        })
    }

    /// Empties what `found` has and `status` (of [`Picture::status`]) does not: a merge would keep resources that the
    /// provider does not offer any more.
    pub(crate) fn without_withdrawn(mut status: Value, found: &Node) -> Value {
        let known = found.status.as_ref();
        for (list, known) in [
            ("capacity", known.and_then(|status| status.capacity.as_ref())),
            ("allocatable", known.and_then(|status| status.allocatable.as_ref())),
        ] {
            let Some(amounts) = status["status"][list].as_object_mut() else { continue };
            for resource in known.into_iter().flat_map(BTreeMap::keys) {
                amounts.entry(resource).or_insert(Value::Null);
            }
        }
        status
    }

    /// What pods may have: what is offered.
    fn allocatable(&self) -> BTreeMap<String, String> {
        let resources = self.offer.as_ref().map(|offer| offer.resources.clone()).unwrap_or_default();
        let mut amounts: BTreeMap<String, String> = resources
            .iter()
            .filter_map(|(name, amount)| Some((name.clone(), format(parse(amount).ok()?.max(0)).0)))
            .collect();
        if self.offer.is_some() {
            // Where nothing at all is offered, there is room for no pod.
            let pods = if amounts.is_empty() { "0" } else { DEFAULT_PODS };
            amounts.entry("pods".to_owned()).or_insert_with(|| pods.to_owned());
        }
        amounts
    }

    /// What there is: of one node of the provider, all it has of what is offered; else what is offered.
    fn capacity(&self, allocatable: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut amounts = allocatable.clone();
        for (name, amount) in self.provider_node().into_iter().flat_map(|node| &node.capacity) {
            if let (Some(known), Ok(all)) = (amounts.get_mut(name), parse(amount)) {
                *known = format(all.max(0)).0;
            }
        }
        amounts
    }
}

fn taint_id(taint: &Taint) -> String {
    format!("{}:{}", taint.key, taint.effect)
}

/// The taints `node` shall have: those of others as they are (an admission plugin, the node controller and `kubectl
/// taint` put them there), and `ours` in place of those we put there before.
fn merged_taints(node: &Node, ours: &[Taint]) -> Vec<Taint> {
    let recorded = node.annotations().get(TAINTS).map(String::as_str).unwrap_or_default();
    let same = |a: &Taint, b: &Taint| a.key == b.key && a.effect == b.effect;
    let empty = |taint: &Taint| taint.value.clone().unwrap_or_default();
    let known = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut taints: Vec<Taint> = known
        .filter(|taint| match ours.iter().find(|our| same(our, taint)) {
            Some(our) => empty(our) == empty(taint),
            None => !recorded.split(',').any(|id| id == taint_id(taint)),
        })
        .cloned()
        .collect();
    let missing: Vec<Taint> =
        ours.iter().filter(|our| !taints.iter().any(|taint| same(our, taint))).cloned().collect();
    taints.extend(missing);
    taints
}

/// Whether somebody has changed what [`Picture::object`] (`object`) and [`Picture::status`] (`status`) put into a Node.
pub(crate) fn drifted(node: &Node, object: &Value, status: &Value) -> bool {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    let relabelled =
        labels.into_iter().any(|(key, value)| node.labels().get(key).map(String::as_str) != value.as_str());
    let spec = node.spec.clone().unwrap_or_default();
    let ours: Vec<Taint> = serde_json::from_value(object["spec"]["taints"].clone()).unwrap_or_default();
    let retainted = merged_taints(node, &ours) != spec.taints.unwrap_or_default();
    let uncordoned = object["spec"]["unschedulable"] == true && spec.unschedulable != Some(true);
    let ready = status["status"]["conditions"][0]["status"].as_str();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let said = conditions.into_iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status.as_str());
    relabelled || retainted || uncordoned || said != ready
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use k8s_openapi::jiff::Timestamp;
    use liquid_crds::{OfferedImage, TaintEffect, VirtualNodeSpec};

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn keys(taints: &Value) -> Vec<String> {
        let taints: Vec<Taint> = serde_json::from_value(taints.clone()).unwrap();
        taints.iter().map(taint_id).collect()
    }

    #[test]
    fn taints_of_others_stay_and_ours_go_when_they_are_no_longer_wanted() {
        let found = node(json!({
            "metadata": {
                "resourceVersion": "7",
                "annotations": {TAINTS: "liquid.mesh/virtual-node:NoExecute,old:NoSchedule"},
            },
            "spec": {"taints": [
                {"key": "old", "effect": "NoSchedule"},
                {"key": "maintenance", "effect": "NoSchedule"},
                {"key": "liquid.mesh/virtual-node", "effect": "NoExecute", "value": "else"},
                {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
            ]},
        }));
        let applied = picture().applied(&found);
        assert_eq!(applied["metadata"]["resourceVersion"], "7");
        assert_eq!(
            keys(&applied["spec"]["taints"]),
            [
                "maintenance:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute",
                "liquid.mesh/virtual-node:NoExecute",
                "gpu:NoSchedule",
            ]
        );
        assert_eq!(applied["spec"]["taints"][2]["value"], "milan");
    }

    #[test]
    fn a_taint_of_the_user_with_our_key_and_effect_does_not_count() {
        let mut picture = picture();
        let key = VIRTUAL_NODE_TAINT.to_owned();
        Arc::make_mut(&mut picture.node).spec.taints =
            vec![NodeTaint { key, value: None, effect: TaintEffect::NoExecute }];
        assert_eq!(keys(&picture.object()["spec"]["taints"]), ["liquid.mesh/virtual-node:NoExecute"]);
    }

    #[test]
    fn a_cordon_and_a_taint_of_others_are_no_drift_and_the_loss_of_ours_is() {
        let picture = picture();
        let (object, status) = (picture.object(), picture.status(&[], &at(1)));
        let mut as_written = picture.applied(&Node::default());
        as_written["status"] = status["status"].clone();
        assert!(!drifted(&node(as_written.clone()), &object, &status));
        let mut touched = as_written.clone();
        touched["spec"]["unschedulable"] = json!(true);
        let maintenance = json!({"key": "maintenance", "effect": "NoSchedule"});
        touched["spec"]["taints"].as_array_mut().unwrap().push(maintenance);
        assert!(!drifted(&node(touched), &object, &status));
        let mut untainted = as_written.clone();
        untainted["spec"]["taints"].as_array_mut().unwrap().pop();
        assert!(drifted(&node(untainted), &object, &status));
        let leaving = Picture { leaving: true, ..picture }.object();
        assert!(drifted(&node(as_written), &leaving, &status));
    }

    fn picture() -> Picture {
        let spec = VirtualNodeSpec {
            peer: "milan".to_owned(),
            labels: BTreeMap::from([
                ("region".to_owned(), "mine".to_owned()),
                (TYPE.to_owned(), "something-else".to_owned()),
            ]),
            taints: vec![NodeTaint { key: "gpu".to_owned(), value: None, effect: TaintEffect::NoSchedule }],
            ..VirtualNodeSpec::default()
        };
        let offer = Offer {
            resources: BTreeMap::from([
                ("cpu".to_owned(), Quantity("2".to_owned())),
                ("memory".to_owned(), Quantity("-5".to_owned())),
            ]),
            architectures: vec!["arm64".to_owned(), "amd64".to_owned()],
            labels: BTreeMap::from([
                ("region".to_owned(), "eu".to_owned()),
                ("zone".to_owned(), "eu-1".to_owned()),
            ]),
            kubernetes_version: "v1.35.4".to_owned(),
            ..Offer::default()
        };
        Picture {
            node: Arc::new(VirtualNode::new("liquid-milan", spec)),
            cluster_id: "id".to_owned(),
            offer: Some(Arc::new(offer)),
            unaccepted: None,
            not_ready: None,
            endpoint: Some(("10.244.0.9".to_owned(), 10_260)),
            leaving: false,
        }
    }

    /// With another offer.
    fn offering(change: impl FnOnce(&mut Offer)) -> Picture {
        let mut picture = picture();
        change(Arc::make_mut(picture.offer.as_mut().unwrap()));
        picture
    }

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_users_labels_win_over_the_offer_and_ours_over_both() {
        let labels = picture().labels();
        assert_eq!(labels["region"], "mine");
        assert_eq!(labels["zone"], "eu-1");
        assert_eq!(labels[TYPE], TYPE_VIRTUAL_NODE);
        assert_eq!(labels["kubernetes.io/arch"], "arm64");
        assert_eq!(
            (&*labels["arch.liquid.mesh/arm64"], &*labels["arch.liquid.mesh/amd64"]),
            ("true", "true")
        );
    }

    #[test]
    fn capacity_is_the_offer_and_never_negative() {
        let status = picture().status(&[], &at(1));
        assert_eq!(status["status"]["capacity"], json!({"cpu": "2", "memory": "0", "pods": "110"}));
    }

    #[test]
    fn conditions_are_those_of_the_providers_nodes() {
        let picture = offering(|offer| offer.pressures = vec!["DiskPressure".to_owned()]);
        let status = picture.status(&[], &at(1));
        let conditions = status["status"]["conditions"].as_array().unwrap();
        let found: Vec<_> =
            conditions.iter().map(|c| (c["type"].as_str().unwrap(), c["status"].as_str().unwrap())).collect();
        assert_eq!(
            found,
            [
                ("Ready", "True"),
                ("MemoryPressure", "False"),
                ("DiskPressure", "True"),
                ("PIDPressure", "False")
            ]
        );
    }

    #[test]
    fn resources_that_are_not_offered_any_more_go() {
        let found = node(json!({"status": {"capacity": {"cpu": "9", "example.org/gpu": "2"}}}));
        let status = Picture::without_withdrawn(picture().status(&[], &at(1)), &found);
        assert_eq!(
            status["status"]["capacity"],
            json!({"cpu": "2", "memory": "0", "pods": "110", "example.org/gpu": null})
        );
        assert!(status["status"]["allocatable"].get("example.org/gpu").is_none());
    }

    #[test]
    fn transition_times_stay_while_a_condition_does() {
        let current = [
            ("Ready".to_owned(), "True".to_owned(), at(1)),
            ("MemoryPressure".to_owned(), "True".to_owned(), at(1)),
        ];
        let status = picture().status(&current, &at(9));
        assert_eq!(status["status"]["conditions"][0]["lastTransitionTime"], json!(at(1)));
        assert_eq!(status["status"]["conditions"][1]["lastTransitionTime"], json!(at(9)));
    }

    #[test]
    fn a_cordoned_offer_or_a_leaving_node_is_unschedulable() {
        assert!(picture().object()["spec"].get("unschedulable").is_none());
        let leaving = Picture { leaving: true, ..picture() };
        assert_eq!(leaving.object()["spec"]["unschedulable"], true);
        assert_eq!(offering(|offer| offer.cordoned = true).object()["spec"]["unschedulable"], true);
        let withdrawn = Picture { unaccepted: Some("too dear".to_owned()), ..picture() };
        assert_eq!(withdrawn.object()["spec"]["unschedulable"], true);
    }

    #[test]
    fn one_node_of_the_provider_is_shown_as_it_is() {
        let picture = offering(|offer| {
            offer.node = Some(OfferedNode {
                name: "worker-1".to_owned(),
                ready: true,
                unschedulable: true,
                capacity: [("cpu", "8"), ("memory", "64Gi"), ("example.org/kept", "1")]
                    .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
                    .into(),
                kernel_version: "6.1".to_owned(),
                ..OfferedNode::default()
            });
            offer.operating_system = "windows".to_owned();
            offer.taints = vec![
                NodeTaint {
                    key: "gpu".to_owned(),
                    value: Some("theirs".to_owned()),
                    effect: TaintEffect::NoSchedule,
                },
                NodeTaint { key: "pool".to_owned(), value: None, effect: TaintEffect::NoExecute },
            ];
            offer.images = vec![OfferedImage { names: vec!["nginx:1".to_owned()], size_bytes: 7 }];
        });
        let (object, status) = (picture.object(), picture.status(&[], &at(1)));
        assert_eq!(object["metadata"]["labels"][PROVIDER_NODE], "worker-1");
        assert_eq!(object["metadata"]["labels"]["kubernetes.io/os"], "windows");
        assert_eq!(object["spec"]["unschedulable"], true);
        assert_eq!(
            keys(&object["spec"]["taints"]),
            ["liquid.mesh/virtual-node:NoExecute", "gpu:NoSchedule", "pool:NoExecute"]
        );
        assert!(object["spec"]["taints"][1].get("value").is_none(), "the user's wins");
        assert_eq!(status["status"]["capacity"], json!({"cpu": "8", "memory": "64Gi", "pods": "110"}));
        assert_eq!(status["status"]["allocatable"], json!({"cpu": "2", "memory": "0", "pods": "110"}));
        assert_eq!(status["status"]["nodeInfo"]["kernelVersion"], "6.1");
        assert_eq!(status["status"]["nodeInfo"]["kubeletVersion"], "v1.35.4");
        assert_eq!(status["status"]["images"], json!([{"names": ["nginx:1"], "sizeBytes": 7}]));
    }

    #[test]
    fn where_nothing_is_offered_there_is_room_for_nothing() {
        let status = offering(|offer| offer.resources.clear()).status(&[], &at(1));
        assert_eq!(status["status"]["allocatable"], json!({"pods": "0"}));
    }
}
