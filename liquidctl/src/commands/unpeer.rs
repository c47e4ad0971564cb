//! `liquidctl unpeer`: ends a peering on both sides.

use super::duration;
use crate::cluster::{ClusterArgs, require_info};
use crate::failure::Failure;
use crate::output::tell;
use crate::volumes::{self, Which};
use crate::wait::{Look, until};
use clap::Args;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use liquid_crds::vocabulary::{FINALIZER_CONSUME, FINALIZER_LEND, FORGET};
use liquid_crds::{Peer, VirtualNode, condition};
use serde_json::json;
use std::time::Duration;

/// Arguments of `liquidctl unpeer`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the peer
    peer: String,
    #[command(flatten)]
    options: Options,
}

/// How a peering is ended.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Do not wait for the other cluster: it cannot be reached and is gone for good. What this cluster runs there, if it
    /// still exists, keeps running until it is removed there
    #[arg(long)]
    pub(crate) force: bool,
    /// Delete the volumes that claims of this cluster have there, and these claims with them; and those that claims of the
    /// other cluster have here. Without it they are kept
    #[arg(long, conflicts_with = "force")]
    pub(crate) delete_volumes: bool,
    /// Longest wait until everything is removed
    #[arg(long, default_value = "3m", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, arguments: Arguments) -> Result<(), Failure> {
    let client = cluster.connect().await?;
    require_info(&client, &cluster.namespace).await?;
    end(&client, &arguments.peer, &arguments.options).await?;
    tell(&format!("the peering with {} is ended; nothing of it is left here", arguments.peer));
    Ok(())
}

/// Ends the peering with `name`.
pub(crate) async fn end(client: &Client, name: &str, options: &Options) -> Result<(), Failure> {
    let peers: Api<Peer> = Api::all(client.clone());
    let Some(peer) = peers.get_opt(name).await? else {
        let known = peers.list(&ListParams::default()).await?;
        let known: Vec<String> = known.iter().map(ResourceExt::name_any).collect();
        let hint = if known.is_empty() {
            "there are none".to_owned()
        } else {
            format!("known are {}", known.join(", "))
        };
        return Err(Failure::input(format!("there is no peer {name}; {hint}")));
    };
    if options.force {
        let patch = json!({ "metadata": { "annotations": { FORGET: peer.metadata.uid } } });
        peers.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    let there = Which::InCluster(&peer.spec.cluster_id);
    if options.delete_volumes {
        volumes::delete(client, &volumes::list(client, there).await?).await?;
    }
    match peers.delete(name, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    until(&format!("end of the peering with {name}"), options.timeout, || async {
        let Some(left) = peers.get_opt(name).await?.filter(|left| left.metadata.uid == peer.metadata.uid)
        else {
            return Ok(Look::Done(()));
        };
        Ok(Look::NotYet(missing(client, &left).await?))
    })
    .await?;
    if options.delete_volumes {
        volumes::deleted(client, there, options.timeout).await?;
    } else {
        volumes::tell_kept(client, there).await?;
    }
    volumes::kept_for_others(client, Some(&peer.spec.cluster_id), options.delete_volumes, options.timeout)
        .await
}

/// What is still to be removed.
async fn missing(client: &Client, peer: &Peer) -> Result<String, Failure> {
    let held = |finalizer: &str| peer.finalizers().iter().any(|held| held == finalizer);
    let conditions = peer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let down = condition(conditions, "LinkUp").filter(|c| c.status != "True");
    if held(FINALIZER_CONSUME) {
        let nodes = Api::<VirtualNode>::all(client.clone()).list(&ListParams::default()).await?;
        if let Some(node) = nodes.iter().find(|node| node.spec.peer == peer.name_any()) {
            let conditions =
                node.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            let why = condition(conditions, "Ready").map(|c| c.message.clone()).unwrap_or_default();
            let hint = down.map(|down| {
                format!(
                    "; the provider is not connected ({}): if it is gone for good, use --force",
                    down.message
                )
            });
            let hint = hint.unwrap_or_default();
            return Ok(format!("virtual node {} is being removed: {why}{hint}", node.name_any()));
        }
        return Ok(match down {
            Some(condition) => condition.message.clone(),
            None => "the provider is removing what ran there".to_owned(),
        });
    }
    if held(FINALIZER_LEND) {
        return Ok("what ran here for it is being removed".to_owned());
    }
    Ok("the Peer is being removed".to_owned())
}
