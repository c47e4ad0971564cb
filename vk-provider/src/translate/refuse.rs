//! What cannot work in another cluster (yet), and is refused with a reason instead of failing there obscurely.

use super::{Access, TOKEN_VOLUME, items, name_of};
use liquid_reflection::frame::Refusal;
use serde_json::Value;

/// Sources of volumes that refer to something at home.
const HOME_VOLUMES: [(&str, &str); 1] = [("hostPath", "files of nodes at home are not in the provider")];

/// Sources of volumes that a driver of the node at home provides, with an account of home.
const DRIVER_VOLUMES: [&str; 20] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "iscsi",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

const DEVICES: &str = "resourceClaims: devices are claimed from nodes of this cluster";

/// Refuses a pod that cannot work in the provider.
pub(super) fn check(pod: &Value, access: Access) -> Result<(), Refusal> {
    let spec = &pod["spec"];
    for volume in items(spec, "volumes").filter(|volume| !name_of(volume).starts_with(TOKEN_VOLUME)) {
        check_volume(volume, access)?;
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(spec, list) {
            if items(&container["resources"], "claims").next().is_some() {
                return Err(refusal(DEVICES));
            }
        }
    }
    if items(spec, "resourceClaims").next().is_some() {
        return Err(refusal(DEVICES));
    }
    if items(&spec["resources"], "claims").next().is_some() {
        return Err(refusal(DEVICES));
    }
    if spec["setHostnameAsFQDN"] == true {
        return Err(refusal(
            "setHostnameAsFQDN: the name would be another one, made of the namespace and the cluster domain of the provider",
        ));
    }
    Ok(())
}

fn check_volume(volume: &Value, access: Access) -> Result<(), Refusal> {
    let name = name_of(volume);
    for (source, reason) in HOME_VOLUMES {
        if volume.get(source).is_some() {
            return Err(refusal(&format!("volume {name}: {reason}")));
        }
    }
    if let Some(source) = DRIVER_VOLUMES.iter().find(|source| volume.get(**source).is_some()) {
        let message = format!("volume {name}: {source} needs a driver of this cluster");
        return Err(refusal(&message));
    }
    for source in volume.pointer("/projected/sources").and_then(Value::as_array).into_iter().flatten() {
        for (kind, reason) in [
            (
                "serviceAccountToken",
                "its namespace gives providers no tokens (spec.reflection.serviceAccountTokens of its NamespaceOffloading)",
            ),
            ("clusterTrustBundle", "trust bundles of this cluster are not in the provider"),
            ("podCertificate", "signers of this cluster are not in the provider"),
        ] {
            if source.get(kind).is_some() && (kind != "serviceAccountToken" || access == Access::None) {
                return Err(refusal(&format!("volume {name}: {reason}")));
            }
        }
    }
    Ok(())
}

fn refusal(message: &str) -> Refusal {
    Refusal { reason: "UnsupportedOnVirtualNode".to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_refers_to_home_is_refused_by_name() {
        for (spec, expected) in [
            (json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}), "files of nodes"),
            (
                json!({"volumes": [{"name": "p", "projected": {"sources": [{"serviceAccountToken": {}}]}}]}),
                "volume p",
            ),
            (json!({"resourceClaims": [{"name": "gpu"}]}), "resourceClaims"),
            (json!({"containers": [{"resources": {"claims": [{"name": "gpu"}]}}]}), "resourceClaims"),
            (json!({"setHostnameAsFQDN": true}), "setHostnameAsFQDN"),
            (json!({"volumes": [{"name": "v", "csi": {"driver": "x"}}]}), "volume v: csi"),
        ] {
            let refused = check(&json!({ "spec": spec }), Access::None).unwrap_err();
            assert!(refused.message.contains(expected), "{refused:?}");
        }
    }

    #[test]
    fn self_contained_pods_pass() {
        let spec = json!({
            "setHostnameAsFQDN": false, "resources": {"limits": {"cpu": "1"}},
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cfg", "configMap": {"name": "x"}}, {"name": "info", "projected": {"sources": [{"downwardAPI": {}}]}}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "value": "b"}, {"name": "S", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]}],
        });
        assert_eq!(check(&json!({ "spec": spec }), Access::None), Ok(()));
    }
}
