//! The lab: real Kubernetes clusters in network namespaces of one machine.
//!
//! `up` builds Kubernetes from its Go modules (once), starts control planes and nodes as [machines](machine), each
//! with namespaces, root file system and control groups of its own, and joins them by a router that only knows the
//! clusters' LANs. Scenarios open a running lab with [`Lab::open`].

mod build;
mod cluster;
mod host;
mod lab;
pub mod machine;
mod network;
mod plan;
mod progress;

pub use build::cache::Cache;
pub use build::images;
pub use build::product_image::ProductImage;
pub use build::toolchain::Toolchain;
pub use cluster::api_client::ApiClient;
pub use cluster::fake_nodes::FakeNodes;
pub use host::wait::until;
pub use lab::down::{down, leftovers};
pub use lab::status::{ClusterStatus, LabStatus, MachineStatus};
pub use lab::up::{Started, up};
pub use lab::{Cluster, Lab, Node};
pub use network::link::{Cut, Direction, Link, Opening, Traffic};
pub use plan::address::{AddressPlan, ClusterPlan, NodePlan};
pub use plan::layout::Layout;
pub use plan::spec::{
    CidrPlan, ClusterName, ClusterSpec, Cni, IpFamilies, LabName, LabSpec, ProxyMode, Stack,
};
pub use progress::{LongStep, Progress};

/// A request that cannot be right, whatever the state of the machine: the command line's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
