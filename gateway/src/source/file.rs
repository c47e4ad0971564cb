//! A configuration file, which SIGHUP reads again.

use super::Device;
use super::resolve::{RESOLVE_INTERVAL, Resolved, resolve};
use liquid_gateway::config::File;
use liquid_gateway::gateway::Config;
use liquid_gateway::io::workers::Workers;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// A file that has been read.
pub(crate) struct FileSource {
    path: PathBuf,
    file: File,
    resolved: Resolved,
    pub(super) config: Config,
}

impl FileSource {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read, or contradicts itself.
    pub(crate) async fn load(path: PathBuf) -> anyhow::Result<Self> {
        let file = File::load(&path)?;
        let mut resolved = Resolved::new();
        resolve(file.endpoints(), &mut resolved).await;
        let config = file.config(&resolved)?;
        Ok(Self { path, file, resolved, config })
    }

    pub(super) fn device(&self) -> Device {
        Device { name: self.file.device.clone(), mtu: self.file.mtu, listen: self.file.listen, relay: None }
    }

    /// The file on SIGHUP, and the addresses behind names now and then.
    pub(super) async fn follow(mut self, handle: &Workers) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut interval = tokio::time::interval(RESOLVE_INTERVAL);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                _ = hangup.recv() => match File::load(&self.path) {
                    Ok(loaded) => self.file = loaded,
                    Err(error) => {
                        warn!(%error, "the configuration stays as it is");
                        continue;
                    }
                },
            }
            resolve(self.file.endpoints(), &mut self.resolved).await;
            match self.file.config(&self.resolved) {
                Ok(changed) if changed != self.config => {
                    info!(peers = changed.peers.len(), "configuration changed");
                    self.config = changed.clone();
                    handle.configure(changed);
                }
                Ok(_) => {}
                Err(error) => warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "the configuration stays as it is"
                ),
            }
        }
    }
}
