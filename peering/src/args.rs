//! Command line of `liquid-controller`.

use crate::network;
use clap::{ArgAction, Args as ClapArgs, Parser};
use ipnet::IpNet;
use liquid_crds::ClusterName;
use liquid_runtime::admin::AdminArgs;
use std::net::SocketAddr;

/// Liquid's controller: peers, and what this cluster runs for them
#[derive(Debug, Parser)]
#[command(name = "liquid-controller", version)]
pub(crate) struct Args {
    /// Name of this cluster: 1 to 42 lower-case letters, digits or '-'; unique among its peers
    #[arg(long, env = "LIQUID_CLUSTER_NAME")]
    pub(crate) cluster_name: ClusterName,

    /// Namespace Liquid runs in
    #[arg(long, env = "LIQUID_NAMESPACE", default_value = "liquid-system")]
    pub(crate) namespace: String,

    /// Name of this pod, for leader election and the Services that select the leader
    #[arg(long, env = "LIQUID_POD_NAME")]
    pub(crate) pod_name: String,

    /// Address of the link endpoint
    #[arg(long, env = "LIQUID_LINK_LISTEN", default_value = "[::]:7443")]
    pub(crate) link_listen: SocketAddr,

    /// Address (host:port) under which peers reach the link endpoint; may be repeated. Without it the address of
    /// the load balancer, or of nodes with the node port, is used
    #[arg(long = "advertise", env = "LIQUID_ADVERTISE", value_delimiter = ',', value_parser = host_port)]
    pub(crate) advertise: Vec<String>,

    /// Seconds after which a peer that is out of reach is taken to be
    #[arg(long, env = "LIQUID_LINK_TIMEOUT", default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=600))]
    pub(crate) link_timeout: u64,

    /// Address of the admission webhook
    #[arg(long, env = "LIQUID_WEBHOOK_LISTEN", default_value = "[::]:8443")]
    pub(crate) webhook_listen: SocketAddr,

    /// Labels of this cluster for the virtual nodes of its consumers, such as topology.kubernetes.io/region=eu-south
    #[arg(long = "cluster-label", env = "LIQUID_CLUSTER_LABELS", value_delimiter = ',', value_parser = label)]
    pub(crate) cluster_labels: Vec<(String, String)>,

    /// Pod Security Standard enforced on namespaces of consumers: privileged, baseline or restricted
    #[arg(long, env = "LIQUID_POD_SECURITY", default_value = "baseline",
          value_parser = ["privileged", "baseline", "restricted"])]
    pub(crate) pod_security: String,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// The network between this cluster's pods and those of its peers
#[derive(Debug, Clone, Default, PartialEq, ClapArgs)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// Whether there is one: gateways run, and peers are told of them
    #[arg(id = "network", long = "network", env = "LIQUID_NETWORK", default_value_t = false, action = ArgAction::Set)]
    pub(crate) enabled: bool,

    /// Whether its gateways forward IPv6: without it, peers are not told of IPv6 prefixes of pods
    #[arg(id = "network-ipv6", long = "network-ipv6", env = "LIQUID_NETWORK_IPV6", default_value_t = false, action = ArgAction::Set)]
    pub(crate) ipv6: bool,

    /// Prefix of this cluster's pods; may be repeated. Without it the prefixes of its nodes are used
    #[arg(long = "pod-cidr", env = "LIQUID_POD_CIDRS", value_delimiter = ',', value_parser = prefix)]
    pub(crate) pod_cidrs: Vec<IpNet>,

    /// Prefix under which no pods of peers may be seen, besides those of pods, services and nodes; may be repeated
    #[arg(long = "reserved-cidr", env = "LIQUID_RESERVED_CIDRS", value_delimiter = ',', value_parser = prefix)]
    pub(crate) reserved_cidrs: Vec<IpNet>,

    /// Prefix of hosts outside of the cluster that its pods reach through it wherever they run; may be repeated
    #[arg(long = "external-cidr", env = "LIQUID_EXTERNAL_CIDRS", value_delimiter = ',', value_parser = outside)]
    pub(crate) external_cidrs: Vec<IpNet>,

    /// Prefix from which pods of peers get addresses if their own are taken here; may be repeated
    #[arg(long = "remap-pool", env = "LIQUID_REMAP_POOL", value_delimiter = ',', value_parser = prefix)]
    pub(crate) remap_pool: Vec<IpNet>,

    /// Address under which peers reach a gateway, as [NUMBER=]HOST:PORT, without a number the first one; may be repeated.
    /// Of gateways without any, the address of the load balancer, or of nodes with the node port, is used
    #[arg(id = "gateway-advertise", long = "gateway-advertise", env = "LIQUID_GATEWAY_ADVERTISE", value_delimiter = ',', value_parser = numbered)]
    pub(crate) advertise: Vec<(u16, String)>,
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| format!("{text:?} is no prefix, such as 10.0.0.0/16"))?;
    if net.trunc() != net {
        return Err(format!("{text} has bits beyond its length: {} is meant", net.trunc()));
    }
    Ok(net)
}

/// What peers take, so that nothing is told that they refuse.
fn outside(text: &str) -> Result<IpNet, String> {
    prefix(text)?;
    network::outside(text).map_err(|error| error.to_string())
}

fn host_port(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is no address of the form host:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || port == 0 || bare_v6 { Err(bad()) } else { Ok(text.to_owned()) }
}

fn numbered(text: &str) -> Result<(u16, String), String> {
    let bad = || format!("{text:?} is no address of the form [number=]host:port");
    let (number, address) = text.split_once('=').unwrap_or(("0", text));
    Ok((number.parse().map_err(|_| bad())?, host_port(address).map_err(|_| bad())?))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is no label of the form key=value"))?;
    if key.is_empty() || key.len() > 317 || value.len() > 63 {
        return Err(format!("{text:?} is no valid label"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for good in ["192.0.2.1:7443", "link.example.org:443", "[2001:db8::1]:7443"] {
            assert!(host_port(good).is_ok(), "{good}");
        }
        for bad in ["", "192.0.2.1", ":7443", "host:0", "host:70000", "2001:db8::1:7443"] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_of_gateways_may_be_numbered() {
        assert_eq!(numbered("gw.example:1"), Ok((0, "gw.example:1".to_owned())));
        assert_eq!(numbered("1=[2001:db8::1]:2"), Ok((1, "[2001:db8::1]:2".to_owned())));
        assert!(numbered("x=gw.example:1").is_err() && numbered("1=gw.example").is_err());
    }

    #[test]
    fn prefixes_end_where_they_say() {
        assert!(prefix("10.1.0.0/16").is_ok() && prefix("fd00::/48").is_ok());
        assert!(prefix("10.1.0.1/16").is_err_and(|error| error.contains("10.1.0.0/16")));
        assert!(prefix("10.1.0.0").is_err());
        assert!(outside("10.1.0.0/16").is_ok() && outside("10.0.0.0/15").is_err());
        assert!(outside("169.254.169.254/32").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
