//! Command line of `liquid-fabric`.

use clap::{Parser, Subcommand};
use liquid_fabric::topology::Settings;
use liquid_runtime::admin::AdminArgs;
use std::net::IpAddr;

/// Liquid's overlay: carries packets for peers between the nodes of a cluster and its gateways
#[derive(Debug, Parser)]
#[command(name = "liquid-fabric", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) role: Role,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// On every node, in its network namespace
    Node(NodeArgs),
    /// Beside liquid-gateway, in the network namespace of its pod
    Gateway(GatewayArgs),
    /// Turn on forwarding of IPv6 in the network namespace of a gateway's pod, and end: before the others begin, and in a
    /// privileged container, for no other may
    ForwardIpv6(LogArgs),
    /// Remove all that `node` has made here, and end
    Cleanup {
        #[command(flatten)]
        overlay: OverlayArgs,
        #[command(flatten)]
        log: LogArgs,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// Log filter, in the syntax of RUST_LOG
    #[arg(long, env = "LIQUID_LOG", default_value = liquid_runtime::telemetry::DEFAULT_FILTER)]
    pub(crate) log: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// Name of this node
    #[arg(long, env = "LIQUID_NODE_NAME")]
    pub(crate) node_name: String,

    /// The DaemonSet this process is of: when that is deleted, the overlay is removed from the node
    #[arg(long, env = "LIQUID_DAEMON_SET", default_value = "liquid-fabric")]
    pub(crate) daemon_set: String,

    #[command(flatten)]
    pub(crate) shared: SharedArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct GatewayArgs {
    /// Name of this pod, for events
    #[arg(long, env = "LIQUID_POD_NAME")]
    pub(crate) pod_name: String,

    /// Addresses of this pod, separated by commas (status.podIPs)
    #[arg(long, env = "LIQUID_POD_IPS", value_delimiter = ',', required = true)]
    pub(crate) pod_ips: Vec<IpAddr>,

    #[command(flatten)]
    pub(crate) shared: SharedArgs,
}

/// What both roles have.
#[derive(Debug, clap::Args)]
pub(crate) struct SharedArgs {
    /// Namespace Liquid runs in
    #[arg(long, env = "LIQUID_NAMESPACE", default_value = "liquid-system")]
    pub(crate) namespace: String,

    #[command(flatten)]
    pub(crate) overlay: OverlayArgs,

    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// The overlay; all of a cluster have to agree on its port and identifier.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OverlayArgs {
    /// Name of the overlay device
    #[arg(long, env = "LIQUID_OVERLAY_DEVICE", default_value = "liquid-overlay", value_parser = device)]
    pub(crate) overlay_device: String,

    /// UDP port of the overlay between nodes and gateways
    #[arg(long, env = "LIQUID_OVERLAY_PORT", default_value_t = 51_822, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) overlay_port: u16,

    /// VXLAN network identifier of the overlay
    #[arg(long, env = "LIQUID_OVERLAY_VNI", default_value_t = 51_822, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub(crate) overlay_vni: u32,

    /// Name of the TUN device of liquid-gateway
    #[arg(long, env = "LIQUID_TUNNEL_DEVICE", default_value = "liquid-wg", value_parser = device)]
    pub(crate) tunnel_device: String,

    /// Priority of the policy rules, which take the next one, too: ahead of those of pod networks
    #[arg(long, env = "LIQUID_RULE_PRIORITY", default_value_t = 480, value_parser = clap::value_parser!(u32).range(1..32_765))]
    pub(crate) rule_priority: u32,

    /// UDP port at which gateways answer the probes of nodes, over the overlay only
    #[arg(long, env = "LIQUID_PROBE_PORT", default_value_t = 51_823, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) probe_port: u16,
}

impl From<OverlayArgs> for Settings {
    fn from(args: OverlayArgs) -> Self {
        Self {
            overlay: args.overlay_device,
            tunnel: args.tunnel_device,
            port: args.overlay_port,
            vni: args.overlay_vni,
            rule_priority: args.rule_priority,
            probe_port: args.probe_port,
        }
    }
}

/// The kernel takes names of up to 15 bytes, and neither '/' nor white space in them.
fn device(name: &str) -> Result<String, String> {
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    let allowed = |letter: char| letter.is_ascii_graphic() && letter != '/' && letter != ':';
    if fits && name.chars().all(allowed) {
        Ok(name.to_owned())
    } else {
        Err("names of devices have 1 to 15 letters, none of them '/', ':' or white space".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn names_the_kernel_would_refuse_are_refused() {
        for bad in ["", "..", "a b", "a/b", "sixteen-letters-"] {
            assert!(device(bad).is_err(), "{bad:?}");
        }
        assert_eq!(device("liquid-overlay").as_deref(), Ok("liquid-overlay"));
    }
}
