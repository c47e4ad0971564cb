//! The cluster a command works on.

use crate::failure::Failure;
use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use liquid_crds::vocabulary::CLUSTER_INFO;
use liquid_crds::{ClusterId, ClusterName, PeerGateway};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Time to connect to an API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which cluster, and where in it Liquid is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterArgs {
    /// Kubeconfig of the cluster [default: as kubectl]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig [default: the current one]
    #[arg(long, global = true)]
    pub(crate) context: Option<String>,
    /// Namespace Liquid runs in
    #[arg(long, global = true, default_value = "liquid-system")]
    pub(crate) namespace: String,
}

impl ClusterArgs {
    /// Connects to the cluster.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        connect(self.kubeconfig.clone(), self.context.clone()).await
    }
}

/// Connects with a kubeconfig.
pub(crate) async fn connect(path: Option<PathBuf>, context: Option<String>) -> Result<Client, Failure> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let shown = path.as_ref().map_or("the kubeconfig".to_owned(), |path| path.display().to_string());
    let unusable = |error: &dyn std::fmt::Display| Failure::input(format!("{shown} cannot be used: {error}"));
    let kubeconfig = match &path {
        Some(path) => Kubeconfig::read_from(path).map_err(|error| unusable(&error))?,
        None => Kubeconfig::read().map_err(|error| unusable(&error))?,
    };
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unusable(&error))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| unusable(&error))
}

/// What a cluster publishes of itself.
#[derive(Debug, Clone)]
pub(crate) struct ClusterInfo {
    pub(crate) id: ClusterId,
    pub(crate) name: ClusterName,
    pub(crate) ca_sha256: String,
    /// Addresses (host:port) of its link endpoint.
    pub(crate) endpoints: Vec<String>,
    /// Its gateways; none without a network.
    pub(crate) gateways: Vec<PeerGateway>,
    pub(crate) version: String,
}

impl ClusterInfo {
    /// Its gateways, without which it cannot peer in band.
    ///
    /// # Errors
    /// If there are none.
    pub(crate) fn require_gateways(&self) -> Result<&[PeerGateway], Failure> {
        if self.gateways.is_empty() {
            return Err(Failure::failed(format!(
                "{} has no gateway: in-band peering needs one in both clusters; install with network.enabled=true (the \
                 default)",
                self.name
            )));
        }
        Ok(&self.gateways)
    }

    /// Whether a gateway can be called from outside.
    pub(crate) fn can_be_called(&self) -> bool {
        self.gateways.iter().any(|gateway| !gateway.endpoints.is_empty())
    }
}

/// Reads what the cluster publishes; `None` if Liquid is not (yet) running there.
pub(crate) async fn info(client: &Client, namespace: &str) -> Result<Option<ClusterInfo>, Failure> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let Some(published) = api.get_opt(CLUSTER_INFO).await? else { return Ok(None) };
    parse(published.data.unwrap_or_default()).map(Some)
}

/// As [`info`], but Liquid has to be there.
pub(crate) async fn require_info(client: &Client, namespace: &str) -> Result<ClusterInfo, Failure> {
    info(client, namespace).await?.ok_or_else(|| {
        Failure::failed(format!(
            "Liquid does not run in namespace {namespace} of this cluster: run `liquidctl install` first, or name the \
             namespace it runs in with --namespace"
        ))
    })
}

fn parse(mut data: BTreeMap<String, String>) -> Result<ClusterInfo, Failure> {
    let gateways = gateways(data.remove("gateways"))?;
    let mut field = |key: &str| {
        data.remove(key).ok_or_else(|| Failure::failed(format!("ConfigMap {CLUSTER_INFO} lacks {key}")))
    };
    Ok(ClusterInfo {
        id: field("clusterID")?.parse().map_err(Failure::failed)?,
        name: field("clusterName")?.parse().map_err(Failure::failed)?,
        ca_sha256: field("caSHA256")?,
        endpoints: field("endpoints")?.lines().map(str::to_owned).collect(),
        gateways,
        version: field("version")?,
    })
}

/// A liquid-controller of an earlier version does not publish them.
fn gateways(published: Option<String>) -> Result<Vec<PeerGateway>, Failure> {
    let unreadable =
        |error: serde_json::Error| Failure::failed(format!("gateways in ConfigMap {CLUSTER_INFO}: {error}"));
    published.map_or(Ok(Vec::new()), |text| serde_json::from_str(&text).map_err(unreadable))
}
