//! Nodes without machines behind them, for what needs thousands of pods: kwok (Kubernetes without kubelets) says what
//! kubelets would.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::machine::tail;

/// On fake nodes: no other node is kwok's business.
const LABEL: &str = "lab.local/fake";
/// Pods a fake node takes: kwok needs no more for many than for one, and the scheduler looks at every node.
const PODS: u32 = 4000;
/// What kwok says of nodes and pods.
const STAGES: &str = include_str!("fake_nodes.yaml");

/// The process behind the fake nodes of a cluster; it ends when this is dropped.
#[derive(Debug)]
pub struct FakeNodes {
    process: Child,
    log: PathBuf,
}

impl FakeNodes {
    pub(crate) fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Self { process: command.spawn().context("cannot start kwok")?, log: log.to_owned() })
    }

    /// Fails when the process has ended, with what it said.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()? {
            Some(status) => bail!("kwok ended ({status}):\n{}", tail(&self.log)),
            None => Ok(()),
        }
    }

    /// Number of the process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for FakeNodes {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn write_config(path: &Path) -> anyhow::Result<()> {
    fs::write(path, STAGES).with_context(|| format!("cannot write {}", path.display()))
}

/// Arguments of kwok; its nodes have this address.
pub(crate) fn arguments(kubeconfig: &Path, config: &Path, address: IpAddr) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        // It takes no other form than that with the equals sign.
        format!("--config={}", config.display()),
        "--manage-all-nodes=false".into(),
        format!("--manage-nodes-with-label-selector={LABEL}=true"),
        format!("--node-ip={address}"),
        "--node-lease-duration-seconds=40".into(),
        "--v=WARN".into(),
        // No logs of containers, no shells.
        "--server-address=".into(),
    ]
}

/// A fake node.
pub(crate) fn node(number: u8, address: IpAddr) -> Value {
    let name = format!("fake-{number}");
    let resources = json!({ "cpu": "4000", "memory": "16Ti", "ephemeral-storage": "16Ti", "pods": PODS });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                (LABEL): "true",
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
            },
        },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address }, { "type": "Hostname", "address": name }],
            "allocatable": resources,
            "capacity": resources,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kwok_looks_after_fake_nodes_and_no_others() {
        let arguments = arguments(Path::new("a"), Path::new("b"), IpAddr::from([127, 0, 0, 1])).join(" ");
        let labels = node(3, IpAddr::from([127, 0, 0, 1]))["metadata"]["labels"].clone();
        assert!(arguments.contains(&format!("label-selector={LABEL}=true")));
        assert_eq!(labels[LABEL], "true");
    }
}
