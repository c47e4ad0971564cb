//! The data path of `liquid-gateway`: WireGuard to all peers, stateless 1:1 prefix NAT, offloads on both ends.

pub mod config;
pub mod control;
pub mod drops;
pub mod gateway;
pub mod io;
pub mod lanes;
pub mod liveness;
pub mod nat;
pub mod packet;
pub mod peer;
pub mod prefix_map;
pub mod signal;
mod spread;
pub mod transit;
pub mod transmit;
pub mod tunnel;
pub mod wireguard;
