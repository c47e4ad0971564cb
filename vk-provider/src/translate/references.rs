//! Which ConfigMaps, Secrets and claims a pod refers to.

use super::{Access, TOKEN_VOLUME, items, name_of};
use liquid_reflection::Kind;
use liquid_reflection::companion::{HOME_ROOT_CA, ROOT_CA};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A ConfigMap, Secret or claim, by kind and name.
pub(crate) type Reference = (Kind, String);

/// The claim behind a volume of the pod of this name, if there is one. For an ephemeral volume Kubernetes makes one.
pub(super) fn claim(pod: &str, volume: &Value) -> Option<String> {
    let named = volume.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str);
    match named {
        Some(name) => Some(name.to_owned()),
        None => volume.get("ephemeral").map(|_| format!("{pod}-{}", name_of(volume))),
    }
}

/// What the pod of this name and with this spec refers to, as it has this access to home's API server.
pub(crate) fn references(pod: &str, spec: &Value, access: Access) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let mut note = |kind: Kind, holder: Option<&Value>, field: &str| {
        let name = holder.and_then(|holder| holder.get(field)).and_then(Value::as_str);
        let name = name.map(|name| match kind {
            Kind::ConfigMap if name == ROOT_CA && access != Access::None => HOME_ROOT_CA,
            _ => name,
        });
        found.extend(name.filter(|name| !name.is_empty()).map(|name| (kind, name.to_owned())));
    };
    let left = |volume: &&Value| access == Access::None && name_of(volume).starts_with(TOKEN_VOLUME);
    for volume in items(spec, "volumes").filter(|volume| !left(volume)) {
        note(Kind::ConfigMap, volume.get("configMap"), "name");
        note(Kind::Secret, volume.get("secret"), "secretName");
        let claim = claim(pod, volume).map(|name| json!({ "name": name }));
        note(Kind::PersistentVolumeClaim, claim.as_ref(), "name");
        for source in volume.get("projected").into_iter().flat_map(|projected| items(projected, "sources")) {
            note(Kind::ConfigMap, source.get("configMap"), "name");
            note(Kind::Secret, source.get("secret"), "name");
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(spec, list) {
            for variable in items(container, "env").filter_map(|variable| variable.get("valueFrom")) {
                note(Kind::ConfigMap, variable.get("configMapKeyRef"), "name");
                note(Kind::Secret, variable.get("secretKeyRef"), "name");
            }
            for source in items(container, "envFrom") {
                note(Kind::ConfigMap, source.get("configMapRef"), "name");
                note(Kind::Secret, source.get("secretRef"), "name");
            }
        }
    }
    for secret in items(spec, "imagePullSecrets") {
        note(Kind::Secret, Some(secret), "name");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_refer_is_found() {
        let spec = json!({
            "volumes": [
                {"name": "a", "configMap": {"name": "c1"}},
                {"name": "b", "secret": {"secretName": "s1"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "c2"}}, {"secret": {"name": "s2"}}]}},
                {"name": "f", "emptyDir": {}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "d1"}},
                {"name": "e", "ephemeral": {}},
                {"name": "kube-api-access-x", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
            ],
            "containers": [{
                "env": [
                    {"name": "A", "value": "b"},
                    {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c3", "key": "k"}}},
                    {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "k"}}},
                ],
                "envFrom": [{"configMapRef": {"name": "c4"}}, {"secretRef": {"name": "s4", "optional": true}}],
            }],
            "initContainers": [{"envFrom": [{"configMapRef": {"name": "c5"}}]}],
            "imagePullSecrets": [{"name": "s5"}, {}],
        });
        let names = |access| -> Vec<String> {
            references("web", &spec, access).into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(
            names(Access::None),
            ["c1", "c2", "c3", "c4", "c5", "s1", "s2", "s3", "s4", "s5", "d1", "web-e"]
        );
        assert!(names(Access::Tokens).contains(&HOME_ROOT_CA.to_owned()));
        assert!(references("web", &json!({}), Access::None).is_empty());
    }
}
