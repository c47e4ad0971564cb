//! Kubeconfig files: one server, one user, everything inline so that the file can be moved.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::cluster::pki::Identity;

/// Renders a kubeconfig (JSON, which is YAML) for a user of a cluster.
#[must_use]
pub(crate) fn render(cluster: &str, server: &str, ca: &str, user: &str, identity: &Identity) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": cluster,
        "clusters": [{
            "name": cluster,
            "cluster": { "server": server, "certificate-authority-data": BASE64_STANDARD.encode(ca) },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": BASE64_STANDARD.encode(&identity.certificate),
                "client-key-data": BASE64_STANDARD.encode(&identity.key),
            },
        }],
        "contexts": [{ "name": cluster, "context": { "cluster": cluster, "user": user } }],
    })
}
