//! The shell around the state machines: a TUN device, UDP sockets, and threads that move packets between them.

mod steering;
pub mod tun;
pub mod udp;
pub mod worker;
pub mod workers;
