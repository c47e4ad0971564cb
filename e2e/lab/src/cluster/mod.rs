//! What makes machines a Kubernetes cluster: keys, programs, flags and files, and the first objects.

pub(crate) mod addons;
pub(crate) mod api_client;
pub(crate) mod container_runtime;
pub(crate) mod control_plane;
pub(crate) mod fake_nodes;
mod kubeconfig;
pub(crate) mod node;
pub(crate) mod pki;
