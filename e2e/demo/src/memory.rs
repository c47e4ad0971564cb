//! Memory of Liquid's processes, as the kernels of their nodes count it.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use liquid_lab::Lab;
use serde::Serialize;

use crate::proc;

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
            let processes = proc::of_machine(init)?.filter_map(|path| process(&path));
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
    Some((program, proc::bytes(&status, "VmRSS:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_none_of_liquids_is_left_out() {
        assert_eq!(process(Path::new("/proc/self")), None);
        assert_eq!(process(Path::new("/proc/0")), None);
    }
}
