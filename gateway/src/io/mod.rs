//! The shell around the state machine: a TUN device, a UDP socket, and a thread that moves packets between them.

pub mod tun;
pub mod udp;
pub mod worker;
