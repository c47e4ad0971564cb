//! The removal of a virtual node: its pods go first, gracefully, and for a time as their budgets allow.

use super::ownership::Ownership;
use crate::request::within;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, PartialObjectMeta, Preconditions};
use kube::client::Body;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::VirtualNode;
use serde_json::json;
use tracing::{debug, info};

/// Pods of a node that is being removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Those that are still there.
    pub(super) pods: usize,
    /// Of these, those that a PodDisruptionBudget holds back.
    pub(super) blocked: usize,
}

impl Left {
    /// How far the removal is, for people.
    pub(super) fn message(self, deadline: Timestamp) -> String {
        let ending = format!("{} pods are ending", self.pods - self.blocked);
        if self.blocked == 0 {
            return ending;
        }
        let until = Timestamp::from_second(deadline.as_second()).unwrap_or(deadline);
        format!("{ending}, {} wait for their PodDisruptionBudget until {until} at the latest", self.blocked)
    }
}

/// Until when the removal of `node` heeds PodDisruptionBudgets: a restart does not begin anew.
pub(super) fn deadline(node: &VirtualNode) -> Timestamp {
    let begun = node.metadata.deletion_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
    let timeout = SignedDuration::from_secs(node.spec.drain_timeout_seconds());
    begun.checked_add(timeout).unwrap_or(Timestamp::MAX)
}

/// Ends the pods of `node`, with the time each of them asks for, and those first whose budgets allow it; without
/// `heed_budgets` all. Returns what is left. `client` must not repeat by itself what is refused for now (429), as evictions
/// are for as long as a budget says: the other pods would wait.
pub(super) async fn clear(client: &Client, node: &str, heed_budgets: bool) -> Result<Left, kube::Error> {
    let all: Api<Pod> = Api::all(client.clone());
    let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = within(all.list_metadata(&of_node)).await?.items;
    // A DaemonSet would put a new pod in the place of each that is ended; they go with the Node.
    let pods: Vec<_> = pods.into_iter().filter(|pod| !is_daemon(pod)).collect();
    let mut left = Left { pods: pods.len(), blocked: 0 };
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        let name = pod.name_any();
        let ended = if heed_budgets {
            within(evict(client, pod)).await
        } else {
            within(api.delete(&name, &params)).await.map(|_| StatusCode::OK)
        };
        match ended {
            Ok(code) if is_blocked(code) => left.blocked += 1,
            Ok(code) => debug!(%node, pod = %name, %code, "pod ended: its virtual node is being removed"),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(left)
}

/// Asks for the eviction of `pod` and of no other of its name; says what the API server answers.
async fn evict(client: &Client, pod: &PartialObjectMeta<Pod>) -> Result<StatusCode, kube::Error> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let eviction = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": { "namespace": namespace, "name": name },
        "deleteOptions": { "preconditions": { "uid": pod.uid() } },
    });
    let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(eviction.to_string().into_bytes()))
        .map_err(kube::Error::HttpError)?;
    let response = client.send(request).await?;
    let code = response.status();
    if code.is_success() || is_blocked(code) || matches!(code, StatusCode::NOT_FOUND | StatusCode::CONFLICT) {
        return Ok(code);
    }
    let why = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let message = format!("eviction of {namespace}/{name}: {code}: {}", String::from_utf8_lossy(&why));
    Err(kube::Error::Service(message.into()))
}

/// Whether an eviction is refused because of a budget: it allows none now (429), or several cover the pod, which
/// eviction does not support (500).
fn is_blocked(code: StatusCode) -> bool {
    matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::INTERNAL_SERVER_ERROR)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_heeded_from_the_deletion_on_and_not_for_ever() {
        let node = |timeout: Option<i64>| -> VirtualNode {
            serde_json::from_value(json!({
                "apiVersion": "liquid.mesh/v1alpha1", "kind": "VirtualNode",
                "metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"peer": "milan", "drainTimeoutSeconds": timeout},
            }))
            .unwrap()
        };
        assert_eq!(deadline(&node(None)).to_string(), "2026-01-01T00:02:00Z");
        assert_eq!(deadline(&node(Some(5))).to_string(), "2026-01-01T00:00:05Z");
        assert_eq!(deadline(&node(Some(i64::MAX))), Timestamp::MAX);
    }

    #[test]
    fn who_holds_up_a_removal_is_told() {
        let until =
            deadline(&VirtualNode::new("n", serde_json::from_value(json!({"peer": "milan"})).unwrap()));
        assert_eq!(Left { pods: 3, blocked: 0 }.message(until), "3 pods are ending");
        let blocked = Left { pods: 3, blocked: 1 }.message(until);
        assert!(blocked.starts_with("2 pods are ending, 1 wait for their PodDisruptionBudget"), "{blocked}");
    }
}
