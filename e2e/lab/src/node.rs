//! A node of a cluster: containerd, kubelet and kube-proxy, and the files they read.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::Context;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use crate::address::{ClusterPlan, NodePlan};
use crate::images;
use crate::layout::Layout;
use crate::machine::{Condition, Config, Machine, Unit};
use crate::pki::ClusterPki;
use crate::spec::{Cni, ProxyMode};
use crate::{control_plane, machine};

/// Where containerd listens, by path inside the machine.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where CNI plugins are looked for; others may add theirs, as on any node.
const CNI_PLUGINS: [&str; 5] = ["bridge", "host-local", "loopback", "portmap", "ptp"];
const CNI_DIRECTORY: &str = "/opt/cni/bin";
/// Units that wait until the Node object exists.
pub(crate) const HELD_AT_FIRST: [&str; 2] = ["kubelet", "kube-proxy"];

/// Writes everything a node's machine needs.
pub(crate) fn configure(
    layout: &Layout,
    plan: &ClusterPlan,
    node: &NodePlan,
    pki: &ClusterPki,
    shared: &[PathBuf],
) -> anyhow::Result<Machine> {
    let machine = Machine::new(layout.machine(&node.name), layout.name().as_str(), &node.name);
    machine.write_etc(
        "hosts",
        format!("127.0.0.1 localhost\n{} {}\n", node.address, node.name),
    )?;
    // There is no resolver beyond the cluster's: names from outside fail at once instead of timing out.
    machine.write_etc("resolv.conf", "")?;
    write_kubelet(&machine, plan, node, pki)?;
    write_proxy(&machine, plan, node, pki)?;
    machine.write_etc("containerd/config.toml", containerd_config())?;
    machine.write_etc(
        "cni/net.d/10-lab.conflist",
        cni_config(plan.stack.cni, node.pods).to_string(),
    )?;
    machine.configure(&Config {
        hostname: node.name.clone(),
        group: (layout.name().to_string(), node.name.clone()),
        netns: layout.netns(&node.name),
        shared: shared.to_vec(),
        bin: layout.bin(),
        sysctls: vec![("net/ipv4/ip_forward".to_owned(), "1".to_owned())],
        setup: vec![masquerade(plan)],
        units: units(),
    })?;
    link_plugins(layout, &machine)?;
    Ok(machine)
}

/// The Node object, created before its kubelet starts: its pod range is what the routes of the LAN say.
pub(crate) fn object(node: &NodePlan) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name },
        "spec": { "podCIDR": node.pods, "podCIDRs": [node.pods] },
    })
}

fn units() -> Vec<Unit> {
    let unit = |command: &[&str], after: Option<Condition>| Unit {
        name: command.first().copied().unwrap_or_default().to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        after,
    };
    let kubelet = [
        "kubelet",
        "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
        "--config=/etc/kubernetes/kubelet.json",
        "--v=1",
    ];
    let runtime = Condition::Path(PathBuf::from(CONTAINERD_SOCKET));
    vec![
        unit(&["containerd", "--config=/etc/containerd/config.toml"], None),
        unit(&kubelet, Some(runtime)),
        unit(&["kube-proxy", "--config=/etc/kubernetes/kube-proxy.json"], None),
    ]
}

fn write_kubelet(
    machine: &Machine,
    plan: &ClusterPlan,
    node: &NodePlan,
    pki: &ClusterPki,
) -> anyhow::Result<()> {
    let client = control_plane::kubeconfig(plan, pki, "kubelet", &pki.kubelet_client(node)?);
    let serving = pki.kubelet_server(node)?;
    machine.write_etc("kubernetes/kubelet.kubeconfig", client.to_string())?;
    machine.write_etc("kubernetes/pki/ca.crt", &pki.ca().certificate)?;
    machine.write_etc("kubernetes/pki/kubelet.crt", &serving.certificate)?;
    machine.write_etc("kubernetes/pki/kubelet.key", &serving.key)?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": "/etc/kubernetes/pki/ca.crt" },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": "/etc/kubernetes/pki/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/pki/kubelet.key",
        "clusterDomain": "cluster.local",
        "clusterDNS": [plan.dns_service],
        "resolvConf": "/etc/resolv.conf",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        // Lowering one's score takes a right a machine inside a container may lack.
        "oomScoreAdj": 0,
        "allowedUnsafeSysctls": ["net.*"],
        // The disk is the host's: how full it is says nothing about the lab.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100,
        "volumeStatsAggPeriod": "5m",
        "serializeImagePulls": false,
    });
    machine.write_etc("kubernetes/kubelet.json", config.to_string())
}

fn write_proxy(
    machine: &Machine,
    plan: &ClusterPlan,
    node: &NodePlan,
    pki: &ClusterPki,
) -> anyhow::Result<()> {
    let identity = pki.client("system:kube-proxy", Some("system:node-proxier"))?;
    let client = control_plane::kubeconfig(plan, pki, "kube-proxy", &identity);
    machine.write_etc("kubernetes/kube-proxy.kubeconfig", client.to_string())?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "hostnameOverride": node.name,
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": { "kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig" },
        "mode": plan.stack.proxy,
        "clusterCIDR": plan.pods.to_string(),
        // The table of connections is the host's to size.
        "conntrack": { "maxPerCore": 0, "min": 0 },
    });
    machine.write_etc("kubernetes/kube-proxy.json", config.to_string())
}

fn containerd_config() -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
address = "{CONTAINERD_SOCKET}"

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
        pause = images::PAUSE
    )
}

fn cni_config(cni: Cni, pods: Ipv4Net) -> Value {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": pods }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
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

/// What CNIs of real clusters do: pods appear as their node to everything outside the pod range.
fn masquerade(plan: &ClusterPlan) -> Vec<String> {
    let pods = plan.pods;
    match plan.stack.proxy {
        ProxyMode::Nftables => vec![
            "nft".to_owned(),
            format!(
                "table ip lab-cni {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
                 ip saddr {pods} ip daddr != {{ {pods}, 224.0.0.0/4 }} masquerade; }}; }}"
            ),
        ],
        ProxyMode::Iptables => {
            let rule = format!("-w -t nat -A POSTROUTING -s {pods} ! -d {pods} -j MASQUERADE");
            std::iter::once("iptables")
                .chain(rule.split(' '))
                .map(str::to_owned)
                .collect()
        }
    }
}

/// Puts the plugins where CNI add-ons expect to find them, and to be able to add to them.
fn link_plugins(layout: &Layout, machine: &Machine) -> anyhow::Result<()> {
    let directory = machine.host_path(CNI_DIRECTORY);
    machine::create_directory(&directory)?;
    for plugin in CNI_PLUGINS {
        symlink(layout.bin().join(plugin), directory.join(plugin))
            .with_context(|| format!("cannot link CNI plugin {plugin}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::AddressPlan;
    use crate::spec::{ClusterSpec, LabSpec};

    fn plan(stack: &str) -> ClusterPlan {
        let clusters = vec![ClusterSpec {
            name: "a".parse().unwrap(),
            nodes: 2,
            stack: stack.parse().unwrap(),
        }];
        let spec = LabSpec {
            clusters,
            cidrs: Default::default(),
            audit: false,
        };
        AddressPlan::new(&spec, 0).clusters.remove(0)
    }

    #[test]
    fn pods_take_addresses_of_their_node_only() {
        let plan = plan("ptp/nftables");
        let config = cni_config(Cni::Ptp, plan.nodes[1].pods).to_string();
        assert!(config.contains("10.244.1.0/24") && !config.contains("10.244.0.0"));
        assert_eq!(object(&plan.nodes[1])["spec"]["podCIDR"], "10.244.1.0/24");
    }

    #[test]
    fn the_masquerade_rule_uses_the_tool_of_the_proxy() {
        assert_eq!(masquerade(&plan("ptp/nftables"))[0], "nft");
        let iptables = masquerade(&plan("bridge/iptables")).join(" ");
        assert!(
            iptables.starts_with("iptables -w -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16")
        );
    }
}
