//! Graceful shutdown with a deadline.

use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// How long tasks may take to finish: below the 30 s Kubernetes grants a pod by default.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

/// Tasks of a process, and the signal that asks them to finish.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// Resolves when the process has been asked to finish.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// The token behind [`Drain::requested`], for libraries that take one.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Asks every task to finish.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// Runs `task` until it ends; [`Drain::finish`] waits for it.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Requests the drain when the process gets SIGTERM or SIGINT.
    ///
    /// # Errors
    /// If the signal handlers cannot be installed.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let token = self.token.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM: draining"),
                _ = interrupt.recv() => info!("SIGINT: draining"),
            }
            token.cancel();
        });
        Ok(())
    }

    /// Waits until every task has ended, at most until `deadline`; returns whether all did.
    pub async fn finish(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        let done = tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok();
        if !done {
            warn!(tasks = self.tasks.len(), "drain deadline passed; ending with tasks unfinished");
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_tasks_that_finish_and_gives_up_on_those_that_do_not() {
        let drain = Drain::default();
        let watcher = drain.clone();
        drain.spawn(async move {
            watcher.requested().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
        assert!(drain.finish(Duration::from_secs(5)).await);

        let stuck = Drain::default();
        stuck.spawn(std::future::pending::<()>());
        assert!(!stuck.finish(Duration::from_secs(5)).await);
    }
}
