//! `liquidctl invite`: makes a join token.

use super::duration;
use crate::cluster::{ClusterArgs, require_info};
use crate::failure::Failure;
use crate::output::{Format, print, print_data, tell};
use clap::Args;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use liquid_link::token::JoinToken;
use liquid_link::token_secret::secret_for;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Arguments of `liquidctl invite`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long the token may be used
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
    /// What the token is for, kept with it
    #[arg(long)]
    description: Option<String>,
    /// Address (host:port) of this cluster's link endpoint to put into the token, instead of those it advertises; may be
    /// repeated
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// Print more than the token
    #[arg(long, short, value_enum)]
    output: Option<Format>,
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, arguments: Arguments) -> Result<(), Failure> {
    let client = cluster.connect().await?;
    let token = make(
        &client,
        &cluster.namespace,
        arguments.ttl,
        arguments.advertise,
        arguments.description.as_deref(),
    )
    .await?;
    if let Some(format) = arguments.output {
        return print_data(
            &json!({
                "token": token.to_string(),
                "id": token.id,
                "cluster": token.cluster_name,
                "clusterID": token.cluster_id,
                "endpoints": token.endpoints,
                "expires": token.expires,
            }),
            format,
        );
    }
    print(&format!("{token}\n"))?;
    tell(&format!(
        "whoever has this token may join {} once within {} s; revoke it with `kubectl -n {} delete secret {}`",
        token.cluster_name,
        arguments.ttl.as_secs(),
        cluster.namespace,
        liquid_link::token_secret::secret_name(&token.id),
    ));
    Ok(())
}

/// Makes a token for the cluster behind `client`.
pub(crate) async fn make(
    client: &Client,
    namespace: &str,
    ttl: Duration,
    advertise: Vec<String>,
    description: Option<&str>,
) -> Result<JoinToken, Failure> {
    let info = require_info(client, namespace).await?;
    let endpoints = if advertise.is_empty() { info.endpoints } else { advertise };
    if endpoints.is_empty() {
        return Err(Failure::failed(format!(
            "the link endpoint of {} has no address outside the cluster: install with --link-service load-balancer or \
             node-port, or name its address with --advertise host:port",
            info.name
        )));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expires = now.saturating_add(ttl.as_secs());
    let token = JoinToken::generate(info.name, info.id, endpoints, info.ca_sha256, expires)
        .map_err(Failure::failed)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    secrets.create(&PostParams::default(), &secret_for(&token, namespace, description)).await?;
    Ok(token)
}
