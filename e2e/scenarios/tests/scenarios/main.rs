//! What Liquid promises, tried on real clusters. Each scenario says what it would catch.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measured")]

mod access;
mod adjusting;
mod companions;
mod figures;
mod gateways;
mod in_band;
mod joining;
mod kubelet_api;
mod leaving;
mod manifests;
mod namespaces;
mod network;
mod nodes;
mod per_node;
mod pod_features;
mod pods;
mod policies;
mod quota;
mod resilience;
mod services;
mod slices;
mod storage;
