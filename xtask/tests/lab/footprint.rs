//! What a lab leaves on the machine: everything, compared before and after.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use liquid_lab::{Lab, LabName};

/// Everything on the machine that a lab could leave behind, except what belongs to other labs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    namespaces: BTreeSet<String>,
    interfaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    groups: BTreeSet<String>,
    files: BTreeSet<String>,
    listening: BTreeSet<String>,
}

/// The kernel namespaces of a running lab, by inode: whoever is in one of them is part of it.
pub(crate) struct Inside(BTreeSet<u64>);

impl Footprint {
    pub(crate) fn take(own: &LabName) -> Self {
        let others: Vec<LabName> = Lab::all().into_iter().filter(|lab| lab != own).collect();
        let slots: Vec<u8> =
            others.iter().filter_map(|lab| Some(Lab::open(lab).ok()?.addresses().slot)).collect();
        let mut groups = Vec::new();
        below(Path::new("/sys/fs/cgroup"), 2, &mut groups);
        // The group and the directory of all labs are there as long as one of them is.
        groups.retain(|group| {
            group.contains("/liquid-lab") && (others.is_empty() || !group.ends_with("/liquid-lab"))
        });
        let foreign = |line: &String| {
            others.iter().any(|lab| {
                line.contains(&format!("liquid-{lab}."))
                    || line.contains(&format!("liquid-lab/{lab}"))
                    || line == lab.as_str()
                    || *line == format!("{lab}.lock")
            }) || slots.iter().any(|slot| *line == format!("lqlab{slot}"))
        };
        let keep = |lines: Vec<String>| lines.into_iter().filter(|line| !foreign(line)).collect();
        Self {
            namespaces: keep(list("/run/netns")),
            interfaces: keep(list("/sys/class/net")),
            mounts: keep(read("/proc/self/mounts").lines().map(str::to_owned).collect()),
            groups: keep(groups),
            files: keep(list("/var/lib/liquid-lab")),
            listening: listening(),
        }
    }
}

impl Footprint {
    /// What listens for TCP in the host's network namespace.
    pub(crate) fn listening(&self) -> &BTreeSet<String> {
        &self.listening
    }
}

impl Inside {
    /// Looks at a lab that is running, completely or half.
    pub(crate) fn of(lab: &LabName) -> Self {
        let mut inodes = BTreeSet::new();
        for name in list("/run/netns").iter().filter(|name| name.starts_with(&format!("liquid-{lab}."))) {
            inodes.extend(fs::metadata(Path::new("/run/netns").join(name)).map(|m| m.ino()));
        }
        let members: Vec<u32> =
            processes().into_iter().filter(|pid| !inodes.is_disjoint(&namespaces(*pid))).collect();
        let host = namespaces(std::process::id());
        inodes.extend(members.iter().flat_map(|pid| namespaces(*pid)).filter(|inode| !host.contains(inode)));
        Self(inodes)
    }

    /// The command lines of the processes that are still inside.
    pub(crate) fn processes(&self) -> Vec<String> {
        let inside = processes().into_iter().filter(|pid| !self.0.is_disjoint(&namespaces(*pid)));
        inside
            .map(|pid| format!("{pid} {}", read(&format!("/proc/{pid}/cmdline")).replace('\0', " ")))
            .collect()
    }

    /// How many namespaces are known: zero would make every comparison pass.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The namespaces of a process, without those a process of the host shares with everybody.
fn namespaces(pid: u32) -> BTreeSet<u64> {
    ["net", "mnt", "pid"]
        .iter()
        .filter_map(|kind| Some(fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok()?.ino()))
        .collect()
}

/// All processes that have not ended: one that has, and waits for its parent to notice, holds nothing any more.
fn processes() -> Vec<u32> {
    list("/proc").iter().filter_map(|name| name.parse().ok()).filter(|pid| runs(*pid)).collect()
}

/// Whether a process is there and has not ended.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = read(&format!("/proc/{pid}/stat"));
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// TCP sockets that listen and UDP sockets, in the host's network namespace, by local address.
fn listening() -> BTreeSet<String> {
    let tcp = ["/proc/net/tcp", "/proc/net/tcp6"].map(read).join("\n");
    let listens = |line: &&str| line.split_whitespace().nth(3) == Some("0A");
    tcp.lines().filter(listens).filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

fn below(directory: &Path, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path().display().to_string());
            if depth > 0 {
                below(&entry.path(), depth - 1, found);
            }
        }
    }
}

fn list(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn read(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
