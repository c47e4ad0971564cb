//! What is written down about a lab, and the locks that keep two commands from changing it at once.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::host::command;
use crate::machine::{read_json, write_json};
use crate::plan::address::{SLOTS, slot_network};
use crate::plan::layout::{Layout, STATE};
use crate::plan::spec::{LabName, LabSpec};
use crate::progress::Progress;

/// Layout version of [`State`]: another one is not understood.
const VERSION: u32 = 1;

/// Everything about a lab that cannot be derived from its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// Its number on this machine.
    pub(crate) slot: u8,
    /// What it is asked to be.
    pub(crate) spec: LabSpec,
    /// How far it has come.
    pub(crate) phase: Phase,
    /// The boot of the host it was started in: nothing it made but files outlives that.
    pub(crate) boot: String,
    /// Kubernetes release.
    pub(crate) kubernetes: String,
}

/// How far a lab has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// `up` is at work, or died at it.
    Starting,
    /// `up` came to its end.
    Running,
}

/// A lock that is held while this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl State {
    /// The state of a lab that is about to be started.
    pub(crate) fn starting(slot: u8, spec: &LabSpec, kubernetes: &str) -> anyhow::Result<Self> {
        Ok(Self {
            version: VERSION,
            slot,
            spec: spec.clone(),
            phase: Phase::Starting,
            boot: current_boot()?,
            kubernetes: kubernetes.to_owned(),
        })
    }

    /// Reads the state of a lab; `None` if there is no such lab.
    pub(crate) fn load(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.state_file();
        if !path.exists() {
            return Ok(None);
        }
        let state: Self = read_json(&path)?;
        if state.version != VERSION {
            bail!(
                "lab {} was started by another version of this program; stop it with that one",
                layout.name()
            );
        }
        Ok(Some(state))
    }

    /// Writes the state down.
    pub(crate) fn save(&self, layout: &Layout) -> anyhow::Result<()> {
        write_json(&layout.state_file(), self)
    }

    /// Whether the host has been rebooted since the lab was started.
    pub(crate) fn is_of_another_boot(&self) -> anyhow::Result<bool> {
        Ok(self.boot != current_boot()?)
    }
}

impl Lock {
    /// Waits for the lock of a lab, held while it is started or stopped.
    pub(crate) fn lab(name: &LabName, progress: &Progress) -> anyhow::Result<Self> {
        Self::take(&Path::new(STATE).join(format!("{name}.lock")), progress)
    }

    /// Waits for the lock under which slots are given out.
    pub(crate) fn slots(progress: &Progress) -> anyhow::Result<Self> {
        Self::take(&Path::new(STATE).join("slots.lock"), progress)
    }

    fn take(path: &Path, progress: &Progress) -> anyhow::Result<Self> {
        loop {
            let parent = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            let file = match File::create(path) {
                // Somebody removed the directory between the two steps.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.with_context(|| format!("cannot create {}", path.display()))?,
            };
            if file.try_lock().is_err() {
                let _step = progress.long("waiting for another command that starts or stops this lab");
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            // The file may have been removed while this waited: then the lock is on something nobody else sees.
            let held = file.metadata()?;
            if fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
                return Ok(Self { path: path.to_owned(), _file: file });
            }
        }
    }

    /// Removes the lock's file, and the directory of all labs if nothing is left in it.
    pub(crate) fn remove(self) {
        // Whoever waits for the lock notices that its file is gone; whatever cannot be removed is in use.
        drop(fs::remove_file(&self.path));
        drop(fs::remove_dir(STATE));
    }
}

/// The labs that are there, by name.
pub(crate) fn labs() -> Vec<LabName> {
    let entries = fs::read_dir(STATE).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<LabName> =
        directories.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    names.sort();
    names
}

/// A slot no lab has and whose addresses the host does not route elsewhere. The lock on slots must be held.
pub(crate) fn free_slot() -> anyhow::Result<u8> {
    let mut taken = Vec::new();
    for name in labs() {
        taken.extend(State::load(&Layout::new(&name))?.map(|state| state.slot));
    }
    let routes = command::run("ip", ["-4", "route", "show", "table", "all"])?;
    let used = |slot: &u8| {
        let network = slot_network(*slot);
        routes.split_whitespace().filter_map(parse_network).any(|route| {
            // A default route leads everywhere without claiming anything.
            route.prefix_len() > 8 && (network.contains(&route) || route.contains(&network))
        })
    };
    (0..SLOTS)
        .find(|slot| !taken.contains(slot) && !used(slot))
        .with_context(|| format!("all {SLOTS} address ranges of 198.18.0.0/15 are in use on this machine"))
}

fn parse_network(word: &str) -> Option<ipnet::Ipv4Net> {
    word.parse().ok().or_else(|| ipnet::Ipv4Net::new(word.parse().ok()?, 32).ok())
}

fn current_boot() -> anyhow::Result<String> {
    let id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the host's boot id")?;
    Ok(id.trim().to_owned())
}
