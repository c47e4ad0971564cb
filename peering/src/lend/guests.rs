//! Whom this cluster's gateways let in, or call, so that join tokens can be used through a tunnel: what the Secrets of the
//! tokens say, in a ConfigMap, because gateways may not read Secrets.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{GATEWAY_GUESTS, JOIN_TOKEN, MANAGED_BY, MANAGED_BY_LIQUID};
use liquid_crds::{Guests, Peer};
use liquid_link::token_secret::{GUESTS, expires, guests, used_by};
use liquid_runtime::clock::unix_seconds;
use liquid_runtime::watch::{Change, changes};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

/// Pause after a failed request.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Tokens for tunnels at one time: with 8 gateways of 8 addresses of 259 bytes each, half of what a ConfigMap takes (1 MiB).
const MAX_TOKENS: usize = 32;

/// Keeps the ConfigMap up to date, for ever. Without guests there is none.
pub(crate) async fn publish(
    client: Client,
    namespace: String,
    mut peers: watch::Receiver<Option<BTreeMap<String, Peer>>>,
) {
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    let mut news = changes(secrets.clone(), watcher::Config::default().labels(JOIN_TOKEN)).boxed();
    let mut tokens: BTreeMap<String, Secret> = BTreeMap::new();
    let mut listed = false;
    let mut written: Option<BTreeMap<String, String>> = None;
    loop {
        let now = unix_seconds();
        let mut failed = false;
        let known = peers.borrow_and_update().clone().filter(|_| listed);
        for token in known.iter().flat_map(|known| settled(&tokens, known)) {
            // It has no guests any more, also when the peering is over.
            let patch = json!({ "data": { GUESTS: null } });
            let done = secrets.patch(&token, &PatchParams::default(), &Patch::Merge(&patch)).await;
            if let Err(error) = done
                && !matches!(&error, kube::Error::Api(status) if status.is_not_found())
            {
                warn!(%token, %error, "guests of a token that was used not forgotten; trying again");
                failed = true;
            }
        }
        let wanted = known.map(|known| wanted(&tokens, &known, now));
        if let Some(wanted) = &wanted {
            let data = data(wanted);
            if written.as_ref() != Some(&data) {
                match write(&config_maps, &data).await {
                    Ok(()) => {
                        info!(tokens = data.len(), "guests of the gateways published");
                        written = Some(data);
                    }
                    Err(error) => {
                        warn!(%error, "guests of the gateways not published; trying again");
                        failed = true;
                    }
                }
            }
        }
        let end = wanted.iter().flat_map(BTreeMap::values).map(|guests| guests.expires).min();
        // It has expired when the clock shows this second.
        let end = end.map(|end| Duration::from_secs(end.saturating_sub(now)));
        tokio::select! {
            change = news.next() => match change {
                Some(Change::Applied(token)) => drop(tokens.insert(token.name_any(), token)),
                Some(Change::Deleted(token)) => drop(tokens.remove(&token.name_any())),
                Some(Change::Listed(seen)) => {
                    tokens.retain(|name, _| seen.iter().any(|(_, listed)| listed == name));
                    listed = true;
                }
                None => return,
            },
            changed = peers.changed() => if changed.is_err() { return },
            () = sleep(RETRY_PAUSE), if failed => {}
            () = sleep(end.unwrap_or_default()), if end.is_some() => {}
        }
    }
}

/// Names of the Secrets of tokens that were used by a cluster that has a tunnel of its own by now.
fn settled(tokens: &BTreeMap<String, Secret>, peers: &BTreeMap<String, Peer>) -> Vec<String> {
    let used = tokens.values().filter(|token| guests(token).is_some() && is_settled(token, peers));
    used.map(|token| token.name_any()).collect()
}

fn is_settled(token: &Secret, peers: &BTreeMap<String, Peer>) -> bool {
    let Some(cluster) = used_by(token) else { return false };
    let of_cluster = peers.values().filter(|peer| peer.spec.cluster_id == cluster);
    let networks = of_cluster.filter_map(|peer| peer.status.as_ref()?.network.as_ref());
    networks.flat_map(|network| &network.tunnels).any(|tunnel| tunnel.up)
}

/// The guests by the identifiers of their tokens: of those that were not used, have not expired, or whose user has no tunnel
/// of its own yet.
fn wanted(
    tokens: &BTreeMap<String, Secret>,
    peers: &BTreeMap<String, Peer>,
    now: u64,
) -> BTreeMap<String, Guests> {
    let of_token = |token: &Secret| {
        let id = token.labels().get(JOIN_TOKEN)?.clone();
        let (gateways, expires) = (guests(token)?, expires(token)?);
        (expires > now && !is_settled(token, peers)).then_some((id, Guests { expires, gateways }))
    };
    let mut wanted: Vec<(String, Guests)> = tokens.values().filter_map(of_token).collect();
    if wanted.len() > MAX_TOKENS {
        warn!(
            tokens = wanted.len(),
            "more than {MAX_TOKENS} tokens for tunnels: those that last longest have to wait"
        );
        wanted.sort_by_key(|(_, guests)| guests.expires);
        wanted.truncate(MAX_TOKENS);
    }
    wanted.into_iter().collect()
}

fn data(wanted: &BTreeMap<String, Guests>) -> BTreeMap<String, String> {
    let text = |guests: &Guests| serde_json::to_string(guests).unwrap_or_default();
    wanted.iter().map(|(id, guests)| (id.clone(), text(guests))).collect()
}

async fn write(config_maps: &Api<ConfigMap>, data: &BTreeMap<String, String>) -> Result<(), kube::Error> {
    if data.is_empty() {
        return match config_maps.delete(GATEWAY_GUESTS, &DeleteParams::default()).await {
            Err(error) if !matches!(&error, kube::Error::Api(status) if status.is_not_found()) => Err(error),
            _ => Ok(()),
        };
    }
    let published = ConfigMap {
        metadata: ObjectMeta {
            name: Some(GATEWAY_GUESTS.to_owned()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(data.clone()),
        ..ConfigMap::default()
    };
    let apply = PatchParams::apply("liquid-controller").force();
    config_maps.patch(GATEWAY_GUESTS, &apply, &Patch::Apply(&published)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab";
    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn token(id: &str, expires: u64, used_by: Option<&str>, guests: bool) -> (String, Secret) {
        let name = format!("liquid-token-{id}");
        let mut data = BTreeMap::from([("expires", expires.to_string())]);
        data.extend(used_by.map(|cluster| ("used-by", cluster.to_owned())));
        if guests {
            data.insert(GUESTS, json!([{"publicKey": KEY}]).to_string());
        }
        let data: BTreeMap<_, _> =
            data.into_iter().map(|(key, value)| (key, k8s_openapi::ByteString(value.into_bytes()))).collect();
        let secret = json!({"metadata": {"name": name, "labels": {JOIN_TOKEN: id}}, "data": data});
        (name, serde_json::from_value(secret).unwrap())
    }

    fn peers(up: bool) -> BTreeMap<String, Peer> {
        let peer = json!({
            "apiVersion": "liquid.mesh/v1alpha1", "kind": "Peer", "metadata": {"name": "turin"},
            "spec": {"clusterID": USER},
            "status": {"network": {"tunnels": [{"gateway": "g0", "up": up}]}},
        });
        BTreeMap::from([("turin".to_owned(), serde_json::from_value(peer).unwrap())])
    }

    fn ids(tokens: Vec<(String, Secret)>, peers: &BTreeMap<String, Peer>) -> Vec<String> {
        wanted(&tokens.into_iter().collect(), peers, 100).into_keys().collect()
    }

    #[test]
    fn a_token_has_guests_until_it_expires_if_it_is_for_tunnels() {
        let tokens =
            vec![token("aa", 101, None, true), token("bb", 100, None, true), token("cc", 101, None, false)];
        assert_eq!(ids(tokens, &BTreeMap::new()), ["aa"]);
    }

    #[test]
    fn who_has_used_a_token_is_a_guest_until_its_own_tunnel_is_up() {
        let used = || vec![token("aa", 101, Some(USER), true)];
        assert_eq!(ids(used(), &BTreeMap::new()), ["aa"]);
        assert_eq!(ids(used(), &peers(false)), ["aa"]);
        assert!(ids(used(), &peers(true)).is_empty());
        let settled = |peers: &BTreeMap<String, Peer>| settled(&used().into_iter().collect(), peers);
        assert_eq!(
            (settled(&peers(false)).len(), settled(&peers(true))),
            (0, vec!["liquid-token-aa".to_owned()])
        );
        assert_eq!(ids(vec![token("bb", 101, Some("another"), true)], &peers(true)), ["bb"]);
    }

    #[test]
    fn tokens_are_bounded_and_the_longest_wait() {
        let many = (0..=MAX_TOKENS)
            .map(|at| token(&format!("{at:04x}"), 200 - u64::try_from(at).unwrap(), None, true));
        let wanted = ids(many.collect(), &BTreeMap::new());
        assert_eq!(wanted.len(), MAX_TOKENS);
        assert!(!wanted.contains(&"0000".to_owned()), "it lasts longest");
    }
}
