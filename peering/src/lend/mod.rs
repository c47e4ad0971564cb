//! Lending: what this cluster runs for consumers.

pub(crate) mod book;
pub(crate) mod capacity;
pub(crate) mod classes;
pub(crate) mod consumers;
pub(crate) mod demand;
pub(crate) mod desk;
pub(crate) mod enrollment;
pub(crate) mod figures;
pub(crate) mod guests;
pub(crate) mod kubelet_service;
pub(crate) mod kubelet_target;
pub(crate) mod negotiation;
pub(crate) mod peering_service;
pub(crate) mod quota;
pub(crate) mod reconcile;
pub(crate) mod shadows;
pub(crate) mod slices;
pub(crate) mod sync_service;
pub(crate) mod tokens;
pub(crate) mod wire;
