//! Asks home's API server for the tokens of a pod.

use super::tokens::Order;
use crate::request::within;
use bytes::Bytes;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use liquid_reflection::Kind;
use liquid_reflection::companion::portable;
use serde_json::{Map, Value, json};

/// Tokens, as the Secret they go into.
pub(in crate::mirror) struct Issued {
    /// The body of the Secret.
    pub(super) body: Bytes,
    /// How many seconds they live, beside how many were asked for.
    pub(super) lives: Vec<(i64, i64)>,
}

/// Why there are none.
pub(super) enum NotIssued {
    /// The pod is gone: none are needed.
    Gone,
    /// Worth another try; a sentence says why.
    Failed(String),
}

/// Tokens as `order` says, bound to the pod: they are worthless when it is gone.
pub(super) async fn issue(client: &Client, order: &Order) -> Result<Issued, NotIssued> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &order.pod.key.namespace);
    let (mut data, mut lives) = (Map::new(), Vec::new());
    for source in &order.sources {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                // None stands for the API server itself.
                audiences: source.audience.iter().cloned().collect(),
                expiration_seconds: Some(source.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(order.pod.key.name.to_string()),
                    uid: Some(order.pod.uid.to_string()),
                }),
            },
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let asked = accounts.create_token_request(&order.account, &params, &request);
        let answer = within(asked).await.map_err(|error| refused(&error, &order.account))?;
        let status =
            answer.status.ok_or_else(|| NotIssued::Failed("the answer holds no token".to_owned()))?;
        lives
            .push((source.seconds, status.expiration_timestamp.0.as_second() - Timestamp::now().as_second()));
        data.insert(source.key.clone(), json!(ByteString(status.token.into_bytes())));
    }
    let secret = json!({ "type": "Opaque", "data": Value::Object(data) });
    let body = portable(Kind::Secret, &secret).map_err(NotIssued::Failed)?;
    Ok(Issued { body: Bytes::from(body.to_string()), lives })
}

fn refused(error: &kube::Error, account: &str) -> NotIssued {
    if let kube::Error::Api(status) = error {
        let about = status.details.as_ref().map(|details| details.kind.as_str()).unwrap_or_default();
        // The pod of that name has another UID by now, or there is none.
        if status.is_conflict() || (status.is_not_found() && about == "pods") {
            return NotIssued::Gone;
        }
    }
    NotIssued::Failed(format!("the API server gives no token of service account {account}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn only_a_pod_that_is_gone_needs_no_token() {
        let about = |code, reason: &str, kind: &str| {
            let status = json!({
                "status": "Failure", "message": "because", "reason": reason, "code": code,
                "details": {"kind": kind, "name": "x"},
            });
            let status: Status = serde_json::from_value(status).unwrap();
            matches!(refused(&kube::Error::Api(status.boxed()), "a"), NotIssued::Gone)
        };
        assert!(about(404, "NotFound", "pods") && about(409, "Conflict", "pods"));
        assert!(!about(404, "NotFound", "serviceaccounts") && !about(403, "Forbidden", ""));
    }
}
