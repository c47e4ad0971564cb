//! The end of borrowing, on our wish: first everything at home that depends on the provider, then what runs there,
//! then the credentials.

use super::credentials::load;
use super::session::{LinkError, dial};
use crate::cluster::Cluster;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{DELETE_VOLUME, STORAGE_DRIVER};
use liquid_crds::{ConsumeSpec, Peer, VirtualNode};
use liquid_link::proto::LeaveRequest;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tracing::{debug, info};

/// How often it is checked whether virtual nodes are gone.
const POLL: Duration = Duration::from_millis(200);
/// How often it is checked whether volumes are gone: all of the cluster are listed for that.
const VOLUMES_POLL: Duration = Duration::from_millis(500);
/// A provider that says nothing of its progress for this long is asked anew.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);

/// Deletes the virtual nodes of `peer` and waits until they, with their pods, are gone.
pub(super) async fn remove_virtual_nodes(client: &Client, peer: &Peer) -> Result<(), kube::Error> {
    let nodes: Api<VirtualNode> = Api::all(client.clone());
    loop {
        let all = nodes.list(&ListParams::default()).await?;
        let mut left = 0;
        for node in all.iter().filter(|node| node.spec.peer == peer.name_any()) {
            left += 1;
            if node.metadata.deletion_timestamp.is_none() {
                match nodes.delete(&node.name_any(), &DeleteParams::default()).await {
                    Ok(_) => debug!(node = %node.name_any(), "virtual node is being removed"),
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if left == 0 {
            return Ok(());
        }
        sleep(POLL).await;
    }
}

/// Waits until no volume there is about to be deleted: later nobody could tell the provider. Those that are kept do not matter.
pub(super) async fn finish_volumes(client: &Client, peer: &Peer) -> Result<(), kube::Error> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    loop {
        let all = volumes.list(&ListParams::default()).await?;
        let ending: Vec<String> =
            all.iter().filter(|volume| is_ending(volume, peer)).map(kube::ResourceExt::name_any).collect();
        if ending.is_empty() {
            return Ok(());
        }
        debug!(volumes = %ending.join(", "), "volumes in the provider are being deleted");
        sleep(VOLUMES_POLL).await;
    }
}

/// Whether a volume is in this provider and will be deleted there, now or when its last pod has ended.
fn is_ending(volume: &PersistentVolume, peer: &Peer) -> bool {
    let Some(spec) = &volume.spec else { return false };
    let handle =
        spec.csi.as_ref().filter(|csi| csi.driver == STORAGE_DRIVER).map(|csi| csi.volume_handle.as_str());
    let there = handle
        .and_then(|handle| handle.split_once('/'))
        .is_some_and(|(cluster, _)| cluster == peer.spec.cluster_id);
    let marked = volume.annotations().get(DELETE_VOLUME) == volume.uid().as_ref();
    let released = volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Released"));
    let deletes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    there && (marked || (released && deletes))
}

/// Tells the provider that we leave, and waits until it has removed everything.
pub(super) async fn leave(
    client: &Client,
    cluster: &Cluster,
    peer: &Peer,
    consume: &ConsumeSpec,
) -> Result<(), LinkError> {
    let credentials = load(client, &cluster.namespace, peer).await.map_err(LinkError::own)?;
    // Without a certificate the join never came about, and there is nothing to leave.
    let Some(credentials) = credentials.filter(|credentials| credentials.chain.is_some()) else {
        return Ok(());
    };
    let mut link = dial(peer, consume, &credentials, cluster).await?;
    let begun = timeout(PROGRESS_TIMEOUT, link.leave(LeaveRequest {})).await;
    let begun = begun.unwrap_or_else(|_| Err(Status::deadline_exceeded("the provider does not answer")));
    let mut progress = match begun {
        Ok(progress) => progress.into_inner(),
        // It knows nothing of this peering (any more): that is what we want.
        Err(status) if status.code() == Code::PermissionDenied => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    loop {
        let next = timeout(PROGRESS_TIMEOUT, progress.message()).await.map_err(|_| {
            LinkError::Unreachable("the provider stopped answering while we were leaving".to_owned())
        })??;
        match next {
            Some(report) if report.done => {
                info!(peer = %peer.name_any(), "the provider has removed everything");
                return Ok(());
            }
            Some(report) => debug!(
                peer = %peer.name_any(),
                pods = report.remaining_pods,
                namespaces = report.remaining_namespaces,
                "the provider is removing what ran there"
            ),
            None => {
                return Err(LinkError::Unreachable("the provider hung up while we were leaving".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_peering_waits_for_volumes_that_are_to_go_and_for_no_others() {
        let peer: Peer = serde_json::from_value(json!({
            "apiVersion": "liquid.mesh/v1alpha1", "kind": "Peer", "metadata": {"name": "milan"}, "spec": {"clusterID": "c1"},
        }))
        .unwrap();
        let ending = |change: &dyn Fn(&mut Value)| {
            let mut volume = json!({
                "metadata": {"name": "pvc-1", "uid": "v1"},
                "spec": {
                    "persistentVolumeReclaimPolicy": "Delete",
                    "csi": {"driver": STORAGE_DRIVER, "volumeHandle": "c1/shop/data-1"},
                },
                "status": {"phase": "Released"},
            });
            change(&mut volume);
            is_ending(&serde_json::from_value(volume).unwrap(), &peer)
        };
        assert!(ending(&|_| ()));
        assert!(!ending(&|volume| volume["status"]["phase"] = json!("Bound")));
        assert!(!ending(&|volume| volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain")));
        assert!(!ending(&|volume| volume["spec"]["csi"]["volumeHandle"] = json!("c2/shop/data-1")));
        assert!(!ending(&|volume| volume["spec"]["csi"]["driver"] = json!("x")));
        let marked = |volume: &mut Value| {
            volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
            volume["metadata"]["annotations"] = json!({DELETE_VOLUME: "v1"});
        };
        assert!(ending(&marked));
    }
}
