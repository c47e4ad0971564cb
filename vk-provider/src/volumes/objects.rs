//! Claims and PersistentVolumes, as they are read and written at home.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use liquid_crds::quantity::{Milli, parse};
use liquid_crds::vocabulary::{
    CLUSTER_ID, DELETE_VOLUME, FINALIZER_VOLUME, MANAGED_BY, MANAGED_BY_LIQUID, PARAMETER_REMOTE_CLASS,
    STORAGE_DRIVER, VOLUME_CLAIM, VOLUME_NAMESPACE, VOLUME_PEER, VOLUME_UID,
};
use liquid_reflection::claim::{
    ClaimReport, SELECTED_NODE, WantedClaim, is_portable, unsupported, volume_name,
};
use liquid_reflection::{Key, Uid};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where Kubernetes says who is to make the volume of a claim.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Label that tells nodes apart; those of virtual nodes are their names.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Who has made a volume, as all provisioners say it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// A claim at home.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Claim {
    pub(super) key: Key,
    pub(super) uid: Uid,
    pub(super) storage_class: String,
    /// It says itself that its volume is Liquid's to make, or made by it.
    pub(super) ours: bool,
    /// Where its first pod goes.
    pub(super) selected_node: Option<String>,
    /// The volume that is bound to it.
    pub(super) volume: Option<String>,
    pub(super) deleting: bool,
    /// What a provider is asked for; the class is not known here.
    pub(super) wanted: WantedClaim,
    /// Why no volume can be made for it.
    pub(super) unsupported: Option<String>,
    /// What its status says of its size.
    pub(super) capacity: Option<String>,
    pub(super) conditions: Vec<Value>,
}

impl Claim {
    pub(super) fn read(claim: &PersistentVolumeClaim) -> Option<Self> {
        let spec = claim.spec.clone().unwrap_or_default();
        let status = claim.status.clone().unwrap_or_default();
        let resources = spec.resources.clone().unwrap_or_default();
        let storage = |amounts: Option<BTreeMap<String, Quantity>>| {
            amounts.and_then(|amounts| amounts.get("storage").map(|quantity| quantity.0.clone()))
        };
        let annotations = claim.annotations();
        let portable =
            annotations.iter().filter(|(name, _)| is_portable(name) && !name.starts_with("liquid.mesh/"));
        let labels = claim.labels().iter().filter(|(name, _)| !name.starts_with("liquid.mesh/"));
        let conditions = status.conditions.unwrap_or_default();
        let uid = Uid::from(claim.uid()?.as_str());
        let volume = spec.volume_name.clone().filter(|name| !name.is_empty());
        let asked = annotations.get(PROVISIONER).is_some_and(|name| name == STORAGE_DRIVER);
        Some(Self {
            key: Key::new(&claim.namespace()?, &claim.name_any()),
            ours: asked || volume.as_ref() == Some(&volume_name(&uid)),
            uid,
            storage_class: spec.storage_class_name.clone().unwrap_or_default(),
            selected_node: annotations.get(SELECTED_NODE).cloned(),
            volume,
            deleting: claim.metadata.deletion_timestamp.is_some(),
            wanted: WantedClaim {
                name: claim.name_any(),
                class: None,
                access_modes: spec.access_modes.clone().unwrap_or_default(),
                volume_mode: spec.volume_mode.clone(),
                storage: storage(resources.requests).unwrap_or_default(),
                storage_limit: storage(resources.limits),
                labels: labels.map(|(name, value)| (name.clone(), value.clone())).collect(),
                annotations: portable.map(|(name, value)| (name.clone(), value.clone())).collect(),
            },
            unsupported: unsupported(&json!(spec)),
            capacity: storage(status.capacity),
            conditions: ClaimReport::of(&json!({ "status": { "conditions": conditions } })).conditions,
        })
    }
}

/// A PersistentVolume at home that stands for a claim in a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) name: String,
    /// Its UID.
    pub(super) object: String,
    /// The namespace here whose data it has.
    pub(super) home: Arc<str>,
    /// The claim it is for. Of one that is for none: what the provider calls it, and its `origin`.
    pub(super) claim: Key,
    pub(super) uid: Uid,
    /// It is for no claim: somebody has taken it off the one it had, for another one.
    pub(super) free: bool,
    /// UID of the claim it was made for, by which the provider knows it: somebody may have bound it to another one since.
    pub(super) origin: Uid,
    /// Identity of the cluster in which it is.
    pub(super) cluster: String,
    /// What that cluster called itself then.
    pub(super) peer: String,
    /// Namespace and name of the claim there.
    pub(super) namespace: String,
    pub(super) remote: String,
    /// The class it asked for.
    pub(super) class: Option<String>,
    pub(super) capacity: Option<String>,
    /// Its claim was deleted.
    pub(super) released: bool,
    /// Its data is to be deleted with its claim.
    pub(super) delete_data: bool,
    /// Somebody has asked for that by the mark, claim or not.
    pub(super) marked: bool,
    /// It is being deleted itself.
    pub(super) deleting: bool,
    pub(super) finalizers: Vec<String>,
}

impl Volume {
    /// Reads a PersistentVolume; `None` if it is not one of ours.
    pub(super) fn read(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref().filter(|csi| csi.driver == STORAGE_DRIVER)?;
        let attribute = |name: &str| source.volume_attributes.as_ref().and_then(|all| all.get(name)).cloned();
        let object = volume.uid()?;
        let (cluster, rest) = source.volume_handle.split_once('/')?;
        let home = rest.split_once('/')?.0;
        let remote = attribute(VOLUME_CLAIM)?;
        let claim = spec.claim_ref.as_ref().and_then(|claim| {
            let key = Key::new(claim.namespace.as_deref()?, claim.name.as_deref()?);
            Some((key, Uid::from(claim.uid.as_deref()?)))
        });
        let origin = attribute(VOLUME_UID).map(|origin| Uid::from(origin.as_str()));
        let origin = origin.or(claim.as_ref().map(|(_, uid)| uid.clone()))?;
        let free = claim.is_none();
        let (claim, uid) = claim.unwrap_or_else(|| (Key::new(home, &remote), origin.clone()));
        let marked = volume.annotations().get(DELETE_VOLUME) == Some(&object);
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        Some(Self {
            name: volume.name_any(),
            home: Arc::from(home),
            claim,
            uid,
            free,
            origin,
            cluster: cluster.to_owned(),
            peer: attribute(VOLUME_PEER).unwrap_or_default(),
            namespace: attribute(VOLUME_NAMESPACE).unwrap_or_default(),
            remote,
            class: attribute(PARAMETER_REMOTE_CLASS),
            capacity: spec.capacity.as_ref().and_then(|c| c.get("storage")).map(|storage| storage.0.clone()),
            released: phase == Some("Released"),
            delete_data: marked || spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete"),
            marked,
            deleting: volume.metadata.deletion_timestamp.is_some(),
            finalizers: volume.finalizers().to_vec(),
            object,
        })
    }

    /// The finalizer that keeps it until the provider has been told is on it.
    pub(super) fn is_held(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER_VOLUME)
    }

    /// It was bound to a claim of another namespace, which must not see what is in it.
    pub(super) fn is_strayed(&self) -> bool {
        self.claim.namespace != self.home
    }
}

/// The peer a volume is made in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) cluster: String,
    pub(super) peer: String,
    /// The virtual node, if it stands for certain nodes of the provider: the volume may be of use on these only.
    pub(super) node: Option<String>,
}

/// The PersistentVolume for `claim`, whose counterpart `remote` in the provider is as `report` says.
///
/// Its source is a driver no kubelet has: a pod that gets to a physical node in spite of the affinity fails there with a reason
/// instead of finding an empty directory.
pub(super) fn volume(
    claim: &Claim,
    class: Option<&str>,
    policy: &str,
    place: &Place,
    remote: &str,
    report: &ClaimReport,
) -> Value {
    let mut attributes = BTreeMap::from([
        (VOLUME_PEER, place.peer.as_str()),
        (VOLUME_NAMESPACE, report.namespace.as_str()),
        (VOLUME_CLAIM, remote),
        (VOLUME_UID, claim.uid.as_str()),
    ]);
    if let Some(class) = class {
        attributes.insert(PARAMETER_REMOTE_CLASS, class);
    }
    let mut places = vec![json!({ "key": CLUSTER_ID, "operator": "In", "values": [place.cluster] })];
    if let Some(node) = &place.node {
        places.push(json!({ "key": HOSTNAME, "operator": "In", "values": [node] }));
    }
    let capacity = match doubt(report, Some(&claim.wanted.storage)) {
        None => report.capacity.as_ref().unwrap_or(&claim.wanted.storage),
        Some(_) => &claim.wanted.storage,
    };
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(&claim.uid),
            "labels": { MANAGED_BY: MANAGED_BY_LIQUID },
            "annotations": { PROVISIONED_BY: STORAGE_DRIVER },
            "finalizers": [FINALIZER_VOLUME],
        },
        "spec": {
            "accessModes": claim.wanted.access_modes,
            "capacity": { "storage": capacity },
            "volumeMode": claim.wanted.volume_mode,
            "storageClassName": claim.storage_class,
            "persistentVolumeReclaimPolicy": policy,
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.key.namespace.as_ref(),
                "name": claim.key.name.as_ref(),
                "uid": claim.uid.as_str(),
            },
            "csi": {
                "driver": STORAGE_DRIVER,
                "volumeHandle": format!("{}/{}/{remote}", place.cluster, claim.key.namespace),
                "volumeAttributes": attributes,
            },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": places }] } },
        },
    })
}

/// Why the size of its volume that is reported of a claim cannot be right, if so: it has at least `least`.
pub(super) fn doubt(report: &ClaimReport, least: Option<&str>) -> Option<String> {
    let reported = report.capacity.as_deref()?;
    let size = amount(Some(reported)).filter(|size| *size > 0);
    if size.is_some() && size >= amount(least) {
        return None;
    }
    let least = least.unwrap_or_default();
    Some(format!(
        "the provider says that the volume of this claim is {reported:?} large, which cannot be: it is taken to have {least}"
    ))
}

/// An amount that can be compared.
pub(super) fn amount(quantity: Option<&str>) -> Option<Milli> {
    parse(&Quantity(quantity?.to_owned())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        let claim = json!({
            "metadata": {
                "name": "data", "namespace": "shop", "uid": "3f2c0a44-8c1e",
                "labels": {"app": "db"},
                "annotations": {"team": "a", SELECTED_NODE: "liquid-milan", "pv.kubernetes.io/bind-completed": "yes"},
            },
            "spec": {
                "storageClassName": "liquid", "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        });
        Claim::read(&serde_json::from_value(claim).unwrap()).unwrap()
    }

    #[test]
    fn a_claim_asks_for_what_means_something_elsewhere() {
        let claim = claim();
        assert_eq!(claim.selected_node.as_deref(), Some("liquid-milan"));
        assert_eq!(claim.wanted.annotations, BTreeMap::from([("team".to_owned(), "a".to_owned())]));
        assert_eq!(claim.wanted.storage, "1Gi");
        assert_eq!((claim.unsupported, claim.volume), (None, None));
    }

    #[test]
    fn a_volume_is_read_back_as_it_was_made_and_leads_to_all_nodes_of_the_provider() {
        let place = Place { cluster: "c1".to_owned(), peer: "milan".to_owned(), node: None };
        let report = ClaimReport { namespace: "shop-turin".to_owned(), ..ClaimReport::default() };
        let mut made = volume(&claim(), Some("fast"), "Delete", &place, "data-3f2c0a44", &report);
        made["metadata"]["uid"] = json!("v1");
        let terms = &made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
        assert_eq!(
            terms[0]["matchExpressions"][0],
            json!({"key": CLUSTER_ID, "operator": "In", "values": ["c1"]})
        );
        let read = |made: &Value| Volume::read(&serde_json::from_value(made.clone()).unwrap());
        let volume = read(&made).unwrap();
        assert_eq!((volume.claim.clone(), volume.uid.as_str()), (claim().key, "3f2c0a44-8c1e"));
        assert_eq!((volume.cluster.as_str(), volume.peer.as_str()), ("c1", "milan"));
        assert_eq!((volume.namespace.as_str(), volume.remote.as_str()), ("shop-turin", "data-3f2c0a44"));
        assert_eq!((volume.class.as_deref(), volume.capacity.as_deref()), (Some("fast"), Some("1Gi")));
        assert!(volume.delete_data && !volume.released && !volume.deleting);
        assert!(!volume.free && volume.is_held() && !volume.is_strayed());
        let mut bound_anew = made.clone();
        bound_anew["spec"]["claimRef"]["uid"] = json!("another");
        let bound_anew = read(&bound_anew).unwrap();
        assert_eq!((bound_anew.uid.as_str(), bound_anew.origin.as_str()), ("another", "3f2c0a44-8c1e"));
        let mut strayed = made.clone();
        strayed["spec"]["claimRef"]["namespace"] = json!("another");
        assert!(read(&strayed).unwrap().is_strayed());
        for unbound in [Value::Null, json!({"namespace": "shop", "name": "next"})] {
            made["spec"]["claimRef"] = unbound;
            let free = read(&made).unwrap();
            assert!(free.free && !free.is_strayed());
            assert_eq!((free.claim, free.uid), (Key::new("shop", "data-3f2c0a44"), free.origin));
        }
        made["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
        assert!(!read(&made).unwrap().delete_data);
        made["metadata"]["annotations"][DELETE_VOLUME] = json!("another");
        assert!(!read(&made).unwrap().delete_data, "the mark of another volume");
        made["metadata"]["annotations"][DELETE_VOLUME] = json!("v1");
        assert!(read(&made).unwrap().delete_data);
        made["spec"]["csi"]["driver"] = json!("other");
        assert_eq!(read(&made), None);
    }

    #[test]
    fn a_volume_for_certain_nodes_of_the_provider_leads_to_the_virtual_node_that_stands_for_them() {
        let place =
            Place { cluster: "c1".to_owned(), peer: "milan".to_owned(), node: Some("milan-n1".to_owned()) };
        let made = volume(&claim(), None, "Delete", &place, "data-3f2c0a44", &ClaimReport::default());
        let terms = made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"].as_array().unwrap().clone();
        assert_eq!(terms.len(), 1, "terms are alternatives");
        let expressions = terms[0]["matchExpressions"].as_array().unwrap();
        assert_eq!(expressions.len(), 2);
        assert_eq!(expressions[1], json!({"key": HOSTNAME, "operator": "In", "values": ["milan-n1"]}));
    }

    #[test]
    fn a_size_that_cannot_be_right_is_not_believed() {
        let place = Place { cluster: "c1".to_owned(), peer: "milan".to_owned(), node: None };
        for (reported, size, doubted) in [
            (None, "1Gi", false),
            (Some("2Gi"), "2Gi", false),
            (Some("1024Mi"), "1024Mi", false),
            (Some("1Mi"), "1Gi", true),
            (Some("-2Gi"), "1Gi", true),
            (Some("large"), "1Gi", true),
        ] {
            let capacity = reported.map(str::to_owned);
            let report = ClaimReport { capacity, ..ClaimReport::default() };
            let made = volume(&claim(), None, "Delete", &place, "data-3f2c0a44", &report);
            assert_eq!(made["spec"]["capacity"]["storage"], size, "{reported:?}");
            assert_eq!(doubt(&report, Some("1Gi")).is_some(), doubted, "{reported:?}");
        }
    }
}
