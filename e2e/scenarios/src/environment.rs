//! The two clusters a scenario plays in, and the states it may begin in.

use crate::cluster::Cluster;
use crate::program::Program;
use anyhow::Context as _;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::ListParams;
use liquid_crds::Peer;
use liquid_lab::{Lab, LabName};
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// Namespace Liquid runs in.
pub(crate) const NAMESPACE: &str = "liquid-system";

/// Image of the pods of scenarios: it has a shell.
pub const TEST_IMAGE: &str = "lab.local/busybox:1";

/// Scenarios change the same two clusters and take turns.
static TURN: OnceLock<Mutex<()>> = OnceLock::new();

/// Home and provider.
pub struct Environment {
    /// The cluster that borrows.
    pub home: Cluster,
    /// The cluster that lends.
    pub provider: Cluster,
    /// The lab they are in, if they are in one.
    pub lab: Option<Lab>,
    image: String,
    _turn: MutexGuard<'static, ()>,
}

impl Environment {
    /// Opens the environment when it is this scenario's turn.
    ///
    /// # Errors
    /// If the clusters cannot be reached.
    pub async fn open() -> anyhow::Result<Self> {
        let turn = TURN.get_or_init(Mutex::default).lock().await;
        liquid_runtime::tls::install_crypto_provider();
        let given = |name: &str| env::var_os(name).map(PathBuf::from);
        let own = given("LIQUID_HOME_KUBECONFIG").zip(given("LIQUID_PROVIDER_KUBECONFIG"));
        let lab = match own {
            Some(_) => None,
            None => Some(lab()?),
        };
        // One that failed may have left a way between them cut.
        if let Some(lab) = &lab {
            let names: Vec<String> = lab.clusters().map(|cluster| cluster.name().to_owned()).collect();
            for (at, one) in names.iter().enumerate() {
                names[..at].iter().try_for_each(|other| lab.link(other, one)?.restore())?;
            }
        }
        let (home, provider) = match (own, &lab) {
            (Some(own), _) => own,
            (None, Some(lab)) => (lab.cluster("a")?.kubeconfig(), lab.cluster("b")?.kubeconfig()),
            (None, None) => anyhow::bail!("there are no clusters"),
        };
        let (kubectl, liquidctl) = programs(lab.as_ref());
        Ok(Self {
            home: Cluster::connect("home", home, kubectl.clone(), liquidctl.clone()).await?,
            provider: Cluster::connect("provider", provider, kubectl, liquidctl).await?,
            image: image()?,
            lab,
            _turn: turn,
        })
    }

    /// A further cluster of the lab, with Liquid installed in it.
    ///
    /// # Errors
    /// If there is none, or Liquid cannot be installed.
    pub async fn further(&self, of_lab: &str, name: &str) -> anyhow::Result<Cluster> {
        let lab = self.lab.as_ref().context("this needs the lab")?;
        let (kubectl, liquidctl) = programs(Some(lab));
        let cluster = Cluster::connect(name, lab.cluster(of_lab)?.kubeconfig(), kubectl, liquidctl).await?;
        if !self.is_current(&cluster).await? {
            self.install(&cluster).await?;
        }
        Ok(cluster)
    }

    /// With Liquid installed in both clusters, this version of it.
    ///
    /// # Errors
    /// If it cannot be installed.
    pub async fn installed(self) -> anyhow::Result<Self> {
        for cluster in [&self.home, &self.provider] {
            if !self.is_current(cluster).await? {
                self.install(cluster).await?;
            }
        }
        Ok(self)
    }

    /// With home borrowing from the provider.
    ///
    /// # Errors
    /// If they cannot be peered.
    pub async fn peered(self) -> anyhow::Result<Self> {
        let this = self.installed().await?;
        let peers = Api::<Peer>::all(this.home.client.clone()).list(&ListParams::default()).await?;
        if peers.items.is_empty() {
            this.peer().await?;
        }
        this.home.wait_for_node("liquid-provider", true, Duration::from_secs(60)).await?;
        Ok(this)
    }

    /// With Liquid installed and no peering.
    ///
    /// # Errors
    /// If a peering cannot be ended.
    pub async fn unpeered(self) -> anyhow::Result<Self> {
        let this = self.installed().await?;
        for cluster in [&this.home, &this.provider] {
            let peers = Api::<Peer>::all(cluster.client.clone()).list(&ListParams::default()).await?;
            for peer in peers {
                let name = peer.metadata.name.unwrap_or_default();
                cluster.liquidctl.run(["unpeer", &name]).await?.ok()?;
            }
            cluster.settled().await?;
        }
        Ok(this)
    }

    /// Installs Liquid in one of the clusters.
    ///
    /// # Errors
    /// If that fails.
    pub async fn install(&self, cluster: &Cluster) -> anyhow::Result<()> {
        cluster.install(&self.image).await
    }

    /// The same, with values of the chart (`KEY=VALUE`).
    ///
    /// # Errors
    /// If that fails.
    pub async fn install_with(&self, cluster: &Cluster, values: &[&str]) -> anyhow::Result<()> {
        cluster.install_with(&self.image, values).await
    }

    /// Peers home with the provider, by a token.
    ///
    /// # Errors
    /// If that fails.
    pub async fn peer(&self) -> anyhow::Result<String> {
        self.home.peer_with(&self.provider).await
    }

    async fn is_current(&self, cluster: &Cluster) -> anyhow::Result<bool> {
        let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        for name in ["liquid-controller", "liquid-kubelet"] {
            let Some(deployment) = api.get_opt(name).await? else { return Ok(false) };
            let images = deployment.spec.and_then(|spec| spec.template.spec).map(|spec| spec.containers);
            let current = images.into_iter().flatten().all(|c| c.image.as_deref() == Some(&self.image));
            let ready = deployment.status.and_then(|status| status.ready_replicas).unwrap_or(0);
            if !current || ready == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The lab that is named in the environment.
///
/// # Errors
/// If it is not there.
pub fn lab() -> anyhow::Result<Lab> {
    let name: LabName = env::var("LIQUID_LAB").unwrap_or("lab".to_owned()).parse()?;
    Lab::open(&name)
}

/// The image that is to be installed.
///
/// # Errors
/// If none is named in the environment.
pub fn image() -> anyhow::Result<String> {
    env::var("LIQUID_IMAGE").context("LIQUID_IMAGE names the image to install")
}

/// kubectl and liquidctl: those that are named in the environment, of the lab, or on the path.
#[must_use]
pub fn programs(lab: Option<&Lab>) -> (Program, Program) {
    let program = |variable: &str, name: &str| -> OsString {
        let of_lab = || lab.map(|lab| lab.program(name)).filter(|path| path.exists());
        env::var_os(variable).or_else(|| of_lab().map(Into::into)).unwrap_or_else(|| name.into())
    };
    let kubectl = Program::new(program("KUBECTL", "kubectl"));
    (kubectl, Program::new(program("LIQUIDCTL", "liquidctl")).env("HELM", program("HELM", "helm")))
}
