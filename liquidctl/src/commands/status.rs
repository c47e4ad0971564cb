//! `liquidctl status`: how it all is, and what to do about what is not well.

use crate::cluster::{ClusterArgs, require_info};
use crate::failure::Failure;
use crate::output::{Format, print, print_data, table};
use clap::Args;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::{NamespaceOffloading, NetworkStatus, Peer, PodCidr, ShadowPod, VirtualNode, condition};
use serde::Serialize;
use std::collections::BTreeMap;

/// The reason of that condition while some of the ways are down.
const DEGRADED: &str = "Degraded";
/// The condition of a Peer that tells of the network.
const NETWORK_READY: &str = "NetworkReady";

/// Arguments of `liquidctl status`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print for programs
    #[arg(long, short, value_enum)]
    output: Option<Format>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    cluster: Cluster,
    peers: Vec<PeerStatus>,
    virtual_nodes: Vec<NodeStatus>,
    namespaces: Vec<NamespaceStatus>,
    /// Sentences about what is not well.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cluster {
    name: String,
    #[serde(rename = "id")]
    id: String,
    version: String,
    endpoints: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerStatus {
    name: String,
    #[serde(rename = "clusterID")]
    cluster_id: String,
    borrows: Option<String>,
    lends: Option<String>,
    network: Option<NetworkState>,
    shadow_pods: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkState {
    ready: bool,
    reason: String,
    /// Ways between gateways of this cluster and of the peer: how many are up, and how many there are.
    ways_up: usize,
    ways: usize,
    /// Prefixes of its pods: as it has them, and as they are seen here.
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<PodCidr>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    name: String,
    peer: String,
    ready: bool,
    reason: String,
    cpu: String,
    memory: String,
    pods: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceStatus {
    name: String,
    placement: String,
    ready: bool,
    reason: String,
    remote: BTreeMap<String, String>,
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, arguments: Arguments) -> Result<(), Failure> {
    let client = cluster.connect().await?;
    let status = gather(&client, &cluster.namespace).await?;
    match arguments.output {
        Some(format) => print_data(&status, format),
        None => print(&render(&status)),
    }
}

async fn gather(client: &Client, namespace: &str) -> Result<Status, Failure> {
    let all = ListParams::default();
    let info = require_info(client, namespace).await?;
    let peers = Api::<Peer>::all(client.clone()).list(&all).await?;
    let shadows = Api::<ShadowPod>::all(client.clone()).list_metadata(&all).await?;
    let nodes = Api::<VirtualNode>::all(client.clone()).list(&all).await?;
    let offloadings = Api::<NamespaceOffloading>::all(client.clone()).list(&all).await?;
    let mut problems = Vec::new();
    let peers = peers
        .iter()
        .map(|peer| {
            let conditions =
                peer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            let name = peer.name_any();
            let borrows = peer.spec.consume.as_ref().map(|_| reason(conditions, "LinkUp"));
            if borrows.is_some() {
                problems.extend(problem(conditions, "LinkUp").map(|why| format!("peer {name}: {why}")));
            }
            let network = network_state(peer, conditions);
            // With some of the ways down it works, but has less to lose.
            if network.as_ref().is_some_and(|network| !network.ready || network.reason == DEGRADED) {
                let why = condition(conditions, NETWORK_READY).map(|condition| &condition.message);
                problems.extend(why.map(|why| format!("network to peer {name}: {why}")));
            }
            let mine = |shadow: &&kube::core::PartialObjectMeta<ShadowPod>| {
                shadow.labels().get(liquid_crds::vocabulary::ORIGIN_CLUSTER) == Some(&peer.spec.cluster_id)
            };
            PeerStatus {
                cluster_id: peer.spec.cluster_id.clone(),
                borrows,
                network,
                lends: peer.spec.lend.as_ref().map(|_| reason(conditions, "ConsumerConnected")),
                shadow_pods: shadows.iter().filter(mine).count(),
                name,
            }
        })
        .collect();
    let mut virtual_nodes = Vec::new();
    for node in &nodes {
        virtual_nodes.push(node_status(client, node, &mut problems).await?);
    }
    let namespaces =
        offloadings.iter().map(|offloading| namespace_status(offloading, &mut problems)).collect();
    let cluster = Cluster {
        name: info.name.to_string(),
        id: info.id.to_string(),
        version: info.version,
        endpoints: info.endpoints,
    };
    Ok(Status { cluster, peers, virtual_nodes, namespaces, problems })
}

/// None without a network.
fn network_state(peer: &Peer, conditions: &[Condition]) -> Option<NetworkState> {
    let condition = condition(conditions, NETWORK_READY)?;
    let status = peer.status.as_ref().and_then(|status| status.network.as_ref());
    let (ways_up, ways) = status.map(NetworkStatus::ways).unwrap_or_default();
    Some(NetworkState {
        ready: condition.status == "True",
        reason: condition.reason.clone(),
        ways_up,
        ways,
        pod_cidrs: status.map(|network| network.pod_cidrs.clone()).unwrap_or_default(),
    })
}

/// Networks of a peer for the table: the first, and how many more.
fn shown_prefixes(prefixes: &[PodCidr]) -> String {
    let Some((first, rest)) = prefixes.split_first() else { return "-".to_owned() };
    let first = if first.real == first.seen {
        first.real.clone()
    } else {
        format!("{} as {}", first.real, first.seen)
    };
    if rest.is_empty() { first } else { format!("{first} and {} more", rest.len()) }
}

async fn node_status(
    client: &Client,
    node: &VirtualNode,
    problems: &mut Vec<String>,
) -> Result<NodeStatus, Failure> {
    let name = node.name_any();
    let conditions = node.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    problems.extend(problem(conditions, "Ready").map(|why| format!("virtual node {name}: {why}")));
    let object = Api::<Node>::all(client.clone()).get_opt(&name).await?;
    let allocatable = object.and_then(|node| node.status).and_then(|s| s.allocatable).unwrap_or_default();
    let amount = |resource: &str| allocatable.get(resource).map_or("-".to_owned(), |amount| amount.0.clone());
    Ok(NodeStatus {
        peer: node.spec.peer.clone(),
        ready: liquid_crds::is_true(conditions, "Ready"),
        reason: reason(conditions, "Ready"),
        cpu: amount("cpu"),
        memory: amount("memory"),
        pods: amount("pods"),
        name,
    })
}

fn namespace_status(offloading: &NamespaceOffloading, problems: &mut Vec<String>) -> NamespaceStatus {
    let name = offloading.namespace().unwrap_or_default();
    let status = offloading.status.clone().unwrap_or_default();
    problems.extend(problem(&status.conditions, "Ready").map(|why| format!("namespace {name}: {why}")));
    NamespaceStatus {
        placement: format!("{:?}", offloading.spec.pod_placement),
        ready: liquid_crds::is_true(&status.conditions, "Ready"),
        reason: reason(&status.conditions, "Ready"),
        remote: status.remote_namespaces.into_iter().map(|remote| (remote.peer, remote.name)).collect(),
        name,
    }
}

fn reason(conditions: &[Condition], type_: &str) -> String {
    condition(conditions, type_).map_or("Unknown".to_owned(), |condition| condition.reason.clone())
}

fn problem(conditions: &[Condition], type_: &str) -> Option<String> {
    match condition(conditions, type_) {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => Some(condition.message.clone()),
        None => Some("nothing has been reported yet".to_owned()),
    }
}

fn render(status: &Status) -> String {
    let Status { cluster, peers, virtual_nodes, namespaces, problems } = status;
    let endpoints =
        if cluster.endpoints.is_empty() { "none".to_owned() } else { cluster.endpoints.join(", ") };
    let mut text = format!(
        "Cluster {} ({}), Liquid {}, link endpoint: {endpoints}\n",
        cluster.name, cluster.id, cluster.version
    );
    let dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let rows = peers
        .iter()
        .map(|peer| {
            let network = peer.network.as_ref();
            vec![
                peer.name.clone(),
                dash(&peer.borrows),
                dash(&peer.lends),
                dash(&network.map(|network| match network.ways {
                    0 => network.reason.clone(),
                    ways => format!("{} {}/{ways}", network.reason, network.ways_up),
                })),
                network.map_or("-".to_owned(), |network| shown_prefixes(&network.pod_cidrs)),
                peer.shadow_pods.to_string(),
            ]
        })
        .collect();
    section(&mut text, &["PEER", "BORROWS", "LENDS", "NETWORK", "PODS SEEN", "SHADOW PODS"], rows);
    let rows = virtual_nodes
        .iter()
        .map(|node| {
            vec![
                node.name.clone(),
                node.peer.clone(),
                node.reason.clone(),
                node.cpu.clone(),
                node.memory.clone(),
                node.pods.clone(),
            ]
        })
        .collect();
    section(&mut text, &["VIRTUAL NODE", "PEER", "STATE", "CPU", "MEMORY", "PODS"], rows);
    let rows = namespaces
        .iter()
        .map(|namespace| {
            let remote: Vec<_> =
                namespace.remote.iter().map(|(peer, name)| format!("{peer}/{name}")).collect();
            vec![
                namespace.name.clone(),
                namespace.placement.clone(),
                namespace.reason.clone(),
                remote.join(", "),
            ]
        })
        .collect();
    section(&mut text, &["NAMESPACE", "PLACEMENT", "STATE", "REMOTE"], rows);
    if problems.is_empty() {
        text.push_str("\nAll is well.\n");
    } else {
        text.push_str("\nNot well:\n");
        for problem in problems {
            text.push_str(&format!("  {problem}\n"));
        }
    }
    text
}

fn section(text: &mut String, header: &[&str], rows: Vec<Vec<String>>) {
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(header, rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_say_under_which_they_are_seen() {
        let cidr = |real: &str, seen: &str| PodCidr { real: real.to_owned(), seen: seen.to_owned() };
        assert_eq!(shown_prefixes(&[]), "-");
        assert_eq!(shown_prefixes(&[cidr("10.1.0.0/16", "10.1.0.0/16")]), "10.1.0.0/16");
        let two = [cidr("10.1.0.0/16", "10.200.0.0/16"), cidr("fd00::/56", "fd00::/56")];
        assert_eq!(shown_prefixes(&two), "10.1.0.0/16 as 10.200.0.0/16 and 1 more");
    }
}
