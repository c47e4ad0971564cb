//! Memory of Liquid's processes, as the kernels of their nodes count it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use liquid_lab::Lab;
use serde::Serialize;

/// The programs of Liquid.
const PROGRAMS: [&str; 2] = ["liquid-controller", "liquid-kubelet"];

/// A process of Liquid and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resident {
    /// The lab's name of the cluster.
    pub(crate) cluster: String,
    /// Name of the program.
    pub(crate) program: String,
    /// `VmRSS`: anonymous memory and mapped files that are in memory.
    pub(crate) bytes: u64,
}

/// Looks at every process of Liquid in a lab.
///
/// # Errors
/// If a cluster has none.
pub(crate) fn look(lab: &Lab) -> anyhow::Result<Vec<Resident>> {
    let mut found = Vec::new();
    for cluster in lab.clusters() {
        let before = found.len();
        for init in cluster.nodes().iter().filter_map(liquid_lab::Node::pid) {
            // The node's own /proc: its processes, those of its containers among them, and no others.
            let proc = PathBuf::from(format!("/proc/{init}/root/proc"));
            let entries = fs::read_dir(&proc).with_context(|| format!("cannot read {}", proc.display()))?;
            let processes = entries.flatten().filter_map(|entry| process(&entry.path()));
            found.extend(processes.map(|(program, bytes)| Resident {
                cluster: cluster.name().to_owned(),
                program,
                bytes,
            }));
        }
        ensure!(found.len() > before, "no process of Liquid runs in cluster {}", cluster.name());
    }
    found.sort_by(|one, other| (&one.cluster, &one.program).cmp(&(&other.cluster, &other.program)));
    Ok(found)
}

/// Name and memory of a process, if it is one of Liquid's; processes come and go while they are looked at.
fn process(path: &Path) -> Option<(String, u64)> {
    let program = fs::read_link(path.join("exe")).ok()?.file_name()?.to_string_lossy().into_owned();
    let status = fs::read_to_string(path.join("status")).ok()?;
    PROGRAMS.contains(&program.as_str()).then_some(())?;
    Some((program, resident(&status)?))
}

/// Reads `VmRSS:     12345 kB` (the kernel's kB are 1024 bytes) from `/proc/PID/status`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident("VmPeak:\t 9 kB\nVmRSS:\t   10240 kB\nRssAnon:\t 1 kB\n"), Some(10_485_760));
        assert_eq!(resident("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn a_process_that_is_none_of_liquids_is_left_out() {
        assert_eq!(process(Path::new("/proc/self")), None);
        assert_eq!(process(Path::new("/proc/0")), None);
    }
}
