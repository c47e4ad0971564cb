//! The lab's network: what joins the machines, and what can be done to the wires between clusters.

pub(crate) mod link;
pub(crate) mod topology;
