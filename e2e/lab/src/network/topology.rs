//! The network of a lab: one router, one bridge per cluster LAN, one network namespace per machine.
//!
//! ```text
//! host ── lqlabN/uplink ── router ─┬─ lan-a ─┬─ a-cp ── eth0 of the control plane
//!                                  │         └─ a-1 ─── eth0 of the node
//!                                  └─ lan-b ── ...
//! ```
//! The router knows the LANs and nothing else: pod addresses are routed inside a LAN only, and there is no way out.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Context;

use crate::host::command;
use crate::plan::address::{AddressPlan, CONTROL_PLANE, ClusterPlan};
use crate::plan::layout::{Layout, control_plane_machine, host_interface, lan_bridge};

/// A machine's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port<'a> {
    pub(crate) machine: String,
    /// Its place in the LAN: the end of each of its addresses.
    host: u8,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) cluster: &'a ClusterPlan,
}

/// The port of a cluster's control plane.
pub(crate) fn control_plane(cluster: &ClusterPlan) -> Port<'_> {
    Port {
        machine: control_plane_machine(&cluster.name),
        host: CONTROL_PLANE,
        addresses: cluster.control_plane.clone(),
        cluster,
    }
}

/// The ports of all machines of a cluster, the control plane first.
pub(crate) fn ports(cluster: &ClusterPlan) -> Vec<Port<'_>> {
    let nodes = cluster.nodes.iter().map(|node| Port {
        machine: node.name.clone(),
        host: node.host,
        addresses: node.addresses.clone(),
        cluster,
    });
    std::iter::once(control_plane(cluster)).chain(nodes).collect()
}

/// Makes the router, its LANs, and the wire to the host.
pub(crate) fn create_router(layout: &Layout, plan: &AddressPlan) -> anyhow::Result<()> {
    let router = layout.router_netns();
    let wire = host_interface(plan.slot);
    let mut lines = vec![
        format!("netns add {router}"),
        format!("link add {wire} type veth peer name uplink netns {router}"),
        on_lan(plan.host.into(), &wire),
        format!("link set {wire} up"),
        format!("route add {} via {}", plan.network, plan.router),
    ];
    if let Some(v6) = &plan.v6 {
        lines.push(on_lan(v6.host.into(), &wire));
        lines.push(format!("route add {} via {}", v6.network, v6.router));
    }
    ip(None, &lines)?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        on_lan(plan.router.into(), "uplink"),
        "link set uplink up".to_owned(),
    ];
    lines.extend(plan.v6.as_ref().map(|v6| on_lan(v6.router.into(), "uplink")));
    for cluster in &plan.clusters {
        let bridge = lan_bridge(&cluster.name);
        lines.push(format!("link add {bridge} type bridge"));
        let lans =
            std::iter::once(cluster.lan.addr().into()).chain(cluster.lan_v6.map(|lan| lan.addr().into()));
        lines.extend(lans.map(|of| on_lan(cluster.gateway(of), &bridge)));
        lines.push(format!("link set {bridge} up"));
    }
    ip(Some(&router), &lines)?;
    // Where bridges pass frames through the packet filter, those inside a LAN are none of the router's business.
    let script = "echo 1 > /proc/sys/net/ipv4/ip_forward; \
                  if [ -e /proc/sys/net/ipv6/conf/all/forwarding ]; then \
                  echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; fi; \
                  if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then \
                  echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables; fi";
    command::run("ip", ["netns", "exec", &router, "sh", "-c", script]).context("cannot set the router up")?;
    Ok(())
}

/// Makes a machine's network namespace and plugs it into its LAN.
pub(crate) fn attach(layout: &Layout, port: &Port<'_>) -> anyhow::Result<()> {
    let (netns, router) = (layout.netns(&port.machine), layout.router_netns());
    ip(None, &[format!("netns add {netns}")])?;
    ip(Some(&router), &router_lines(port, &netns))?;
    ip(Some(&netns), &machine_lines(port))
}

/// Unplugs a machine and removes its network namespace; what is already gone is fine.
pub(crate) fn detach(layout: &Layout, machine: &str) -> anyhow::Result<()> {
    let (netns, router) = (layout.netns(machine), layout.router_netns());
    // The port goes first and by name: a namespace disappears some time after its name, and the port with it.
    if has_netns(&router) {
        drop(command::run("ip", ["-netns", &router, "link", "delete", machine]));
    }
    delete_netns(&netns)
}

/// Removes the router and the wire to the host; what is already gone is fine.
pub(crate) fn delete_router(layout: &Layout, slot: Option<u8>) -> anyhow::Result<()> {
    if let Some(wire) = slot.map(host_interface)
        && Path::new("/sys/class/net").join(&wire).exists()
    {
        command::run("ip", ["link", "delete", &wire])?;
    }
    delete_netns(&layout.router_netns())
}

/// The names of the network namespaces that are this lab's.
pub(crate) fn netns_names(layout: &Layout) -> Vec<String> {
    let prefix = layout.netns_prefix();
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

/// Removes a network namespace's name; the namespace ends with its last process.
pub(crate) fn delete_netns(name: &str) -> anyhow::Result<()> {
    if has_netns(name) {
        command::run("ip", ["netns", "delete", name])?;
    }
    Ok(())
}

fn has_netns(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

fn router_lines(port: &Port<'_>, netns: &str) -> Vec<String> {
    let (name, mac) = (&port.machine, hardware_address(port.cluster.lan.network(), port.host));
    vec![
        format!("link add {name} type veth peer name eth0 netns {netns} address {mac}"),
        format!("link set {name} master {} up", lan_bridge(&port.cluster.name)),
    ]
}

fn machine_lines(port: &Port<'_>) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    for address in &port.addresses {
        lines.push(on_lan(*address, "eth0"));
        lines.push(format!("route add default via {}", port.cluster.gateway(*address)));
    }
    for node in port.cluster.nodes.iter().filter(|node| node.host != port.host) {
        let ways = node.pods.iter().zip(&node.addresses);
        lines.extend(ways.map(|(pods, address)| format!("route add {pods} via {address}")));
    }
    lines
}

/// Gives a device an address of a LAN.
fn on_lan(address: IpAddr, device: &str) -> String {
    match address {
        IpAddr::V4(_) => format!("address add {address}/24 dev {device}"),
        // The plan gives out no address twice, and a machine is to have its own when its first program starts.
        IpAddr::V6(_) => format!("address add {address}/64 dev {device} nodad"),
    }
}

/// A locally administered address made of the LAN's and the place in it: a machine keeps it over a power cycle, so that its
/// neighbours need not learn it anew.
fn hardware_address(lan: Ipv4Addr, host: u8) -> String {
    let [a, b, c, _] = lan.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{host:02x}")
}

fn ip(netns: Option<&str>, lines: &[String]) -> anyhow::Result<()> {
    let mut arguments: Vec<&str> = Vec::new();
    if let Some(netns) = netns {
        arguments.extend(["-netns", netns]);
    }
    arguments.extend(["-batch", "-"]);
    command::feed("ip", arguments, lines.join("\n").as_bytes())
        .with_context(|| format!("cannot configure the network:\n  {}", lines.join("\n  ")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::spec::LabSpec;

    fn plan(nodes: u8) -> AddressPlan {
        AddressPlan::new(&LabSpec::alone("a", nodes), 0)
    }

    #[test]
    fn a_node_routes_to_the_pods_of_the_others_and_not_to_its_own() {
        let plan = plan(3);
        let ports = ports(&plan.clusters[0]);
        let routes = |port: &Port<'_>| -> Vec<String> {
            machine_lines(port)
                .into_iter()
                .filter(|line| !line.contains("default") && line.contains("route"))
                .collect()
        };
        assert_eq!(
            routes(&ports[2]),
            [
                "route add 10.244.0.0/24 via 198.18.1.11",
                "route add fd00:10:244::/64 via fd6c:6162:0:1::b",
                "route add 10.244.2.0/24 via 198.18.1.13",
                "route add fd00:10:244:2::/64 via fd6c:6162:0:1::d",
            ]
        );
        assert_eq!(routes(&ports[0]).len(), 6, "the control plane reaches every node's pods");
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        let plan = AddressPlan::new(&LabSpec::alone("eightchr", 16), 31);
        for port in ports(&plan.clusters[0]) {
            assert!(port.machine.len() <= 15, "{}", port.machine);
        }
        assert!(lan_bridge(&plan.clusters[0].name).len() <= 15 && host_interface(31).len() <= 15);
    }

    #[test]
    fn hardware_addresses_are_locally_administered() {
        assert_eq!(hardware_address(Ipv4Addr::new(198, 18, 1, 0), 11), "02:00:c6:12:01:0b");
    }
}
