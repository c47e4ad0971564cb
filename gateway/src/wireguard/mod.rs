//! WireGuard (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", the *paper* below): handshakes, sessions
//! and their protection against floods. No clock, no sockets.

pub mod cookie;
pub mod handshake;
pub mod key;
pub mod limiter;
pub mod message;
pub mod random;
pub mod replay;
pub mod session;
