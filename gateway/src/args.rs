//! Command line of `liquid-gateway`.

use clap::{Args as ClapArgs, Parser};
use liquid_gateway::config::{default_device, default_listen, default_mtu};
use liquid_runtime::admin::AdminArgs;
use liquid_runtime::relay::RELAY_PORT;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Liquid's gateway: WireGuard to all peers, with their prefixes remapped where they overlap
///
/// In a cluster it takes what it needs from the Peers. With --config it needs no cluster.
#[derive(Debug, Parser)]
#[command(name = "liquid-gateway", version)]
pub(crate) struct Args {
    /// Configuration file (YAML) instead of a cluster's Peers; SIGHUP reads it again
    #[arg(long, env = "LIQUID_GATEWAY_CONFIG", conflicts_with = "ClusterArgs")]
    pub(crate) config: Option<PathBuf>,

    /// Threads that move packets, each with a core of its own at best; by default one for each core, at most 4
    #[arg(long, env = "LIQUID_GATEWAY_LANES", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(crate) lanes: Option<u16>,

    #[command(flatten)]
    pub(crate) cluster: Option<ClusterArgs>,

    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// In a cluster
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "In a cluster")]
pub(crate) struct ClusterArgs {
    /// Name of this pod: the key is kept under it, and the tunnels are reported under it
    #[arg(long, env = "LIQUID_POD_NAME", required = false)]
    pub(crate) pod_name: String,

    /// Namespace Liquid runs in
    #[arg(long, env = "LIQUID_NAMESPACE", default_value = "liquid-system")]
    pub(crate) namespace: String,

    /// Address and port for peers
    #[arg(long, env = "LIQUID_GATEWAY_LISTEN", default_value_t = default_listen())]
    pub(crate) listen: SocketAddr,

    /// Address of this pod, at which (TCP 7444) the peer link is relayed for this cluster's own processes; without it, it is
    /// not
    #[arg(long, env = "LIQUID_POD_IP")]
    pub(crate) pod_ip: Option<IpAddr>,

    /// Name of the TUN device
    #[arg(long, env = "LIQUID_GATEWAY_DEVICE", default_value_t = default_device())]
    pub(crate) device: String,

    /// Longest packet in the tunnel; 1,420 fits a path of 1,500 with IPv6 outside
    #[arg(long, env = "LIQUID_GATEWAY_MTU", default_value_t = default_mtu(), value_parser = clap::value_parser!(u16).range(1280..=65_000))]
    pub(crate) mtu: u16,

    /// Address (IP:port) at which liquid-fabric beside this process says whether it is ready; until it is, peers are told
    /// to send to other gateways
    #[arg(long, env = "LIQUID_FABRIC_ADMIN")]
    pub(crate) fabric_admin: Option<SocketAddr>,
}

impl ClusterArgs {
    /// Where the peer link is relayed for this cluster's own processes.
    pub(crate) fn relay(&self) -> Option<SocketAddr> {
        self.pod_ip.map(|address| SocketAddr::new(address, RELAY_PORT))
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
    fn it_is_a_file_or_a_cluster() {
        let parse = |line: &[&str]| Args::try_parse_from([&["liquid-gateway"], line].concat());
        assert!(parse(&["--config", "f"]).is_ok_and(|args| args.config.is_some() && args.cluster.is_none()));
        let cluster = parse(&["--pod-name", "liquid-gateway-0"]).unwrap().cluster.unwrap();
        assert_eq!((cluster.mtu, cluster.namespace.as_str()), (1420, "liquid-system"));
        assert!(parse(&["--config", "f", "--pod-name", "p"]).is_err());
    }
}
