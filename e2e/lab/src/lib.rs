//! The lab: real Kubernetes clusters in network namespaces of one machine.
//!
//! `up` builds Kubernetes from its Go modules (once), starts control planes and nodes as [machines](machine), each
//! with namespaces, root file system and control groups of its own, and joins them by a router that only knows the
//! clusters' LANs. Scenarios open a running lab with [`Lab::open`].

mod addons;
mod address;
mod api_client;
mod archive;
mod cache;
mod cgroup;
mod command;
mod container_runtime;
mod control_plane;
mod down;
mod host_check;
mod image_store;
pub mod images;
mod kubeconfig;
mod lab;
mod layout;
mod link;
pub mod machine;
mod node;
mod pki;
mod process;
mod product_image;
mod progress;
mod spec;
mod state;
mod status;
mod toolchain;
mod topology;
mod up;
mod wait;

pub use address::{AddressPlan, ClusterPlan, NodePlan};
pub use api_client::ApiClient;
pub use cache::Cache;
pub use down::{down, leftovers};
pub use lab::{Cluster, Lab, Node};
pub use layout::Layout;
pub use link::{Cut, Direction, Link, Traffic};
pub use product_image::ProductImage;
pub use progress::{LongStep, Progress};
pub use spec::{CidrPlan, ClusterName, ClusterSpec, Cni, LabName, LabSpec, ProxyMode, Stack};
pub use status::{ClusterStatus, LabStatus, MachineStatus};
pub use toolchain::Toolchain;
pub use up::{Started, up};
pub use wait::until;

/// A request that cannot be right, whatever the state of the machine: the command line's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
