//! Volumes in other clusters: where they are, and their deletion when that is asked for.

use crate::failure::Failure;
use crate::output::tell;
use crate::wait::{Look, until};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{
    DELETE_VOLUME, FINALIZER_VOLUME, KEPT, ORIGIN_CLUSTER, ORIGIN_NAMESPACE, STORAGE_DRIVER, VOLUME_CLAIM,
    VOLUME_NAMESPACE, VOLUME_PEER,
};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// A volume in another cluster, as the PersistentVolume here says.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RemoteVolume {
    /// The namespace here whose data it has, and the claim it is bound to, if it is to one.
    pub(crate) namespace: String,
    pub(crate) claim: Option<String>,
    /// The cluster in which it is, and the claim there.
    pub(crate) peer: String,
    pub(crate) remote_namespace: String,
    pub(crate) remote_claim: String,
    pub(crate) size: String,
    /// Phase of the PersistentVolume.
    pub(crate) phase: String,
    #[serde(skip)]
    cluster: String,
    /// Namespace and UID of that claim.
    #[serde(skip)]
    bound: Option<(String, String)>,
    /// Name and UID of the PersistentVolume.
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    uid: String,
    #[serde(skip)]
    finalizers: Vec<String>,
}

impl RemoteVolume {
    fn read(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref().filter(|csi| csi.driver == STORAGE_DRIVER)?;
        let claim = spec.claim_ref.as_ref().filter(|claim| claim.uid.is_some());
        let (cluster, rest) = source.volume_handle.split_once('/')?;
        let attribute = |name: &str| {
            let value = source.volume_attributes.as_ref().and_then(|all| all.get(name));
            value.cloned().unwrap_or_default()
        };
        let size = spec.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
        Some(Self {
            namespace: rest.split_once('/')?.0.to_owned(),
            claim: claim.and_then(|claim| claim.name.clone()),
            peer: attribute(VOLUME_PEER),
            remote_namespace: attribute(VOLUME_NAMESPACE),
            remote_claim: attribute(VOLUME_CLAIM),
            size: size.map(|size| size.0.clone()).unwrap_or_default(),
            phase: volume.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default(),
            cluster: cluster.to_owned(),
            bound: claim.and_then(|claim| Some((claim.namespace.clone()?, claim.uid.clone()?))),
            name: volume.name_any(),
            uid: volume.uid()?,
            finalizers: volume.finalizers().to_vec(),
        })
    }
}

/// Which volumes are meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    /// All.
    All,
    /// Those of claims in a namespace here.
    OfNamespace(&'a str),
    /// Those in the cluster with this identity.
    InCluster(&'a str),
}

/// The volumes in other clusters.
pub(crate) async fn list(client: &Client, which: Which<'_>) -> Result<Vec<RemoteVolume>, Failure> {
    let all = Api::<PersistentVolume>::all(client.clone()).list(&ListParams::default()).await?;
    let meant = |volume: &RemoteVolume| match which {
        Which::All => true,
        Which::OfNamespace(namespace) => volume.namespace == namespace,
        Which::InCluster(cluster) => volume.cluster == cluster,
    };
    Ok(all.iter().filter_map(RemoteVolume::read).filter(meant).collect())
}

/// Says that these volumes are to be deleted, and with them the claims here. That happens when no pod uses them any more.
pub(crate) async fn delete(client: &Client, volumes: &[RemoteVolume]) -> Result<(), Failure> {
    let all: Api<PersistentVolume> = Api::all(client.clone());
    for volume in volumes {
        let mark = json!({ "metadata": { "uid": volume.uid, "annotations": { DELETE_VOLUME: volume.uid } } });
        gone_is_fine(all.patch(&volume.name, &PatchParams::default(), &Patch::Merge(&mark)).await)?;
        if let (Some(claim), Some((namespace, uid))) = (&volume.claim, &volume.bound) {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            gone_is_fine(claims.delete(claim, &only(uid)).await)?;
        }
        gone_is_fine(all.delete(&volume.name, &only(&volume.uid)).await)?;
    }
    Ok(())
}

/// Waits until these volumes are gone.
pub(crate) async fn deleted(client: &Client, which: Which<'_>, timeout: Duration) -> Result<(), Failure> {
    until("deletion of the volumes", timeout, || async {
        let left = list(client, which).await?;
        Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(names(&left)) })
    })
    .await
}

/// Tells where volumes are that stay.
pub(crate) async fn tell_kept(client: &Client, which: Which<'_>) -> Result<(), Failure> {
    let kept = list(client, which).await?;
    if !kept.is_empty() {
        tell(&format!(
            "volumes are kept, and found again when their namespace is offloaded there again: {}",
            names(&kept)
        ));
    }
    Ok(())
}

fn names(volumes: &[RemoteVolume]) -> String {
    let name = |volume: &RemoteVolume| {
        let RemoteVolume { namespace, claim, peer, remote_namespace, remote_claim, size, .. } = volume;
        let claim = match claim {
            Some(claim) => format!("{namespace}/{claim}"),
            None => format!("{} of namespace {namespace}, bound to no claim,", volume.name),
        };
        format!("{claim} ({size}) in cluster {peer} as {remote_namespace}/{remote_claim}")
    };
    volumes.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Takes Liquid's finalizer off all its PersistentVolumes: nobody will be there to do it. The data stays.
pub(crate) async fn let_go(client: &Client) -> Result<(), Failure> {
    let all: Api<PersistentVolume> = Api::all(client.clone());
    for volume in list(client, Which::All).await? {
        let left: Vec<&String> = volume.finalizers.iter().filter(|name| *name != FINALIZER_VOLUME).collect();
        if left.len() < volume.finalizers.len() {
            let patch = json!({ "metadata": { "uid": volume.uid, "finalizers": left } });
            gone_is_fine(all.patch(&volume.name, &PatchParams::default(), &Patch::Merge(&patch)).await)?;
        }
    }
    Ok(())
}

/// Namespaces of this cluster that are kept for volumes of others: of one, by its identity, or of all. With `delete` they are
/// deleted.
pub(crate) async fn kept_for_others(
    client: &Client,
    cluster: Option<&str>,
    delete: bool,
    timeout: Duration,
) -> Result<(), Failure> {
    let all: Api<Namespace> = Api::all(client.clone());
    let labels = match cluster {
        Some(cluster) => format!("{KEPT},{ORIGIN_CLUSTER}={cluster}"),
        None => KEPT.to_owned(),
    };
    let kept = ListParams::default().labels(&labels);
    let found = all.list_metadata(&kept).await?;
    if found.items.is_empty() {
        return Ok(());
    }
    if !delete {
        let name = |namespace: &kube::core::PartialObjectMeta<Namespace>| {
            let home = namespace.labels().get(ORIGIN_NAMESPACE).cloned().unwrap_or_default();
            format!("{} (of its namespace {home})", namespace.name_any())
        };
        let names: Vec<String> = found.iter().map(name).collect();
        tell(&format!(
            "namespaces are kept for volumes of claims of other clusters: {}; deleting one deletes its volumes",
            names.join(", ")
        ));
        return Ok(());
    }
    for namespace in &found {
        let uid = namespace.uid().unwrap_or_default();
        gone_is_fine(all.delete(&namespace.name_any(), &only(&uid)).await)?;
    }
    until("deletion of the volumes", timeout, || async {
        let left = all.list_metadata(&kept).await?;
        let names: Vec<String> = left.iter().map(kube::ResourceExt::name_any).collect();
        Ok(if names.is_empty() {
            Look::Done(())
        } else {
            Look::NotYet(format!("namespaces {}", names.join(", ")))
        })
    })
    .await
}

fn only(uid: &str) -> DeleteParams {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

/// What is gone, or another one by now, needs nothing more.
fn gone_is_fine<T>(answer: kube::Result<T>) -> Result<(), Failure> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_of_others_are_not_ours() {
        let mut volume = json!({
            "metadata": {"name": "liquid-1", "uid": "v1", "finalizers": ["x"]},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "claimRef": {"namespace": "shop", "name": "data", "uid": "c1"},
                "csi": {"driver": STORAGE_DRIVER, "volumeHandle": "id/shop/data-1", "volumeAttributes": {
                    VOLUME_PEER: "milan", VOLUME_NAMESPACE: "shop-turin", VOLUME_CLAIM: "data-1",
                }},
            },
        });
        let read =
            |volume: &serde_json::Value| RemoteVolume::read(&serde_json::from_value(volume.clone()).unwrap());
        let ours = read(&volume).unwrap();
        assert_eq!(names(&[ours]), "shop/data (1Gi) in cluster milan as shop-turin/data-1");
        for unbound in [json!(null), json!({"namespace": "shop", "name": "next"})] {
            volume["spec"]["claimRef"] = unbound;
            let free = read(&volume).unwrap();
            let said = names(&[free]);
            assert_eq!(
                said,
                "liquid-1 of namespace shop, bound to no claim, (1Gi) in cluster milan as shop-turin/data-1"
            );
        }
        volume["spec"]["csi"]["driver"] = json!("ebs.csi.aws.com");
        assert!(read(&volume).is_none());
    }
}
