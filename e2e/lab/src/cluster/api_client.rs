//! The few API calls the lab makes itself: it must start before anything else is there to make them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// A lab's API server is a millisecond away: a request that takes longer than this is stuck.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// Field manager of everything the lab applies.
const FIELD_MANAGER: &str = "liquid-lab";

/// A client of one cluster's API server.
#[derive(Clone, Debug)]
pub struct ApiClient {
    agent: ureq::Agent,
    server: String,
}

impl ApiClient {
    /// Opens the cluster and user of a kubeconfig as the lab writes them.
    ///
    /// # Errors
    /// If a field is missing or not PEM inside base64.
    pub fn from_kubeconfig(config: &Value) -> anyhow::Result<Self> {
        let text = |path: &str| {
            config
                .pointer(path)
                .and_then(Value::as_str)
                .with_context(|| format!("the kubeconfig has no {path}"))
        };
        let pem = |path: &str| -> anyhow::Result<Vec<u8>> {
            BASE64_STANDARD.decode(text(path)?).with_context(|| format!("{path} is not base64"))
        };
        let ca = Certificate::from_pem(&pem("/clusters/0/cluster/certificate-authority-data")?)?;
        let certificate = Certificate::from_pem(&pem("/users/0/user/client-certificate-data")?)?;
        let key = PrivateKey::from_pem(&pem("/users/0/user/client-key-data")?)?;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::new_with_certs(&[ca]))
            .client_cert(Some(ClientCert::new_with_certs(&[certificate], key)))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            // The server's own words say more than its status code.
            .http_status_as_error(false)
            .timeout_global(Some(REQUEST_LIMIT))
            // A proxy of the environment is for the world outside; the lab is inside this machine.
            .proxy(None)
            .build()
            .into();
        Ok(Self { agent, server: text("/clusters/0/cluster/server")?.to_owned() })
    }

    /// Whether the server says it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.agent.get(format!("{}/readyz", self.server)).call().is_ok_and(|r| r.status().is_success())
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses, with its message.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.agent.get(format!("{}{path}", self.server)).call();
        Self::answer("read", path, response)
    }

    /// Creates or updates an object (server-side apply, taking over fields from others).
    ///
    /// # Errors
    /// If the server cannot be reached or refuses, with its message.
    pub fn apply(&self, object: &Value) -> anyhow::Result<Value> {
        let path = path_of(object)?;
        let response = self
            .agent
            .patch(format!("{}{path}?fieldManager={FIELD_MANAGER}&force=true", self.server))
            .content_type("application/apply-patch+yaml")
            .send(object.to_string());
        Self::answer("apply", &path, response)
    }

    fn answer(
        verb: &str,
        path: &str,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> anyhow::Result<Value> {
        let mut response = response.with_context(|| format!("cannot {verb} {path}"))?;
        let status = response.status();
        let body = response.body_mut().read_to_string().with_context(|| format!("cannot {verb} {path}"))?;
        if !status.is_success() {
            bail!("cannot {verb} {path}: {status}: {body}");
        }
        serde_json::from_str(&body).with_context(|| format!("the answer to {verb} {path} is not JSON"))
    }
}

/// The path of an object. Plural names are formed by rule, which holds for every kind the lab applies.
fn path_of(object: &Value) -> anyhow::Result<String> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let version = text("/apiVersion").context("an object without apiVersion")?;
    let kind = text("/kind").context("an object without kind")?.to_lowercase();
    let name = text("/metadata/name").context("an object without a name")?;
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let plural = if kind.ends_with('s') { format!("{kind}es") } else { format!("{kind}s") };
    Ok(match text("/metadata/namespace") {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{root}/{plural}/{name}"),
    })
}

/// Whether an object's condition of this type is `True`.
#[must_use]
pub(crate) fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == json!(kind) && condition["status"] == json!("True"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_group_scope_and_plural() {
        let path = |api: &str, kind: &str, namespace: Option<&str>| {
            let metadata = json!({ "name": "x", "namespace": namespace });
            path_of(&json!({ "apiVersion": api, "kind": kind, "metadata": metadata })).unwrap()
        };
        assert_eq!(path("v1", "Node", None), "/api/v1/nodes/x");
        assert_eq!(path("apps/v1", "Deployment", Some("n")), "/apis/apps/v1/namespaces/n/deployments/x");
        assert_eq!(
            path("storage.k8s.io/v1", "StorageClass", None),
            "/apis/storage.k8s.io/v1/storageclasses/x"
        );
    }

    #[test]
    fn only_a_true_condition_counts() {
        let node =
            |status: &str| json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } });
        assert!(has_condition(&node("True"), "Ready"));
        assert!(!has_condition(&node("Unknown"), "Ready"));
        assert!(!has_condition(&json!({}), "Ready"));
    }
}
