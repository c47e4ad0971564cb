//! containerd and the CNI plugins of a node.

use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::build::images;
use crate::machine::{Machine, create_directory};
use crate::plan::layout::Layout;
use crate::plan::spec::Cni;

/// Where containerd listens, by path inside the machine.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where containerd keeps images and containers, by path inside the machine.
pub(crate) const ROOT: &str = "/var/lib/containerd";
/// Where containerd keeps what does not outlive a boot, by path inside the machine.
pub(crate) const STATE: &str = "/run/containerd";
/// Where CNI plugins are looked for; others may add theirs, as on any node.
const CNI_PLUGINS: [&str; 5] = ["bridge", "host-local", "loopback", "portmap", "ptp"];
const CNI_DIRECTORY: &str = "/opt/cni/bin";
/// containerd's configuration, with its files in these directories.
pub(crate) fn configuration(root: &Path, state: &Path, socket: &Path) -> String {
    format!(
        r#"version = 3
root = "{root}"
state = "{state}"
oom_score = 0

[grpc]
address = "{socket}"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{pause}"

[plugins.'io.containerd.cri.v1.runtime']
# Sandboxes ask for a score below that of their parent, which takes a right the machine may not have.
restrict_oom_score_adj = true
disable_apparmor = true

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{CNI_DIRECTORY}"]
conf_dir = "/etc/cni/net.d"
"#,
        root = root.display(),
        state = state.display(),
        socket = socket.display(),
        pause = images::PAUSE
    )
}

/// The pod network of a node that has these parts of the pod ranges, one of each family.
pub(crate) fn network(cni: Cni, pods: &[IpNet]) -> Value {
    let everything = |part: &IpNet| if matches!(part, IpNet::V4(_)) { "0.0.0.0/0" } else { "::/0" };
    let ipam = json!({
        "type": "host-local",
        "ranges": pods.iter().map(|part| json!([{ "subnet": part }])).collect::<Vec<_>>(),
        "routes": pods.iter().map(|part| json!({ "dst": everything(part) })).collect::<Vec<_>>(),
        "dataDir": "/run/cni-ipam",
    });
    // Masquerading is the node's own rule: the plugins' would also hide pods of one node from those of another.
    let interface = match cni {
        Cni::Ptp => json!({ "type": "ptp", "ipMasq": false, "ipam": ipam }),
        Cni::Bridge => json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipMasq": false,
            "ipam": ipam,
        }),
    };
    json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [interface, { "type": "portmap", "capabilities": { "portMappings": true } }],
    })
}

/// Puts the plugins where CNI add-ons expect to find them, and to be able to add to them.
pub(crate) fn link_plugins(layout: &Layout, machine: &Machine) -> anyhow::Result<()> {
    let directory = machine.host_path(CNI_DIRECTORY);
    create_directory(&directory)?;
    for plugin in CNI_PLUGINS {
        symlink(layout.bin().join(plugin), directory.join(plugin))
            .with_context(|| format!("cannot link CNI plugin {plugin}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_take_addresses_of_their_node_only() {
        let parts = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|part| part.parse().unwrap());
        let config = network(Cni::Ptp, &parts[..1]).to_string();
        assert!(config.contains("10.244.1.0/24") && !config.contains("10.244.0.0") && !config.contains("::"));
        let ipam = network(Cni::Ptp, &parts)["plugins"][0]["ipam"].clone();
        assert_eq!(ipam["ranges"][1], json!([{ "subnet": "fd00:10:244:1::/64" }]));
        assert_eq!(ipam["routes"][1], json!({ "dst": "::/0" }));
    }
}
