//! The clusters of the lab: with Liquid installed, and peered.

use crate::RELATIONS;
use anyhow::Context as _;
use futures::future::try_join_all;
use kube::Api;
use liquid_crds::Peer;
use liquid_lab::{IpFamilies, Lab, LabName};
use liquid_scenarios::{Cluster, Program};
use std::env;
use std::ffi::OsString;

/// Home and its providers.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) home: Cluster,
    /// In the order of [`RELATIONS`].
    pub(crate) providers: Vec<Cluster>,
    image: String,
}

impl Stage {
    /// Connects to the clusters.
    pub(crate) async fn open() -> anyhow::Result<Self> {
        liquid_runtime::tls::install_crypto_provider();
        let name: LabName = env::var("LIQUID_LAB").unwrap_or("lab".to_owned()).parse()?;
        let lab = Lab::open(&name)?;
        anyhow::ensure!(lab.spec().ip_families == IpFamilies::Dual, "lab {name} is not dual-stack");
        let program = |variable: &str, name: &str| -> OsString {
            env::var_os(variable).unwrap_or_else(|| lab.program(name).into())
        };
        let kubectl = Program::new(program("KUBECTL", "kubectl"));
        let liquidctl = Program::new(env::var_os("LIQUIDCTL").unwrap_or("liquidctl".into()))
            .env("HELM", program("HELM", "helm"));
        let connect = async |cluster: &str, name: &str| {
            let kubeconfig = lab.cluster(cluster)?.kubeconfig();
            Cluster::connect(name, kubeconfig, kubectl.clone(), liquidctl.clone()).await
        };
        let home = connect("a", "home").await?;
        let mut providers = Vec::new();
        for relation in &RELATIONS {
            providers.push(connect(relation.cluster, relation.name).await?);
        }
        let image = env::var("LIQUID_IMAGE").context("LIQUID_IMAGE names the image to install")?;
        Ok(Self { home, providers, image, lab })
    }

    /// Installs Liquid everywhere, as a user would: that there is IPv6, it finds out by itself.
    pub(crate) async fn installed(&self) -> anyhow::Result<()> {
        let install = async |cluster: &Cluster| {
            let name: &str = &cluster.name;
            let arguments = [
                "install",
                "--cluster-name",
                name,
                "--link-service",
                "node-port",
                "--image",
                &self.image,
                "--set",
                "image.pullPolicy=IfNotPresent",
            ];
            let output = cluster.liquidctl.run(arguments).await?;
            output.ok().map(drop).with_context(|| format!("installing in {name}"))
        };
        try_join_all(self.providers.iter().chain([&self.home]).map(install)).await.map(drop)
    }

    /// Lets home borrow from a provider, unless it does.
    pub(crate) async fn peered(&self, name: &str) -> anyhow::Result<()> {
        let peers: Api<Peer> = Api::all(self.home.client.clone());
        if peers.get_opt(name).await?.is_some() {
            return Ok(());
        }
        let token = self.provider(name)?.liquidctl.run(["invite"]).await?.ok()?;
        let peer = ["peer", "out-of-band", "--token", token.trim()];
        self.home.liquidctl.run(peer).await?.ok().map(drop).with_context(|| format!("peering with {name}"))
    }

    pub(crate) fn provider(&self, name: &str) -> anyhow::Result<&Cluster> {
        self.providers
            .iter()
            .find(|cluster| cluster.name == name)
            .with_context(|| format!("no provider {name}"))
    }
}
