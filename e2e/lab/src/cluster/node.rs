//! A node of a cluster: containerd, kubelet and kube-proxy, and the files they read.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::cluster::pki::ClusterPki;
use crate::cluster::{container_runtime, control_plane};
use crate::machine::{Condition, Config, Machine, Unit};
use crate::plan::address::{ClusterPlan, NodePlan};
use crate::plan::layout::Layout;
use crate::plan::spec::{Cni, ProxyMode};

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
    let names = node.addresses.iter().map(|address| format!("{address} {}\n", node.name)).collect::<String>();
    machine.write_etc("hosts", format!("127.0.0.1 localhost\n{names}"))?;
    // There is no resolver beyond the cluster's: names from outside fail at once instead of timing out.
    machine.write_etc("resolv.conf", "")?;
    machine.write_identity()?;
    write_kubelet(&machine, plan, node, pki)?;
    write_proxy(&machine, plan, node, pki)?;
    let paths = [container_runtime::ROOT, container_runtime::STATE, container_runtime::SOCKET].map(Path::new);
    let configuration = container_runtime::configuration(paths[0], paths[1], paths[2]);
    machine.write_etc("containerd/config.toml", configuration)?;
    let network = container_runtime::network(plan.stack.cni, &node.pods);
    machine.write_etc("cni/net.d/10-lab.conflist", network.to_string())?;
    machine.configure(&Config {
        hostname: node.name.clone(),
        group: (layout.name().to_string(), node.name.clone()),
        netns: layout.netns(&node.name),
        shared: shared.to_vec(),
        bin: layout.bin(),
        sysctls: sysctls(plan),
        setup: masquerade(plan),
        units: units(node),
    })?;
    container_runtime::link_plugins(layout, &machine)?;
    Ok(machine)
}

/// The Node object, created before its kubelet starts: its pod range is what the routes of the LAN say.
pub(crate) fn object(node: &NodePlan) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name },
        "spec": { "podCIDR": node.pods[0], "podCIDRs": node.pods },
    })
}

fn sysctls(plan: &ClusterPlan) -> Vec<(String, String)> {
    let mut on = Vec::new();
    for pods in &plan.pods {
        let (forwarding, bridged) = match pods {
            IpNet::V4(_) => ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"),
            IpNet::V6(_) => ("net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-ip6tables"),
        };
        on.push(forwarding);
        if plan.stack.cni == Cni::Bridge {
            // Without it, an answer of a pod to another on the same bridge skips the Service's address translation.
            on.push(bridged);
        }
    }
    on.into_iter().map(|name| (name.to_owned(), "1".to_owned())).collect()
}

fn units(node: &NodePlan) -> Vec<Unit> {
    let unit = |command: &[&str], after: Option<Condition>| Unit {
        name: command.first().copied().unwrap_or_default().to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        after,
        // Mounts, cgroups, networks: a node's components are root wherever they run.
        user: None,
    };
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    let node_ip = format!("--node-ip={}", addresses.join(","));
    let kubelet = [
        "kubelet",
        "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
        "--config=/etc/kubernetes/kubelet.json",
        &node_ip,
        "--v=1",
    ];
    let runtime = Condition::Path(PathBuf::from(container_runtime::SOCKET));
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
        "address": node.addresses[0],
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
        "containerRuntimeEndpoint": format!("unix://{}", container_runtime::SOCKET),
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
        "bindAddress": if node.addresses[0].is_ipv4() { "0.0.0.0" } else { "::" },
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": { "kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig" },
        "mode": plan.stack.proxy,
        "clusterCIDR": control_plane::list(&plan.pods),
        // The table of connections is the host's to size.
        "conntrack": { "maxPerCore": 0, "min": 0 },
    });
    machine.write_etc("kubernetes/kube-proxy.json", config.to_string())
}

/// What CNIs of real clusters do: pods appear as their node to everything outside the pod range. A command per family.
fn masquerade(plan: &ClusterPlan) -> Vec<Vec<String>> {
    let command = |pods: &IpNet| {
        let v4 = matches!(pods, IpNet::V4(_));
        match plan.stack.proxy {
            ProxyMode::Nftables => {
                let (ip, multicast) = if v4 { ("ip", "224.0.0.0/4") } else { ("ip6", "ff00::/8") };
                vec![
                    "nft".to_owned(),
                    format!(
                        "table {ip} lab-cni {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
                         {ip} saddr {pods} {ip} daddr != {{ {pods}, {multicast} }} masquerade; }}; }}"
                    ),
                ]
            }
            ProxyMode::Iptables => {
                let program = if v4 { "iptables" } else { "ip6tables" };
                let rule = format!("-w -t nat -A POSTROUTING -s {pods} ! -d {pods} -j MASQUERADE");
                std::iter::once(program).chain(rule.split(' ')).map(str::to_owned).collect()
            }
        }
    };
    plan.pods.iter().map(command).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::address::AddressPlan;
    use crate::plan::spec::LabSpec;

    fn plan(stack: &str) -> ClusterPlan {
        let mut spec = LabSpec::alone("a", 2);
        spec.clusters[0].stack = stack.parse().unwrap();
        AddressPlan::new(&spec, 0).clusters.remove(0)
    }

    #[test]
    fn a_node_object_says_which_pod_ranges_are_routed_to_it() {
        let spec = object(&plan("ptp/nftables").nodes[1])["spec"].clone();
        assert_eq!(spec["podCIDR"], "10.244.1.0/24");
        assert_eq!(spec["podCIDRs"], json!(["10.244.1.0/24", "fd00:10:244:1::/64"]));
    }

    #[test]
    fn the_masquerade_rules_use_the_tool_of_the_proxy() {
        let nftables = masquerade(&plan("ptp/nftables"));
        assert!(nftables.iter().all(|command| command[0] == "nft"));
        assert!(
            nftables[1][1].contains("ip6 saddr fd00:10:244::/56 ip6 daddr != { fd00:10:244::/56, ff00::/8 }")
        );
        let iptables = masquerade(&plan("bridge/iptables"));
        assert!(
            iptables[0]
                .join(" ")
                .starts_with("iptables -w -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16")
        );
        assert!(iptables[1].join(" ").starts_with("ip6tables -w -t nat -A POSTROUTING -s fd00:10:244::/56"));
    }
}
