//! Waiting for a condition, with a deadline and a readable failure.

use anyhow::bail;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How often it is looked.
const POLL: Duration = Duration::from_millis(50);

/// What a look has found.
#[derive(Debug)]
pub enum Look<T> {
    /// It is there.
    Done(T),
    /// Not yet, and what is missing.
    NotYet(String),
}

/// Looks again and again until it is there; errors of a look count as "not yet".
///
/// # Errors
/// When the deadline passes: what was waited for, and what was missing last.
pub async fn wait<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Look<T>>>,
{
    let started = Instant::now();
    loop {
        let missing = match look().await {
            Ok(Look::Done(found)) => return Ok(found),
            Ok(Look::NotYet(missing)) => missing,
            Err(error) => format!("{error:#}"),
        };
        if started.elapsed() >= limit {
            bail!("{what}: not within {} s: {missing}", limit.as_secs());
        }
        sleep(POLL).await;
    }
}
