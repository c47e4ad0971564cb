//! What cannot work in another cluster (yet), and is refused with a reason instead of failing there obscurely.

use super::{TOKEN_VOLUME, name_of};
use liquid_reflection::frame::Refusal;
use serde_json::Value;

/// Sources of volumes that refer to something at home.
const HOME_VOLUMES: [(&str, &str); 2] = [
    ("persistentVolumeClaim", "PersistentVolumeClaims are not reflected yet"),
    ("hostPath", "files of nodes at home are not in the provider"),
];

/// Refuses a pod that cannot work in the provider.
pub(super) fn check(pod: &Value) -> Result<(), Refusal> {
    let spec = &pod["spec"];
    for volume in items(spec, "volumes").filter(|volume| !name_of(volume).starts_with(TOKEN_VOLUME)) {
        check_volume(volume)?;
    }
    if items(spec, "resourceClaims").next().is_some() {
        return Err(refusal("resourceClaims: devices are claimed from nodes of this cluster"));
    }
    if items(spec, "readinessGates").next().is_some() {
        return Err(refusal(
            "readinessGates: their conditions are set at home, where the provider does not see them, and the pod would \
             never be ready",
        ));
    }
    Ok(())
}

fn check_volume(volume: &Value) -> Result<(), Refusal> {
    let name = name_of(volume);
    for (source, reason) in HOME_VOLUMES {
        if volume.get(source).is_some() {
            return Err(refusal(&format!("volume {name}: {reason}")));
        }
    }
    for source in volume.pointer("/projected/sources").and_then(Value::as_array).into_iter().flatten() {
        if source.get("serviceAccountToken").is_some() {
            return Err(refusal(&format!("volume {name}: tokens of this cluster are of no use there")));
        }
    }
    Ok(())
}

fn items<'a>(value: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    value.get(list).and_then(Value::as_array).into_iter().flatten()
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
            (
                json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "x"}}]}),
                "volume data",
            ),
            (json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}), "files of nodes"),
            (
                json!({"volumes": [{"name": "p", "projected": {"sources": [{"serviceAccountToken": {}}]}}]}),
                "volume p",
            ),
            (json!({"readinessGates": [{"conditionType": "example.org/gate"}]}), "readinessGates"),
        ] {
            let refused = check(&json!({ "spec": spec })).unwrap_err();
            assert!(refused.message.contains(expected), "{refused:?}");
        }
    }

    #[test]
    fn self_contained_pods_pass() {
        let spec = json!({
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cfg", "configMap": {"name": "x"}}, {"name": "info", "projected": {"sources": [{"downwardAPI": {}}]}}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "value": "b"}, {"name": "S", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]}],
        });
        assert_eq!(check(&json!({ "spec": spec })), Ok(()));
    }
}
