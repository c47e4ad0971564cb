//! The WireGuard keys of this cluster's gateways, in one Secret that only they and this process may read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use liquid_crds::vocabulary::{GATEWAY_KEYS, GUEST_KEY, MANAGED_BY, MANAGED_BY_LIQUID};
use ring::rand::SecureRandom as _;
use serde_json::json;
use std::collections::BTreeMap;
use tracing::info;
use x25519_dalek::{PublicKey, StaticSecret};

/// The public keys (base64) of the gateways of these names; keys that are missing, or none, are made.
pub(super) async fn ensure(
    client: &Client,
    namespace: &str,
    gateways: &[String],
) -> anyhow::Result<BTreeMap<String, String>> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let stored = match secrets.get_opt(GATEWAY_KEYS).await? {
        Some(stored) => stored,
        None => secrets.create(&PostParams::default(), &empty()).await?,
    };
    let known = stored.data.unwrap_or_default();
    let mut public = BTreeMap::new();
    let mut made = BTreeMap::new();
    for gateway in gateways {
        let private = match known.get(gateway).and_then(decode) {
            Some(private) => private,
            None => {
                let mut private = [0; 32];
                let random = ring::rand::SystemRandom::new();
                random.fill(&mut private).map_err(|_| anyhow::anyhow!("the system has no randomness"))?;
                made.insert(gateway.clone(), ByteString(STANDARD.encode(private).into_bytes()));
                private
            }
        };
        public.insert(gateway.clone(), public_key(private));
    }
    if !made.is_empty() {
        // Another replica that made keys in between has changed the Secret; the next try reads those.
        let patch = json!({
            "metadata": { "resourceVersion": stored.metadata.resource_version },
            "data": made,
        });
        secrets.patch(GATEWAY_KEYS, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        info!(gateways = ?made.keys(), "keys made for gateways");
    }
    Ok(public)
}

/// Keeps the private key (base64) by which this cluster is known to the gateways of `peer` until it has joined it.
pub(super) async fn keep_guest(
    client: &Client,
    namespace: &str,
    peer: &str,
    private: &str,
) -> Result<(), kube::Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if secrets.get_opt(GATEWAY_KEYS).await?.is_none() {
        match secrets.create(&PostParams::default(), &empty()).await {
            Err(error) if !matches!(&error, kube::Error::Api(status) if status.is_already_exists()) => {
                return Err(error);
            }
            _ => {}
        }
    }
    let (entry, key) = (format!("{GUEST_KEY}{peer}"), ByteString(private.as_bytes().to_vec()));
    let patch = json!({ "data": { entry: key } });
    secrets.patch(GATEWAY_KEYS, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

/// Forgets that key.
pub(super) async fn drop_guest(client: &Client, namespace: &str, peer: &str) -> Result<(), kube::Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let entry = format!("{GUEST_KEY}{peer}");
    let stored = secrets.get_opt(GATEWAY_KEYS).await?;
    let held = stored.and_then(|stored| stored.data).is_some_and(|data| data.contains_key(&entry));
    if held {
        let patch = json!({ "data": { entry: null } });
        secrets.patch(GATEWAY_KEYS, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    Ok(())
}

fn empty() -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(GATEWAY_KEYS.to_owned()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    }
}

fn decode(stored: &ByteString) -> Option<[u8; 32]> {
    STANDARD.decode(stored.0.trim_ascii()).ok()?.try_into().ok()
}

fn public_key(private: [u8; 32]) -> String {
    STANDARD.encode(PublicKey::from(&StaticSecret::from(private)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748, section 6.1: Alice's keys.
    #[test]
    fn public_keys_are_those_of_curve25519() {
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let private = decode(&ByteString(private.as_bytes().to_vec())).unwrap();
        assert_eq!(public_key(private), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
