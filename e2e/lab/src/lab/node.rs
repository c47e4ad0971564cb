//! A machine of a running lab.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::Lab;
use crate::Usage;
use crate::build::images;
use crate::cluster::container_runtime;
use crate::host::{command, wait};
use crate::machine::Machine;
use crate::network::topology::{self, Port};
use crate::plan::address::NodePlan;
use crate::plan::layout::INIT;

/// containerd listens a fraction of a second after its start; a machine under load takes longer.
const RUNTIME_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Marks a machine that is off on purpose.
const OFF: &str = "off";

/// A machine of a cluster: a node, or the control plane.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    lab: &'a Lab,
    port: Port<'a>,
    machine: Machine,
}

impl<'a> Node<'a> {
    pub(super) fn new(lab: &'a Lab, port: Port<'a>) -> Self {
        let machine = Machine::new(lab.layout().machine(&port.machine), lab.name().as_str(), &port.machine);
        Self { lab, port, machine }
    }

    /// A path of the machine as the host sees it.
    #[must_use]
    pub fn host_path(&self, inside: &str) -> PathBuf {
        self.machine.host_path(inside)
    }

    /// Its name: that of the Node object, if it is a node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.port.machine
    }

    /// Its first address in the LAN.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.port.addresses[0]
    }

    /// Its addresses in the LAN, one of each family.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.port.addresses
    }

    /// What is planned for it as a node; `None` for a control plane.
    #[must_use]
    pub fn plan(&self) -> Option<&'a NodePlan> {
        self.port.cluster.nodes.iter().find(|node| node.name == self.port.machine)
    }

    /// Its network namespace, as `ip netns` knows it.
    #[must_use]
    pub fn netns(&self) -> String {
        self.lab.layout().netns(&self.port.machine)
    }

    /// Its process 1, by number on the host; `None` when it is off.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.machine.processes().and_then(|p| p.init).filter(|init| init.is_alive()).map(|init| init.pid)
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
        let marker = self.lab.layout().machine(self.name()).join(OFF);
        fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))?;
        topology::detach(self.lab.layout(), self.name())?;
        self.machine.power_off()
    }

    /// Boots it; nothing happens when it is on. Returns when its components are being started.
    ///
    /// # Errors
    /// If it does not start, with the end of its log.
    pub fn power_on(&self) -> anyhow::Result<()> {
        if !self.is_running() {
            self.machine.power_off()?;
            topology::detach(self.lab.layout(), self.name())?;
            topology::attach(self.lab.layout(), &self.port)?;
            self.machine
                .power_on(&self.lab.program(INIT), &[])
                .with_context(|| format!("cannot start machine {}", self.name()))?;
        }
        drop(fs::remove_file(self.lab.layout().machine(self.name()).join(OFF)));
        Ok(())
    }

    /// Whether somebody cut its power.
    #[must_use]
    pub fn is_off_on_purpose(&self) -> bool {
        self.lab.layout().machine(self.name()).join(OFF).exists()
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
        let units = self.machine.units().with_context(|| format!("machine {}", self.name()))?;
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
        self.machine.command(program).with_context(|| format!("machine {}", self.name()))
    }

    /// A command that runs a program of the host in the machine's network, with nothing else of the machine. The process
    /// is a child like any other.
    #[must_use]
    pub fn network_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns()]).arg(program);
        command
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
fn import(machine: &Machine, archive: &Path) -> anyhow::Result<()> {
    let socket = machine.command("test")?;
    wait::until("a container runtime that listens", RUNTIME_LIMIT, POLL, || {
        let mut probe = Command::new(socket.get_program());
        probe.args(socket.get_args()).args(["-S", container_runtime::SOCKET]);
        Ok(probe.status().is_ok_and(|status| status.success()).then_some(()))
    })?;
    let file = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let mut ctr = machine.command("ctr")?;
    ctr.args(["--namespace", images::NAMESPACE, "images", "import", "-"]).stdin(file);
    command::finish(&mut ctr, None).with_context(|| format!("cannot import {}", archive.display()))?;
    Ok(())
}
