//! Where the gateway's configuration comes from: a file, or the Peers of the cluster it runs in.

mod around;
pub(crate) mod cluster;
pub(crate) mod file;
mod keys;
mod plan;
mod resolve;

pub(crate) use plan::GUEST;

use crate::relay::Directory;
use cluster::ClusterSource;
use file::FileSource;
use liquid_gateway::gateway::Config;
use liquid_gateway::io::workers::Workers;
use std::net::SocketAddr;
use tokio::sync::watch;

/// What is settled when the gateway starts.
pub(crate) struct Device {
    /// Name of the TUN device.
    pub(crate) name: String,
    /// Longest packet in the tunnel.
    pub(crate) mtu: u16,
    /// Address and port for peers.
    pub(crate) listen: SocketAddr,
    /// Where the peer link is relayed for this cluster's own processes, and who reaches whom; nothing is without a cluster.
    pub(crate) relay: Option<(SocketAddr, watch::Receiver<Directory>)>,
}

/// A source that has been read once.
pub(crate) enum Source {
    File(Box<FileSource>),
    Cluster(Box<ClusterSource>),
}

impl Source {
    pub(crate) fn device(&self) -> Device {
        match self {
            Source::File(source) => source.device(),
            Source::Cluster(source) => source.device(),
        }
    }

    /// What it says now.
    pub(crate) fn config(&self) -> &Config {
        match self {
            Source::File(source) => &source.config,
            Source::Cluster(source) => source.config(),
        }
    }

    /// Gives the worker what changes; ends only with an error.
    pub(crate) async fn follow(self, handle: &Workers) -> anyhow::Result<()> {
        match self {
            Source::File(source) => source.follow(handle).await,
            Source::Cluster(source) => source.follow(handle).await,
        }
    }
}
