//! `liquidctl invite`: makes a join token.

use super::duration;
use crate::cluster::{ClusterArgs, ClusterInfo, require_info};
use crate::failure::Failure;
use crate::output::{Format, print, print_data, tell};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use liquid_crds::Verdict;
use liquid_link::introduction::Introduction;
use liquid_link::token::{JoinToken, Reach};
use liquid_link::token_secret::{Terms, secret_for};
use liquid_runtime::clock::unix_seconds;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// For `liquidctl peer in-band`: the token leads through the gateways, of which one UDP port has to be reachable, and to
    /// nothing else
    #[arg(long, conflicts_with = "advertise")]
    in_band: bool,
    /// File with the introduction of the cluster that shall borrow (made there with `liquidctl introduce`; - is standard
    /// input): the gateways of this cluster call its gateways, and the token is of use to no other cluster
    #[arg(long, value_name = "FILE", requires = "in_band")]
    introduction: Option<PathBuf>,
    /// What becomes of connections from pods of the cluster that joins to pods here, until its Peer says otherwise
    /// (spec.network.access)
    #[arg(long, value_enum, default_value_t = Access::Allow)]
    access: Access,
    /// Print more than the token
    #[arg(long, short, value_enum)]
    output: Option<Format>,
}

/// What becomes of connections for which there is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Access {
    /// They are let in
    Allow,
    /// They are not
    Deny,
}

impl From<Access> for Verdict {
    fn from(access: Access) -> Self {
        match access {
            Access::Allow => Self::Allow,
            Access::Deny => Self::Deny,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, arguments: Arguments) -> Result<(), Failure> {
    let introduction = arguments.introduction.as_deref().map(introduced).transpose()?;
    let client = cluster.connect().await?;
    let way = match arguments.in_band {
        true => Way::InBand(introduction.as_ref()),
        false => Way::Direct(arguments.advertise),
    };
    let (description, access) = (arguments.description.as_deref(), arguments.access.into());
    let token = make(&client, &cluster.namespace, arguments.ttl, way, description, access).await?;
    if let Some(format) = arguments.output {
        return print_data(
            &json!({
                "token": token.to_string(),
                "id": token.id,
                "cluster": token.cluster_name,
                "clusterID": token.cluster_id,
                "endpoints": token.endpoints,
                "gateways": token.tunnel.as_ref().map(|tunnel| &tunnel.gateways),
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

fn introduced(file: &Path) -> Result<Introduction, Failure> {
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin())?,
        false => std::fs::read_to_string(file)
            .map_err(|error| Failure::input(format!("{} cannot be read: {error}", file.display())))?,
    };
    Introduction::parse(&text).map_err(Failure::input)
}

/// How the holder of a token finds the way.
pub(crate) enum Way<'a> {
    /// To the link endpoint: at these addresses or, if there are none, at those it advertises.
    Direct(Vec<String>),
    /// Through the gateways; these know the gateways of the cluster that was introduced.
    InBand(Option<&'a Introduction>),
}

/// Makes a token for the cluster behind `client`.
pub(crate) async fn make(
    client: &Client,
    namespace: &str,
    ttl: Duration,
    way: Way<'_>,
    description: Option<&str>,
    access: Verdict,
) -> Result<JoinToken, Failure> {
    let info = require_info(client, namespace).await?;
    let (reach, introduction) = match way {
        Way::Direct(advertise) => (direct(&info, advertise)?, None),
        Way::InBand(introduction) => (in_band(&info, introduction)?, introduction),
    };
    let now = unix_seconds();
    let expires = now.saturating_add(ttl.as_secs());
    let token =
        JoinToken::generate(info.name, info.id, reach, info.ca_sha256, expires).map_err(Failure::failed)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secret_for(&token, namespace, Terms { description, introduction, access });
    secrets.create(&PostParams::default(), &secret).await?;
    Ok(token)
}

fn direct(info: &ClusterInfo, advertise: Vec<String>) -> Result<Reach, Failure> {
    let endpoints = if advertise.is_empty() { info.endpoints.clone() } else { advertise };
    if endpoints.is_empty() {
        return Err(Failure::failed(format!(
            "the link endpoint of {} has no address outside the cluster: install with --link-service load-balancer or \
             node-port, name its address with --advertise host:port, or go through the gateways with --in-band",
            info.name
        )));
    }
    Ok(Reach::Direct(endpoints))
}

fn in_band(info: &ClusterInfo, introduction: Option<&Introduction>) -> Result<Reach, Failure> {
    let name = &info.name;
    let gateways = info.require_gateways()?.to_vec();
    match introduction {
        None if !info.can_be_called() => Err(Failure::failed(format!(
            "no gateway of {name} has an address outside the cluster, so that {name} has to call: run `liquidctl introduce` \
             in the cluster that shall borrow, and here `liquidctl invite --in-band --introduction FILE` with what it \
             prints; or give the gateways an address (--set network.service.type=LoadBalancer or NodePort, --set \
             network.advertise) when you install"
        ))),
        Some(other) if other.cluster_id == info.id => {
            Err(Failure::input("this is the introduction of this very cluster"))
        }
        Some(other)
            if !info.can_be_called() && other.gateways.iter().all(|gateway| gateway.endpoints.is_empty()) =>
        {
            Err(Failure::failed(format!(
                "neither the gateways of {name} nor those of {} have an address outside their cluster: one UDP port of one \
                 of them has to be reachable (network.service.type, network.advertise of the chart)",
                other.cluster_name
            )))
        }
        _ => Ok(Reach::InBand { gateways, guest: introduction.is_none() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::PeerGateway;

    fn gateways(reachable: bool) -> Vec<PeerGateway> {
        let endpoints = if reachable { vec!["192.0.2.1:31820".to_owned()] } else { Vec::new() };
        vec![PeerGateway { name: None, public_key: "k".to_owned(), endpoints, probes: true }]
    }

    fn info(gateways: Vec<PeerGateway>) -> ClusterInfo {
        ClusterInfo {
            id: "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap(),
            name: "milan".parse().unwrap(),
            ca_sha256: "ab".repeat(32),
            endpoints: Vec::new(),
            gateways,
            version: "0.1.0".to_owned(),
        }
    }

    fn introduction(reachable: bool) -> Introduction {
        Introduction {
            cluster_name: "turin".parse().unwrap(),
            cluster_id: "4f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap(),
            gateways: gateways(reachable),
        }
    }

    #[test]
    fn one_side_has_to_be_reachable_and_the_other_is_told_what_to_do() {
        let guest = |info: ClusterInfo, introduction: Option<Introduction>| {
            in_band(&info, introduction.as_ref()).map(|reach| match reach {
                Reach::InBand { guest, .. } => guest,
                Reach::Direct(_) => panic!("through the gateways"),
            })
        };
        assert_eq!(guest(info(gateways(true)), None).ok(), Some(true));
        let called = guest(info(gateways(false)), None).unwrap_err().to_string();
        assert!(called.contains("liquidctl introduce"), "{called}");
        assert_eq!(guest(info(gateways(false)), Some(introduction(true))).ok(), Some(false));
        assert_eq!(guest(info(gateways(true)), Some(introduction(false))).ok(), Some(false));
        let neither = guest(info(gateways(false)), Some(introduction(false))).unwrap_err().to_string();
        assert!(neither.contains("neither"), "{neither}");
        let none = guest(info(Vec::new()), None).unwrap_err().to_string();
        assert!(none.contains("network.enabled"), "{none}");
    }
}
