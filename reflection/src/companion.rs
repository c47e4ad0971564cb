//! What of a ConfigMap, Secret or Service means something in another cluster. Both sides ask: the consumer to make the
//! body, the provider because it does not trust it.

use crate::key::Kind;
use serde_json::{Map, Value, json};

/// An API server gives out or accepts credentials of its own cluster for Secrets of these types.
const FOREIGN_SECRETS: [&str; 2] = ["kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token"];

/// Every cluster has a ConfigMap of this name of its own in every namespace: who its API server is.
const ROOT_CA: &str = "kube-root-ca.crt";

/// Annotations that belong to an object at home alone, whatever its kind.
pub const HOME_ANNOTATIONS: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// Fields of a Service that are left to the provider, and why.
const SERVICE_LEFT: [(&str, &str); 12] = [
    ("clusterIPs", "addresses are assigned by each cluster; clusterIP is kept if it is None"),
    ("ipFamilies", "families differ by cluster"),
    ("ipFamilyPolicy", "families differ by cluster"),
    ("externalIPs", "would draw traffic of the provider's nodes"),
    ("externalTrafficPolicy", "goes with node ports"),
    ("healthCheckNodePort", "assigned by each cluster"),
    ("allocateLoadBalancerNodePorts", "goes with load balancers"),
    ("loadBalancerIP", "the way in stays at home"),
    ("loadBalancerClass", "the way in stays at home"),
    ("loadBalancerSourceRanges", "the way in stays at home"),
    ("trafficDistribution", "zones differ by cluster"),
    ("internalTrafficPolicy", "what is local to a node differs by cluster"),
];

/// Whether an object of this kind and these names at home is reflected at all: every cluster has a few of its own.
pub fn is_reflected(kind: Kind, namespace: &str, name: &str) -> bool {
    match kind {
        Kind::ConfigMap => name != ROOT_CA,
        Kind::Service => (namespace, name) != ("default", "kubernetes"),
        Kind::Secret | Kind::Namespace | Kind::Pod => true,
    }
}

/// What of `object` (as an API server has it) means something in another cluster.
///
/// # Errors
/// If it may not exist in another cluster; a sentence says why.
pub fn portable(kind: Kind, object: &Value) -> Result<Value, String> {
    let mut body = match kind {
        Kind::ConfigMap => fields(object, &["data", "binaryData", "immutable"]),
        Kind::Secret => secret(object)?,
        Kind::Service => json!({ "spec": service(object) }),
        Kind::Namespace | Kind::Pod => return Err(format!("a {} is no companion of pods", kind.as_str())),
    };
    let meta = object.get("metadata");
    let labels = strings(meta.and_then(|meta| meta.get("labels")));
    let mut annotations = strings(meta.and_then(|meta| meta.get("annotations")));
    annotations.retain(|name, _| !HOME_ANNOTATIONS.contains(&name.as_str()));
    body["metadata"] = json!({ "labels": labels, "annotations": annotations });
    Ok(body)
}

fn secret(object: &Value) -> Result<Value, String> {
    let type_ = object.get("type").and_then(Value::as_str);
    match type_.filter(|type_| FOREIGN_SECRETS.contains(type_)) {
        Some(type_) => Err(format!("a Secret of type {type_} is of no use in another cluster")),
        None => Ok(fields(object, &["data", "immutable", "type"])),
    }
}

fn service(object: &Value) -> Value {
    let mut spec = object.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    for (field, _) in SERVICE_LEFT {
        spec.remove(field);
    }
    if spec.get("clusterIP").and_then(Value::as_str) != Some("None") {
        spec.remove("clusterIP");
    }
    // The way in from outside stays at home.
    if spec.get("type").and_then(Value::as_str) != Some("ExternalName") {
        spec.insert("type".to_owned(), json!("ClusterIP"));
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            port.remove("nodePort");
        }
    }
    Value::Object(spec)
}

fn fields(object: &Value, names: &[&str]) -> Value {
    let present = names.iter().filter_map(|name| Some(((*name).to_owned(), object.get(name)?.clone())));
    Value::Object(present.collect())
}

fn strings(map: Option<&Value>) -> Map<String, Value> {
    let entries = map.and_then(Value::as_object).cloned().unwrap_or_default();
    entries.into_iter().filter(|(_, value)| value.is_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(kind: Kind) -> Value {
        json!({
            "metadata": {
                "name": "x", "uid": "u", "resourceVersion": "7",
                "labels": {"app": "web", "number": 1},
                "annotations": {"note": "x", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "data": {"a": "YQ=="}, "type": "Opaque", "immutable": true,
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
                "externalIPs": ["198.51.100.1"], "selector": {"app": "web"}, "newField": 1,
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}],
            },
            "status": {"kind": kind.as_str()},
        })
    }

    #[test]
    fn data_and_what_users_write_into_metadata_goes() {
        let metadata = json!({"labels": {"app": "web"}, "annotations": {"note": "x"}});
        assert_eq!(
            portable(Kind::ConfigMap, &home(Kind::ConfigMap)).unwrap(),
            json!({"metadata": metadata, "data": {"a": "YQ=="}, "immutable": true})
        );
        assert_eq!(
            portable(Kind::Secret, &home(Kind::Secret)).unwrap(),
            json!({"metadata": metadata, "data": {"a": "YQ=="}, "immutable": true, "type": "Opaque"})
        );
    }

    #[test]
    fn a_service_keeps_what_it_is_and_leaves_its_addresses() {
        let body = portable(Kind::Service, &home(Kind::Service)).unwrap();
        assert_eq!(
            body["spec"],
            json!({
                "type": "ClusterIP", "selector": {"app": "web"}, "newField": 1,
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
            })
        );
        let headless = json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}});
        assert_eq!(portable(Kind::Service, &headless).unwrap()["spec"]["clusterIP"], "None");
        let alias = json!({"spec": {"type": "ExternalName", "externalName": "db.example.org"}});
        assert_eq!(portable(Kind::Service, &alias).unwrap()["spec"], alias["spec"]);
    }

    #[test]
    fn asking_twice_changes_nothing() {
        for kind in Kind::COMPANIONS {
            let body = portable(kind, &home(kind)).unwrap();
            assert_eq!(portable(kind, &body).as_ref(), Ok(&body));
        }
    }

    #[test]
    fn what_is_a_credential_of_a_cluster_stays_there() {
        for type_ in FOREIGN_SECRETS {
            assert!(portable(Kind::Secret, &json!({ "type": type_ })).is_err());
        }
        assert!(
            !is_reflected(Kind::ConfigMap, "shop", ROOT_CA) && is_reflected(Kind::Secret, "shop", ROOT_CA)
        );
        assert!(!is_reflected(Kind::Service, "default", "kubernetes"));
        assert!(portable(Kind::Pod, &json!({})).is_err());
    }
}
