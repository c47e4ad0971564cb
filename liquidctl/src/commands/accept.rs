//! `liquidctl accept`: approve what a provider offers for a virtual node.

use super::duration;
use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::output::tell;
use crate::wait::{Look, until};
use clap::Args;
use kube::Api;
use kube::api::{Patch, PatchParams};
use liquid_crds::vocabulary::OFFER_ACCEPTED;
use liquid_crds::{Offer, VirtualNode, condition};
use serde_json::json;
use std::time::Duration;

/// Arguments of `liquidctl accept`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the virtual node
    virtual_node: String,
    /// Longest wait until the provider is told
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, arguments: Arguments) -> Result<(), Failure> {
    let client = cluster.connect().await?;
    let nodes: Api<VirtualNode> = Api::all(client);
    let name = arguments.virtual_node.as_str();
    let Some(node) = nodes.get_opt(name).await? else {
        return Err(Failure::input(format!(
            "there is no VirtualNode {name}: `kubectl get virtualnodes` lists them"
        )));
    };
    let status = node.status.unwrap_or_default();
    let why = condition(&status.conditions, OFFER_ACCEPTED).filter(|accepted| accepted.status == "False");
    let Some(Offer { terms, .. }) = &status.offer else {
        let why = why.map_or("it has not answered yet", |why| why.message.as_str());
        return Err(Failure::failed(format!("{} offers nothing for {name}: {why}", node.spec.peer)));
    };
    // The offer that was read is the one that is approved, whatever comes in between.
    let patch = json!({
        "metadata": { "uid": node.metadata.uid },
        "spec": { "acceptedOffer": terms },
    });
    nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    until(&format!("offer for {name}"), arguments.timeout, || async {
        let status = nodes.get(name).await?.status.unwrap_or_default();
        let current = status.offer.map(|offer| offer.terms).unwrap_or_default();
        if current != *terms {
            let message =
                format!("{} offers something else by now: look at it, and accept that", node.spec.peer);
            return Ok(Look::Done(Err(message)));
        }
        let accepted = condition(&status.conditions, OFFER_ACCEPTED);
        Ok(match accepted {
            Some(accepted) if accepted.status == "True" => Look::Done(Ok(())),
            Some(accepted) => Look::NotYet(accepted.message.clone()),
            None => Look::NotYet("the provider has not answered yet".to_owned()),
        })
    })
    .await?
    .map_err(Failure::failed)?;
    tell(&format!("the offer of {} for {name} is accepted", node.spec.peer));
    Ok(())
}
