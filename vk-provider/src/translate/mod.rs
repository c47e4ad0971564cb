//! From a pod at home to the pod wanted in the provider, as raw JSON: fields this version does not know survive.
//!
//! Every change is one of the rules below, with its reason. What cannot work in another cluster is refused, and the
//! user is told; nothing that matters is dropped silently.

mod refuse;

use liquid_crds::vocabulary::VIRTUAL_NODE_TAINT;
use liquid_reflection::frame::Refusal;
use serde_json::{Map, Value, json};

/// Fields of the spec that mean something only in the cluster they were written for, and why they are left behind.
const LEFT_BEHIND: [(&str, &str); 10] = [
    ("nodeName", "the provider's scheduler chooses the node"),
    ("nodeSelector", "labels of nodes at home say nothing about nodes of the provider"),
    ("affinity", "refers to nodes and pods at home; it has chosen the virtual node, and its work is done"),
    ("schedulerName", "a scheduler of that name may not exist there"),
    ("serviceAccount", "deprecated name of serviceAccountName"),
    ("serviceAccountName", "accounts of home are unknown there"),
    ("priority", "classes differ by cluster; the number would be refused"),
    ("priorityClassName", "classes differ by cluster"),
    ("preemptionPolicy", "goes with the priority, and would be refused without it"),
    ("schedulingGates", "a bound pod has none left; they may not be set on creation there"),
];

/// Prefix of the volumes in which the API server mounts service-account tokens.
const TOKEN_VOLUME: &str = "kube-api-access-";

/// Annotations that belong to the object at home alone.
const HOME_ANNOTATIONS: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// Makes the body of the shadow of `pod` (as the API server of home has it).
///
/// # Errors
/// If the pod cannot work in another cluster; the refusal says why.
pub(crate) fn pod(pod: &Value) -> Result<Value, Refusal> {
    refuse::check(pod)?;
    let mut spec = pod.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    for (field, _) in LEFT_BEHIND {
        spec.remove(field);
    }
    leave_token_volumes(&mut spec);
    leave_home_tolerations(&mut spec);
    let meta = pod.get("metadata");
    Ok(json!({
        "metadata": {
            "labels": meta.and_then(|meta| meta.get("labels")).cloned().unwrap_or_else(|| json!({})),
            "annotations": annotations(meta),
        },
        "spec": spec,
    }))
}

fn annotations(meta: Option<&Value>) -> Map<String, Value> {
    let all = meta.and_then(|meta| meta.get("annotations")).and_then(Value::as_object).cloned();
    let mut all = all.unwrap_or_default();
    all.retain(|name, _| !HOME_ANNOTATIONS.contains(&name.as_str()));
    all
}

/// The tokens in these volumes are for the API server of home, which the pod does not reach from there.
fn leave_token_volumes(spec: &mut Map<String, Value>) {
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|volume| !name_of(volume).starts_with(TOKEN_VOLUME));
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for mounts in containers.filter_map(|c| c.get_mut("volumeMounts").and_then(Value::as_array_mut)) {
            mounts.retain(|mount| !name_of(mount).starts_with(TOKEN_VOLUME));
        }
    }
}

/// The taint of virtual nodes is what home tolerates; the pod shall not travel on from the provider. The others that
/// the API server adds by default it adds there as well.
fn leave_home_tolerations(spec: &mut Map<String, Value>) {
    if let Some(tolerations) = spec.get_mut("tolerations").and_then(Value::as_array_mut) {
        tolerations.retain(|toleration| {
            let key = toleration.get("key").and_then(Value::as_str).unwrap_or_default();
            key != VIRTUAL_NODE_TAINT && !key.starts_with("node.kubernetes.io/")
        });
    }
}

fn name_of(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Value {
        json!({
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u",
                "labels": {"app": "web"},
                "annotations": {"note": "x", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {
                "nodeName": "liquid-milan", "serviceAccountName": "default", "priority": 0, "schedulerName": "s",
                "affinity": {"nodeAffinity": {}}, "nodeSelector": {"a": "b"}, "newField": {"kept": 1},
                "volumes": [
                    {"name": "kube-api-access-x", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                    {"name": "tmp", "emptyDir": {}},
                ],
                "containers": [{"name": "c", "image": "i", "volumeMounts": [
                    {"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
                    {"name": "tmp", "mountPath": "/tmp"},
                ]}],
                "tolerations": [
                    {"key": "liquid.mesh/virtual-node", "operator": "Exists"},
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                    {"key": "gpu", "operator": "Exists"},
                ],
            },
            "status": {"phase": "Pending"},
        })
    }

    #[test]
    fn what_belongs_to_home_stays_there_and_the_rest_goes() {
        let body = pod(&home()).unwrap();
        assert_eq!(
            body,
            json!({
                "metadata": {"labels": {"app": "web"}, "annotations": {"note": "x"}},
                "spec": {
                    "newField": {"kept": 1},
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                    "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}],
                    "tolerations": [{"key": "gpu", "operator": "Exists"}],
                },
            })
        );
    }

    #[test]
    fn what_changes_only_at_home_does_not_change_the_body() {
        let before = pod(&home()).unwrap();
        let mut changed = home();
        changed["status"]["phase"] = json!("Running");
        changed["metadata"]["resourceVersion"] = json!("77");
        changed["metadata"]["finalizers"] = json!(["x"]);
        assert_eq!(pod(&changed).unwrap(), before);
    }
}
