//! The overlay between nodes and gateways of a cluster.
//!
//! Pods reach peers by way of gateway pods. A node sends what is for a peer over a VXLAN device of its own to any of the
//! gateways, with the pod's address unchanged; a gateway sends what comes out of its tunnel to the node of the pod. So the
//! pod network in between needs to know nothing of peers, and its source NAT is out of the way.
//!
//! [`plan`] works out what the kernel shall have from what the cluster says ([`topology`]); [`diff`](mod@diff) compares it
//! with what is there; both are pure. [`kernel`] reads and changes what is there, [`cluster`] watches the API server, and
//! [`reconcile`] joins them. [`probe`] finds out within a second when a gateway is gone.
//!
//! # What it needs
//! `CAP_NET_ADMIN`; no writable `/proc/sys`. Kubernetes: `get`, `list` and `watch` of `peers`, `nodes`, and in the namespace
//! of Liquid `pods` and `daemonsets` (on nodes); `pods` and `namespaces` everywhere, as soon as some peer may not reach all; `create` and `patch` of `events` (`events.k8s.io`) in the namespaces
//! `default`, where Events on Nodes are, and of Liquid.
//!
//! # What it leaves
//! Everything, when it is stopped: an upgrade must not interrupt traffic. All of it goes when there are no peers, when the
//! DaemonSet is deleted (its pods still run then), and by `liquid-fabric cleanup`.

pub mod access;
pub mod cluster;
pub mod diff;
pub mod filter;
pub mod kernel;
pub mod metrics;
pub mod plan;
pub mod probe;
pub mod reconcile;
pub mod state;
pub mod topology;
