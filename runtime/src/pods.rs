//! Pods as those see them who follow many: without most of what they are.

use crate::watch::{Change, changes_of};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, Object};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::net::IpAddr;

/// Namespaces whose pods are followed by a watch each. Beyond that one watch of all pods costs less than the connections.
pub const MAX_WATCHES: usize = 8;

/// A pod, with so much of its `spec`.
pub type PodView<S> = Object<S, StatusView>;

/// Of the status of a pod, what says which addresses it has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusView {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<AddressView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AddressView {
    ip: IpAddr,
}

impl StatusView {
    /// The addresses that are the pod's alone: those of its node are not, nor, soon, are those of a pod that has ended.
    pub fn own_addresses(&self, host_network: bool) -> impl Iterator<Item = IpAddr> {
        let ended = matches!(self.phase.as_str(), "Succeeded" | "Failed");
        self.pod_ips.iter().filter(move |_| !host_network && !ended).map(|address| address.ip)
    }
}

/// Follows the pods of a namespace, or all.
pub fn pods<S>(client: &Client, namespace: Option<&str>) -> BoxStream<'static, Change<PodView<S>>>
where
    S: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let resource = ApiResource::erase::<Pod>(&());
    let api: Api<PodView<S>> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    changes_of(api, "Pod", Config::default()).boxed()
}
