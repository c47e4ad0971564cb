//! `liquidctl uninstall`: leaves nothing behind.

use super::duration;
use super::unpeer::{self, end};
use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::helm::{Helm, RELEASE, crds};
use crate::output::tell;
use crate::volumes::{self, Which};
use crate::wait::{Look, until};
use clap::Args;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};
use liquid_crds::{NamespaceOffloading, Peer, ShadowPod};
use std::time::Duration;

/// Arguments of `liquidctl uninstall`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// End all peerings first, also those in which peers borrow from this cluster
    #[arg(long)]
    unpeer: bool,
    /// With --unpeer: do not wait for clusters that cannot be reached
    #[arg(long, requires = "unpeer")]
    force: bool,
    /// Delete the volumes that claims of this cluster have in others, and these claims with them; and those that claims of
    /// other clusters have here. Without it they are kept
    #[arg(long, conflicts_with = "force")]
    delete_volumes: bool,
    /// Longest wait for each step
    #[arg(long, default_value = "3m", value_parser = duration)]
    timeout: Duration,
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, arguments: Arguments) -> Result<(), Failure> {
    let client = cluster.connect().await?;
    let helm = Helm::prepare(cluster).await?;
    if definitions_exist(&client).await? {
        end_all(&client, &arguments).await?;
        volumes::tell_kept(&client, Which::All).await?;
        volumes::kept_for_others(&client, None, arguments.delete_volumes, arguments.timeout).await?;
        refuse_leftovers(&client).await?;
    }
    tell("removing the chart");
    let release =
        helm.run(vec!["uninstall".into(), RELEASE.into(), "--ignore-not-found".into(), "--wait".into()]);
    release.await?;
    remove_definitions(&client, arguments.timeout).await?;
    remove_namespace(&client, &cluster.namespace, arguments.timeout).await?;
    // With the namespace the last process is gone that would put the finalizers back.
    volumes::let_go(&client).await?;
    tell("Liquid is removed");
    Ok(())
}

async fn definitions_exist(client: &Client) -> Result<bool, Failure> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for manifest in crds() {
        if api.get_opt(&manifest.crd.name_any()).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Ends what still goes on, or says what that is.
async fn end_all(client: &Client, arguments: &Arguments) -> Result<(), Failure> {
    let peers: Api<Peer> = Api::all(client.clone());
    let peers: Vec<String> =
        peers.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
    let offloadings: Api<NamespaceOffloading> = Api::all(client.clone());
    let namespaces: Vec<String> =
        offloadings.list(&ListParams::default()).await?.iter().filter_map(ResourceExt::namespace).collect();
    if !arguments.unpeer {
        let mut left = Vec::new();
        if !peers.is_empty() {
            left.push(format!("there are peerings ({}): run `liquidctl unpeer` for each", peers.join(", ")));
        }
        if !namespaces.is_empty() {
            let namespaces = namespaces.join(", ");
            let how = "run `liquidctl unoffload namespace` for each";
            left.push(format!("namespaces are offloaded ({namespaces}): {how}"));
        }
        if !left.is_empty() {
            return Err(Failure::failed(format!("{}; or use --unpeer", left.join("; "))));
        }
    }
    // Pods end first, and the provider says so; one that is gone for good would not.
    if arguments.delete_volumes {
        volumes::delete(client, &volumes::list(client, Which::All).await?).await?;
    }
    if !arguments.force {
        unoffload(client, &namespaces, arguments.timeout).await?;
    }
    for peer in peers {
        let Arguments { force, delete_volumes, timeout, .. } = *arguments;
        let options = unpeer::Options { force, delete_volumes, timeout };
        end(client, &peer, &options).await?;
    }
    if arguments.force {
        unoffload(client, &namespaces, arguments.timeout).await?;
    }
    Ok(())
}

async fn unoffload(client: &Client, namespaces: &[String], timeout: Duration) -> Result<(), Failure> {
    for namespace in namespaces {
        super::unoffload::take_back(client, namespace, timeout).await?;
    }
    Ok(())
}

/// ShadowPods of peers that were forgotten by force: whoever removes the definitions removes their pods.
async fn refuse_leftovers(client: &Client) -> Result<(), Failure> {
    let left = Api::<ShadowPod>::all(client.clone()).list(&ListParams::default()).await?.items.len();
    if left == 0 {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{left} ShadowPods of peers that are not known any more are left; delete their namespaces first \
         (kubectl get shadowpods --all-namespaces)"
    )))
}

async fn remove_definitions(client: &Client, timeout: Duration) -> Result<(), Failure> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for manifest in crds() {
        let name = manifest.crd.name_any();
        match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => continue,
            Err(error) => return Err(error.into()),
        }
        until(&format!("removal of definition {name}"), timeout, || async {
            let left = api.get_opt(&name).await?;
            Ok(if left.is_none() { Look::Done(()) } else { Look::NotYet("still there".to_owned()) })
        })
        .await?;
    }
    Ok(())
}

async fn remove_namespace(client: &Client, name: &str, timeout: Duration) -> Result<(), Failure> {
    let api: Api<Namespace> = Api::all(client.clone());
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    until(&format!("removal of namespace {name}"), timeout, || async {
        let Some(left) = api.get_opt(name).await? else { return Ok(Look::Done(())) };
        let conditions = left.status.and_then(|status| status.conditions).unwrap_or_default();
        let why = conditions.into_iter().find(|c| c.status == "True").and_then(|c| c.message);
        Ok(Look::NotYet(why.unwrap_or_else(|| "still there".to_owned())))
    })
    .await
}
