//! Stopping a lab: everything it made goes, whatever state it was in; nothing else is touched.

use std::fs;
use std::time::Duration;

use anyhow::bail;

use super::in_parallel;
use super::state::{Lock, State};
use crate::build::cache::remove_all;
use crate::host::cgroup::Group;
use crate::host::{host_check, wait};
use crate::machine::Machine;
use crate::network::topology;
use crate::plan::layout::{Layout, host_interface};
use crate::plan::spec::LabName;
use crate::progress::Progress;

/// How long what could not be removed is tried again.
const REMOVED_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Stops a lab and removes all of it; returns whether there was anything to remove.
///
/// # Errors
/// Reports every part that could not be removed, after having tried all; a second call tries again.
pub fn down(name: &LabName, progress: &Progress) -> anyhow::Result<bool> {
    host_check::require_root()?;
    let layout = Layout::new(name);
    let lock = Lock::lab(name, progress)?;
    let existed = !leftovers(name).is_empty();
    if existed {
        let _step = progress.long(&format!("stopping lab {name}"));
        remove(&layout)?;
    }
    lock.remove();
    Group::remove_top();
    Ok(existed)
}

/// What is left of a lab on this machine, one line each.
#[must_use]
pub fn leftovers(name: &LabName) -> Vec<String> {
    let layout = Layout::new(name);
    let mut found = Vec::new();
    let group = Group::lab(name.as_str());
    found.extend(group.processes().iter().map(|process| format!("process {}", process.pid)));
    found.extend(group.roots().iter().map(|path| format!("control group {}", path.display())));
    found.extend(topology::netns_names(&layout).iter().map(|netns| format!("network namespace {netns}")));
    if let Ok(Some(state)) = State::load(&layout) {
        let interface = host_interface(state.slot);
        if fs::exists(format!("/sys/class/net/{interface}")).unwrap_or(false) {
            found.push(format!("network interface {interface}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let root = format!("{}/", layout.root().display());
    found.extend(mounts.lines().filter(|line| line.contains(&root)).map(|line| format!("mount {line}")));
    if layout.root().exists() {
        found.push(format!("directory {}", layout.root().display()));
    }
    found
}

/// Removes everything a lab may have made. The lock of the lab must be held.
///
/// A machine that a start had begun when it was killed may come to life only now: it is removed in the next round.
pub(crate) fn remove(layout: &Layout) -> anyhow::Result<()> {
    let mut result = Ok(());
    let tried = wait::until("removal", REMOVED_WITHIN, PAUSE, || {
        result = remove_once(layout);
        Ok(result.is_ok().then_some(()))
    });
    // What was left by the last try says more than that time is up.
    result.and(tried)
}

fn remove_once(layout: &Layout) -> anyhow::Result<()> {
    let lab = layout.name().as_str();
    // A state that cannot be read must not keep the rest from being removed; the wire to the host then goes with the
    // router's end of it.
    let slot = State::load(layout).ok().flatten().map(|state| state.slot);
    let machines = machines(layout);
    let mut results = vec![
        in_parallel(&machines, |name| Machine::new(layout.machine(name), lab, name).power_off()).map(drop),
        // Processes of a start that was killed before it could write them down.
        Group::lab(lab).destroy(),
    ];
    let prefix = layout.netns_prefix();
    let namespaces = topology::netns_names(layout);
    let machines =
        namespaces.iter().filter_map(|name| name.strip_prefix(&prefix)).filter(|name| *name != "router");
    results.extend(machines.map(|name| topology::detach(layout, name)));
    results.push(topology::delete_router(layout, slot));
    if results.iter().all(Result::is_ok) {
        // Last: as long as something is left, this directory says what.
        results.push(remove_all(layout.root()));
    }
    let mut errors: Vec<String> =
        results.into_iter().filter_map(|result| Some(format!("{:#}", result.err()?))).collect();
    if errors.is_empty() {
        errors = leftovers(layout.name());
    }
    if !errors.is_empty() {
        bail!("parts of lab {lab} could not be removed (try lab down again):\n  {}", errors.join("\n  "));
    }
    Ok(())
}

fn machines(layout: &Layout) -> Vec<String> {
    let entries = fs::read_dir(layout.machine("")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
