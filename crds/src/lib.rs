#![allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "kube's derive: root types are pub next to the spec whatever the module, and printcolumn repeats"
)]
//! API types of the group `liquid.mesh`: what people write, what the processes report, and the words
//! (labels, annotations, names) that mark everything Liquid owns.
//!
//! The manifests under `charts/liquid/crds` are generated from these types by `cargo xtask gen`.

mod access;
mod conditions;
mod manifests;
mod names;
mod namespace_offloading;
mod network;
mod offer;
mod peer;
mod price;
pub mod quantity;
mod schema;
mod shadow_pod;
mod virtual_node;
pub mod vocabulary;

pub use access::{AccessPort, AccessRule, AccessSpec, NetworkSpec, Protocol, TransitPolicy, Verdict};
pub use conditions::{ConditionUpdate, condition, is_true, set_condition};
pub use manifests::{Manifest, manifests};
pub use names::{ClusterId, ClusterName, InvalidName, MAX_CLUSTER_NAME, is_dns_label, is_dns_subdomain};
pub use namespace_offloading::{
    ConfigurationReflection, IngressReflection, NamespaceOffloading, NamespaceOffloadingSpec,
    NamespaceOffloadingStatus, PodPlacement, PolicyReflection, Reflection, RemoteNamespace,
    RemoteNamespaceSpec, RemoteNamespaceStrategy, ServiceReflection, TokenReflection,
};
pub use network::{
    DirectCidr, GuestStatus, Guests, NetworkStatus, PeerGateway, PodCidr, TransitCidr, TunnelStatus,
    WayStatus,
};
pub use offer::{Offer, OfferedImage, OfferedNode};
pub use peer::{
    Acceptance, Approval, ConsumeSpec, ConsumeStatus, LendIngress, LendSpec, LendState, LendStatus,
    LendStorage, LentClass, LentSlice, NoTunnel, NodeExposure, Peer, PeerSpec, PeerStatus, SELECTABLE_LABELS,
    SliceState, Transport, VirtualNodes,
};
pub use price::{Micro, Price, TooExpensive, show as show_price};
pub use shadow_pod::{HomePod, Placement, ShadowPod, ShadowPodSpec, ShadowPodStatus};
pub use virtual_node::{NodeTaint, TaintEffect, VirtualNode, VirtualNodeSpec, VirtualNodeStatus};

/// The API group of every kind in this crate.
pub const GROUP: &str = "liquid.mesh";
/// The one version served and stored.
pub const VERSION: &str = "v1alpha1";
