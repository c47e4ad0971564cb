//! The kubelet API of virtual nodes: authenticated, authorised, and answered by the provider.

mod auth;
mod client_ca;
mod figures;
mod observe;
mod proxy;
mod server;

pub(crate) use auth::Authenticator;
pub(crate) use client_ca::client_ca;
pub(crate) use server::{ClientCa, KubeletApi, Listening, listen};
