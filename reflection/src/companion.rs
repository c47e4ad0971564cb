//! What of an object that pods need beside them means something in another cluster. Both sides ask: the consumer to make
//! the body, the provider because it does not trust it.

use crate::key::Kind;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// An API server gives out or accepts credentials of its own cluster for Secrets of these types.
const FOREIGN_SECRETS: [&str; 2] = ["kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token"];

/// Every cluster has a ConfigMap of this name of its own in every namespace: who its API server is.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// That of home in the provider, for pods that talk to home's API server.
pub const HOME_ROOT_CA: &str = "kube-root-ca.crt.home.liquid.mesh";

/// End of the names of ConfigMaps and Secrets that exist in the provider for pods, and not at home.
const HOME_SUFFIX: &str = ".home.liquid.mesh";

/// The Service in the provider that leads to home's API server, and its EndpointSlice. Names of Services are short.
pub const HOME_API_SERVER: &str = "liquid-home-kubernetes";

/// The Secret in the provider with the tokens of the pod with this UID.
pub fn token_secret(pod: &str) -> String {
    format!("token-{pod}{HOME_SUFFIX}")
}

/// Whether objects of this name exist in the provider for pods: one at home that is called so stays there.
pub fn is_made_for_pods(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::ConfigMap | Kind::Secret => name.ends_with(HOME_SUFFIX),
        Kind::Service | Kind::EndpointSlice => name == HOME_API_SERVER,
        Kind::Namespace | Kind::NetworkPolicy | Kind::Ingress | Kind::PersistentVolumeClaim | Kind::Pod => {
            false
        }
    }
}

/// Annotations that belong to an object at home alone, whatever its kind.
pub const HOME_ANNOTATIONS: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// The class of an Ingress, as it was written before Kubernetes 1.18.
const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";

/// Fields of a Service that are left to the provider, and why.
const SERVICE_LEFT: [(&str, &str); 12] = [
    ("clusterIPs", "addresses are assigned by each cluster; clusterIP is kept if it is None"),
    ("ipFamilies", "families differ by cluster"),
    (
        "ipFamilyPolicy",
        "families differ by cluster; where there were two, or IPv6 alone, PreferDualStack stands instead",
    ),
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

/// Families of addresses that can be reached over the network between clusters.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// On EndpointSlices: which controller they belong to. Each cluster has its own.
pub const ENDPOINTS_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// On EndpointSlices: when their controller saw what it wrote them for. It changes with every write.
const ENDPOINTS_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Whether an object of this kind and these names at home is reflected at all: every cluster has a few of its own.
pub fn is_reflected(kind: Kind, namespace: &str, name: &str) -> bool {
    match kind {
        Kind::ConfigMap => name != ROOT_CA,
        Kind::Service | Kind::EndpointSlice => (namespace, name) != ("default", "kubernetes"),
        Kind::Secret
        | Kind::NetworkPolicy
        | Kind::Ingress
        | Kind::Namespace
        | Kind::PersistentVolumeClaim
        | Kind::Pod => true,
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
        Kind::EndpointSlice => endpoint_slice(object)?,
        // Each side takes a step of its own: see `policy`.
        Kind::NetworkPolicy => fields(object, &["spec"]),
        Kind::Ingress => json!({ "spec": ingress(object)? }),
        Kind::Namespace | Kind::PersistentVolumeClaim | Kind::Pod => {
            return Err(format!("a {} is no companion of pods", kind.as_str()));
        }
    };
    let meta = object.get("metadata");
    let mut labels = strings(meta.and_then(|meta| meta.get("labels")));
    let mut annotations = strings(meta.and_then(|meta| meta.get("annotations")));
    annotations.retain(|name, _| !HOME_ANNOTATIONS.contains(&name.as_str()));
    if kind == Kind::EndpointSlice {
        labels.remove(ENDPOINTS_MANAGED_BY);
        annotations.remove(ENDPOINTS_TRIGGER);
    }
    annotations.remove(INGRESS_CLASS);
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
    let wants_both = wants_both_families(&spec);
    for (field, _) in SERVICE_LEFT {
        spec.remove(field);
    }
    if wants_both {
        spec.insert("ipFamilyPolicy".to_owned(), json!("PreferDualStack"));
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

/// Whether a Service needs more than the family a cluster gives by itself. `RequireDualStack`, or a family by name, would be
/// refused where there is no such family.
fn wants_both_families(service: &Map<String, Value>) -> bool {
    let policy = service.get("ipFamilyPolicy").and_then(Value::as_str);
    let first = service.get("ipFamilies").and_then(|families| families.get(0)).and_then(Value::as_str);
    matches!(policy, Some("PreferDualStack" | "RequireDualStack")) || first == Some("IPv6")
}

/// Endpoints without what they are at home: pods, nodes and zones.
fn endpoint_slice(object: &Value) -> Result<Value, String> {
    let family = object.get("addressType").and_then(Value::as_str).unwrap_or_default();
    if !FAMILIES.contains(&family) {
        return Err(format!("endpoints of type {family:?} are no addresses of pods"));
    }
    let mut slice = fields(object, &["addressType", "ports"]);
    let endpoints = object.get("endpoints").and_then(Value::as_array).into_iter().flatten();
    slice["endpoints"] =
        endpoints.map(|endpoint| fields(endpoint, &["addresses", "conditions", "hostname"])).collect();
    Ok(slice)
}

/// An Ingress without its class: which controllers there are differs by cluster.
fn ingress(object: &Value) -> Result<Value, String> {
    let mut spec = object.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    spec.remove("ingressClassName");
    let spec = Value::Object(spec);
    let services = backends(&spec).all(|backend| backend.get("service").is_some());
    if services { Ok(spec) } else { Err("a backend that is no Service is not in another cluster".to_owned()) }
}

fn backends(ingress: &Value) -> impl Iterator<Item = &Value> {
    let rules = ingress.get("rules").and_then(Value::as_array).into_iter().flatten();
    let paths = rules.filter_map(|rule| rule.pointer("/http/paths")?.as_array()).flatten();
    paths.filter_map(|path| path.get("backend")).chain(ingress.get("defaultBackend"))
}

/// Names of the Secrets with the certificates of an Ingress.
pub fn certificates(ingress: &Value) -> impl Iterator<Item = &str> {
    let tls = ingress.pointer("/spec/tls").and_then(Value::as_array).into_iter().flatten();
    tls.filter_map(|tls| tls.get("secretName")?.as_str()).filter(|name| !name.is_empty())
}

/// Translates the addresses in an EndpointSlice, and leaves out those of which there is no translation, endpoints that
/// have no other with them. Returns whether endpoints are left.
pub fn translate_endpoints(slice: &mut Value, translate: impl Fn(IpAddr) -> Option<IpAddr>) -> bool {
    let Some(endpoints) = slice.get_mut("endpoints").and_then(Value::as_array_mut) else { return false };
    endpoints.retain_mut(|endpoint| {
        let addresses = endpoint.get("addresses").and_then(Value::as_array).into_iter().flatten();
        let addresses: Vec<Value> = addresses
            .filter_map(|address| translate(address.as_str()?.parse().ok()?))
            .map(|address| json!(address))
            .collect();
        let reachable = !addresses.is_empty();
        if reachable {
            endpoint["addresses"] = addresses.into();
        }
        reachable
    });
    !endpoints.is_empty()
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
            "addressType": "IPv4", "ports": [{"port": 8080}],
            "endpoints": [{"addresses": ["10.244.0.7"], "conditions": {"ready": true}, "nodeName": "n", "zone": "z"}],
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
    fn a_service_of_both_families_has_those_the_provider_has() {
        let policy = |policy: &str, families: Value| {
            let home =
                json!({"spec": {"ipFamilyPolicy": policy, "ipFamilies": families, "clusterIP": "fd00::1"}});
            let body = portable(Kind::Service, &home).unwrap();
            assert_eq!(portable(Kind::Service, &body).as_ref(), Ok(&body));
            assert_eq!(body["spec"]["ipFamilies"], Value::Null);
            body["spec"]["ipFamilyPolicy"].clone()
        };
        assert_eq!(policy("SingleStack", json!(["IPv4"])), Value::Null);
        assert_eq!(policy("SingleStack", json!(["IPv6"])), "PreferDualStack");
        assert_eq!(policy("RequireDualStack", json!(["IPv6", "IPv4"])), "PreferDualStack");
        assert_eq!(policy("PreferDualStack", json!(["IPv4"])), "PreferDualStack");
    }

    #[test]
    fn endpoints_leave_their_place_at_home() {
        let mut home = home(Kind::EndpointSlice);
        home["metadata"]["labels"][ENDPOINTS_MANAGED_BY] = json!("endpointslice-controller.k8s.io");
        home["metadata"]["annotations"][ENDPOINTS_TRIGGER] = json!("2026-01-01T00:00:00Z");
        let mut body = portable(Kind::EndpointSlice, &home).unwrap();
        let endpoint = json!({"addresses": ["10.244.0.7"], "conditions": {"ready": true}});
        let metadata = json!({"labels": {"app": "web"}, "annotations": {"note": "x"}});
        assert_eq!(
            body,
            json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [endpoint]})
        );
        let to: IpAddr = "100.64.0.7".parse().unwrap();
        assert!(translate_endpoints(&mut body, |_| Some(to)));
        assert_eq!(body["endpoints"][0]["addresses"], json!(["100.64.0.7"]));
        assert!(!translate_endpoints(&mut body, |_| None));
        assert_eq!(body["endpoints"], json!([]));
        assert!(portable(Kind::EndpointSlice, &json!({"addressType": "FQDN"})).is_err());
        for odd in [json!({}), json!({"endpoints": [7, {"addresses": ["x", 7]}]})] {
            assert!(!translate_endpoints(&mut odd.clone(), Some));
        }
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
