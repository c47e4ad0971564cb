//! Starting a lab.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::stat::{Mode, umask};

use super::start::Start;
use super::state::{Lock, Phase, State, free_slot};
use super::{Lab, down};
use crate::Usage;
use crate::build::cache::{Cache, remove_all};
use crate::build::toolchain::{KUBE_PROGRAMS, Toolchain};
use crate::build::{image_store, images};
use crate::host::host_check;
use crate::machine::create_directory;
use crate::plan::address::AddressPlan;
use crate::plan::layout::{INIT, Layout};
use crate::plan::spec::{LabName, LabSpec};
use crate::progress::Progress;

/// What [`up`] did.
#[derive(Debug)]
pub enum Started {
    /// It started a lab: time until all nodes were Ready, and until DNS and storage were available too.
    New {
        /// From the first process to the last node that became Ready.
        nodes_ready: Duration,
        /// From the first process to the end.
        complete: Duration,
    },
    /// The lab was running already; these machines were found dead and started again.
    Already {
        /// Machines that were started again.
        restarted: Vec<String>,
    },
}

/// Starts a lab, or finds it running as wanted.
///
/// `init` is a program that calls [`crate::machine::run`] when its first argument is
/// [`crate::machine::INIT_ARGUMENT`]; machines run a copy of it.
///
/// # Errors
/// [`Usage`] if the spec cannot be, or if a lab of this name runs with another one. Otherwise says which component
/// failed, with the end of its log; what was started stays for inspection until `down`, or the next `up`.
pub fn up(
    name: &LabName,
    spec: &LabSpec,
    init: &Path,
    progress: &Progress,
) -> anyhow::Result<(Lab, Started)> {
    spec.validate()?;
    let layout = Layout::new(name);
    host_check::require_root()?;
    host_check::check(spec, progress)?;
    // Machines have users other than root, whose programs must be able to read what is made here.
    umask(Mode::from_bits_truncate(0o022));
    let lock = Lock::lab(name, progress)?;
    let result = find_running(&layout, spec, progress).and_then(|found| match found {
        Some(found) => Ok(found),
        None => start(&layout, spec, init, progress),
    });
    if result.is_err() && !layout.root().exists() {
        lock.remove();
    }
    result
}

/// Finds the lab running as wanted, or makes room for it.
fn find_running(
    layout: &Layout,
    spec: &LabSpec,
    progress: &Progress,
) -> anyhow::Result<Option<(Lab, Started)>> {
    let name = layout.name();
    match State::load(layout)? {
        Some(state) if state.phase == Phase::Running && !state.is_of_another_boot()? => {
            let differences = state.spec.differences(spec);
            if !differences.is_empty() {
                bail!(Usage(format!(
                    "lab {name} is running with another layout:\n  {}\nstop it first (lab down), or choose another \
                     name (--lab)",
                    differences.join("\n  ")
                )));
            }
            let lab = Lab::open(name)?;
            let restarted = lab.restart_dead()?;
            Ok(Some((lab, Started::Already { restarted })))
        }
        Some(_) => {
            progress.note("removing what an interrupted start left");
            down::remove(layout).map(|()| None)
        }
        None => down::remove(layout).map(|()| None),
    }
}

/// Builds what is missing, then starts every part. The lock of the lab must be held.
fn start(
    layout: &Layout,
    spec: &LabSpec,
    init: &Path,
    progress: &Progress,
) -> anyhow::Result<(Lab, Started)> {
    host_check::check_inotify(spec.clusters.iter().map(|cluster| u32::from(cluster.nodes)).sum())?;
    let cache = Cache::open()?;
    let toolchain = Toolchain::prepare(&cache, progress)?;
    let archives = images::prepare(&cache, &toolchain, progress)?;
    let store = image_store::prepare(&cache, &toolchain, &archives, progress)?;

    let begun = Instant::now();
    let mut state = claim(layout, spec, toolchain.kubernetes(), progress)?;
    link_programs(layout, &toolchain, init)?;
    let start = Start {
        layout,
        plan: &AddressPlan::new(spec, state.slot),
        audit: spec.audit,
        shared: &[cache.root().to_owned(), layout.bin()],
        store: &store,
        init: &layout.bin().join(INIT),
        progress,
        begun,
    };
    let nodes_ready = start.everything().map_err(|error| {
        let name = layout.name();
        anyhow!(
            "lab {name} did not come up: {error:#}\nit stays as it is (cargo xtask lab logs --lab {name}) until: \
             cargo xtask lab down --lab {name}"
        )
    })?;
    state.phase = Phase::Running;
    state.save(layout)?;
    Ok((Lab::open(layout.name())?, Started::New { nodes_ready, complete: begun.elapsed() }))
}

/// Takes a slot and writes down what is about to be started, before anything is made.
fn claim(layout: &Layout, spec: &LabSpec, kubernetes: &str, progress: &Progress) -> anyhow::Result<State> {
    let slots = Lock::slots(progress)?;
    let claim = || {
        let state = State::starting(free_slot()?, spec, kubernetes)?;
        create_directory(layout.root())?;
        // Below are the keys of every cluster.
        fs::set_permissions(layout.root(), fs::Permissions::from_mode(0o700))?;
        state.save(layout)?;
        Ok(state)
    };
    let claimed = claim();
    slots.remove();
    claimed
}

/// Collects the programs of the lab in one directory: links into the cache, and a copy of the init program, which
/// may be built anew while the lab runs.
fn link_programs(layout: &Layout, toolchain: &Toolchain, init: &Path) -> anyhow::Result<()> {
    let bin = layout.bin();
    remove_all(&bin)?;
    create_directory(&bin)?;
    let link = |target: &Path, name: &str| {
        symlink(target, bin.join(name)).with_context(|| format!("cannot link {name} into {}", bin.display()))
    };
    for binary in toolchain.binaries()? {
        link(&binary, &binary.file_name().unwrap_or_default().to_string_lossy())?;
    }
    for program in KUBE_PROGRAMS {
        link(&toolchain.binary("kube")?, program)?;
    }
    fs::copy(init, bin.join(INIT)).with_context(|| format!("cannot copy {}", init.display()))?;
    Ok(())
}
