//! A running lab, as scenarios and the command line see it; how it is started, looked at, and stopped.

mod cluster;
pub(crate) mod down;
mod node;
mod start;
mod state;
pub(crate) mod status;
pub(crate) mod up;

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::anyhow;

pub use self::cluster::Cluster;
pub use self::node::Node;
use self::state::State;
use crate::Usage;
use crate::host::host_check;
use crate::network::link::Link;
use crate::plan::address::AddressPlan;
use crate::plan::layout::Layout;
use crate::plan::spec::{LabName, LabSpec};

/// A lab that is up.
#[derive(Clone, Debug)]
pub struct Lab {
    layout: Layout,
    state: State,
    plan: AddressPlan,
}

impl Lab {
    /// Opens the lab with this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(name: &LabName) -> anyhow::Result<Self> {
        host_check::require_root()?;
        let layout = Layout::new(name);
        let state = State::load(&layout)?.ok_or_else(|| {
            anyhow!("there is no lab named {name}; start one with: cargo xtask lab up --lab {name}")
        })?;
        let plan = AddressPlan::new(&state.spec, state.slot);
        Ok(Self { layout, state, plan })
    }

    /// The names of all labs on this machine.
    #[must_use]
    pub fn all() -> Vec<LabName> {
        state::labs()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &LabName {
        self.layout.name()
    }

    /// What it was asked to be.
    #[must_use]
    pub fn spec(&self) -> &LabSpec {
        &self.state.spec
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> &AddressPlan {
        &self.plan
    }

    /// Its paths and names on the host.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its Kubernetes release, for example `v1.35.4`.
    #[must_use]
    pub fn kubernetes(&self) -> &str {
        &self.state.kubernetes
    }

    /// Its clusters, in the order they were named.
    pub fn clusters(&self) -> impl Iterator<Item = Cluster<'_>> {
        self.plan.clusters.iter().map(|plan| Cluster::new(self, plan))
    }

    /// The cluster with this name.
    ///
    /// # Errors
    /// [`Usage`] if there is none.
    pub fn cluster(&self, name: &str) -> anyhow::Result<Cluster<'_>> {
        self.clusters().find(|cluster| cluster.name() == name).ok_or_else(|| {
            let names: Vec<_> = self.clusters().map(|cluster| cluster.name().to_owned()).collect();
            anyhow!(Usage(format!("lab {} has no cluster {name}; it has {}", self.name(), names.join(", "))))
        })
    }

    /// The wire between two clusters.
    ///
    /// # Errors
    /// [`Usage`] if one of them does not exist or they are the same.
    pub fn link(&self, a: &str, b: &str) -> anyhow::Result<Link> {
        let (a, b) = (self.cluster(a)?, self.cluster(b)?);
        if a.name() == b.name() {
            return Err(anyhow!(Usage("a cluster has no link to itself".to_owned())));
        }
        Ok(Link::new(&self.layout, &a.addresses().name, &b.addresses().name))
    }

    /// The network namespace every packet between clusters crosses, as `ip netns` knows it.
    #[must_use]
    pub fn router_netns(&self) -> String {
        self.layout.router_netns()
    }

    /// A program of the lab (`kubectl`, `helm`, ...).
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.layout.bin().join(name)
    }

    /// Imports the images of a `docker save` archive into every node that is on.
    ///
    /// # Errors
    /// Names the node that refused it.
    pub fn import_image(&self, archive: &Path) -> anyhow::Result<()> {
        let nodes: Vec<Node<'_>> =
            self.clusters().flat_map(|cluster| cluster.nodes()).filter(Node::is_running).collect();
        in_parallel(&nodes, |node| node.import_image(archive)).map(drop)
    }

    /// Starts machines that are down and not so on purpose; returns their names.
    pub(crate) fn restart_dead(&self) -> anyhow::Result<Vec<String>> {
        let mut restarted = Vec::new();
        for machine in self.clusters().flat_map(|cluster| cluster.machines()) {
            if !machine.is_running() && !machine.is_off_on_purpose() {
                machine.power_on()?;
                restarted.push(machine.name().to_owned());
            }
        }
        Ok(restarted)
    }
}

/// Does something for every item at once; all are finished when this returns, and the first error is returned.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    thread::scope(|scope| {
        let workers: Vec<_> = items.iter().map(|item| scope.spawn(|| work(item))).collect();
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect()
    })
}
