//! Everything there is in a cluster, by name: to show that something left nothing behind.

use crate::{Look, wait};
use kube::api::{DynamicObject, ListParams};
use kube::core::discovery::verbs;
use kube::discovery::Discovery;
use kube::{Api, Client};
use std::collections::BTreeSet;
use std::time::Duration;

/// Kinds that come and go by themselves.
const RESTLESS: [&str; 3] = ["Event", "ComponentStatus", "PodMetrics"];

/// Kind, namespace and name of every object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Takes one. Pods of Deployments and the like count by their owner, for they have other names each time.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn take(client: &Client) -> anyhow::Result<Self> {
        let mut objects = BTreeSet::new();
        let discovery = Discovery::new(client.clone()).run().await?;
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                if !capabilities.supports_operation(verbs::LIST) || RESTLESS.contains(&resource.kind.as_str())
                {
                    continue;
                }
                let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                for object in api.list_metadata(&ListParams::default()).await? {
                    let meta = object.metadata;
                    let owned = meta.owner_references.iter().flatten().any(|owner| {
                        matches!(owner.kind.as_str(), "ReplicaSet" | "Deployment" | "Service" | "Endpoints")
                    });
                    if !owned {
                        let namespace = meta.namespace.unwrap_or_default();
                        objects.insert(format!(
                            "{} {namespace}/{}",
                            resource.kind,
                            meta.name.unwrap_or_default()
                        ));
                    }
                }
            }
        }
        Ok(Self(objects))
    }

    /// Waits until the cluster is as it was, for the garbage collector of Kubernetes takes its time.
    ///
    /// # Errors
    /// If it does not become so; the error names the differences.
    pub async fn is_restored(&self, client: &Client) -> anyhow::Result<()> {
        wait("the cluster is as it was", Duration::from_secs(30), || async {
            let differences = self.differences(&Self::take(client).await?);
            Ok(if differences.is_empty() { Look::Done(()) } else { Look::NotYet(differences.join(", ")) })
        })
        .await
    }

    /// What is in `later` and not here, and the other way round; empty if they agree.
    #[must_use]
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let appeared = later.0.difference(&self.0).map(|object| format!("+ {object}"));
        let vanished = self.0.difference(&later.0).map(|object| format!("- {object}"));
        appeared.chain(vanished).collect()
    }
}
