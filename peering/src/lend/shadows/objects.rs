//! What shadows look like in this cluster, and how they are read back.

use crate::lend::consumers::Consumer;
use crate::lend::demand::{SpecView, demand};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, Object};
use kube::{Resource as _, ResourceExt as _};
use liquid_crds::quantity::Amounts;
use liquid_crds::vocabulary::{
    API_SERVER, API_SERVER_HOME, CONSUMER_AUTHORITY, HASH, HOME_KEYS, KEPT, MACHINE_KIND, MANAGED_BY,
    MANAGED_BY_LIQUID, ORIGIN_CLUSTER, ORIGIN_NAMESPACE, ORIGIN_NODE, ORIGIN_UID, RELEASED_TO,
    VIRTUAL_NODE_TAINT,
};
use liquid_crds::{ClusterId, HomePod, Placement, ShadowPod, ShadowPodSpec, is_dns_label};
use liquid_link::digest::Hash;
use liquid_reflection::digest::StatusDigest;
use liquid_reflection::frame::{Ref, Refusal};
use liquid_reflection::provider::{Hold, Instance, Record};
use liquid_reflection::{Key, Kind, SetRef, Uid};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A ShadowPod without the pod in it: what the index needs.
pub(crate) type ShadowView = Object<ShadowSpecView, ShadowStatusView>;

/// Part of [`liquid_crds::ShadowPodSpec`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ShadowSpecView {
    pub(crate) home: HomePod,
    pub(crate) hash: String,
    /// What the pod asks for.
    #[serde(default, rename = "pod", deserialize_with = "demand_of_body", skip_serializing)]
    pub(crate) demand: Amounts,
}

/// What a body asks for; of one that makes no sense nothing can run.
#[derive(Debug, Default, Deserialize)]
struct BodyView {
    spec: SpecView,
}

fn demand_of_body<'de, D: Deserializer<'de>>(body: D) -> Result<Amounts, D::Error> {
    // A watch must not break because a consumer has sent nonsense.
    let body = Value::deserialize(body)?;
    Ok(demand_of(body).unwrap_or_else(|| demand(&SpecView::default())))
}

/// What a body, as it comes from a consumer, asks for; or why it is none.
pub(super) fn body_demand(body: &[u8]) -> Result<Amounts, Refusal> {
    let read = serde_json::from_slice(body).ok().and_then(demand_of);
    read.ok_or_else(|| Refusal {
        reason: "InvalidPod".to_owned(),
        message: "what the pod asks for cannot be read".to_owned(),
    })
}

fn demand_of(mut body: Value) -> Option<Amounts> {
    drop_nulls(&mut body);
    serde_json::from_value::<BodyView>(body).ok().map(|body| demand(&body.spec))
}

/// To an API server a field that is null is one that is not there.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Part of [`liquid_crds::ShadowPodStatus`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShadowStatusView {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) phase: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod_status: Option<Value>,
}

/// A pod without most of its spec.
pub(crate) type PodView = Object<SpecView, Value>;

/// Names of an API server in its own cluster, which its certificate has. The domain of the cluster is the usual one.
const API_SERVER_NAMES: [&str; 3] =
    ["kubernetes.default.svc", "kubernetes.default", "kubernetes.default.svc.cluster.local"];

/// Containers that `kubectl debug` adds to a pod.
const EPHEMERAL: &str = "ephemeralContainers";

/// How the API server calls ShadowPods.
pub(crate) fn shadow_resource() -> ApiResource {
    ApiResource::erase::<ShadowPod>(&())
}

/// An object that belongs to a consumer, and where it belongs.
#[derive(Debug)]
pub(crate) struct Owned<T> {
    pub(crate) cluster: ClusterId,
    pub(crate) set: SetRef,
    pub(crate) key: Key,
    pub(crate) what: T,
}

/// The consumer an object belongs to, as its label says.
pub(crate) fn origin(meta: &ObjectMeta) -> Option<ClusterId> {
    label(meta, ORIGIN_CLUSTER)?.parse().ok()
}

pub(super) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

pub(super) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Resource version as a number (comparable since Kubernetes 1.35, and always a counter of etcd).
pub(crate) fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

pub(crate) fn object_uid(meta: &ObjectMeta) -> Uid {
    Uid::from(meta.uid.as_deref().unwrap_or_default())
}

pub(super) fn hash_of(text: &str) -> Hash {
    // A hash that cannot be read equals no other, so the object is written anew.
    Hash::from_hex(text).unwrap_or_else(|| Hash::of(text.as_bytes()))
}

/// Reads a shadow namespace; `None` if it is not one of ours.
pub(crate) fn read_namespace(meta: &ObjectMeta) -> Option<Owned<Record>> {
    let cluster = origin(meta)?;
    let home = label(meta, ORIGIN_NAMESPACE)?;
    let hold = if label(meta, KEPT).is_some() { Hold::Retired } else { Hold::Nothing };
    let record = Record { hold, ..read_record(meta)? };
    Some(Owned { cluster, set: SetRef::namespaces(), key: Key::new("", home), what: record })
}

/// The record of an object that says in its annotations what it stands for.
pub(super) fn read_record(meta: &ObjectMeta) -> Option<Record> {
    Some(Record {
        object: object_uid(meta),
        version: version(meta),
        home: Uid::from(annotation(meta, ORIGIN_UID)?),
        hash: hash_of(annotation(meta, HASH)?),
        terminating: meta.deletion_timestamp.is_some(),
        finished: false,
        status: None,
        hold: Hold::Nothing,
    })
}

/// Reads a ShadowPod; `None` if it lacks the labels of one.
pub(crate) fn read_shadow(shadow: &ShadowView) -> Option<Owned<Record>> {
    let meta = &shadow.metadata;
    let what = Record {
        object: object_uid(meta),
        version: version(meta),
        home: Uid::from(shadow.spec.home.uid.as_str()),
        hash: hash_of(&shadow.spec.hash),
        terminating: meta.deletion_timestamp.is_some(),
        finished: shadow.status.as_ref().is_some_and(|status| status.phase.is_some()),
        status: shadow.status.as_ref().and_then(|status| StatusDigest::of(status.pod_status.as_ref()?)),
        hold: Hold::Nothing,
    };
    Some(Owned {
        cluster: origin(meta)?,
        set: SetRef::pods(label(meta, ORIGIN_NODE)?),
        key: Key::new(&shadow.spec.home.namespace, &shadow.name_any()),
        what,
    })
}

/// Reads a pod behind a ShadowPod; `None` if it is something else that carries our labels.
pub(crate) fn read_pod(pod: &PodView) -> Option<Owned<Instance>> {
    let meta = &pod.metadata;
    let owned = meta.owner_references.iter().flatten().any(|owner| owner.kind == ShadowPod::kind(&()));
    if !owned {
        return None;
    }
    let status = pod.status.as_ref();
    let what = Instance {
        object: object_uid(meta),
        version: version(meta),
        home: Uid::from(label(meta, ORIGIN_UID)?),
        hash: hash_of(annotation(meta, HASH)?),
        terminating: meta.deletion_timestamp.is_some(),
        finished: finished(pod),
        status: status.and_then(StatusDigest::of),
        interim: status
            .filter(|_| meta.deletion_timestamp.is_some())
            .and_then(|status| StatusDigest::of(&interim_status(status))),
        fresh: status.is_some_and(is_fresh),
    };
    Some(Owned {
        cluster: origin(meta)?,
        set: SetRef::pods(label(meta, ORIGIN_NODE)?),
        key: Key::new(label(meta, ORIGIN_NAMESPACE)?, &pod.name_any()),
        what,
    })
}

/// Whether a pod has ended for good. One that was deleted while it ran was not done: another takes its place.
fn finished(pod: &PodView) -> bool {
    match phase(pod.status.as_ref()) {
        Some("Succeeded" | "Failed") if pod.metadata.deletion_timestamp.is_none() => true,
        Some("Succeeded") => matches!(pod.spec.restart_policy.as_deref(), Some("Never" | "OnFailure")),
        _ => false,
    }
}

/// Whether a status is as the API server makes it.
fn is_fresh(status: &Value) -> bool {
    phase(Some(status)) == Some("Pending") && status.get("conditions").is_none()
}

fn phase(status: Option<&Value>) -> Option<&str> {
    status?.get("phase")?.as_str()
}

/// What the consumer is shown of a pod that ends here although it is wanted: at home it has not ended, for Kubernetes
/// never lets a pod go on after that.
pub(crate) fn interim_status(status: &Value) -> Value {
    let mut interim = status.clone();
    if matches!(phase(Some(status)), Some("Succeeded" | "Failed")) {
        interim["phase"] = json!("Running");
    }
    let containers = interim.get_mut("containerStatuses").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        if container.pointer("/state/terminated").is_some() {
            let message = "deleted in the provider; another pod takes its place";
            container["state"] = json!({"waiting": {"reason": "Replaced", "message": message}});
        }
    }
    interim
}

/// Labels of what this cluster makes for its own account, of `consumer`.
fn owner_labels(consumer: &Consumer) -> BTreeMap<String, String> {
    BTreeMap::from([
        (MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned()),
        (ORIGIN_CLUSTER.to_owned(), consumer.id.to_string()),
    ])
}

/// What a consumer asks of a namespace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamespaceBody {
    /// Its name in this cluster.
    pub(crate) name: String,
}

/// A shadow namespace.
pub(crate) fn namespace(
    consumer: &Consumer,
    target: &Ref,
    hash: Hash,
    name: &str,
    pod_security: &str,
) -> Value {
    let mut labels = owner_labels(consumer);
    labels.insert(ORIGIN_NAMESPACE.to_owned(), target.key.name.to_string());
    labels.insert("pod-security.kubernetes.io/enforce".to_owned(), pod_security.to_owned());
    let mut annotations = json!({ HASH: hash.to_string(), ORIGIN_UID: target.uid.as_str() });
    if let Some(authority) = &consumer.authority {
        annotations[CONSUMER_AUTHORITY] = json!(authority);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": annotations,
        },
    })
}

/// Whether what is kept in a namespace with this metadata is `consumer`'s: it has the key of the cluster that had it, or whoever
/// runs this cluster says so. Its identity alone anybody may claim who has a token.
pub(super) fn may_take_back(consumer: &Consumer, kept: &ObjectMeta) -> bool {
    let says = |name: &str| kept.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
    let known = consumer.authority.is_some() && says(CONSUMER_AUTHORITY) == consumer.authority.as_deref();
    known || says(RELEASED_TO) == Some(&consumer.peering)
}

/// A ShadowPod; it runs where `placement` says.
pub(crate) fn shadow(
    consumer: &Consumer,
    target: &Ref,
    hash: Hash,
    pod: Value,
    placement: Placement,
) -> ShadowPod {
    debug_assert_eq!(target.set.kind, Kind::Pod);
    let mut labels = owner_labels(consumer);
    labels.insert(ORIGIN_NODE.to_owned(), target.set.scope.to_string());
    let home = HomePod {
        cluster: consumer.name.clone(),
        namespace: target.key.namespace.to_string(),
        uid: target.uid.to_string(),
        node: target.set.scope.to_string(),
    };
    let spec = ShadowPodSpec { home, hash: hash.to_string(), pod, placement };
    let mut shadow = ShadowPod::new(&target.key.name, spec);
    shadow.metadata.labels = Some(labels);
    shadow
}

/// Why this cluster does not run a pod for another one, if so: a token of an account here would be an identity here, and a
/// claim that Kubernetes makes for the pod has whatever class it likes. The Pod Security Standard of the namespace decides about everything else.
pub(crate) fn forbidden(pod: &Value) -> Option<&'static str> {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    if volumes.clone().any(|volume| volume.get("ephemeral").is_some()) {
        return Some(
            "the provider makes claims for pods of other clusters only as those clusters ask for them",
        );
    }
    let sources = volumes.filter_map(|volume| volume.pointer("/projected/sources")?.as_array()).flatten();
    for source in sources {
        if ["serviceAccountToken", "podCertificate"].iter().any(|kind| source.get(kind).is_some()) {
            return Some("the provider gives no tokens or certificates of its own to pods of other clusters");
        }
    }
    None
}

/// The pod a ShadowPod describes.
///
/// The spec comes from another cluster and is not trusted: what would bind the pod to a node, give it an identity of
/// this cluster or let it travel on is taken out here, whatever the consumer did. The Pod Security Standard of the
/// namespace decides about the rest.
pub(crate) fn pod(shadow: &ShadowPod) -> Value {
    let wanted = &shadow.spec.pod;
    let home = &shadow.spec.home;
    let mut labels = strings(wanted.pointer("/metadata/labels"));
    let of_shadow = shadow.metadata.labels.iter().flatten();
    labels.extend(
        of_shadow.filter(|(key, _)| *key != MANAGED_BY).map(|(key, value)| (key.clone(), value.clone())),
    );
    labels.insert(ORIGIN_NAMESPACE.to_owned(), home.namespace.clone());
    labels.insert(ORIGIN_UID.to_owned(), home.uid.clone());
    let mut annotations = strings(wanted.pointer("/metadata/annotations"));
    let from_home = keys(&labels, &annotations);
    annotations.insert(HOME_KEYS.to_owned(), from_home);
    annotations.insert(HASH.to_owned(), shadow.spec.hash.clone());
    let mut spec = wanted.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    for field in ["nodeName", "serviceAccount", "serviceAccountName", "priority", "priorityClassName"] {
        spec.remove(field);
    }
    leave_choice_of_node(&mut spec);
    place(&mut spec, &shadow.spec.placement);
    spec.insert("automountServiceAccountToken".to_owned(), Value::Bool(false));
    if let Some(tolerations) = spec.get_mut("tolerations").and_then(Value::as_array_mut) {
        // A toleration without a key tolerates everything, this cluster's own virtual nodes too.
        tolerations.retain(|toleration| {
            let key = toleration.get("key").and_then(Value::as_str);
            key.is_some_and(|key| !key.is_empty() && key != VIRTUAL_NODE_TAINT)
        });
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": shadow.name_any(),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": ShadowPod::api_version(&()),
                "kind": ShadowPod::kind(&()),
                "name": shadow.name_any(),
                "uid": shadow.metadata.uid,
                "controller": true,
                "blockOwnerDeletion": false,
            }],
        },
        "spec": spec,
    })
}

/// Whether the pod of this ShadowPod is to reach the API server of its home.
pub(crate) fn reaches_home(shadow: &ShadowPod) -> bool {
    let annotations = shadow.spec.pod.pointer("/metadata/annotations");
    annotations.and_then(|all| all.get(API_SERVER)).and_then(Value::as_str) == Some(API_SERVER_HOME)
}

/// Lets a pod find home's API server at `address`, by the names in its certificate.
pub(crate) fn lead_home(pod: &mut Value, address: &str) {
    let alias = json!({ "ip": address, "hostnames": API_SERVER_NAMES });
    match pod.pointer_mut("/spec/hostAliases").and_then(Value::as_array_mut) {
        Some(aliases) => aliases.push(alias),
        None => pod["spec"]["hostAliases"] = json!([alias]),
    }
}

/// Value of [`HOME_KEYS`]: which labels and annotations come from home.
pub(super) fn keys(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> String {
    let keys = json!({
        "labels": labels.keys().collect::<Vec<_>>(),
        "annotations": annotations.keys().collect::<Vec<_>>(),
    });
    keys.to_string()
}

/// Which of its nodes a pod runs on is this cluster's matter; the kind of machine is the pod's.
fn leave_choice_of_node(spec: &mut Map<String, Value>) {
    let is_kind = |key: &str| MACHINE_KIND.contains(&key);
    if let Some(selector) = spec.get_mut("nodeSelector").and_then(Value::as_object_mut) {
        selector.retain(|key, _| is_kind(key));
    }
    let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) else { return };
    let required = "/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = affinity.get("nodeAffinity").and_then(|node| node.pointer(required)?.as_array()).cloned();
    affinity.remove("nodeAffinity");
    let harmless = |term: &Value| {
        let keys = term["matchExpressions"].as_array().into_iter().flatten().map(|it| it["key"].as_str());
        term.get("matchFields").is_none() && keys.into_iter().all(|key| key.is_some_and(is_kind))
    };
    if let Some(terms) = terms.filter(|terms| terms.iter().all(harmless)) {
        let required =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        affinity.insert("nodeAffinity".to_owned(), required);
    }
}

/// Keeps a pod on the nodes of `placement`: whatever else it asks of its node, that comes on top.
fn place(spec: &mut Map<String, Value>, placement: &Placement) {
    if placement.is_anywhere() {
        return;
    }
    let is = |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
    let labels: Vec<Value> = placement.node_selector.iter().map(|(key, value)| is(key, value)).collect();
    let fields: Vec<Value> = placement.node.iter().map(|node| is("metadata.name", node)).collect();
    let known = spec.get("affinity").and_then(|affinity| {
        affinity.pointer("/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms")
    });
    // One of the terms has to hold; without any, every node would do.
    let mut terms = known.and_then(Value::as_array).filter(|terms| !terms.is_empty()).cloned();
    let terms = terms.get_or_insert_with(|| vec![json!({})]);
    // An empty term matches nothing, and what is no object is one.
    terms.retain(Value::is_object);
    for term in terms.iter_mut() {
        for (list, more) in [("matchExpressions", &labels), ("matchFields", &fields)] {
            // What is no list says nothing, and must not keep ours out.
            let mut all = term[list].as_array().cloned().unwrap_or_default();
            all.extend(more.iter().cloned());
            if !all.is_empty() {
                term[list] = Value::Array(all);
            }
        }
    }
    let mut affinity = spec.get("affinity").and_then(Value::as_object).cloned().unwrap_or_default();
    let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
    affinity.insert("nodeAffinity".to_owned(), required);
    spec.insert("affinity".to_owned(), Value::Object(affinity));
}

/// A pod as it is created: ephemeral containers are only ever added to one that exists. One that is to have some is not
/// what was wanted yet, so it is adjusted as soon as it is there.
pub(crate) fn created(mut pod: Value) -> Value {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    let left = spec.and_then(|spec| spec.remove(EPHEMERAL)).is_some_and(|list| list != json!([]));
    if left {
        pod["metadata"]["annotations"][HASH] = json!("without ephemeral containers");
    }
    pod
}

/// The patch that gives the containers of a running pod the resources they have in `wanted` (subresource `resize`), if
/// that changes anything. What the provider has added of its own stays: it cannot be taken back either.
pub(crate) fn resizing(running: &Value, wanted: &Value) -> Option<json_patch::Patch> {
    let mut target = running.clone();
    merge_resources(target.get_mut("spec"), wanted.get("spec"));
    for list in ["containers", "initContainers"] {
        let path = format!("/spec/{list}");
        let containers = target.pointer_mut(&path).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container.get("name").cloned();
            let mut same = wanted.pointer(&path).and_then(Value::as_array).into_iter().flatten();
            let same = same.find(|wanted| wanted.get("name") == name.as_ref());
            merge_resources(Some(container), same);
        }
    }
    let patch = json_patch::diff(running, &target);
    (!patch.0.is_empty()).then_some(patch)
}

fn merge_resources(of: Option<&mut Value>, wanted: Option<&Value>) {
    let (Some(of), Some(wanted)) = (of, wanted) else { return };
    for kind in ["requests", "limits"] {
        let wanted = wanted.pointer(&format!("/resources/{kind}")).and_then(Value::as_object);
        for (resource, amount) in wanted.into_iter().flatten() {
            of["resources"][kind][resource] = amount.clone();
        }
    }
}

/// The patch that adds to a running pod the ephemeral containers it lacks (subresource `ephemeralcontainers`), if any.
pub(crate) fn debugging(running: &Value, wanted: &Value) -> Option<json_patch::Patch> {
    let containers = |pod: &Value| {
        let list = pod.get("spec").and_then(|spec| spec.get(EPHEMERAL)).and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let there = containers(running);
    let known = |container: &Value| there.iter().any(|there| there.get("name") == container.get("name"));
    let more: Vec<Value> = containers(wanted).into_iter().filter(|container| !known(container)).collect();
    if more.is_empty() {
        return None;
    }
    let mut target = running.clone();
    target["spec"][EPHEMERAL] = there.into_iter().chain(more).collect();
    Some(json_patch::diff(running, &target))
}

/// The patch that brings a running pod in line with `wanted` (both as JSON): labels, annotations and what Kubernetes
/// lets change in a running pod's spec.
pub(crate) fn adjustment(running: &Value, wanted: &Value) -> json_patch::Patch {
    let mut target = running.clone();
    // What others have added (networks, injectors, policies) is theirs.
    let ours = running.pointer("/metadata/annotations").and_then(|annotations| annotations.get(HOME_KEYS));
    let ours: Value =
        ours.and_then(Value::as_str).and_then(|ours| serde_json::from_str(ours).ok()).unwrap_or_default();
    for field in ["labels", "annotations"] {
        let there = running.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
        let mut keys = there.cloned().unwrap_or_default();
        let from_home = ours.get(field).and_then(Value::as_array).into_iter().flatten();
        for key in from_home.filter_map(Value::as_str) {
            keys.remove(key);
        }
        let now = wanted.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
        keys.extend(now.cloned().unwrap_or_default());
        target["metadata"][field] = Value::Object(keys);
    }
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
        if let Some(value) = wanted.pointer(&format!("/spec/{field}")) {
            // The API server adds tolerations of its own; only additions are allowed, so keep what is there.
            target["spec"][field] = match (field, target["spec"].get(field), value) {
                ("tolerations", Some(Value::Array(there)), Value::Array(more)) => {
                    let new = more.iter().filter(|toleration| !there.contains(toleration));
                    Value::Array(there.iter().chain(new).cloned().collect())
                }
                _ => value.clone(),
            };
        }
    }
    for list in ["containers", "initContainers"] {
        let images: Map<String, Value> = wanted
            .pointer(&format!("/spec/{list}"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|c| Some((c.get("name")?.as_str()?.to_owned(), c.get("image")?.clone())))
            .collect();
        let containers = target.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(image) = images.get(&name) {
                container["image"] = image.clone();
            }
        }
    }
    json_patch::diff(running, &target)
}

pub(super) fn strings(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields
        // Ours are set by us alone.
        .filter(|(key, _)| !key.starts_with("liquid.mesh/"))
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// Body of a namespace as the consumer sends it.
pub(crate) fn namespace_body(body: &[u8]) -> Result<NamespaceBody, String> {
    let body: NamespaceBody = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if is_dns_label(&body.name) { Ok(body) } else { Err(format!("{:?} is no namespace name", body.name)) }
}

/// Names of namespaces at home, by consumer, to those here.
pub(crate) type NamespaceNames = BTreeMap<Arc<str>, Arc<str>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Ref {
        Ref { set: SetRef::pods("liquid-turin"), key: Key::new("shop", "web-0"), uid: Uid::from("u1") }
    }

    fn made(body: Value) -> (ShadowPod, Value) {
        made_for(Placement::default(), body)
    }

    fn made_for(placement: Placement, body: Value) -> (ShadowPod, Value) {
        let mut shadow = shadow(&Consumer::for_tests(), &target(), Hash::of(b"x"), body, placement);
        shadow.metadata.uid = Some("s1".to_owned());
        shadow.metadata.resource_version = Some("7".to_owned());
        let mut pod = pod(&shadow);
        pod["metadata"]["uid"] = json!("p1");
        pod["metadata"]["resourceVersion"] = json!("9");
        (shadow, pod)
    }

    #[test]
    fn shadows_and_their_pods_are_read_back_as_they_were_made() {
        let (shadow, pod) = made(json!({"spec": {"containers": []}}));
        let view: ShadowView = serde_json::from_value(serde_json::to_value(&shadow).unwrap()).unwrap();
        let record = read_shadow(&view).unwrap();
        assert_eq!(
            (record.cluster, record.set, record.key),
            (Consumer::for_tests().id, target().set, target().key)
        );
        assert_eq!((record.what.home, record.what.hash), (target().uid, Hash::of(b"x")));
        let view: PodView = serde_json::from_value(pod).unwrap();
        let instance = read_pod(&view).unwrap();
        assert_eq!((instance.set, instance.key), (target().set, target().key));
        assert_eq!(
            (instance.what.home, instance.what.hash, instance.what.version),
            (target().uid, Hash::of(b"x"), 9)
        );
    }

    #[test]
    fn a_pod_runs_where_its_virtual_node_says_whatever_it_asks_for_itself() {
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let zone = json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]});
        let name = json!({"key": "metadata.name", "operator": "In", "values": ["n1"]});
        let arch = |values: &str| json!({"key": "kubernetes.io/arch", "operator": "In", "values": [values]});
        let terms = |placement: &Placement, affinity: Value| {
            let (_, pod) =
                made_for(placement.clone(), json!({"spec": {"affinity": affinity, "containers": []}}));
            pod["spec"]["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"].clone()
        };
        let asking = |terms: Value| json!({"nodeAffinity": {required: {"nodeSelectorTerms": terms}}});
        let in_zone = Placement {
            node_selector: BTreeMap::from([("topology.kubernetes.io/zone".to_owned(), "a".to_owned())]),
            node: None,
        };
        let on_node = Placement { node_selector: BTreeMap::new(), node: Some("n1".to_owned()) };
        let alone = json!([{"matchExpressions": [zone]}]);
        let nonsense = [
            json!(null),
            json!("x"),
            asking(json!(null)),
            asking(json!([])),
            asking(json!([{"matchExpressions": null}])),
        ];
        for nothing in nonsense {
            assert_eq!(terms(&in_zone, nothing.clone()), alone, "{nothing}");
            assert_eq!(terms(&on_node, nothing)[0]["matchFields"], json!([name]));
        }
        let two = json!([{"matchExpressions": [arch("arm64")]}, {"matchExpressions": [arch("amd64")]}]);
        assert_eq!(
            terms(&in_zone, asking(two.clone())),
            json!([{"matchExpressions": [arch("arm64"), zone]}, {"matchExpressions": [arch("amd64"), zone]}])
        );
        let elsewhere =
            json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]);
        assert_eq!(terms(&on_node, asking(elsewhere)), json!([{"matchFields": [name]}]));
        assert_eq!(terms(&Placement::default(), asking(two.clone())), two);
    }

    #[test]
    fn a_pod_is_fresh_until_somebody_has_written_of_it() {
        let fresh = |status: Value| {
            let (_, mut pod) = made(json!({"spec": {"containers": []}}));
            pod["status"] = status;
            read_pod(&serde_json::from_value(pod).unwrap()).unwrap().what.fresh
        };
        assert!(fresh(json!({"phase": "Pending", "qosClass": "BestEffort"})));
        assert!(!fresh(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]})
        ));
        assert!(!fresh(json!({"phase": "Running"})));
    }

    #[test]
    fn a_pod_that_was_deleted_while_it_ran_has_not_finished() {
        let pod = |policy: &str, phase: &str, deleted: bool| {
            let (_, mut pod) = made(json!({"spec": {"containers": [], "restartPolicy": policy}}));
            if deleted {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            pod["status"] = json!({
                "phase": phase,
                "containerStatuses": [{"name": "c", "ready": false, "state": {"terminated": {"exitCode": 143}}}],
            });
            read_pod(&serde_json::from_value(pod).unwrap()).unwrap().what
        };
        for (policy, phase, deleted, finished) in [
            ("Always", "Running", false, false),
            ("Always", "Failed", false, true),
            ("Always", "Failed", true, false),
            ("Always", "Succeeded", true, false),
            ("Never", "Succeeded", true, true),
            ("Never", "Failed", true, false),
            ("OnFailure", "Succeeded", false, true),
        ] {
            assert_eq!(pod(policy, phase, deleted).finished, finished, "{policy} {phase} {deleted}");
        }
        let status = json!({
            "phase": "Failed",
            "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}],
            "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 143}}}],
        });
        let interim = interim_status(&status);
        assert_eq!(interim["phase"], "Running");
        assert!(interim["containerStatuses"][0]["state"]["waiting"].is_object());
        assert_eq!(interim["initContainerStatuses"], status["initContainerStatuses"]);
        let ending = pod("Always", "Failed", true);
        assert!(ending.interim.is_some() && ending.interim != ending.status);
        assert_eq!(pod("Always", "Running", false).interim, None);
    }

    #[test]
    fn a_pod_with_our_labels_that_nobody_owns_is_not_ours() {
        let (_, mut pod) = made(json!({}));
        pod["metadata"]["ownerReferences"] = json!([]);
        assert!(read_pod(&serde_json::from_value(pod).unwrap()).is_none());
    }

    #[test]
    fn a_consumer_cannot_choose_node_identity_or_our_labels() {
        let (_, pod) = made(json!({
            "metadata": {
                "labels": {"app": "web", "liquid.mesh/origin-cluster": "somebody-else"},
                "annotations": {"note": "x", "liquid.mesh/hash": "0"},
            },
            "spec": {
                "nodeName": "control-plane", "serviceAccountName": "admin", "priorityClassName": "system-node-critical",
                "automountServiceAccountToken": true, "newField": {"kept": true},
                "tolerations": [
                    {"operator": "Exists"},
                    {"key": "", "operator": "Exists"},
                    {"key": "liquid.mesh/virtual-node", "operator": "Exists"},
                    {"key": "gpu", "operator": "Exists"},
                ],
            },
        }));
        assert_eq!(pod["metadata"]["labels"]["app"], "web");
        assert_eq!(
            pod["metadata"]["labels"]["liquid.mesh/origin-cluster"],
            Consumer::for_tests().id.as_str()
        );
        assert_eq!(pod["metadata"]["annotations"]["liquid.mesh/hash"], Hash::of(b"x").to_string());
        let spec = &pod["spec"];
        for field in ["nodeName", "serviceAccountName", "priorityClassName"] {
            assert!(spec.get(field).is_none(), "{field}");
        }
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["newField"]["kept"], true, "fields of newer API versions survive");
        assert_eq!(spec["tolerations"], json!([{"key": "gpu", "operator": "Exists"}]));
    }

    #[test]
    fn a_consumer_chooses_the_kind_of_machine_and_no_machine() {
        let spec = |selector: Value, node_affinity: Value| json!({"nodeSelector": selector, "affinity": {"nodeAffinity": node_affinity, "podAntiAffinity": {}}});
        let expression = |key: &str| json!({"matchExpressions": [{"key": key, "operator": "Exists"}]});
        let required = |terms: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        let made = |spec: Value| made(json!({ "spec": spec })).1["spec"].take();
        let kind =
            spec(json!({"kubernetes.io/arch": "arm64"}), required(json!([expression("kubernetes.io/os")])));
        let pod = made(kind.clone());
        assert_eq!((&pod["nodeSelector"], &pod["affinity"]), (&kind["nodeSelector"], &kind["affinity"]));
        let fields = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
        let preferred =
            json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": fields}]});
        for machine in [
            required(json!([expression("kubernetes.io/os"), expression("kubernetes.io/hostname")])),
            required(json!([fields])),
            preferred,
        ] {
            let pod = made(spec(json!({"kubernetes.io/hostname": "n1"}), machine));
            assert_eq!(
                (&pod["nodeSelector"], &pod["affinity"]),
                (&json!({}), &json!({"podAntiAffinity": {}}))
            );
        }
    }

    #[test]
    fn what_is_kept_is_given_back_to_the_cluster_that_had_it_and_by_the_word_of_the_administrator() {
        let consumer = Consumer::for_tests();
        let kept = |annotations: Value| {
            let meta = json!({ "annotations": annotations });
            may_take_back(&consumer, &serde_json::from_value(meta).unwrap())
        };
        let target = Ref { set: SetRef::namespaces(), key: Key::new("", "shop"), uid: Uid::from("u1") };
        let made = namespace(&consumer, &target, Hash::of(b"x"), "shop-turin", "baseline");
        assert!(kept(made["metadata"]["annotations"].clone()));
        assert!(!kept(json!({CONSUMER_AUTHORITY: "another"})));
        assert!(!kept(json!({})), "nothing is known of who had it");
        assert!(kept(json!({CONSUMER_AUTHORITY: "another", RELEASED_TO: "p"})));
        assert!(!kept(json!({CONSUMER_AUTHORITY: "another", RELEASED_TO: "an-earlier-peer"})));
        let unproven = Consumer { authority: None, ..Consumer::for_tests() };
        assert!(!may_take_back(&unproven, &ObjectMeta::default()));
    }

    #[test]
    fn what_a_shadow_asks_for_is_known_whatever_is_in_it() {
        let body = |cpu: Value| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}});
        let nulls = json!({"spec": {"initContainers": null, "overhead": null, "containers": [
            {"restartPolicy": null, "resources": {"requests": {"cpu": "2", "memory": null}, "limits": null}},
        ]}});
        for (body, cpu) in [
            (body(json!("250m")), 250),
            (body(json!(2)), 2000),
            (body(Value::Null), 0),
            (nulls, 2000),
            (body(json!({})), 0),
            (json!([]), 0),
        ] {
            match body_demand(body.to_string().as_bytes()) {
                Ok(found) => assert_eq!(found.get("cpu").copied().unwrap_or(0), cpu, "{body}"),
                Err(refusal) => assert_eq!((refusal.reason.as_str(), cpu), ("InvalidPod", 0), "{body}"),
            }
            let (shadow, _) = made(body);
            let view: ShadowView = serde_json::from_value(serde_json::to_value(&shadow).unwrap()).unwrap();
            assert_eq!(view.spec.demand.get("cpu").copied().unwrap_or(0), cpu);
            assert_eq!(view.spec.demand["pods"], 1000);
        }
    }

    #[test]
    fn a_consumer_gets_no_identity_here() {
        let with =
            |source: Value| json!({"spec": {"volumes": [{"name": "v", "projected": {"sources": [source]}}]}});
        assert!(forbidden(&with(json!({"serviceAccountToken": {"path": "token"}}))).is_some());
        assert!(forbidden(&with(json!({"downwardAPI": {}}))).is_none());
        assert!(forbidden(&json!({})).is_none());
    }

    #[test]
    fn a_pod_finds_homes_api_server_by_the_names_in_its_certificate() {
        let (shadow, mut pod) = made(json!({
            "metadata": {"annotations": {API_SERVER: API_SERVER_HOME}},
            "spec": {"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["db"]}]},
        }));
        assert!(reaches_home(&shadow) && pod["metadata"]["annotations"].get(API_SERVER).is_none());
        lead_home(&mut pod, "10.96.0.7");
        assert_eq!(pod["spec"]["hostAliases"][0]["hostnames"], json!(["db"]));
        assert_eq!(pod["spec"]["hostAliases"][1], json!({"ip": "10.96.0.7", "hostnames": API_SERVER_NAMES}));
        let (plain, mut pod) = made(json!({"spec": {}}));
        assert!(!reaches_home(&plain));
        lead_home(&mut pod, "10.96.0.7");
        assert_eq!(pod["spec"]["hostAliases"][0]["ip"], "10.96.0.7");
    }

    #[test]
    fn an_adjustment_changes_only_what_may_change() {
        let running = json!({
            "metadata": {
                "labels": {"a": "1", "old": "x", "injected": "y"},
                "annotations": {
                    "cni.example.org/networks": "z",
                    HOME_KEYS: r#"{"labels": ["a", "old"], "annotations": []}"#,
                },
            },
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "c", "image": "i:1", "terminationMessagePath": "/dev/x"}],
                "tolerations": [{"key": "node.kubernetes.io/not-ready"}],
            },
        });
        let wanted = json!({
            "metadata": {"labels": {"a": "2"}, "annotations": {"b": "3"}},
            "spec": {"containers": [{"name": "c", "image": "i:2"}], "tolerations": [{"key": "gpu"}]},
        });
        let mut adjusted = running.clone();
        json_patch::patch(&mut adjusted, &adjustment(&running, &wanted)).unwrap();
        assert_eq!(adjusted["metadata"]["labels"], json!({"a": "2", "injected": "y"}));
        assert_eq!(adjusted["metadata"]["annotations"]["cni.example.org/networks"], "z");
        assert_eq!(adjusted["metadata"]["annotations"]["b"], "3");
        assert_eq!(adjusted["spec"]["nodeName"], "n1");
        assert_eq!(
            adjusted["spec"]["containers"],
            json!([{"name": "c", "image": "i:2", "terminationMessagePath": "/dev/x"}])
        );
        assert_eq!(
            adjusted["spec"]["tolerations"],
            json!([{"key": "node.kubernetes.io/not-ready"}, {"key": "gpu"}])
        );
    }

    #[test]
    fn ephemeral_containers_are_added_to_a_pod_that_exists() {
        let debugger = |name: &str| json!({"name": name, "image": "i"});
        let (shadow, _) =
            made(json!({"spec": {"containers": [], "ephemeralContainers": [debugger("a"), debugger("b")]}}));
        let wanted = pod(&shadow);
        let begun = created(wanted.clone());
        assert!(begun["spec"].get(EPHEMERAL).is_none());
        let view = |pod: &Value| read_pod(&serde_json::from_value(pod.clone()).unwrap()).unwrap().what.hash;
        assert_ne!(view(&begun), Hash::of(b"x"), "it is adjusted");
        let mut running = begun;
        running["spec"][EPHEMERAL] = json!([{"name": "a", "image": "i", "stdin": true}]);
        let patch = debugging(&running, &wanted).unwrap();
        json_patch::patch(&mut running, &patch).unwrap();
        assert_eq!(
            running["spec"][EPHEMERAL],
            json!([{"name": "a", "image": "i", "stdin": true}, {"name": "b", "image": "i"}])
        );
        assert!(debugging(&running, &wanted).is_none());
        let (plain, _) = made(json!({"spec": {"containers": []}}));
        assert_eq!(view(&created(pod(&plain))), Hash::of(b"x"));
    }

    #[test]
    fn a_resize_changes_the_resources_that_are_named_and_no_others() {
        let running = json!({"spec": {
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "10m"}}},
            ],
            "initContainers": [{"name": "s", "restartPolicy": "Always"}],
        }});
        let wanted = json!({"spec": {
            "containers": [
                {"name": "b"},
                {"name": "a", "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "2Gi"}}},
                {"name": "c", "resources": {"requests": {"cpu": "2"}}},
            ],
            "initContainers": [{"name": "s", "resources": {"requests": {"cpu": "5m"}}}],
        }});
        let mut resized = running.clone();
        json_patch::patch(&mut resized, &resizing(&running, &wanted).unwrap()).unwrap();
        assert_eq!(
            resized["spec"]["containers"],
            json!([
                {"name": "a", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "10m"}}},
            ])
        );
        assert_eq!(resized["spec"]["initContainers"][0]["resources"], json!({"requests": {"cpu": "5m"}}));
        assert!(resizing(&resized, &wanted).is_none());
    }

    #[test]
    fn namespace_names_are_checked() {
        assert_eq!(namespace_body(br#"{"name":"shop-milan"}"#).unwrap().name, "shop-milan");
        for bad in [r#"{"name":""}"#, r#"{"name":"../x"}"#, r#"{"name":"A"}"#, r#"{"name":"a","x":1}"#, "x"] {
            assert!(namespace_body(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
