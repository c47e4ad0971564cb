//! `liquidctl unoffload namespace`.

use super::duration;
use crate::cluster::{ClusterArgs, require_info};
use crate::failure::Failure;
use crate::output::tell;
use crate::volumes::{self, Which};
use crate::wait::{Look, until};
use clap::{Args, Subcommand};
use kube::api::DeleteParams;
use kube::{Api, Client};
use liquid_crds::NamespaceOffloading;
use liquid_crds::vocabulary::OFFLOADING_NAME;
use std::time::Duration;

/// What is taken back.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// End the pods of a namespace that run on virtual nodes, and keep new ones on physical nodes
    Namespace(Arguments),
}

/// Arguments of `liquidctl unoffload namespace`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the namespace
    offloaded_namespace: String,
    /// Delete the volumes its claims have in providers, and these claims with them. Without it they are kept
    #[arg(long)]
    delete_volumes: bool,
    /// Longest wait until its pods and the namespaces in the providers are gone
    #[arg(long, default_value = "3m", value_parser = duration)]
    timeout: Duration,
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, command: Command) -> Result<(), Failure> {
    let Command::Namespace(arguments) = command;
    let client = cluster.connect().await?;
    require_info(&client, &cluster.namespace).await?;
    let namespace = &arguments.offloaded_namespace;
    let api: Api<NamespaceOffloading> = Api::namespaced(client.clone(), namespace);
    if api.get_opt(OFFLOADING_NAME).await?.is_none() {
        return Err(Failure::input(format!("namespace {namespace} is not offloaded")));
    }
    let which = Which::OfNamespace(namespace);
    if arguments.delete_volumes {
        volumes::delete(&client, &volumes::list(&client, which).await?).await?;
    }
    take_back(&client, namespace, arguments.timeout).await?;
    if arguments.delete_volumes {
        volumes::deleted(&client, which, arguments.timeout).await?;
    } else {
        volumes::tell_kept(&client, which).await?;
    }
    tell(&format!("namespace {namespace} is offloaded no more"));
    Ok(())
}

/// Ends the offloading of `namespace`.
pub(crate) async fn take_back(client: &Client, namespace: &str, timeout: Duration) -> Result<(), Failure> {
    let api: Api<NamespaceOffloading> = Api::namespaced(client.clone(), namespace);
    match api.delete(OFFLOADING_NAME, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    until(&format!("taking back namespace {namespace}"), timeout, || async {
        let Some(left) = api.get_opt(OFFLOADING_NAME).await? else { return Ok(Look::Done(())) };
        let remote = left.status.unwrap_or_default().remote_namespaces;
        let places: Vec<String> = remote.iter().map(|r| format!("{} in {}", r.name, r.peer)).collect();
        Ok(Look::NotYet(if places.is_empty() {
            "its pods are ending".to_owned()
        } else {
            format!("pods and namespaces are being removed: {}", places.join(", "))
        }))
    })
    .await
}
