//! From a pod at home to the pod wanted in the provider, as raw JSON: fields this version does not know survive.
//!
//! What becomes of each field, and why, is written in `docs/pods.md`; the tests in `table.rs` hold this code to it. What
//! cannot work in another cluster is refused, and the user is told; nothing that matters is dropped silently.

mod access;
mod downward;
#[cfg(test)]
mod newest;
mod placement;
mod references;
mod refuse;
#[cfg(test)]
mod table;

pub(crate) use access::{Access, TokenSource, tokens};
pub(crate) use references::{Reference, references};

use liquid_crds::vocabulary::VIRTUAL_NODE_TAINT;
use liquid_reflection::companion::HOME_ANNOTATIONS;
use liquid_reflection::frame::Refusal;
use serde_json::{Map, Value, json};

/// Fields of the spec that mean something only in the cluster they were written for; the reasons are in `docs/pods.md`.
const LEFT_BEHIND: [&str; 14] = [
    "nodeName",
    "schedulerName",
    "serviceAccount",
    "serviceAccountName",
    "automountServiceAccountToken",
    "priority",
    "priorityClassName",
    "preemptionPolicy",
    "overhead",
    "schedulingGates",
    "readinessGates",
    "workloadRef",
    // Of Kubernetes 1.37.
    "schedulingGroup",
    "evictionResponders",
];

/// Prefix of the volumes in which the API server mounts service-account tokens.
const TOKEN_VOLUME: &str = "kube-api-access-";

/// Prefix of labels and annotations that Liquid sets, on each side its own.
const OWN_PREFIX: &str = "liquid.mesh/";

/// Makes the body of the shadow of `pod` (as the API server of home has it), which has this access to home's API server.
/// `claims` says what a claim is called in the provider.
///
/// # Errors
/// If the pod cannot work in another cluster; the refusal says why.
pub(crate) fn pod(
    pod: &Value,
    access: Access,
    claims: impl Fn(&str) -> Option<String>,
) -> Result<Value, Refusal> {
    refuse::check(pod, access)?;
    let mut spec = pod.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    for field in LEFT_BEHIND {
        spec.remove(field);
    }
    match access {
        Access::None => leave_token_volumes(&mut spec),
        Access::Tokens | Access::Server => {
            let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
            access::grant(uid, &mut spec);
        }
    }
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    name_claims(name, &mut spec, claims)?;
    leave_home_tolerations(&mut spec);
    let labels = pod.pointer("/metadata/labels");
    placement::keep_portable(&mut spec, labels);
    let mut annotations = annotations(pod.get("metadata"));
    downward::keep(pod, &mut spec, &mut annotations);
    if access == Access::Server {
        access::lead(&mut spec, &mut annotations);
    }
    Ok(json!({
        "metadata": {
            "labels": labels.cloned().unwrap_or_else(|| json!({})),
            "annotations": annotations,
        },
        "spec": spec,
    }))
}

/// As [`pod`], of one without claims.
#[cfg(test)]
fn pod_without_claims(home: &Value, access: Access) -> Result<Value, Refusal> {
    pod(home, access, |_| None)
}

fn annotations(meta: Option<&Value>) -> Map<String, Value> {
    let all = meta.and_then(|meta| meta.get("annotations")).and_then(Value::as_object).cloned();
    let mut all = all.unwrap_or_default();
    all.retain(|name, _| !HOME_ANNOTATIONS.contains(&name.as_str()) && !name.starts_with(OWN_PREFIX));
    all
}

/// Every pod has such a volume, and few need it: without it they run.
fn leave_token_volumes(spec: &mut Map<String, Value>) {
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|volume| !name_of(volume).starts_with(TOKEN_VOLUME));
    }
    each_container(spec, |container| {
        if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
            mounts.retain(|mount| !name_of(mount).starts_with(TOKEN_VOLUME));
        }
    });
}

/// Claims have other names in the provider: one that is made anew under an old name does not meet the old data. That of an
/// ephemeral volume is made at home, and is one like any other there.
fn name_claims(
    pod: &str,
    spec: &mut Map<String, Value>,
    claims: impl Fn(&str) -> Option<String>,
) -> Result<(), Refusal> {
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(claim) = references::claim(pod, volume) else { continue };
        let Some(there) = claims(&claim) else {
            let message = format!("volume {}: claim {claim} is not in the provider", name_of(volume));
            return Err(Refusal { reason: "UnsupportedOnVirtualNode".to_owned(), message });
        };
        let Some(volume) = volume.as_object_mut() else { continue };
        volume.remove("ephemeral");
        let mut source = volume.remove("persistentVolumeClaim").unwrap_or_default();
        if !source.is_object() {
            source = json!({});
        }
        source["claimName"] = json!(there);
        volume.insert("persistentVolumeClaim".to_owned(), source);
    }
    Ok(())
}

/// The taint of virtual nodes is what home tolerates; the pod shall not travel on from the provider, which a toleration of
/// everything would let it. Those of `node.kubernetes.io` are about the virtual node; what the API server adds of them by
/// default it adds there as well.
fn leave_home_tolerations(spec: &mut Map<String, Value>) {
    if let Some(tolerations) = spec.get_mut("tolerations").and_then(Value::as_array_mut) {
        tolerations.retain(|toleration| {
            let key = toleration.get("key").and_then(Value::as_str).unwrap_or_default();
            !key.is_empty() && key != VIRTUAL_NODE_TAINT && !key.starts_with("node.kubernetes.io/")
        });
    }
}

fn each_container(spec: &mut Map<String, Value>, mut change: impl FnMut(&mut Value)) {
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            change(container);
        }
    }
}

fn list_mut<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    value.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}

fn items<'a>(value: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    value.get(list).and_then(Value::as_array).into_iter().flatten()
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
        let body = pod_without_claims(&home(), Access::None).unwrap();
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
    fn claims_have_the_names_they_have_there() {
        let mut pod_with_claims = home();
        pod_with_claims["spec"]["volumes"] = json!([
            {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0", "readOnly": true}},
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
        ]);
        let there = |name: &str| Some(format!("{name}-1a2b"));
        assert_eq!(
            pod(&pod_with_claims, Access::None, there).unwrap()["spec"]["volumes"],
            json!([
                {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0-1a2b", "readOnly": true}},
                {"name": "scratch", "persistentVolumeClaim": {"claimName": "web-0-scratch-1a2b"}},
            ])
        );
        let refused =
            pod(&pod_with_claims, Access::None, |name| there(name).filter(|_| name != "web-0-scratch"))
                .unwrap_err();
        assert!(refused.message.contains("volume scratch: claim web-0-scratch"), "{refused:?}");
    }

    #[test]
    fn what_changes_only_at_home_does_not_change_the_body() {
        let before = pod_without_claims(&home(), Access::None).unwrap();
        let mut changed = home();
        changed["status"]["phase"] = json!("Running");
        changed["metadata"]["resourceVersion"] = json!("77");
        changed["metadata"]["finalizers"] = json!(["x"]);
        assert_eq!(pod_without_claims(&changed, Access::None).unwrap(), before);
    }
}
