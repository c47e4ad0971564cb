//! A machine: a process tree with namespaces, a root file system and control groups of its own.
//!
//! Control planes and nodes are machines alike. A machine is described by a file; `boot` starts it
//! detached from whoever asked, killing its first process powers it off, and its disk (the directory) stays.

mod control;
mod init;
mod root_fs;
mod supervisor;

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use ring::digest;
use serde::{Deserialize, Serialize};

pub(crate) use control::UnitStatus;
pub use init::{INIT_ARGUMENT, run};

use crate::build::cache::hex;
use crate::host::cgroup::Group;
use crate::host::process::ProcessId;
use crate::host::wait;

/// From `boot` to a supervisor that answers; a machine under load needs a fraction of a second.
const BOOT_LIMIT: Duration = Duration::from_secs(20);
/// From SIGKILL to the last process gone: the kernel tears namespaces and mounts down on the way.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// How often conditions of a machine are looked at.
const POLL: Duration = Duration::from_millis(10);

/// What a machine consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Host name.
    pub(crate) hostname: String,
    /// Its control group: lab and machine.
    pub(crate) group: (String, String),
    /// The network namespace it runs in, as `ip netns` knows it.
    pub(crate) netns: String,
    /// Host directories it sees read-only under the same path.
    pub(crate) shared: Vec<PathBuf>,
    /// Programs are looked up here first.
    pub(crate) bin: PathBuf,
    /// Kernel settings of its network namespace, by path below `/proc/sys`.
    pub(crate) sysctls: Vec<(String, String)>,
    /// Commands that run once, in order, before the units.
    pub(crate) setup: Vec<Vec<String>>,
    /// The programs it keeps running.
    pub(crate) units: Vec<Unit>,
}

/// A program a machine keeps running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// Name: also that of its log file.
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// What must be there before it is started.
    pub(crate) after: Option<Condition>,
    /// Who it runs as, and in the group of the same number; `None` is root.
    pub(crate) user: Option<u32>,
}

/// Something a unit waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Condition {
    /// A path exists.
    Path(PathBuf),
    /// A TCP port of this machine accepts connections.
    Port(u16),
}

/// The processes of a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Processes {
    /// The process outside the pid namespace; the machine dies with it.
    pub(crate) outer: ProcessId,
    /// Process 1 inside.
    pub(crate) init: Option<ProcessId>,
}

/// A machine of a lab, running or not.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    directory: PathBuf,
    group: Group,
}

impl Machine {
    /// The machine kept in this directory.
    pub(crate) fn new(directory: PathBuf, lab: &str, name: &str) -> Self {
        Self { directory, group: Group::machine(lab, name) }
    }

    /// Writes down what the machine consists of; takes effect at the next boot.
    pub(crate) fn configure(&self, config: &Config) -> anyhow::Result<()> {
        fs::create_dir_all(self.log_directory())
            .with_context(|| format!("cannot create {}", self.log_directory().display()))?;
        write_json(&config_file(&self.directory), config)
    }

    /// Writes a file of the machine's `/etc`, by path below it.
    pub(crate) fn write_etc(&self, path: &str, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let path = self.directory.join("etc").join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Gives the machine an id of its own, as every installed system has: nodes of one cluster must differ.
    pub(crate) fn write_identity(&self) -> anyhow::Result<()> {
        let hash = digest::digest(&digest::SHA256, self.directory.as_os_str().as_encoded_bytes());
        self.write_etc("machine-id", format!("{}\n", &hex(hash.as_ref())[..32]))
    }

    /// A path of the machine as the host sees it.
    pub(crate) fn host_path(&self, inside: &str) -> PathBuf {
        self.directory.join("root").join(inside.trim_start_matches('/'))
    }

    /// Creates a directory of the machine that belongs to a user.
    pub(crate) fn create_owned(&self, inside: &str, user: u32) -> anyhow::Result<()> {
        let path = self.host_path(inside);
        create_directory(&path)?;
        chown(&path, Some(user), Some(user)).with_context(|| format!("cannot give {} away", path.display()))
    }

    /// The log of a unit.
    pub(crate) fn log(&self, unit: &str) -> PathBuf {
        self.log_directory().join(format!("{unit}.log"))
    }

    /// Starts the machine; units in `held` wait until they are started by name.
    pub(crate) fn power_on(&self, init: &Path, held: &[&str]) -> anyhow::Result<()> {
        if self.is_running() {
            return Ok(());
        }
        // What a killed machine left would make its kubelet clean up for most of a minute.
        self.group.destroy()?;
        let status = Command::new(init)
            .args([INIT_ARGUMENT, "boot"])
            .arg(&self.directory)
            .args(held)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("cannot run {}", init.display()))?;
        if !status.success() {
            bail!("machine {} did not start ({status})", self.directory.display());
        }
        wait::until("the start of the machine", BOOT_LIMIT, POLL, || {
            if control::ask(&self.directory, &control::Request::Status).is_ok() {
                return Ok(Some(()));
            }
            match self.processes() {
                Some(processes) if !processes.outer.is_alive() => bail!("its first process ended"),
                _ => Ok(None),
            }
        })
        .with_context(|| format!("machine log:\n{}", tail(&self.log("machine"))))
    }

    /// Kills the machine and waits until nothing of it is left running.
    pub(crate) fn power_off(&self) -> anyhow::Result<()> {
        if let Some(processes) = self.processes() {
            let all: Vec<ProcessId> = std::iter::once(processes.outer).chain(processes.init).collect();
            wait::until("the end of the machine", KILL_LIMIT, POLL, || {
                all.iter().for_each(|process| process.kill());
                Ok(all.iter().all(|process| !process.is_alive()).then_some(()))
            })?;
        }
        self.group.destroy()?;
        for file in [processes_file(&self.directory), control::socket(&self.directory)] {
            // Missing files are fine, and any other failure shows when the directory is removed or reused.
            drop(fs::remove_file(file));
        }
        Ok(())
    }

    /// Whether its first process lives.
    pub(crate) fn is_running(&self) -> bool {
        self.processes().is_some_and(|processes| processes.outer.is_alive())
    }

    /// Its recorded processes, dead or alive.
    pub(crate) fn processes(&self) -> Option<Processes> {
        serde_json::from_slice(&fs::read(processes_file(&self.directory)).ok()?).ok()
    }

    /// Kills a unit (SIGKILL) and keeps it down; returns when its process is gone.
    pub(crate) fn stop_unit(&self, unit: &str) -> anyhow::Result<()> {
        control::ask(&self.directory, &control::Request::Stop(unit.to_owned()))?;
        wait::until(&format!("the end of {unit}"), KILL_LIMIT, POLL, || {
            Ok(self.units()?.iter().all(|status| status.name != unit || !status.running).then_some(()))
        })
    }

    /// Starts a unit that is down.
    pub(crate) fn start_unit(&self, unit: &str) -> anyhow::Result<()> {
        control::ask(&self.directory, &control::Request::Start(unit.to_owned())).map(drop)
    }

    /// The state of every unit.
    pub(crate) fn units(&self) -> anyhow::Result<Vec<UnitStatus>> {
        control::ask(&self.directory, &control::Request::Status)
    }

    /// A command that runs `program` inside the machine's namespaces.
    pub(crate) fn command(&self, program: &str) -> anyhow::Result<Command> {
        let init = self.processes().and_then(|p| p.init).filter(|init| init.is_alive());
        let init = init.context("the machine is not running")?;
        let config: Config = read_json(&config_file(&self.directory))?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", init.pid))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", program])
            .env("PATH", supervisor::path_variable(&config));
        Ok(command)
    }

    /// Memory of all its processes in bytes, where the kernel counts it.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.group.memory()
    }

    fn log_directory(&self) -> PathBuf {
        self.host_path(root_fs::LOG_DIRECTORY)
    }
}

/// The last lines of a log, for an error message; empty when there is none.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Creates a directory and those above it.
pub(crate) fn create_directory(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

fn config_file(directory: &Path) -> PathBuf {
    directory.join("config.json")
}

fn processes_file(directory: &Path) -> PathBuf {
    directory.join("processes.json")
}

/// Writes a file so that a reader sees the old or the new content, never half of it.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let text = serde_json::to_vec_pretty(value)?;
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}
