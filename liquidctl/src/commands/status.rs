//! `liquidctl status`: how it all is, and what to do about what is not well.

use crate::cluster::{ClusterArgs, require_info};
use crate::failure::Failure;
use crate::output::{Format, print, print_data, table};
use clap::Args;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::quantity::amounts;
use liquid_crds::vocabulary::{ACCESS_DENIED, OFFER_ACCEPTED};
use liquid_crds::{
    AccessSpec, NamespaceOffloading, NetworkStatus, Peer, PodCidr, Price, ShadowPod, TransitCidr, Transport,
    VirtualNode, condition, is_true, show_price,
};
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
    /// What virtual nodes of consumers ask for, and are offered.
    lent: Vec<LentStatus>,
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
    /// How it is reached, if this cluster borrows from it.
    transport: Option<Transport>,
    lends: Option<String>,
    network: Option<NetworkState>,
    /// What its pods may reach here, if that is not everything.
    access: Option<AccessSpec>,
    /// What they were denied, as far as there are Events of it still: the latest first.
    denied: Vec<Denied>,
    shadow_pods: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Denied {
    at: Option<Timestamp>,
    message: String,
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
    /// Prefixes of pods in other peers that it is told of: those of this cluster there and in it reach each other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    transit: Vec<TransitCidr>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    name: String,
    peer: String,
    /// The one node of the peer behind it.
    node: Option<String>,
    ready: bool,
    reason: String,
    /// What is asked for at most; all there is, if nothing is named.
    asked: Amounts,
    node_selector: BTreeMap<String, String>,
    /// What is offered; without an offer nothing.
    offered: Amounts,
    price: Option<String>,
    accepted: bool,
    /// How it stands with the offer.
    offer: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LentStatus {
    peer: String,
    virtual_node: String,
    node: Option<String>,
    asked: Amounts,
    node_selector: BTreeMap<String, String>,
    offered: Amounts,
    price: Option<String>,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// Quantities by resource name.
type Amounts = BTreeMap<String, Quantity>;

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
    let peers_listed = Api::<Peer>::all(client.clone()).list(&all).await?;
    let shadows = Api::<ShadowPod>::all(client.clone()).list_metadata(&all).await?;
    let nodes = Api::<VirtualNode>::all(client.clone()).list(&all).await?;
    let offloadings = Api::<NamespaceOffloading>::all(client.clone()).list(&all).await?;
    let mut problems = Vec::new();
    let of_denials = ListParams::default().fields(&format!("reason={ACCESS_DENIED}"));
    let denials = match Api::<Event>::all(client.clone()).list(&of_denials).await {
        Ok(events) => events.items,
        Err(error) => {
            problems.push(format!("what peers were denied cannot be read: {error}"));
            Vec::new()
        }
    };
    let peers = peers_listed
        .iter()
        .map(|peer| {
            let conditions =
                peer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            let name = peer.name_any();
            let borrows = peer.spec.consume.as_ref().map(|_| reason(conditions, "LinkUp"));
            if borrows.is_some() {
                problems.extend(problem(conditions, "LinkUp").map(|why| format!("peer {name}: {why}")));
                let unmade = condition(conditions, "VirtualNodesMade").filter(|made| made.status == "False");
                problems.extend(unmade.map(|made| format!("virtual nodes of {name}: {}", made.message)));
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
                transport: peer.spec.consume.as_ref().map(|consume| consume.transport),
                network,
                lends: peer.spec.lend.as_ref().map(|_| reason(conditions, "ConsumerConnected")),
                access: access(peer),
                denied: denied(&denials, &name),
                shadow_pods: shadows.iter().filter(mine).count(),
                name,
            }
        })
        .collect();
    let virtual_nodes = nodes.iter().map(|node| node_status(node, &mut problems)).collect();
    let lent = peers_listed.iter().flat_map(lent_status).collect();
    let namespaces =
        offloadings.iter().map(|offloading| namespace_status(offloading, &mut problems)).collect();
    let cluster = Cluster {
        name: info.name.to_string(),
        id: info.id.to_string(),
        version: info.version,
        endpoints: info.endpoints,
    };
    Ok(Status { cluster, peers, virtual_nodes, lent, namespaces, problems })
}

/// What pods of a peer may reach, if that is not everything.
fn access(peer: &Peer) -> Option<AccessSpec> {
    let access = peer.spec.network.as_ref().and_then(|network| network.access.as_ref());
    access.filter(|access| access.restricts()).cloned()
}

/// What a peer was denied, the latest first.
fn denied(events: &[Event], peer: &str) -> Vec<Denied> {
    let of_peer = events.iter().filter(|event| {
        event
            .regarding
            .as_ref()
            .is_some_and(|about| about.kind.as_deref() == Some("Peer") && about.name.as_deref() == Some(peer))
    });
    let mut denied: Vec<Denied> = of_peer
        .map(|event| {
            let again = event.series.as_ref().map(|series| series.last_observed_time.0);
            let at = again.or_else(|| event.event_time.as_ref().map(|time| time.0));
            Denied { at, message: event.note.clone().unwrap_or_default() }
        })
        .collect();
    denied.sort_by_key(|denied| std::cmp::Reverse(denied.at));
    denied
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
        transit: status.map(|network| network.transit.clone()).unwrap_or_default(),
    })
}

/// Networks of a peer for the table: the first, and how many more.
fn shown_prefixes(prefixes: &[PodCidr]) -> String {
    let own: Vec<&PodCidr> = prefixes.iter().filter(|cidr| cidr.is_own()).collect();
    let Some((first, rest)) = own.split_first() else { return "-".to_owned() };
    let first = shown_prefix(first);
    if rest.is_empty() { first } else { format!("{first} and {} more", rest.len()) }
}

fn shown_prefix(PodCidr { real, seen, .. }: &PodCidr) -> String {
    if real == seen { real.clone() } else { format!("{real} as {seen}") }
}

/// What passes between the peer and further clusters: through this one, and through the peer.
fn shown_transit(peer: &str, network: &NetworkState) -> Vec<Vec<String>> {
    let here = network.transit.iter().map(|cidr| {
        let state = if cidr.ready { "ready" } else { "waits for both peers" };
        [peer, &format!("{} of {}", cidr.seen, cidr.peer), "this cluster", state].map(str::to_owned).to_vec()
    });
    let there = network.pod_cidrs.iter().filter(|cidr| cidr.transit).map(|cidr| match cidr.used_direct() {
        None => ["this cluster", &shown_prefix(cidr), peer, "known"].map(str::to_owned).to_vec(),
        Some(direct) => {
            let prefix = format!("{} as {} of {}", cidr.real, direct.seen, direct.peer);
            ["this cluster", &prefix, "-", "direct"].map(str::to_owned).to_vec()
        }
    });
    let outside = network.pod_cidrs.iter().filter(|cidr| cidr.external).map(|cidr| {
        let prefix = format!("{} outside of {peer}", shown_prefix(cidr));
        ["this cluster", &prefix, peer, "known"].map(str::to_owned).to_vec()
    });
    here.chain(there).chain(outside).collect()
}

fn node_status(node: &VirtualNode, problems: &mut Vec<String>) -> NodeStatus {
    let name = node.name_any();
    let status = node.status.clone().unwrap_or_default();
    let conditions = status.conditions.as_slice();
    problems.extend(problem(conditions, "Ready").map(|why| format!("virtual node {name}: {why}")));
    let accepted = is_true(conditions, OFFER_ACCEPTED);
    // Without a Node the condition Ready says the same.
    if status.offer.is_some() && !accepted && reason(conditions, "Ready") != "OfferNotAccepted" {
        problems.extend(problem(conditions, OFFER_ACCEPTED).map(|why| format!("offer for {name}: {why}")));
    }
    let offer = status.offer.unwrap_or_default();
    NodeStatus {
        peer: node.spec.peer.clone(),
        node: node.spec.node.clone(),
        ready: is_true(conditions, "Ready"),
        reason: reason(conditions, "Ready"),
        asked: node.spec.resources.clone(),
        node_selector: node.spec.node_selector.clone(),
        price: shown_price(offer.price.as_ref(), &offer.resources),
        offered: offer.resources,
        accepted,
        offer: reason(conditions, OFFER_ACCEPTED),
        name,
    }
}

fn lent_status(peer: &Peer) -> Vec<LentStatus> {
    let lend = peer.status.as_ref().and_then(|status| status.lend.as_ref());
    let slices = lend.and_then(|lend| lend.slices.as_ref()).into_iter().flatten();
    slices
        .map(|slice| LentStatus {
            peer: peer.name_any(),
            virtual_node: slice.name.clone(),
            node: slice.node.clone(),
            asked: slice.requested.clone(),
            node_selector: slice.node_selector.clone(),
            price: shown_price(slice.price.as_ref(), &slice.offered),
            offered: slice.offered.clone(),
            state: format!("{:?}", slice.state),
            message: slice.message.clone(),
        })
        .collect()
}

/// What all that is offered costs.
fn shown_price(price: Option<&Price>, offered: &Amounts) -> Option<String> {
    let price = price?;
    if !price.is_valid() {
        return Some("unreadable".to_owned());
    }
    Some(format!("{} {}/h", show_price(price.hourly(&amounts(offered))), price.currency))
}

/// What is asked for, in a few words.
fn shown_request(asked: &Amounts, selector: &BTreeMap<String, String>, node: Option<&String>) -> String {
    let amounts = asked.iter().map(|(name, amount)| format!("{name}={}", amount.0));
    let labels = selector.iter().map(|(key, value)| format!("on {key}={value}"));
    let node = node.map(|node| format!("on node {node}"));
    let all: Vec<String> = amounts.chain(labels).chain(node).collect();
    if all.is_empty() { "all".to_owned() } else { all.join(" ") }
}

fn amount(amounts: &Amounts, resource: &str) -> String {
    amounts.get(resource).map_or("-".to_owned(), |amount| amount.0.clone())
}

fn namespace_status(offloading: &NamespaceOffloading, problems: &mut Vec<String>) -> NamespaceStatus {
    let name = offloading.namespace().unwrap_or_default();
    let status = offloading.status.clone().unwrap_or_default();
    problems.extend(problem(&status.conditions, "Ready").map(|why| format!("namespace {name}: {why}")));
    NamespaceStatus {
        placement: format!("{:?}", offloading.spec.pod_placement),
        ready: is_true(&status.conditions, "Ready"),
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
    let Status { cluster, peers, virtual_nodes, lent, namespaces, problems } = status;
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
                peer.transport.map_or("-".to_owned(), |transport| format!("{transport:?}")),
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
    section(
        &mut text,
        &["PEER", "BORROWS", "TRANSPORT", "LENDS", "NETWORK", "PODS SEEN", "SHADOW PODS"],
        rows,
    );
    let rows = peers
        .iter()
        .filter_map(|peer| {
            let access = peer.access.as_ref()?;
            let last = peer
                .denied
                .first()
                .map_or_else(|| "-".to_owned(), |last| shown_denied(last, Timestamp::now()));
            Some(vec![
                peer.name.clone(),
                format!("{:?}", access.default),
                access.rules.len().to_string(),
                last,
            ])
        })
        .collect();
    section(&mut text, &["ACCESS FROM", "DEFAULT", "RULES", "LAST DENIED"], rows);
    let transit = |peer: &PeerStatus| Some(shown_transit(&peer.name, peer.network.as_ref()?));
    let rows = peers.iter().filter_map(transit).flatten().collect();
    section(&mut text, &["PODS IN", "REACH THOSE IN", "THROUGH", "STATE"], rows);
    let rows = virtual_nodes
        .iter()
        .map(|node| {
            vec![
                node.name.clone(),
                node.peer.clone(),
                node.reason.clone(),
                shown_request(&node.asked, &node.node_selector, node.node.as_ref()),
                amount(&node.offered, "cpu"),
                amount(&node.offered, "memory"),
                amount(&node.offered, "pods"),
                dash(&node.price),
                node.offer.clone(),
            ]
        })
        .collect();
    let header = ["VIRTUAL NODE", "PEER", "STATE", "ASKS FOR", "CPU", "MEMORY", "PODS", "PRICE", "OFFER"];
    section(&mut text, &header, rows);
    let rows = lent
        .iter()
        .map(|slice| {
            vec![
                slice.peer.clone(),
                slice.virtual_node.clone(),
                shown_request(&slice.asked, &slice.node_selector, slice.node.as_ref()),
                amount(&slice.offered, "cpu"),
                amount(&slice.offered, "memory"),
                amount(&slice.offered, "pods"),
                dash(&slice.price),
                slice.state.clone(),
            ]
        })
        .collect();
    let header = ["LENT TO", "VIRTUAL NODE", "ASKS FOR", "CPU", "MEMORY", "PODS", "PRICE", "OFFER"];
    section(&mut text, &header, rows);
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

fn shown_denied(denied: &Denied, now: Timestamp) -> String {
    match denied.at {
        Some(at) => format!("{} s ago, {}", now.duration_since(at).as_secs().max(0), denied.message),
        None => denied.message.clone(),
    }
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
    use liquid_crds::DirectCidr;

    #[test]
    fn what_is_asked_for_and_what_it_costs_is_told_in_a_few_words() {
        let amounts = |of: &[(&str, &str)]| -> Amounts {
            of.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
        };
        let zone = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        assert_eq!(shown_request(&Amounts::new(), &BTreeMap::new(), None), "all");
        assert_eq!(shown_request(&amounts(&[("cpu", "2")]), &zone, None), "cpu=2 on zone=a");
        assert_eq!(shown_request(&Amounts::new(), &BTreeMap::new(), Some(&"n1".to_owned())), "on node n1");
        let price = |cpu: &str| Price {
            currency: "EUR".to_owned(),
            per_hour: BTreeMap::from([("cpu".to_owned(), cpu.to_owned())]),
        };
        let offered = amounts(&[("cpu", "2500m"), ("memory", "4Gi")]);
        assert_eq!(shown_price(Some(&price("0.04")), &offered).as_deref(), Some("0.10 EUR/h"));
        assert_eq!(shown_price(Some(&price("?")), &offered).as_deref(), Some("unreadable"));
        assert_eq!(shown_price(None, &offered), None);
    }

    #[test]
    fn prefixes_say_under_which_they_are_seen() {
        let cidr = |real: &str, seen: &str| PodCidr::own(real, seen);
        assert_eq!(shown_prefixes(&[]), "-");
        assert_eq!(shown_prefixes(&[cidr("10.1.0.0/16", "10.1.0.0/16")]), "10.1.0.0/16");
        let two = [cidr("10.1.0.0/16", "10.200.0.0/16"), cidr("fd00::/56", "fd00::/56")];
        assert_eq!(shown_prefixes(&two), "10.1.0.0/16 as 10.200.0.0/16 and 1 more");
        let further = PodCidr::transit("10.7.0.0/16", "10.8.0.0/16");
        let there = DirectCidr { peer: "rome".to_owned(), seen: "10.3.0.0/16".to_owned(), used: true };
        let direct = PodCidr { direct: Some(there), ..PodCidr::transit("10.6.0.0/16", "10.6.0.0/16") };
        assert_eq!(shown_prefixes(&[cidr("10.1.0.0/16", "10.1.0.0/16"), further.clone()]), "10.1.0.0/16");
        let told = TransitCidr { seen: "10.9.0.0/16".to_owned(), peer: "rome".to_owned(), ready: true };
        let network = NetworkState {
            ready: true,
            reason: String::new(),
            ways_up: 1,
            ways: 1,
            pod_cidrs: vec![further, direct, PodCidr::external("192.0.2.8/32", "10.255.0.0/32")],
            transit: vec![told],
        };
        assert_eq!(
            shown_transit("milan", &network),
            [
                ["milan", "10.9.0.0/16 of rome", "this cluster", "ready"],
                ["this cluster", "10.7.0.0/16 as 10.8.0.0/16", "milan", "known"],
                ["this cluster", "10.6.0.0/16 as 10.3.0.0/16 of rome", "-", "direct"],
                ["this cluster", "192.0.2.8/32 as 10.255.0.0/32 outside of milan", "milan", "known"],
            ]
        );
    }
}
