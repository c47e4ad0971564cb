//! The clusters of the lab: with Liquid installed, and peered.

use crate::Relation;
use anyhow::Context as _;
use futures::future::try_join_all;
use liquid_lab::Lab;
use liquid_scenarios::{Cluster, image, programs};

/// Home and its providers.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) home: Cluster,
    pub(crate) relations: Vec<Relation>,
    /// In the order of the relations.
    pub(crate) providers: Vec<Cluster>,
    image: String,
}

impl Stage {
    /// Connects to the clusters.
    pub(crate) async fn open() -> anyhow::Result<Self> {
        liquid_runtime::tls::install_crypto_provider();
        let lab = liquid_scenarios::lab()?;
        let (kubectl, liquidctl) = programs(Some(&lab));
        let connect = async |cluster: &str, name: &str| {
            let kubeconfig = lab.cluster(cluster)?.kubeconfig();
            Cluster::connect(name, kubeconfig, kubectl.clone(), liquidctl.clone()).await
        };
        let home = connect("a", "home").await?;
        let mut providers = Vec::new();
        let relations = Relation::all(&lab)?;
        for relation in &relations {
            providers.push(connect(&relation.cluster, relation.name).await?);
        }
        Ok(Self { home, relations, providers, image: image()?, lab })
    }

    /// Installs Liquid everywhere, as a user would: which families there are, it finds out by itself.
    pub(crate) async fn installed(&self) -> anyhow::Result<()> {
        let install = async |cluster: &Cluster| {
            let installed = cluster.install(&self.image).await;
            installed.with_context(|| format!("installing in {}", cluster.name))
        };
        try_join_all(self.providers.iter().chain([&self.home]).map(install)).await.map(drop)
    }

    /// Lets home borrow from a provider, unless it does.
    pub(crate) async fn peered(&self, name: &str) -> anyhow::Result<()> {
        let provider = self.provider(name)?;
        if self.home.is_peered(provider).await? {
            return Ok(());
        }
        self.home.peer_with(provider).await.map(drop).with_context(|| format!("peering with {name}"))
    }

    pub(crate) fn provider(&self, name: &str) -> anyhow::Result<&Cluster> {
        self.providers
            .iter()
            .find(|cluster| cluster.name == name)
            .with_context(|| format!("no provider {name}"))
    }
}
