//! The peer link: one mutually authenticated gRPC connection from a consumer to a provider.
//!
//! [`token`] and [`introduction`] are what administrators carry from one cluster to the other, [`ca`] the authority of a
//! cluster, [`identity`] what certificates say, [`tls`] the two ends of the handshake, [`client`] and [`server`] the
//! connections, [`liveness`] how soon a broken one is noticed, and [`proto`] what is spoken over them.

pub mod ca;
pub mod client;
pub mod digest;
pub mod gateways;
pub mod identity;
pub mod introduction;
pub mod limits;
pub mod liveness;
pub mod server;
mod text;
pub mod tls;
pub mod token;
pub mod token_secret;
pub mod upgrade;

/// Messages and services, generated from `proto/link.proto`.
#[allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated")]
pub mod proto {
    tonic::include_proto!("liquid.link.v1");
}
