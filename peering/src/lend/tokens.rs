//! Join tokens that have expired are of no use to anyone, and do not stay.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::JOIN_TOKEN;
use liquid_link::token_secret::expires;
use liquid_runtime::clock::unix_seconds;
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// How often tokens are looked through.
const INTERVAL: Duration = Duration::from_secs(600);

/// Deletes the Secrets of expired tokens, for ever.
pub(crate) async fn purge(client: Client, namespace: String) {
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    loop {
        if let Err(error) = purge_once(&secrets).await {
            warn!(%error, "expired join tokens not deleted; trying again");
        }
        sleep(INTERVAL).await;
    }
}

async fn purge_once(secrets: &Api<Secret>) -> Result<(), kube::Error> {
    let now = unix_seconds();
    for kept in secrets.list(&ListParams::default().labels(JOIN_TOKEN)).await? {
        if expires(&kept).is_none_or(|end| end > now) {
            continue;
        }
        let name = kept.name_any();
        match secrets.delete(&name, &DeleteParams::default()).await {
            Ok(_) => info!(secret = %name, "expired join token deleted"),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
