//! `liquidctl peer`: borrow from another cluster.

use super::duration;
use super::invite::{self, Access};
use crate::cluster::{ClusterArgs, ClusterInfo, connect, require_info};
use crate::failure::Failure;
use crate::output::tell;
use crate::wait::{Look, until};
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use liquid_crds::vocabulary::{MANAGED_BY, MANAGED_BY_LIQUID, OFFER_ACCEPTED};
use liquid_crds::{
    ConsumeSpec, NetworkSpec, Peer, PeerSpec, Transport, Verdict, VirtualNode, VirtualNodes, condition,
    is_true,
};
use liquid_link::introduction::Introduction;
use liquid_link::token::JoinToken;
use liquid_runtime::clock::unix_seconds;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Life of a token that is made and used in one go.
const SHORT_LIFE: Duration = Duration::from_secs(300);

/// How the clusters reach each other.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Over the provider's link endpoint, which this cluster's pods can reach
    OutOfBand(Arguments),
    /// Through the tunnel between the gateways: nothing has to be reachable but one UDP port of a gateway, of either cluster
    ///
    /// The token comes from `liquidctl invite --in-band` in the provider. If the provider's gateways cannot be called, they
    /// call this cluster's: hand the provider's administrator what `liquidctl introduce` prints here. With --remote-kubeconfig
    /// all of this is done at once.
    InBand(Arguments),
}

/// Arguments of `liquidctl peer out-of-band` and `in-band`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Join token of the provider (made there with `liquidctl invite`); - reads it from standard input
    #[arg(long, required_unless_present_any = ["token_file", "remote_kubeconfig"])]
    token: Option<String>,
    /// File with the join token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Kubeconfig of the provider: the token is made there, no other is needed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token", "token_file"])]
    remote_kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig of the provider
    #[arg(long, requires = "remote_kubeconfig")]
    remote_context: Option<String>,
    /// Namespace Liquid runs in at the provider
    #[arg(long, default_value = "liquid-system", requires = "remote_kubeconfig")]
    remote_namespace: String,
    /// What becomes of connections from the provider's pods to pods here, if its Peer does not say (spec.network.access); pods
    /// of this cluster that run there are among these
    #[arg(long, value_enum, default_value_t = Access::Allow)]
    access: Access,
    /// With --remote-kubeconfig: the same at the provider, about this cluster's pods
    #[arg(long, value_enum, default_value_t = Access::Allow, requires = "remote_kubeconfig")]
    remote_access: Access,
    /// Which virtual nodes are made
    #[arg(long, value_enum, default_value_t = Made::PerPeer)]
    virtual_nodes: Made,
    /// With --virtual-nodes per-node: a label of the nodes that get one, as KEY=VALUE; may be repeated
    #[arg(long, value_parser = label)]
    node_selector: Vec<(String, String)>,
    /// Longest wait until the virtual node is ready
    #[arg(long, default_value = "2m", value_parser = duration)]
    timeout: Duration,
}

/// Which virtual nodes are made of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Made {
    /// One, liquid-NAME
    PerPeer,
    /// One for each of its nodes, liquid-NAME-NODE, if it tells of them
    PerNode,
    /// None: make VirtualNodes of your own
    None,
}

impl From<Made> for VirtualNodes {
    fn from(made: Made) -> Self {
        match made {
            Made::PerPeer => Self::PerPeer,
            Made::PerNode => Self::PerNode,
            Made::None => Self::None,
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let label = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = label.ok_or_else(|| format!("{text:?} is no label of the form KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, command: Command) -> Result<(), Failure> {
    let (transport, arguments) = match command {
        Command::OutOfBand(arguments) => (Transport::Direct, arguments),
        Command::InBand(arguments) => (Transport::InBand, arguments),
    };
    // What can be told from the token alone is told before anything is asked of anyone.
    let given = given_token(&arguments)?;
    given.as_ref().map_or(Ok(()), |token| fits(token, transport))?;
    let client = cluster.connect().await?;
    let own = require_info(&client, &cluster.namespace).await?;
    if transport == Transport::InBand {
        own.require_gateways()?;
    }
    let token = match given {
        Some(token) => token,
        None => remote_token(&arguments, &own, transport).await?,
    };
    if token.cluster_id == own.id {
        return Err(Failure::input(
            "this is a token of this very cluster: a cluster cannot peer with itself",
        ));
    }
    if token.cluster_name == own.name {
        return Err(Failure::input(format!(
            "both clusters are called {}: install one of them with another --cluster-name",
            own.name
        )));
    }
    let started = Instant::now();
    let consume = ConsumeSpec {
        transport,
        endpoints: token.endpoints.clone(),
        ca_sha256: token.ca_sha256.clone(),
        join_secret: Some(join_secret(token.cluster_name.as_str())),
        virtual_nodes: arguments.virtual_nodes.into(),
        node_selector: arguments.node_selector.iter().cloned().collect(),
        ..ConsumeSpec::default()
    };
    if !consume.node_selector.is_empty() && arguments.virtual_nodes != Made::PerNode {
        return Err(Failure::input("--node-selector chooses among nodes: it needs --virtual-nodes per-node"));
    }
    let made = make(&client, &cluster.namespace, &token, consume, arguments.access.into()).await?;
    let name = token.cluster_name.to_string();
    if let Err(failure) = wait_joined(&client, &name, arguments.timeout).await {
        // A refusal leaves nothing behind; what was there before stays.
        if let Wait::Refused(message) = failure {
            made.undo(&client, &cluster.namespace).await;
            return Err(Failure::failed(message));
        }
        return Err(failure.into());
    }
    let (own, seconds) = (&own.name, || started.elapsed().as_secs_f64());
    match arguments.virtual_nodes {
        Made::None => tell(&format!("{own} joined {name} in {:.1} s", seconds())),
        Made::PerPeer => {
            let node = token.cluster_name.virtual_node();
            match wait_ready(&client, &node, arguments.timeout).await? {
                None => {
                    tell(&format!("{own} borrows from {name}: node {node} is ready after {:.1} s", seconds()))
                }
                Some(why) => {
                    tell(&format!("{own} joined {name} in {:.1} s; there is no node yet: {why}", seconds()));
                }
            }
        }
        Made::PerNode => {
            let told = wait_per_node(&client, &name, arguments.timeout).await?;
            tell(&format!("{own} borrows from {name}: {told} ({:.1} s)", seconds()));
        }
    }
    Ok(())
}

fn given_token(arguments: &Arguments) -> Result<Option<JoinToken>, Failure> {
    let text = match (&arguments.token, &arguments.token_file) {
        (Some(dash), _) if dash == "-" => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            text
        }
        (Some(text), _) => text.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|error| Failure::input(format!("{} cannot be read: {error}", file.display())))?,
        (None, None) => return Ok(None),
    };
    let now = unix_seconds();
    JoinToken::parse(&text, now).map(Some).map_err(Failure::input)
}

/// Whether the token is one for this way of peering.
fn fits(token: &JoinToken, transport: Transport) -> Result<(), Failure> {
    match (transport, &token.tunnel) {
        (Transport::Direct, Some(_)) => Err(Failure::input(
            "this is a token for the way through the gateways: use `liquidctl peer in-band`",
        )),
        (Transport::InBand, None) => Err(Failure::input(
            "this is a token for `liquidctl peer out-of-band`: make one for the way through the gateways with `liquidctl \
             invite --in-band`",
        )),
        _ => Ok(()),
    }
}

async fn remote_token(
    arguments: &Arguments,
    own: &ClusterInfo,
    transport: Transport,
) -> Result<JoinToken, Failure> {
    let remote = connect(arguments.remote_kubeconfig.clone(), arguments.remote_context.clone()).await?;
    let description = format!("for {}", own.name);
    let introduction = Introduction {
        cluster_name: own.name.clone(),
        cluster_id: own.id.clone(),
        gateways: own.gateways.clone(),
    };
    let way = match transport {
        Transport::Direct => invite::Way::Direct(Vec::new()),
        Transport::InBand => invite::Way::InBand(Some(&introduction)),
    };
    let (namespace, access) = (&arguments.remote_namespace, arguments.remote_access.into());
    invite::make(&remote, namespace, SHORT_LIFE, way, Some(&description), access).await
}

/// What the command has made, to be taken back if the provider refuses.
struct Begun {
    name: String,
    before: Before,
    /// It has restricted the access of a Peer that there was.
    restricted: bool,
}

/// What there was of the peer.
enum Before {
    Nothing,
    /// It borrows from this cluster.
    Lending,
    /// This cluster borrows from it, and has to join again.
    Borrowing(ConsumeSpec),
}

impl Before {
    /// What `spec.consume` was; `None` if there was no Peer.
    fn consume(&self) -> Option<Value> {
        match self {
            Before::Nothing => None,
            Before::Lending => Some(Value::Null),
            // Taking it away would end what runs there.
            Before::Borrowing(consume) => Some(json!(consume)),
        }
    }
}

impl Begun {
    async fn undo(self, client: &Client, namespace: &str) {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        drop(secrets.delete(&join_secret(&self.name), &DeleteParams::default()).await);
        let peers: Api<Peer> = Api::all(client.clone());
        let consume = self.before.consume();
        if consume.is_none() {
            drop(peers.delete(&self.name, &DeleteParams::default()).await);
        }
        if let Some(consume) = consume {
            let mut patch = json!({ "spec": { "consume": consume } });
            if self.restricted {
                patch["spec"]["network"] = json!({"access": null});
            }
            drop(peers.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await);
        }
        let gone = |peer: &Option<Peer>| match (&self.before, peer) {
            (_, None) | (Before::Borrowing(_), _) => true,
            (Before::Nothing, Some(_)) => false,
            (Before::Lending, Some(peer)) => peer.spec.consume.is_none(),
        };
        let removed = until("removal of what was begun", Duration::from_secs(20), || async {
            let left = peers.get_opt(&self.name).await?;
            Ok(if gone(&left) { Look::Done(()) } else { Look::NotYet("Peer is still there".to_owned()) })
        });
        if let Err(failure) = removed.await {
            tell(&failure.to_string());
        }
    }
}

fn join_secret(peer: &str) -> String {
    format!("liquid-join-{peer}")
}

async fn make(
    client: &Client,
    namespace: &str,
    token: &JoinToken,
    consume: ConsumeSpec,
    access: Verdict,
) -> Result<Begun, Failure> {
    let name = token.cluster_name.to_string();
    let peers: Api<Peer> = Api::all(client.clone());
    let known = peers.get_opt(&name).await?;
    if let Some(peer) = &known {
        if peer.spec.cluster_id != token.cluster_id.as_str() {
            return Err(Failure::input(format!(
                "another cluster is known here as {name} ({}): one of the two needs another --cluster-name",
                peer.spec.cluster_id
            )));
        }
        if peer.metadata.deletion_timestamp.is_some() {
            return Err(Failure::failed(format!("an earlier peering with {name} is still being removed")));
        }
        let conditions = peer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        // One that has lost the provider may find it again with a token: it says where the provider is now.
        if peer.spec.consume.is_some() && is_true(conditions, "Joined") && is_true(conditions, "LinkUp") {
            return Err(Failure::input(format!(
                "this cluster borrows from {name} already; the token was not used"
            )));
        }
    }
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(join_secret(&name)),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            ..ObjectMeta::default()
        },
        string_data: Some(BTreeMap::from([("token".to_owned(), token.to_string())])),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let apply = PatchParams::apply("liquidctl").force();
    secrets.patch(&join_secret(&name), &apply, &Patch::Apply(&secret)).await?;
    match known {
        None => {
            let spec = PeerSpec {
                cluster_id: token.cluster_id.to_string(),
                consume: Some(consume),
                lend: None,
                network: NetworkSpec::at_first(access),
            };
            peers.create(&PostParams::default(), &Peer::new(&name, spec)).await?;
            Ok(Begun { name, before: Before::Nothing, restricted: false })
        }
        Some(peer) => {
            let network = peer.spec.restriction(access);
            let restricted = network.is_some();
            let mut patch = json!({
                "metadata": { "resourceVersion": peer.metadata.resource_version },
                "spec": { "consume": consume },
            });
            if let Some(network) = network {
                patch["spec"]["network"] = json!(network);
            } else if access == Verdict::Deny {
                tell(&format!("--access changes nothing: Peer {name} has rules of access, which stay"));
            }
            peers.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
            let before = peer.spec.consume.map_or(Before::Lending, Before::Borrowing);
            Ok(Begun { name, before, restricted })
        }
    }
}

enum Wait {
    Refused(String),
    Other(Failure),
}

impl From<Wait> for Failure {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Refused(message) => Failure::failed(message),
            Wait::Other(failure) => failure,
        }
    }
}

async fn wait_joined(client: &Client, name: &str, timeout: Duration) -> Result<(), Wait> {
    let peers: Api<Peer> = Api::all(client.clone());
    let outcome = until(&format!("joining {name}"), timeout, || async {
        let peer = peers.get(name).await?;
        let joined = peer.status.as_ref().and_then(|status| condition(&status.conditions, "Joined"));
        // A condition of an earlier try says nothing about this one.
        let current = joined.filter(|c| c.observed_generation >= peer.metadata.generation);
        Ok(match current {
            Some(condition) if condition.status == "True" => Look::Done(Ok(())),
            Some(condition) if condition.reason == "JoinRefused" => {
                Look::Done(Err(condition.message.clone()))
            }
            Some(condition) => Look::NotYet(condition.message.clone()),
            None => Look::NotYet("liquid-controller has not begun".to_owned()),
        })
    })
    .await
    .map_err(Wait::Other)?;
    outcome.map_err(Wait::Refused)
}

/// Waits until the node is ready; returns why there will be none before somebody does something, if so.
async fn wait_ready(client: &Client, node: &str, timeout: Duration) -> Result<Option<String>, Failure> {
    let nodes: Api<Node> = Api::all(client.clone());
    let virtual_nodes: Api<VirtualNode> = Api::all(client.clone());
    until(&format!("node {node}"), timeout, || async {
        let conditions = nodes.get_opt(node).await?.and_then(|node| node.status).and_then(|s| s.conditions);
        let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready");
        if ready.as_ref().is_some_and(|condition| condition.status == "True") {
            return Ok(Look::Done(None));
        }
        let virtual_node = virtual_nodes.get_opt(node).await?;
        let conditions = virtual_node.and_then(|node| node.status).map(|status| status.conditions);
        let conditions = conditions.unwrap_or_default();
        if let Some(refused) = condition(&conditions, OFFER_ACCEPTED).filter(|c| c.status == "False") {
            return Ok(Look::Done(Some(refused.message.clone())));
        }
        let why = ready.and_then(|condition| condition.message);
        let why = why.or_else(|| condition(&conditions, "Ready").map(|c| c.message.clone()));
        Ok(Look::NotYet(why.unwrap_or_else(|| "it does not exist yet".to_owned())))
    })
    .await
}

/// Waits until there is a virtual node for each node of the peer, and one of them is ready; says how many there are.
async fn wait_per_node(client: &Client, name: &str, timeout: Duration) -> Result<String, Failure> {
    let peers: Api<Peer> = Api::all(client.clone());
    let virtual_nodes: Api<VirtualNode> = Api::all(client.clone());
    let what = format!("virtual nodes of {name}");
    let made = until(&what, timeout, || async {
        let peer = peers.get(name).await?;
        let made = peer.status.as_ref().and_then(|status| condition(&status.conditions, "VirtualNodesMade"));
        let message = match made.filter(|made| made.observed_generation >= peer.metadata.generation) {
            None => return Ok(Look::NotYet("the peer has not told of its nodes".to_owned())),
            Some(made) if made.status == "True" => made.message.clone(),
            Some(made) => return Ok(Look::Done(Err(made.message.clone()))),
        };
        let all = virtual_nodes.list(&ListParams::default()).await?;
        let mut ours = all.iter().filter(|node| node.spec.peer == name);
        let ready = |node: &VirtualNode| {
            node.status.as_ref().is_some_and(|status| is_true(&status.conditions, "Ready"))
        };
        Ok(if ours.any(ready) { Look::Done(Ok(message)) } else { Look::NotYet("none is ready".to_owned()) })
    });
    made.await?
        .map_err(|why| Failure::failed(format!("the clusters are peered, but without virtual nodes: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_a_key_and_a_value() {
        assert_eq!(label("zone=a"), Ok(("zone".to_owned(), "a".to_owned())));
        assert_eq!(label("zone="), Ok(("zone".to_owned(), String::new())));
        assert!(label("zone").is_err() && label("=a").is_err());
    }

    #[test]
    fn a_refusal_takes_nothing_away_that_was_there_before() {
        let consume = ConsumeSpec {
            transport: Transport::Direct,
            endpoints: vec!["milan:7443".to_owned()],
            ca_sha256: "ab".to_owned(),
            ..ConsumeSpec::default()
        };
        assert_eq!(Before::Borrowing(consume).consume().unwrap()["endpoints"], json!(["milan:7443"]));
        assert_eq!(Before::Lending.consume(), Some(Value::Null));
        assert_eq!(Before::Nothing.consume(), None, "the Peer is deleted");
    }
}
