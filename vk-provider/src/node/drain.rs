//! The removal of a virtual node: its pods go first, gracefully.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PartialObjectMeta, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{PEER, TYPE, TYPE_VIRTUAL_NODE};
use std::time::Duration;
use tokio::time::sleep;
use tracing::{debug, info};

/// How often it is checked whether the pods are gone.
const POLL: Duration = Duration::from_millis(200);

/// Deletes the pods of `node`, with the time each of them asks for, and waits until they are gone. Calls `report` with
/// the number that is left, whenever it changes.
pub(super) async fn remove_pods<F: Future<Output = ()>>(
    client: &Client,
    node: &str,
    report: impl Fn(usize) -> F,
) -> Result<(), kube::Error> {
    let all: Api<Pod> = Api::all(client.clone());
    let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let mut reported = None;
    loop {
        let pods = all.list_metadata(&of_node).await?.items;
        // A DaemonSet would put a new pod in the place of each that is deleted; they go with the Node.
        let pods: Vec<_> = pods.into_iter().filter(|pod| !is_daemon(pod)).collect();
        if reported != Some(pods.len()) {
            reported = Some(pods.len());
            report(pods.len()).await;
        }
        if pods.is_empty() {
            return Ok(());
        }
        for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
                ..DeleteParams::default()
            };
            match api.delete(&pod.name_any(), &params).await {
                Ok(_) => {
                    debug!(%node, pod = %pod.name_any(), "pod deleted: its virtual node is being removed")
                }
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        sleep(POLL).await;
    }
}

fn is_daemon(pod: &PartialObjectMeta<Pod>) -> bool {
    pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true))
}

/// Deletes the Node object, if it is the one of this virtual node.
pub(super) async fn remove_node(client: &Client, node: &str, peer: &str) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(found) = nodes.get_opt(node).await? else { return Ok(()) };
    let labels = found.labels();
    let ours = labels.get(TYPE).map(String::as_str) == Some(TYPE_VIRTUAL_NODE)
        && labels.get(PEER).map(String::as_str) == Some(peer);
    if !ours {
        return Ok(());
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: found.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match nodes.delete(node, &params).await {
        Ok(_) => info!(%node, "node deleted"),
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
