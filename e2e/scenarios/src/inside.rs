//! Pods of the lab as the host sees them: their processes, and their network from within.

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;

/// A running pod.
#[derive(Debug, Clone)]
pub struct Inside {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Names and numbers of its processes on the host.
    processes: Vec<(String, i32)>,
}

impl Inside {
    /// Finds the processes of a pod: the names of their control groups hold its UID.
    ///
    /// # Errors
    /// If it has none, because it is not in a lab on this machine or does not run.
    pub fn of(pod: &Pod) -> anyhow::Result<Self> {
        let name = pod.name_any();
        let uid = pod.uid().context("a pod without a UID")?;
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).context("no address")?;
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if groups.contains(&uid) || groups.contains(&uid.replace('-', "_")) {
                let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                processes.push((command.trim().to_owned(), pid));
            }
        }
        if processes.is_empty() {
            bail!("pod {name} has no process on this machine");
        }
        Ok(Self { address: address.parse()?, name, processes })
    }

    /// Kills its process of this name with SIGKILL, as the kernel would for want of memory.
    ///
    /// # Errors
    /// If there is none.
    pub fn kill(&self, program: &str) -> anyhow::Result<()> {
        // Linux cuts the names of processes to 15 characters.
        let cut: String = program.chars().take(15).collect();
        let found = self.processes.iter().find(|(name, _)| *name == cut);
        let (_, pid) = found.with_context(|| format!("{} has no process {program}", self.name))?;
        Ok(kill(Pid::from_raw(*pid), Signal::SIGKILL)?)
    }

    /// Where its network is found.
    ///
    /// # Errors
    /// If it has no process.
    pub fn namespace(&self) -> anyhow::Result<PathBuf> {
        Ok(self.processes().next().context("no process")?.join("ns/net"))
    }

    /// Directories of its processes in the host's `/proc`.
    pub fn processes(&self) -> impl Iterator<Item = PathBuf> {
        self.processes.iter().map(|(_, pid)| format!("/proc/{pid}").into())
    }

    /// Runs a function on a thread in the network of the pod. Sockets made there stay there.
    ///
    /// # Errors
    /// If the network is gone.
    pub fn network<T: Send>(&self, function: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let namespace = File::open(self.namespace()?)?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                anyhow::Ok(function())
            });
            thread.join().map_err(|_| anyhow::anyhow!("a thread in the network of {} panicked", self.name))?
        })
    }
}
