//! Finalizers of `Peer`s.

use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::Peer;
use serde_json::json;

/// Adds `finalizer` unless it is there.
pub(crate) async fn add(api: &Api<Peer>, peer: &Peer, finalizer: &str) -> Result<(), kube::Error> {
    if peer.finalizers().iter().any(|known| known == finalizer) {
        return Ok(());
    }
    let finalizers = peer.finalizers().iter().map(String::as_str).chain([finalizer]);
    write(api, peer, finalizers.collect()).await
}

/// Takes `finalizer` away if it is there.
pub(crate) async fn remove(api: &Api<Peer>, name: &str, finalizer: &str) -> Result<(), kube::Error> {
    loop {
        let Some(peer) = api.get_opt(name).await? else { return Ok(()) };
        if !peer.finalizers().iter().any(|known| known == finalizer) {
            return Ok(());
        }
        let finalizers = peer.finalizers().iter().map(String::as_str).filter(|known| *known != finalizer);
        match write(api, &peer, finalizers.collect()).await {
            // Somebody else wrote in between: look again.
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            other => return other,
        }
    }
}

async fn write(api: &Api<Peer>, peer: &Peer, finalizers: Vec<&str>) -> Result<(), kube::Error> {
    let patch = json!({
        "metadata": {"resourceVersion": peer.metadata.resource_version, "finalizers": finalizers},
    });
    api.patch(&peer.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}
