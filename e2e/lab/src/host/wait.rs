//! Waiting for conditions, always with a deadline.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Calls `check` every `interval` until it returns a value.
///
/// # Errors
/// After `limit`: names `what` was waited for. An error of `check` ends the wait at once.
pub fn until<T>(
    what: &str,
    limit: Duration,
    interval: Duration,
    mut check: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what} did not happen within {} s", limit.as_secs_f32());
        }
        pause(interval);
    }
}

/// The one place that sleeps.
#[allow(
    clippy::disallowed_methods,
    reason = "conditions of other processes can only be polled; callers have deadlines"
)]
pub(crate) fn pause(interval: Duration) {
    std::thread::sleep(interval);
}
