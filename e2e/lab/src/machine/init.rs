//! The first processes of a machine.
//!
//! `boot` detaches and returns; `outer` joins the machine's groups and network namespace, makes its other namespaces
//! except for mounts, and stays as their parent; `pid1` builds the root file system and supervises the units.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{getppid, setsid};

use super::{
    Config, Processes, config_file, control, processes_file, read_json, root_fs, supervisor, write_json,
};
use crate::host::cgroup::Group;
use crate::host::process::ProcessId;

/// The first argument by which a program that links this crate is asked to be part of a machine.
pub const INIT_ARGUMENT: &str = "machine";
/// Where `ip netns` keeps the names of network namespaces.
const NETNS_DIRECTORY: &str = "/run/netns";
/// This program, whatever has become of its file.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Runs one of the first processes of a machine; `arguments` are those after [`INIT_ARGUMENT`].
///
/// The program that starts labs calls this when its first argument is [`INIT_ARGUMENT`]: a copy of that program is
/// what machines run.
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    let result = match arguments {
        [stage, directory, held @ ..] => match stage.as_str() {
            "boot" => boot(Path::new(directory), held),
            "outer" => outer(Path::new(directory), held),
            "pid1" => pid1(Path::new(directory), held),
            other => Err(anyhow::anyhow!("unknown stage '{other}'")),
        },
        _ => Err(anyhow::anyhow!("usage: {INIT_ARGUMENT} boot|outer|pid1 DIRECTORY [HELD-UNIT...]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::progress::line(&format!("error: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Starts the machine in a session of its own and leaves, so that it becomes nobody's child.
fn boot(directory: &Path, held: &[String]) -> anyhow::Result<()> {
    umask(Mode::from_bits_truncate(0o022));
    let path = directory.join("root").join(root_fs::LOG_DIRECTORY).join("machine.log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot open {}", path.display()))?;
    setsid().context("cannot start a session")?;
    stage("outer", directory, held, Some(log)).map(drop)
}

fn outer(directory: &Path, held: &[String]) -> anyhow::Result<()> {
    let config: Config = read_json(&config_file(directory))?;
    let outer = ProcessId::of(i32::try_from(std::process::id())?).context("cannot read /proc")?;
    // Recorded before anything is made, so that whatever this process leaves behind can be found.
    write_json(&processes_file(directory), &Processes { outer, init: None })?;

    let group = Group::machine(&config.group.0, &config.group.1);
    group.enter()?;
    let netns = PathBuf::from(NETNS_DIRECTORY).join(&config.netns);
    let netns = File::open(&netns).with_context(|| format!("no network namespace {}", config.netns))?;
    setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
    unshare(
        CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("cannot make namespaces")?;
    group.enter_leaf()?;

    let mut child = stage("pid1", directory, held, None)?;
    let init = ProcessId::of(i32::try_from(child.id())?);
    write_json(&processes_file(directory), &Processes { outer, init })?;
    let status = child.wait().context("cannot wait for process 1")?;
    bail!("process 1 ended ({status})")
}

fn pid1(directory: &Path, held: &[String]) -> anyhow::Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("cannot follow the parent into death")?;
    // A parent outside the pid namespace has no number in it; one that is gone has been replaced by nobody either,
    // but then this process is not the first of its namespace.
    if std::process::id() != 1 || getppid().as_raw() != 0 {
        bail!("this is not process 1 of a machine");
    }
    let config: Config = read_json(&config_file(directory))?;
    let path = control::socket(directory);
    drop(fs::remove_file(&path));
    // Bound while the host's files are still in sight; it stays reachable under the host's path.
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    // Not before: changing the root of a mount namespace changes it for all its processes, and `outer` needs the host's.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    root_fs::enter(directory, &config)?;
    supervisor::run(&config, held, listener)
}

fn stage(name: &str, directory: &Path, held: &[String], log: Option<File>) -> anyhow::Result<Child> {
    let mut command = Command::new(OWN_PROGRAM);
    command.args([INIT_ARGUMENT, name]).arg(directory).args(held).stdin(Stdio::null());
    if let Some(log) = log {
        command.stdout(log.try_clone()?).stderr(log);
    }
    command.spawn().with_context(|| format!("cannot start stage {name}"))
}
