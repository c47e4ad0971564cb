//! The overlay between nodes and gateways of a cluster.
//!
//! Pods reach peers by way of gateway pods. A node sends what is for a peer over a VXLAN device of its own to any of the
//! gateways, with the pod's address unchanged; a gateway sends what comes out of its tunnel to the node of the pod. So the
//! pod network in between needs to know nothing of peers, and its source NAT is out of the way.
//!
//! [`plan`] works out what the kernel shall have from what the cluster says ([`topology`]); [`diff`](mod@diff) compares it
//! with what is there; both are pure. [`kernel`] reads and changes what is there, [`cluster`] watches the API server, and
//! [`reconcile`] joins them.

pub mod cluster;
pub mod diff;
pub mod filter;
pub mod kernel;
pub mod metrics;
pub mod plan;
pub mod reconcile;
pub mod state;
pub mod topology;
