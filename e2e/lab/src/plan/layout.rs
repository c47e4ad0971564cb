//! Where a lab keeps its files, and what its parts are called on the host: all derived from its name and slot.

use std::path::{Path, PathBuf};

use crate::plan::spec::{ClusterName, LabName};

/// The directory of all labs. Not configurable: it is how labs of one machine know of each other.
pub(crate) const STATE: &str = "/var/lib/liquid-lab";
/// The program that becomes process 1 of a machine, beside the links to the toolchain.
pub(crate) const INIT: &str = "liquid-lab-init";

/// Names and paths of one lab.
#[derive(Clone, Debug)]
pub struct Layout {
    name: LabName,
    root: PathBuf,
}

impl Layout {
    /// The layout of the lab with this name.
    #[must_use]
    pub fn new(name: &LabName) -> Self {
        Self { name: name.clone(), root: Path::new(STATE).join(name.as_str()) }
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// The directory of the lab; everything it keeps is below.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the lab is and how far it has come.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// Programs of the lab: to be put on the `PATH`.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The administrator's kubeconfig of a cluster.
    #[must_use]
    pub fn kubeconfig(&self, cluster: &ClusterName) -> PathBuf {
        self.root.join(format!("{cluster}.kubeconfig"))
    }

    /// The directory of a machine.
    #[must_use]
    pub fn machine(&self, machine: &str) -> PathBuf {
        self.root.join("machines").join(machine)
    }

    /// The network namespace of a machine, as `ip netns` knows it.
    #[must_use]
    pub fn netns(&self, machine: &str) -> String {
        format!("{}{machine}", self.netns_prefix())
    }

    /// The network namespace that joins the LANs of all clusters and the host.
    #[must_use]
    pub fn router_netns(&self) -> String {
        self.netns("router")
    }

    /// What the names of all network namespaces of the lab begin with. A dot cannot be part of a lab's name, so
    /// no lab's prefix is the beginning of another's.
    #[must_use]
    pub fn netns_prefix(&self) -> String {
        format!("liquid-{}.", self.name)
    }
}

/// The machine that runs a cluster's control plane.
#[must_use]
pub(crate) fn control_plane_machine(cluster: &ClusterName) -> String {
    format!("{cluster}-cp")
}

/// The host's end of the wire to the router of the lab in this slot.
#[must_use]
pub(crate) fn host_interface(slot: u8) -> String {
    format!("lqlab{slot}")
}

/// The bridge in the router that is a cluster's LAN.
#[must_use]
pub(crate) fn lan_bridge(cluster: &ClusterName) -> String {
    format!("lan-{cluster}")
}
