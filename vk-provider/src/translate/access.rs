//! What a pod needs to talk to home's API server: tokens of its service account, the authority of that server, and the way
//! there.
//!
//! Tokens become files of a Secret of the pod's own, under the same paths; nothing else of the volume changes. A kubelet
//! gives such a file the mode of its volume, or 0600 if the pod has an `fsGroup`, to whose members it then opens it: the
//! same holds of files of a Secret. (It also gives the file to the user all containers run as, if they do, with 0600; a file
//! of a Secret stays root's, with the mode of its volume.)

use super::{each_container, items, list_mut, name_of};
use liquid_crds::vocabulary::{API_SERVER, API_SERVER_HOME};
use liquid_reflection::companion::{HOME_ROOT_CA, ROOT_CA, token_secret};
use serde_json::{Map, Value, json};

/// What pods of a namespace have of home's API server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// Nothing.
    #[default]
    None,
    /// Tokens of their service accounts.
    Tokens,
    /// Tokens, and a way to the API server.
    Server,
}

/// Validity of a token for which none is asked for: the default of the API.
const DEFAULT_SECONDS: i64 = 3600;

/// By this name, which is in its certificate, pods reach home's API server, at the port it has in every cluster.
const HOST: &str = "kubernetes.default.svc";
const PORT: &str = "443";

/// A token a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenSource {
    /// Under which key the Secret of the pod has it.
    pub(crate) key: String,
    /// For whom it is; `None` for the API server.
    pub(crate) audience: Option<String>,
    /// How long it is to be valid.
    pub(crate) seconds: i64,
}

/// The tokens that the pod with this spec asks for.
pub(crate) fn tokens(spec: &Value) -> Vec<TokenSource> {
    let mut found = Vec::new();
    for volume in items(spec, "volumes") {
        let sources = volume.get("projected").into_iter().flat_map(|projected| items(projected, "sources"));
        for (index, source) in sources.enumerate() {
            let Some(token) = source.get("serviceAccountToken") else { continue };
            let audience = token.get("audience").and_then(Value::as_str);
            let seconds = token.get("expirationSeconds").and_then(Value::as_i64);
            found.push(TokenSource {
                key: key(name_of(volume), index),
                audience: audience.filter(|audience| !audience.is_empty()).map(str::to_owned),
                seconds: seconds.unwrap_or(DEFAULT_SECONDS),
            });
        }
    }
    found
}

/// Names of volumes are labels, so this is a key of a Secret, and of one source only.
fn key(volume: &str, index: usize) -> String {
    format!("{volume}.{index}")
}

/// Lets the pod with this UID find its tokens and home's authority where they are in the provider.
pub(super) fn grant(uid: &str, spec: &mut Map<String, Value>) {
    let group = spec.get("securityContext").is_some_and(|context| context.get("fsGroup").is_some());
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = name_of(volume).to_owned();
        for (index, source) in list_mut(volume, "/projected/sources").enumerate() {
            let token = source.as_object_mut().and_then(|source| source.remove("serviceAccountToken"));
            if let Some(token) = token {
                let mut item = json!({ "key": key(&name, index), "path": token["path"] });
                if group {
                    item["mode"] = json!(0o600);
                }
                source["secret"] = json!({ "name": token_secret(uid), "items": [item] });
            }
            trust_home(source.get_mut("configMap"));
        }
        trust_home(volume.get_mut("configMap"));
    }
    each_container(spec, |container| {
        for variable in list_mut(container, "/env") {
            trust_home(variable.pointer_mut("/valueFrom/configMapKeyRef"));
        }
        for source in list_mut(container, "/envFrom") {
            trust_home(source.get_mut("configMapRef"));
        }
    });
}

/// The authority a pod means is that of home.
fn trust_home(reference: Option<&mut Value>) {
    if let Some(reference) = reference.filter(|reference| reference["name"] == ROOT_CA) {
        reference["name"] = json!(HOME_ROOT_CA);
    }
}

/// Leads a pod to home's API server. The provider knows the address that stands for it there.
pub(super) fn lead(spec: &mut Map<String, Value>, annotations: &mut Map<String, Value>) {
    annotations.insert(API_SERVER.to_owned(), json!(API_SERVER_HOME));
    let address = format!("tcp://{HOST}:{PORT}");
    // Those that kubelets set for the Service `kubernetes`.
    let variables = [
        ("KUBERNETES_SERVICE_HOST", HOST),
        ("KUBERNETES_SERVICE_PORT", PORT),
        ("KUBERNETES_SERVICE_PORT_HTTPS", PORT),
        ("KUBERNETES_PORT", &address),
        ("KUBERNETES_PORT_443_TCP", &address),
        ("KUBERNETES_PORT_443_TCP_ADDR", HOST),
        ("KUBERNETES_PORT_443_TCP_PORT", PORT),
        ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
    ];
    each_container(spec, |container| {
        let Some(container) = container.as_object_mut() else { return };
        let own = container.entry("env").or_insert_with(|| json!([]));
        let Some(own) = own.as_array_mut() else { return };
        // What the user says goes over what a kubelet would set, and may refer to it.
        let unset =
            variables.iter().filter(|(name, _)| !own.iter().any(|variable| name_of(variable) == *name));
        let unset: Vec<Value> = unset.map(|(name, value)| json!({ "name": name, "value": value })).collect();
        own.splice(0..0, unset);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({
            "volumes": [
                {"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace"}]}},
                ]}},
                {"name": "vault", "projected": {"sources": [
                    {"secret": {"name": "s"}},
                    {"serviceAccountToken": {"path": "sub/token", "audience": "vault"}},
                ]}},
                {"name": "ca", "configMap": {"name": "kube-root-ca.crt"}},
            ],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "kube-root-ca.crt", "key": "ca.crt"}}},
                {"name": "KUBERNETES_SERVICE_HOST", "value": "mine"},
            ]}],
            "ephemeralContainers": [{"name": "d"}],
        })
    }

    #[test]
    fn tokens_and_the_authority_are_where_the_pod_looks_for_them() {
        let asked = tokens(&spec());
        let source = |key: &str, audience: Option<&str>, seconds| TokenSource {
            key: key.to_owned(),
            audience: audience.map(str::to_owned),
            seconds,
        };
        assert_eq!(
            asked,
            [source("kube-api-access-x.0", None, 3607), source("vault.1", Some("vault"), 3600)]
        );
        let mut spec = spec().as_object().cloned().unwrap();
        grant("u1", &mut spec);
        let secret = "token-u1.home.liquid.mesh";
        assert_eq!(
            spec["volumes"][0]["projected"],
            json!({"defaultMode": 420, "sources": [
                {"secret": {"name": secret, "items": [{"key": "kube-api-access-x.0", "path": "token"}]}},
                {"configMap": {"name": HOME_ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace"}]}},
            ]})
        );
        assert_eq!(
            spec["volumes"][1]["projected"]["sources"][1],
            json!({"secret": {"name": secret, "items": [{"key": "vault.1", "path": "sub/token"}]}})
        );
        assert_eq!(spec["volumes"][2]["configMap"]["name"], HOME_ROOT_CA);
        assert_eq!(spec["containers"][0]["env"][0]["valueFrom"]["configMapKeyRef"]["name"], HOME_ROOT_CA);
    }

    #[test]
    fn a_group_of_the_pods_files_may_read_its_token() {
        let mut spec = spec().as_object().cloned().unwrap();
        spec.insert("securityContext".to_owned(), json!({"fsGroup": 1000}));
        grant("u1", &mut spec);
        assert_eq!(spec["volumes"][0]["projected"]["sources"][0]["secret"]["items"][0]["mode"], 0o600);
    }

    #[test]
    fn every_container_is_led_home_unless_it_says_otherwise() {
        let (mut spec, mut annotations) = (spec().as_object().cloned().unwrap(), Map::new());
        lead(&mut spec, &mut annotations);
        assert_eq!(annotations[API_SERVER], API_SERVER_HOME);
        let value = |list: &str, name: &str| {
            let variables = spec[list][0]["env"].as_array().unwrap();
            let of_name: Vec<&Value> = variables.iter().filter(|variable| variable["name"] == name).collect();
            assert_eq!(of_name.len(), 1, "{name}");
            of_name[0]["value"].clone()
        };
        assert_eq!(value("containers", "KUBERNETES_SERVICE_HOST"), "mine");
        assert_eq!(value("containers", "KUBERNETES_SERVICE_PORT"), "443");
        assert_eq!(value("ephemeralContainers", "KUBERNETES_SERVICE_HOST"), HOST);
    }
}
