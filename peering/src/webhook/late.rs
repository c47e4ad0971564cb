//! Pods that were made before their namespace was offloaded, or while nobody answered for the webhook: a toleration may
//! still be given to a pod that waits for a node, so they need not be made anew.

use super::claims::Claims;
use super::placement::late_toleration;
use super::server::Offloadings;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::PodPlacement;
use liquid_runtime::watch::{Change, changes};
use serde_json::json;
use tracing::{info, warn};

/// Pods the scheduler has not found a node for.
const WAITING: &str = "spec.nodeName=,status.phase=Pending";

/// Gives tolerations to pods that wait for a node, for ever.
pub(crate) async fn tolerate(client: Client, offloadings: Offloadings, claims: Claims) {
    let pods: Api<Pod> = Api::all(client.clone());
    let mut news = changes(pods.clone(), watcher::Config::default().fields(WAITING)).boxed();
    let mut offloaded = offloadings.subscribe();
    loop {
        tokio::select! {
            change = news.next() => match change {
                Some(Change::Applied(pod)) => tolerate_one(&client, &offloadings, &claims, &pod).await,
                Some(Change::Deleted(_) | Change::Listed(_)) => {}
                None => return,
            },
            changed = offloaded.changed() => {
                if changed.is_err() {
                    return;
                }
                match pods.list(&ListParams::default().fields(WAITING)).await {
                    Ok(waiting) => for pod in waiting {
                        tolerate_one(&client, &offloadings, &claims, &pod).await;
                    },
                    Err(error) => warn!(%error, "pods that wait for a node not read"),
                }
            }
        }
    }
}

async fn tolerate_one(client: &Client, offloadings: &Offloadings, claims: &Claims, pod: &Pod) {
    let namespace = pod.namespace().unwrap_or_default();
    let Some(offloading) = offloadings.get(&namespace) else { return };
    let Some(patch) = late_toleration(pod, &offloading) else { return };
    let may_stay = offloading.pod_placement == PodPlacement::LocalAndRemote;
    if may_stay && claims.stays(&namespace, &json!(pod)).await {
        return;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let name = pod.name_any();
    match pods.patch(&name, &PatchParams::default(), &Patch::Json::<()>(patch)).await {
        Ok(_) => info!(pod = %format!("{namespace}/{name}"), "the pod may run on virtual nodes now"),
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => warn!(pod = %format!("{namespace}/{name}"), %error, "toleration not added"),
    }
}
