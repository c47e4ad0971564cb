//! One control group per machine, in every hierarchy the host has (version 1, 2, or both).
//!
//! Groups are `liquid-lab/LAB/MACHINE` below each hierarchy's mount point. Nothing else is ever changed, except
//! that version 2 needs controllers enabled on the way down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::host::process::ProcessId;
use crate::host::wait;

/// The group all labs live in.
const TOP: &str = "liquid-lab";
/// How long the kernel may take to let go of killed processes.
const EMPTY_WITHIN: Duration = Duration::from_secs(20);

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Mount point on the host.
    pub(crate) mount: PathBuf,
    /// Mount options that name it in version 1 (`cpu,cpuacct`, `none,name=systemd`); `None` is version 2.
    pub(crate) v1: Option<String>,
}

/// The group of one machine, or with an empty machine name of a whole lab.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Hierarchy {
    /// All hierarchies that are mounted.
    pub(crate) fn all() -> anyhow::Result<Vec<Self>> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
        let found = parse_mountinfo(&text);
        anyhow::ensure!(
            !found.is_empty(),
            "no cgroup hierarchy is mounted: kubelets cannot run on this host"
        );
        Ok(found)
    }
}

impl Group {
    /// The group of a machine of a lab.
    pub(crate) fn machine(lab: &str, machine: &str) -> Self {
        Self { path: Path::new(TOP).join(lab).join(machine) }
    }

    /// The group of a lab.
    pub(crate) fn lab(lab: &str) -> Self {
        Self { path: Path::new(TOP).join(lab) }
    }

    /// Moves the calling process into the group in every hierarchy, creating it where it is missing.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        for hierarchy in Hierarchy::all()? {
            // Another lab that ends at this moment may remove the group of all labs from under this one.
            let group = create(&hierarchy, &self.path).or_else(|_| create(&hierarchy, &self.path))?;
            write(&group.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Moves the calling process into a leaf below the group and hands the group's controllers down (version 2
    /// only: there, a group with processes of its own cannot give controllers to groups below it).
    pub(crate) fn enter_leaf(&self) -> anyhow::Result<()> {
        for hierarchy in Hierarchy::all()?.into_iter().filter(|h| h.v1.is_none()) {
            let group = hierarchy.mount.join(&self.path);
            let leaf = group.join("init");
            make(&leaf)?;
            write(&leaf.join("cgroup.procs"), "0")?;
            hand_down(&group);
        }
        Ok(())
    }

    /// All processes in the group and below it.
    pub(crate) fn processes(&self) -> Vec<ProcessId> {
        let mut pids: Vec<i32> = Vec::new();
        for root in self.roots() {
            for directory in tree(&root) {
                let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            }
        }
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().filter_map(ProcessId::of).collect()
    }

    /// Kills everything in the group and removes it from every hierarchy.
    pub(crate) fn destroy(&self) -> anyhow::Result<()> {
        wait::until(
            &format!("the end of all processes in control group {}", self.path.display()),
            EMPTY_WITHIN,
            Duration::from_millis(10),
            || {
                let left = self.processes();
                left.iter().for_each(|process| process.kill());
                Ok(left.is_empty().then_some(()))
            },
        )?;
        for root in self.roots() {
            // A killed process is counted until the kernel has let go of it, a little after it is gone from the list.
            wait::until(
                &format!("removing control group {}", root.display()),
                EMPTY_WITHIN,
                Duration::from_millis(10),
                || remove_tree(&root),
            )?;
        }
        Ok(())
    }

    /// Current memory of the group in bytes, where the kernel counts it.
    pub(crate) fn memory(&self) -> Option<u64> {
        let read = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
        Hierarchy::all().ok()?.iter().find_map(|hierarchy| {
            let group = hierarchy.mount.join(&self.path);
            read(group.join("memory.usage_in_bytes")).or_else(|| read(group.join("memory.current")))
        })
    }

    /// The directories of the group that exist.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        let hierarchies = Hierarchy::all().unwrap_or_default();
        hierarchies.into_iter().map(|h| h.mount.join(&self.path)).filter(|path| path.is_dir()).collect()
    }

    /// Removes the group of all labs when it is empty; while it is in use, the kernel refuses.
    pub(crate) fn remove_top() {
        for hierarchy in Hierarchy::all().unwrap_or_default() {
            drop(fs::remove_dir(hierarchy.mount.join(TOP)));
        }
    }
}

fn create(hierarchy: &Hierarchy, path: &Path) -> anyhow::Result<PathBuf> {
    let mut group = hierarchy.mount.clone();
    for part in path.components() {
        if hierarchy.v1.is_none() {
            hand_down(&group);
        }
        let above = group.clone();
        group.push(part);
        make(&group)?;
        // A new cpuset is empty and takes no process until it has been given CPUs and memory nodes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if hierarchy.v1.is_some() && group.join(file).exists() {
                let inherited = fs::read_to_string(above.join(file)).unwrap_or_default();
                write(&group.join(file), inherited.trim())?;
                write(&group.join("cgroup.clone_children"), "1")?;
            }
        }
    }
    Ok(group)
}

/// Enables below a version 2 group every controller it has. The root of a hybrid set-up has none.
fn hand_down(group: &Path) {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for name in controllers.split_ascii_whitespace() {
        // Some controllers cannot always be enabled; a kubelet says clearly which one it lacks.
        drop(fs::write(group.join("cgroup.subtree_control"), format!("+{name}")));
    }
}

fn make(group: &Path) -> anyhow::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot create control group {}", group.display()))
        }
        _ => Ok(()),
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write '{text}' to {}", file.display()))
}

/// All directories of a tree, parents first.
fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let below: Vec<PathBuf> =
            entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
        found.extend(below);
        next += 1;
    }
    found
}

fn remove_tree(root: &Path) -> anyhow::Result<Option<()>> {
    for directory in tree(root).iter().rev() {
        match fs::remove_dir(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
            }
        }
    }
    Ok(Some(()))
}

fn parse_mountinfo(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else {
            continue;
        };
        let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
        let v1 = match kind {
            Some("cgroup") => Some(v1_options(options)),
            Some("cgroup2") => None,
            _ => continue,
        };
        // The same hierarchy may be mounted twice; one way in is enough.
        if !found.iter().any(|other| other.v1 == v1) {
            found.push(Hierarchy { mount: PathBuf::from(mount), v1 });
        }
    }
    found
}

/// The super block options that name a hierarchy; the others describe how it is mounted.
fn v1_options(options: &str) -> String {
    let skip = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"];
    let names: Vec<&str> =
        options.split(',').filter(|o| !skip.contains(o) && !o.starts_with("release_agent=")).collect();
    match names.as_slice() {
        [only] if only.starts_with("name=") => format!("none,{only}"),
        _ => names.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hierarchies_are_all_found_once() {
        let text = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                    31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
                    32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                    33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                    34 30 0:29 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = parse_mountinfo(text);
        let names: Vec<_> = found.iter().map(|h| h.v1.as_deref()).collect();
        assert_eq!(names, [None, Some("none,name=systemd"), Some("cpu,cpuacct")]);
        assert_eq!(found[2].mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn a_pure_version_2_host_has_one_hierarchy() {
        let text = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(parse_mountinfo(text), [Hierarchy { mount: PathBuf::from("/sys/fs/cgroup"), v1: None }]);
    }
}
