//! Requests to the API server with a deadline: a task that owns something must not wait for ever.

use std::time::Duration;

/// No request may take longer.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for `request`, but no longer than [`REQUEST_TIMEOUT`].
///
/// # Errors
/// As the request, or if there was no answer in time.
pub(crate) async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    liquid_runtime::request::within(REQUEST_TIMEOUT, request).await
}
