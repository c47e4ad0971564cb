//! API types of the group `liquid.mesh`.
