//! Whose client certificates the kubelet API takes.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use liquid_runtime::tls::certificates;
use std::path::Path;
use tracing::warn;

/// Namespace and name of the ConfigMap in which API servers say how they tell who calls.
const AUTHENTICATION: (&str, &str) = ("kube-system", "extension-apiserver-authentication");
/// Its key with the CAs (PEM) of client certificates.
const CLIENT_CA: &str = "client-ca-file";

/// Reads the CAs (PEM) of client certificates: those in `file`, and those of the API server's own clients. Where a
/// cluster has several (k3s, RKE2), it is one of the latter that signs what API servers present to kubelets.
///
/// # Errors
/// If the file cannot be read, or the API server does not answer.
pub(crate) async fn client_ca(client: &Client, file: &Path) -> anyhow::Result<Vec<u8>> {
    let given =
        std::fs::read(file).with_context(|| format!("cannot read --kubelet-client-ca {}", file.display()))?;
    let (namespace, name) = AUTHENTICATION;
    let published = match Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await {
        Ok(published) => published.and_then(|published| published.data?.remove(CLIENT_CA)),
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            warn!(namespace, name, error = %status.message, "only CAs of --kubelet-client-ca are trusted");
            None
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read ConfigMap {namespace}/{name}")),
    };
    Ok(joined(given, published.as_deref()))
}

/// Both as one PEM text; what is published and cannot be used is left out.
fn joined(mut given: Vec<u8>, published: Option<&str>) -> Vec<u8> {
    let Some(published) = published else { return given };
    if let Err(error) = certificates(published.as_bytes()) {
        warn!(%error, "the published CA of client certificates is not used");
        return given;
    }
    given.push(b'\n');
    given.extend_from_slice(published.as_bytes());
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca() -> String {
        rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn both_authorities_are_trusted() {
        let (given, published) = (ca(), ca());
        let count = |given: &str, published: Option<&str>| {
            certificates(&joined(given.trim_end().into(), published)).unwrap().len()
        };
        assert_eq!(count(&given, Some(&published)), 2);
        assert_eq!(count(&given, None), 1);
        assert_eq!(count(&given, Some("damaged")), 1, "what is given works all the same");
    }
}
