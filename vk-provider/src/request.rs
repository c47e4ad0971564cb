//! Requests to the API server with a deadline: a task that owns something must not wait for ever.

use std::time::Duration;
use tokio::time::timeout;

/// No request may take longer.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for `request`, but no longer than [`REQUEST_TIMEOUT`].
///
/// # Errors
/// As the request, or if there was no answer in time.
pub(crate) async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(
            format!("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs()).into(),
        )),
    }
}
