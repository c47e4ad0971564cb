//! Command line of `liquid-kubelet`.

use clap::Parser;
use liquid_runtime::admin::AdminArgs;
use std::net::IpAddr;
use std::path::PathBuf;

/// Liquid's virtual kubelet: virtual nodes of all providers, in one process
#[derive(Debug, Parser)]
#[command(name = "liquid-kubelet", version)]
pub(crate) struct Args {
    /// Namespace Liquid runs in
    #[arg(long, env = "LIQUID_NAMESPACE", default_value = "liquid-system")]
    pub(crate) namespace: String,

    /// Name of this pod, for leader election
    #[arg(long, env = "LIQUID_POD_NAME")]
    pub(crate) pod_name: String,

    /// Address of this pod, at which API servers reach the kubelet APIs of the virtual nodes
    #[arg(long, env = "LIQUID_POD_IP")]
    pub(crate) pod_ip: IpAddr,

    /// First port of the kubelet APIs; every virtual node takes the next that is free
    #[arg(long, env = "LIQUID_KUBELET_PORT", default_value_t = 10260)]
    pub(crate) kubelet_port: u16,

    /// CA of the client certificates that API servers present to kubelets, besides that of their other clients: by
    /// default that of the cluster, which every pod has
    #[arg(
        long,
        env = "LIQUID_KUBELET_CLIENT_CA",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub(crate) kubelet_client_ca: PathBuf,

    /// Seconds after which a provider that is out of reach is taken to be: its virtual nodes are not Ready then
    #[arg(long, env = "LIQUID_LINK_TIMEOUT", default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=600))]
    pub(crate) link_timeout: u64,

    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        super::Args::command().debug_assert();
    }
}
