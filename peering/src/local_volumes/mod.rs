//! Volumes on nodes of this cluster, for claims of Liquid's classes whose first pod goes to one.
//!
//! The class of a claim cannot be changed, so a claim beside it asks for a volume of the local class, on the same node. When it is
//! there the volume is handed over to the claim it was made for, as the volume populators of Kubernetes do it
//! (kubernetes-csi/lib-volume-populator), and the claim beside it is deleted. What is left is an ordinary volume of an ordinary
//! driver, which grows, moves and goes without Liquid. Until all is over it is retained whatever happens.
//!
//! [`picture`] is pure and derives the next step of each claim; [`actor`] watches, and carries steps out.

mod actor;
mod picture;

pub(crate) use actor::provide;
