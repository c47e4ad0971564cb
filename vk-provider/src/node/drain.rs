//! The removal of a virtual node: its pods go first, gracefully.

use super::ownership::Ownership;
use crate::request::within;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PartialObjectMeta, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::VirtualNode;
use tracing::{debug, info};

/// Deletes the pods of `node`, with the time each of them asks for; returns how many are left.
pub(super) async fn delete_pods(client: &Client, node: &str) -> Result<usize, kube::Error> {
    let all: Api<Pod> = Api::all(client.clone());
    let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = within(all.list_metadata(&of_node)).await?.items;
    // A DaemonSet would put a new pod in the place of each that is deleted; they go with the Node.
    let pods: Vec<_> = pods.into_iter().filter(|pod| !is_daemon(pod)).collect();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match within(api.delete(&pod.name_any(), &params)).await {
            Ok(_) => debug!(%node, pod = %pod.name_any(), "pod deleted: its virtual node is being removed"),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pods.len())
}

fn is_daemon(pod: &PartialObjectMeta<Pod>) -> bool {
    pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true))
}

/// Deletes the Node object, if it is the one of this virtual node.
pub(super) async fn remove_node(client: &Client, virtual_node: &VirtualNode) -> Result<(), kube::Error> {
    let name = virtual_node.name_any();
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(found) = within(nodes.get_opt(&name)).await? else { return Ok(()) };
    if Ownership::of(Some(&found), virtual_node) != Ownership::Ours {
        return Ok(());
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: found.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match within(nodes.delete(&name, &params)).await {
        Ok(_) => info!(node = %name, "node deleted"),
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
