//! The end of borrowing, on our wish: first everything at home that depends on the provider, then what runs there,
//! then the credentials.

use super::credentials::load;
use super::session::{LinkError, dial};
use crate::cluster::Cluster;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::{ConsumeSpec, Peer, VirtualNode};
use liquid_link::proto::LeaveRequest;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tracing::{debug, info};

/// How often it is checked whether virtual nodes are gone.
const POLL: Duration = Duration::from_millis(200);
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

/// Tells the provider that we leave, and waits until it has removed everything.
pub(super) async fn leave(
    client: &Client,
    cluster: &Cluster,
    peer: &Peer,
    consume: &ConsumeSpec,
) -> Result<(), LinkError> {
    let unreadable =
        |error: kube::Error| LinkError::Unreachable(format!("this cluster's API server failed: {error}"));
    let credentials = load(client, &cluster.namespace, peer).await.map_err(unreadable)?;
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
