//! The kubelet API of virtual nodes: authenticated, authorised, and answered by the provider.

mod auth;
mod proxy;
mod server;

pub(crate) use auth::Authenticator;
pub(crate) use server::{KubeletApi, Listening, listen};
