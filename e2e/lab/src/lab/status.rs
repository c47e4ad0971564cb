//! How a lab is doing.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Cluster, Lab, Node};
use crate::cluster::api_client::has_condition;
use crate::cluster::control_plane;

/// A lab and how it is doing.
#[derive(Clone, Debug, Serialize)]
pub struct LabStatus {
    /// Its name.
    pub name: String,
    /// Kubernetes release.
    pub kubernetes: String,
    /// The namespace packets between clusters cross.
    pub router_netns: String,
    /// Its clusters.
    pub clusters: Vec<ClusterStatus>,
}

/// A cluster and how it is doing.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// URL of its API server.
    pub server: String,
    /// Whether the API server says it is ready.
    pub ready: bool,
    /// The administrator's kubeconfig.
    pub kubeconfig: String,
    /// Pod ranges, one of each family, separated by commas.
    pub pods: String,
    /// Service ranges, as above.
    pub services: String,
    /// CNI plugin and kube-proxy mode.
    pub stack: String,
    /// The control plane and the nodes.
    pub machines: Vec<MachineStatus>,
}

/// A machine and how it is doing.
#[derive(Clone, Debug, Serialize)]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// Address in the LAN.
    pub address: String,
    /// Network namespace.
    pub netns: String,
    /// Process 1 by its number on the host; `None` when it is off.
    pub pid: Option<i32>,
    /// Whether the Node object is Ready; `None` for a control plane, or when the API server cannot say.
    pub ready: Option<bool>,
    /// Whether each component is running; empty when the machine is off.
    pub components: BTreeMap<String, bool>,
    /// Memory in bytes, where the kernel counts it.
    pub memory: Option<u64>,
}

impl Lab {
    /// Looks at every part of the lab.
    #[must_use]
    pub fn status(&self) -> LabStatus {
        LabStatus {
            name: self.name().to_string(),
            kubernetes: self.kubernetes().to_owned(),
            router_netns: self.router_netns(),
            clusters: self.clusters().map(|cluster| cluster_status(&cluster)).collect(),
        }
    }
}

fn cluster_status(cluster: &Cluster<'_>) -> ClusterStatus {
    let plan = cluster.addresses();
    let running = cluster.control_plane().is_running();
    // A control plane that is off would only be found out by a timeout.
    let api = cluster.api().ok().filter(|api| running && api.is_ready());
    let machines = cluster.machines();
    ClusterStatus {
        name: cluster.name().to_owned(),
        server: cluster.server(),
        ready: api.is_some(),
        kubeconfig: cluster.kubeconfig().display().to_string(),
        pods: control_plane::list(&plan.pods),
        services: control_plane::list(&plan.services),
        stack: plan.stack.to_string(),
        machines: machines
            .iter()
            .map(|machine| {
                let path = format!("/api/v1/nodes/{}", machine.name());
                let node = machine.plan().and(api.as_ref()).and_then(|api| api.get(&path).ok());
                machine_status(machine, node.map(|node| has_condition(&node, "Ready")))
            })
            .collect(),
    }
}

fn machine_status(machine: &Node<'_>, ready: Option<bool>) -> MachineStatus {
    MachineStatus {
        name: machine.name().to_owned(),
        address: machine.address().to_string(),
        netns: machine.netns(),
        pid: machine.pid(),
        ready,
        components: machine.components().unwrap_or_default().into_iter().collect(),
        memory: machine.memory(),
    }
}
