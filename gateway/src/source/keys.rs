//! The key of this gateway, which liquid-controller makes: another one is used from the next handshake on. And those by which
//! it is known to peers that this cluster has not joined yet.

use futures::{Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::Peer;
use liquid_crds::vocabulary::{GATEWAY_KEYS, GUEST_KEY};
use liquid_gateway::wireguard::key::PrivateKey;
use liquid_runtime::watch::Change;
use std::collections::BTreeMap;

/// What a gateway hears of its cluster.
pub(super) enum News {
    Peer(Box<Change<Peer>>),
    /// This is its key.
    Key(PrivateKey),
    /// There is none that can be used, and why.
    NoKey(String),
    /// These are the keys of guests, by the names of the peers.
    GuestKeys(BTreeMap<String, PrivateKey>),
}

/// The key of `gateway`, now and at each change.
pub(super) fn changes(
    client: &Client,
    namespace: &str,
    gateway: &str,
) -> impl Stream<Item = News> + Send + use<> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let only = Config::default().fields(&format!("metadata.name={GATEWAY_KEYS}"));
    let gateway = gateway.to_owned();
    liquid_runtime::watch::changes(secrets, only).flat_map(move |change| {
        futures::stream::iter([guests(&change), news(change, &gateway)].into_iter().flatten())
    })
}

fn guests(change: &Change<Secret>) -> Option<News> {
    let Change::Applied(secret) = change else { return None };
    let key = |(entry, key): (&String, &ByteString)| {
        let peer = entry.strip_prefix(GUEST_KEY)?;
        let key = std::str::from_utf8(&key.0).ok()?.parse().ok()?;
        Some((peer.to_owned(), key))
    };
    Some(News::GuestKeys(secret.data.iter().flatten().filter_map(key).collect()))
}

fn news(change: Change<Secret>, gateway: &str) -> Option<News> {
    let secret = match change {
        Change::Applied(secret) if secret.name_any() == GATEWAY_KEYS => secret,
        Change::Listed(names) if names.is_empty() => {
            return Some(News::NoKey("waiting for liquid-controller to make it".to_owned()));
        }
        // Without its Secret, a key is still one.
        Change::Applied(_) | Change::Listed(_) | Change::Deleted(_) => return None,
    };
    let Some(stored) = secret.data.and_then(|mut data| data.remove(gateway)) else {
        return Some(News::NoKey("waiting for liquid-controller to make it".to_owned()));
    };
    let text = String::from_utf8(stored.0).unwrap_or_default();
    Some(match text.parse() {
        Ok(key) => News::Key(key),
        Err(error) => News::NoKey(format!(
            "entry {gateway} of Secret {GATEWAY_KEYS}: {error}; delete it to get another"
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    fn of(data: &Value) -> Option<News> {
        let secret = json!({"metadata": {"name": GATEWAY_KEYS}, "data": data});
        news(Change::Applied(serde_json::from_value(secret).unwrap()), "liquid-gateway-0")
    }

    #[test]
    fn only_a_key_is_taken_for_one() {
        // Secrets are base64, and so are keys.
        let key = "ZHdkdENuTVlwWDA4RnNGeVViSm1SZDlNTDRmcndKa3FzWGY3cFIyNUxDbz0=";
        let Some(News::Key(found)) = of(&json!({"liquid-gateway-0": key, "liquid-gateway-1": "eA=="})) else {
            panic!("the key")
        };
        assert_eq!(found.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert!(
            matches!(of(&json!({"liquid-gateway-0": "eA=="})), Some(News::NoKey(why)) if why.contains("delete it"))
        );
        assert!(matches!(of(&json!({"liquid-gateway-1": key})), Some(News::NoKey(_))));
        assert!(matches!(news(Change::Listed(BTreeSet::new()), "liquid-gateway-0"), Some(News::NoKey(_))));
    }

    #[test]
    fn keys_of_guests_are_found_under_the_names_of_the_peers() {
        let key = "ZHdkdENuTVlwWDA4RnNGeVViSm1SZDlNTDRmcndKa3FzWGY3cFIyNUxDbz0=";
        let data = json!({"liquid-gateway-0": key, "guest.milan": key, "guest.turin": "eA=="});
        let secret = json!({"metadata": {"name": GATEWAY_KEYS}, "data": data});
        let change = Change::Applied(serde_json::from_value(secret).unwrap());
        let Some(News::GuestKeys(keys)) = guests(&change) else { panic!("keys of guests") };
        assert_eq!(keys.keys().collect::<Vec<_>>(), ["milan"]);
    }

    #[test]
    fn a_secret_that_is_deleted_takes_no_key_away() {
        let secret = serde_json::from_value(json!({"metadata": {"name": GATEWAY_KEYS}})).unwrap();
        assert!(news(Change::Deleted(secret), "liquid-gateway-0").is_none());
    }
}
