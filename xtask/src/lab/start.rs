//! `lab up`: from options to a running lab.

use std::path::Path;

use clap::Args;
use liquid_lab::{
    CidrPlan, ClusterName, ClusterSpec, IpFamilies, LabName, LabSpec, Progress, Stack, Started, Usage,
};

use crate::output;
use crate::workspace::OWN_PROGRAM;

/// What a cluster gets that no option names.
const NODES: &str = "1";
const STACK: &str = "ptp/nftables";
const CIDRS: &str = "same";
const FAMILIES: &str = "ipv4";

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Names of the clusters, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "a,b", value_name = "NAMES")]
    clusters: Vec<ClusterName>,
    /// Real nodes per cluster: a number for all, or CLUSTER=NUMBER, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = NODES, value_name = "N")]
    nodes: Vec<String>,
    /// Control planes only.
    #[arg(long, conflicts_with = "nodes")]
    no_nodes: bool,
    /// How pod and service ranges of the clusters relate, (same|disjoint|asymmetric): for all, or CLUSTER=PLAN.
    #[arg(long, value_delimiter = ',', default_value = CIDRS, value_name = "PLAN")]
    pod_cidr: Vec<String>,
    /// Which families pods, Services and nodes have addresses of, (ipv4|ipv6|dual): for all, or CLUSTER=FAMILIES.
    #[arg(long, value_delimiter = ',', default_value = FAMILIES, value_name = "FAMILIES")]
    ip_families: Vec<String>,
    /// Pod network and kube-proxy mode, (ptp|bridge)/(nftables|iptables): for all, or CLUSTER=STACK.
    #[arg(long, value_delimiter = ',', default_value = STACK, value_name = "STACK")]
    stack: Vec<String>,
    /// Let API servers write audit logs (metadata of every request).
    #[arg(long)]
    audit: bool,
}

pub(super) fn up(name: &LabName, options: &Options) -> anyhow::Result<()> {
    let spec = spec(options)?;
    let progress = Progress::new();
    let (lab, started) = liquid_lab::up(name, &spec, Path::new(OWN_PROGRAM), &progress)?;
    match &started {
        Started::New { nodes_ready, complete } => {
            let nodes: usize = spec.clusters.iter().map(|cluster| usize::from(cluster.nodes)).sum();
            let first = spec.clusters.first().map(|cluster| cluster.name.to_string()).unwrap_or_default();
            output::note(&format!(
                "lab {name}: {} cluster(s), {nodes} node(s) Ready in {:.1} s, complete in {:.1} s\n\
                 try: eval \"$(cargo xtask lab env --lab {name})\"; cargo xtask lab status; \
                 cargo xtask lab kubectl {first} get pods -A",
                lab.clusters().count(),
                nodes_ready.as_secs_f64(),
                complete.as_secs_f64()
            ));
        }
        Started::Already { restarted } if restarted.is_empty() => {
            output::note(&format!("lab {name} is running as wanted"));
        }
        Started::Already { restarted } => {
            output::note(&format!("lab {name} was running; started again: {}", restarted.join(", ")));
        }
    }
    Ok(())
}

/// Turns the options into a spec; per-cluster values come after those for all.
fn spec(options: &Options) -> anyhow::Result<LabSpec> {
    let cidrs: CidrPlan = for_all(&options.pod_cidr, CIDRS).parse()?;
    let ip_families: IpFamilies = for_all(&options.ip_families, FAMILIES).parse()?;
    let clusters = options
        .clusters
        .iter()
        .map(|name| {
            let nodes = value_for(name, &options.nodes, &options.clusters, NODES)?;
            let nodes =
                nodes.parse().map_err(|_| Usage(format!("--nodes: '{nodes}' is not a small number")))?;
            let stack: Stack = value_for(name, &options.stack, &options.clusters, STACK)?.parse()?;
            let own: CidrPlan = value_for(name, &options.pod_cidr, &options.clusters, CIDRS)?.parse()?;
            let families: IpFamilies =
                value_for(name, &options.ip_families, &options.clusters, FAMILIES)?.parse()?;
            Ok(ClusterSpec {
                name: name.clone(),
                nodes: if options.no_nodes { 0 } else { nodes },
                stack,
                cidrs: Some(own).filter(|own| *own != cidrs),
                ip_families: Some(families).filter(|own| *own != ip_families),
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let spec = LabSpec { clusters, cidrs, ip_families, audit: options.audit };
    spec.validate()?;
    Ok(spec)
}

/// The value for clusters that have none of their own.
fn for_all<'a>(values: &'a [String], default: &'a str) -> &'a str {
    values.iter().rfind(|value| !value.contains('=')).map_or(default, String::as_str)
}

/// The value for a cluster: its own, else the one for all, else the default.
fn value_for<'a>(
    cluster: &ClusterName,
    values: &'a [String],
    clusters: &[ClusterName],
    default: &'a str,
) -> Result<&'a str, Usage> {
    let mut chosen = default;
    for value in values {
        match value.split_once('=') {
            Some((name, own)) if name == cluster.as_str() => return Ok(own),
            Some((name, _)) if !clusters.iter().any(|known| known.as_str() == name) => {
                return Err(Usage(format!("'{value}': there is no cluster {name}")));
            }
            Some(_) => {}
            None => chosen = value,
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> anyhow::Result<LabSpec> {
        spec(&Line::try_parse_from(std::iter::once("up").chain(line.split_whitespace()))?.options)
    }

    #[test]
    fn the_default_is_two_clusters_with_a_node_each() {
        let spec = parse("").unwrap();
        assert_eq!(
            spec.clusters.iter().map(|c| (c.name.as_str(), c.nodes)).collect::<Vec<_>>(),
            [("a", 1), ("b", 1)]
        );
    }

    #[test]
    fn one_cluster_may_differ_from_the_others() {
        let spec = parse("--clusters a,b,c --nodes 2,b=0 --stack c=bridge/iptables").unwrap();
        assert_eq!(spec.clusters.iter().map(|c| c.nodes).collect::<Vec<_>>(), [2, 0, 2]);
        assert_eq!(spec.clusters[2].stack.to_string(), "bridge/iptables");
        assert_eq!(spec.clusters[0].stack.to_string(), STACK);
        assert_eq!(
            parse("--nodes b=3").unwrap().clusters.iter().map(|c| c.nodes).collect::<Vec<_>>(),
            [1, 3]
        );
        assert_eq!(parse("--no-nodes").unwrap().clusters[1].nodes, 0);
        let spec = parse("--pod-cidr disjoint,b=same").unwrap();
        assert_eq!((spec.cidrs, spec.clusters[0].cidrs), (CidrPlan::Disjoint, None));
        assert_eq!(spec.clusters[1].cidrs, Some(CidrPlan::Same));
    }

    #[test]
    fn a_lab_has_ipv4_alone_unless_asked_for_other_families() {
        assert_eq!(parse("").unwrap().ip_families, IpFamilies::Ipv4);
        assert_eq!(parse("--ip-families dual").unwrap().ip_families, IpFamilies::Dual);
        let spec = parse("--ip-families ipv6,b=dual").unwrap();
        assert_eq!((spec.ip_families, spec.clusters[0].ip_families), (IpFamilies::Ipv6, None));
        assert_eq!(spec.clusters[1].ip_families, Some(IpFamilies::Dual));
    }

    #[test]
    fn values_that_name_no_cluster_or_mean_nothing_are_refused() {
        for line in [
            "--nodes z=1",
            "--nodes many",
            "--stack x/y",
            "--clusters a,a",
            "--nodes 99",
            "--pod-cidr x",
            "--pod-cidr z=same",
            "--ip-families ipv5",
            "--ip-families z=ipv6",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
