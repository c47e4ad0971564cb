//! The CRD manifests as generated from the types.

use crate::{NamespaceOffloading, Peer, ShadowPod, VirtualNode};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// One generated file.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// File name, `<plural>.yaml`.
    pub file: String,
    /// The definition itself.
    pub crd: CustomResourceDefinition,
}

/// The definitions of all kinds, in a fixed order.
pub fn manifests() -> Vec<Manifest> {
    [Peer::crd(), VirtualNode::crd(), NamespaceOffloading::crd(), ShadowPod::crd()]
        .into_iter()
        .map(|crd| Manifest { file: format!("{}.yaml", crd.spec.names.plural), crd })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn every_property(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            let path = format!("{path}.{name}");
            visit(&path, property);
            every_property(property, &path, visit);
        }
        if let Some(items) = schema.get("items") {
            every_property(items, &format!("{path}[]"), visit);
        }
    }

    #[test]
    fn every_field_explains_itself() {
        for manifest in manifests() {
            let crd = serde_json::to_value(&manifest.crd).unwrap();
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            assert!(schema["description"].as_str().is_some_and(|d| d.len() > 20), "{}", manifest.file);
            for part in ["spec", "status"] {
                every_property(&schema["properties"][part], part, &mut |path, property| {
                    assert!(
                        property["description"].as_str().is_some_and(|d| d.len() > 5),
                        "{}: {path} has no description",
                        manifest.file
                    );
                });
            }
        }
    }

    #[test]
    fn conditions_are_merged_by_type() {
        for manifest in manifests() {
            let crd = serde_json::to_value(&manifest.crd).unwrap();
            let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
            if let Some(conditions) = status["properties"].get("conditions") {
                assert_eq!(conditions["x-kubernetes-list-type"], "map", "{}", manifest.file);
            }
        }
    }
}
