//! A running lab, as scenarios and the command line see it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};

use crate::address::{AddressPlan, ClusterPlan, NodePlan};
use crate::api_client::ApiClient;
use crate::layout::{INIT, Layout, control_plane_machine, lan_bridge};
use crate::link::Link;
use crate::machine::Machine;
use crate::spec::{LabName, LabSpec};
use crate::state::State;
use crate::topology::{self, Port};
use crate::up::in_parallel;
use crate::{Usage, command, container_runtime, control_plane, host_check, images, state, wait};

/// containerd listens a fraction of a second after its start; a machine under load takes longer.
const RUNTIME_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Marks a machine that is off on purpose.
const OFF: &str = "off";

/// A lab that is up.
#[derive(Clone, Debug)]
pub struct Lab {
    layout: Layout,
    state: State,
    plan: AddressPlan,
}

/// A cluster of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    lab: &'a Lab,
    plan: &'a ClusterPlan,
}

/// A machine of a cluster: a node, or the control plane.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    lab: &'a Lab,
    port: Port<'a>,
    machine: Machine,
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
        self.plan.clusters.iter().map(|plan| Cluster { lab: self, plan })
    }

    /// The cluster with this name.
    ///
    /// # Errors
    /// [`Usage`] if there is none.
    pub fn cluster(&self, name: &str) -> anyhow::Result<Cluster<'_>> {
        self.clusters()
            .find(|cluster| cluster.name() == name)
            .ok_or_else(|| {
                let names: Vec<_> = self.clusters().map(|cluster| cluster.name().to_owned()).collect();
                anyhow!(Usage(format!(
                    "lab {} has no cluster {name}; it has {}",
                    self.name(),
                    names.join(", ")
                )))
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
        Ok(Link::new(&self.layout, &a.plan.name, &b.plan.name))
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
        let nodes: Vec<Node<'_>> = self
            .clusters()
            .flat_map(|cluster| cluster.nodes())
            .filter(Node::is_running)
            .collect();
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

impl<'a> Cluster<'a> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.plan.name.as_str()
    }

    /// Its addresses and ranges.
    #[must_use]
    pub fn addresses(&self) -> &'a ClusterPlan {
        self.plan
    }

    /// The administrator's kubeconfig; it works on the host and on every machine of the lab.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.lab.layout.kubeconfig(&self.plan.name)
    }

    /// The URL of its API server.
    #[must_use]
    pub fn server(&self) -> String {
        control_plane::server(self.plan)
    }

    /// A small synchronous client with the administrator's rights.
    ///
    /// # Errors
    /// If the kubeconfig is damaged.
    pub fn api(&self) -> anyhow::Result<ApiClient> {
        control_plane::admin(&self.lab.layout, self.plan)
    }

    /// A `kubectl` command for this cluster, to be given arguments.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.lab.program("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// The API server's audit log, if the lab was started with one.
    #[must_use]
    pub fn audit_log(&self) -> Option<PathBuf> {
        self.lab
            .state
            .spec
            .audit
            .then(|| self.control_plane().machine.host_path(control_plane::AUDIT_LOG))
    }

    /// The bridge in the router's namespace that is its LAN.
    #[must_use]
    pub fn lan_bridge(&self) -> String {
        lan_bridge(&self.plan.name)
    }

    /// The machine that runs etcd, API server, controller manager and scheduler.
    #[must_use]
    pub fn control_plane(&self) -> Node<'a> {
        let name = control_plane_machine(&self.plan.name);
        self.node_at(Port {
            machine: name,
            address: self.plan.control_plane,
            cluster: self.plan,
        })
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node<'a>> {
        self.machines().into_iter().skip(1).collect()
    }

    /// The control plane and the nodes.
    #[must_use]
    pub fn machines(&self) -> Vec<Node<'a>> {
        topology::ports(self.plan)
            .into_iter()
            .map(|port| self.node_at(port))
            .collect()
    }

    /// The machine with this name; `cp` is short for the control plane, a number for the node with that number.
    ///
    /// # Errors
    /// [`Usage`] if there is none.
    pub fn machine(&self, name: &str) -> anyhow::Result<Node<'a>> {
        let long = format!("{}-{name}", self.name());
        let mut machines = self.machines();
        let found = machines
            .iter()
            .position(|machine| machine.name() == name || machine.name() == long);
        found.map(|index| machines.swap_remove(index)).ok_or_else(|| {
            let names: Vec<_> = machines.iter().map(|machine| machine.name().to_owned()).collect();
            anyhow!(Usage(format!(
                "cluster {} has no machine {name}; it has {}",
                self.name(),
                names.join(", ")
            )))
        })
    }

    /// Kills a component (SIGKILL) wherever it runs in the cluster and keeps it down: one of etcd, kube-apiserver,
    /// kube-controller-manager, kube-scheduler, containerd, kubelet, kube-proxy.
    ///
    /// # Errors
    /// If there is no such component, or a machine does not answer.
    pub fn stop_component(&self, component: &str) -> anyhow::Result<()> {
        self.with_component(component, |machine| machine.stop_component(component))
    }

    /// Starts a component that was stopped.
    ///
    /// # Errors
    /// If there is no such component, or a machine does not answer.
    pub fn start_component(&self, component: &str) -> anyhow::Result<()> {
        self.with_component(component, |machine| machine.start_component(component))
    }

    /// The machines a component runs on, and its log on each.
    ///
    /// # Errors
    /// [`Usage`] if no machine has such a component.
    pub fn logs(&self, component: &str) -> anyhow::Result<Vec<PathBuf>> {
        let logs: Vec<PathBuf> = self
            .machines()
            .iter()
            .flat_map(|machine| machine.logs().unwrap_or_default())
            .filter(|log| log.file_stem().is_some_and(|stem| stem == component))
            .collect();
        if logs.is_empty() {
            return Err(anyhow!(Usage(format!(
                "cluster {} has no log of {component}",
                self.name()
            ))));
        }
        Ok(logs)
    }

    fn with_component(
        &self,
        component: &str,
        act: impl Fn(&Node<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut done = false;
        for machine in self.machines().iter().filter(|machine| machine.is_running()) {
            if machine.components()?.iter().any(|(name, _)| name == component) {
                act(machine)?;
                done = true;
            }
        }
        if done {
            Ok(())
        } else {
            Err(anyhow!(Usage(format!(
                "cluster {} runs no {component}",
                self.name()
            ))))
        }
    }

    fn node_at(&self, port: Port<'a>) -> Node<'a> {
        let machine = Machine::new(
            self.lab.layout.machine(&port.machine),
            self.lab.name().as_str(),
            &port.machine,
        );
        Node {
            lab: self.lab,
            port,
            machine,
        }
    }
}

impl<'a> Node<'a> {
    /// Its name: that of the Node object, if it is a node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.port.machine
    }

    /// Its address in the LAN.
    #[must_use]
    pub fn address(&self) -> std::net::Ipv4Addr {
        self.port.address
    }

    /// Its addresses as a node; `None` for a control plane.
    #[must_use]
    pub fn addresses(&self) -> Option<&'a NodePlan> {
        self.port
            .cluster
            .nodes
            .iter()
            .find(|node| node.name == self.port.machine)
    }

    /// Its network namespace, as `ip netns` knows it.
    #[must_use]
    pub fn netns(&self) -> String {
        self.lab.layout.netns(&self.port.machine)
    }

    /// Its process 1, by number on the host; `None` when it is off.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.machine
            .processes()
            .and_then(|p| p.init)
            .filter(|init| init.is_alive())
            .map(|init| init.pid)
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.machine.is_running()
    }

    /// Cuts its power: all its processes are killed, containers included, and its wire goes dead. Its disk stays.
    ///
    /// # Errors
    /// If something of it cannot be stopped.
    pub fn power_off(&self) -> anyhow::Result<()> {
        let marker = self.lab.layout.machine(self.name()).join(OFF);
        fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))?;
        topology::detach(&self.lab.layout, self.name())?;
        self.machine.power_off()
    }

    /// Boots it; nothing happens when it is on. Returns when its components are being started.
    ///
    /// # Errors
    /// If it does not start, with the end of its log.
    pub fn power_on(&self) -> anyhow::Result<()> {
        if !self.is_running() {
            self.machine.power_off()?;
            topology::detach(&self.lab.layout, self.name())?;
            topology::attach(&self.lab.layout, &self.port)?;
            self.machine
                .power_on(&self.lab.program(INIT), &[])
                .with_context(|| format!("cannot start machine {}", self.name()))?;
        }
        drop(fs::remove_file(self.lab.layout.machine(self.name()).join(OFF)));
        Ok(())
    }

    /// Whether somebody cut its power.
    #[must_use]
    pub fn is_off_on_purpose(&self) -> bool {
        self.lab.layout.machine(self.name()).join(OFF).exists()
    }

    /// Kills a component (SIGKILL) and keeps it down.
    ///
    /// # Errors
    /// If there is no such component or the machine is off.
    pub fn stop_component(&self, component: &str) -> anyhow::Result<()> {
        self.machine
            .stop_unit(component)
            .with_context(|| format!("cannot stop {component} on {}", self.name()))
    }

    /// Starts a component that was stopped.
    ///
    /// # Errors
    /// If there is no such component or the machine is off.
    pub fn start_component(&self, component: &str) -> anyhow::Result<()> {
        self.machine
            .start_unit(component)
            .with_context(|| format!("cannot start {component} on {}", self.name()))
    }

    /// Its components and whether each is running.
    ///
    /// # Errors
    /// If the machine is off.
    pub fn components(&self) -> anyhow::Result<Vec<(String, bool)>> {
        let units = self
            .machine
            .units()
            .with_context(|| format!("machine {}", self.name()))?;
        Ok(units.into_iter().map(|unit| (unit.name, unit.running)).collect())
    }

    /// The log files of its components.
    ///
    /// # Errors
    /// If its disk cannot be read.
    pub fn logs(&self) -> anyhow::Result<Vec<PathBuf>> {
        let directory = self.machine.log("x").with_file_name("");
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        let mut logs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        logs.sort();
        Ok(logs)
    }

    /// A command that runs `program` inside the machine, with its files, network and processes.
    ///
    /// # Errors
    /// If the machine is off.
    pub fn command(&self, program: &str) -> anyhow::Result<Command> {
        self.machine
            .command(program)
            .with_context(|| format!("machine {}", self.name()))
    }

    /// Runs a program inside the machine to its end and returns what it wrote to stdout.
    ///
    /// # Errors
    /// If the machine is off or the program fails: with its error output.
    pub fn exec(&self, words: &[&str]) -> anyhow::Result<String> {
        let [program, arguments @ ..] = words else {
            return Err(anyhow!(Usage("no command to run".to_owned())));
        };
        let mut command = self.command(program)?;
        command.args(arguments).stdin(Stdio::null());
        command::finish(&mut command, None)
    }

    /// Imports the images of a `docker save` archive.
    ///
    /// # Errors
    /// If the node is off or does not take it.
    pub fn import_image(&self, archive: &Path) -> anyhow::Result<()> {
        import(&self.machine, archive).with_context(|| format!("node {}", self.name()))
    }

    /// Memory of all its processes in bytes, where the kernel counts it.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        self.machine.memory()
    }
}

/// Imports the images of an archive into a machine's container runtime, which may still be starting.
pub(crate) fn import(machine: &Machine, archive: &Path) -> anyhow::Result<()> {
    let socket = machine.command("test")?;
    wait::until("a container runtime that listens", RUNTIME_LIMIT, POLL, || {
        let mut probe = Command::new(socket.get_program());
        probe
            .args(socket.get_args())
            .args(["-S", container_runtime::SOCKET]);
        Ok(probe.status().is_ok_and(|status| status.success()).then_some(()))
    })?;
    let file = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let mut ctr = machine.command("ctr")?;
    ctr.args(["--namespace", images::NAMESPACE, "images", "import", "-"])
        .stdin(file);
    command::finish(&mut ctr, None).with_context(|| format!("cannot import {}", archive.display()))?;
    Ok(())
}
