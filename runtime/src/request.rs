//! Requests to the API server: with a deadline, for a task that owns something must not wait for ever, and as JSON patches.

use kube::api::Patch;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// Waits for `request`, but no longer than `limit`.
///
/// # Errors
/// As the request, or if there was no answer in time.
pub async fn within<T>(limit: Duration, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match timeout(limit, request).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(
            format!("the API server did not answer within {} s", limit.as_secs()).into(),
        )),
    }
}

/// A JSON patch of operations that are spelled out where it is made.
#[must_use]
pub fn json_patch(operations: Value) -> Patch<()> {
    Patch::Json(serde_json::from_value(operations).unwrap_or_default())
}

/// Where a JSON patch finds an annotation.
#[must_use]
pub fn annotation_path(name: &str) -> String {
    format!("/metadata/annotations/{}", name.replace('/', "~1"))
}
