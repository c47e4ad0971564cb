//! Claims of consumers: real ones in their shadow namespaces, and the namespaces that are kept for them.

use super::objects::{Owned, keys, label, object_uid, origin, read_record, strings};
use super::steps::{Job, RequestError, call, only, refusal, request, typed};
use crate::lend::classes::resolve;
use crate::lend::consumers::Consumer;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams, Preconditions};
use liquid_crds::LendState;
use liquid_crds::quantity::{Amounts, MAX, Milli, parse};
use liquid_crds::vocabulary::{
    HASH, HOME_KEYS, KEPT, KEPT_BECAUSE, LAST_CLAIM, MANAGED_BY, MANAGED_BY_LIQUID, ORIGIN_CLUSTER,
    ORIGIN_NAME, ORIGIN_NAMESPACE, ORIGIN_UID,
};
use liquid_link::digest::Hash;
use liquid_reflection::claim::{ClaimBody, ClaimReport, WantedClaim, is_portable};
use liquid_reflection::frame::{Ref, Refusal};
use liquid_reflection::provider::{Hold, Outcome, Record, StatusFound, Step};
use liquid_reflection::{Key, SetRef, Uid};
use serde_json::{Value, json};

/// What a claim asks for, as Kubernetes calls it in quotas.
const STORAGE: &str = "requests.storage";
const CLAIMS: &str = "persistentvolumeclaims";

/// Reads a claim; `None` if it is not one of ours.
pub(super) fn read(claim: &PersistentVolumeClaim) -> Option<Owned<Record>> {
    let meta = &claim.metadata;
    let namespace = label(meta, ORIGIN_NAMESPACE)?;
    let status = claim.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    // Before a volume is chosen nobody can have written anything.
    let empty = volume.is_empty() && matches!(phase, None | Some("Pending"));
    let report = ClaimReport::of(&json!(claim));
    let record = Record {
        hold: if empty { Hold::Nothing } else { Hold::Data },
        status: Some(report.hash().into()),
        ..read_record(meta)?
    };
    Some(Owned {
        cluster: origin(meta)?,
        set: SetRef::claims(),
        key: Key::new(namespace, meta.name.as_deref()?),
        what: record,
    })
}

/// What a claim here asks for.
pub(super) fn demand(claim: &PersistentVolumeClaim) -> Amounts {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get("storage"));
    amounts(storage.map_or(0, |storage| parse(storage).unwrap_or(MAX).max(0)))
}

/// What a claim, as it comes from a consumer, asks for; or why it is none.
pub(super) fn body_demand(body: &[u8]) -> Result<Amounts, Refusal> {
    let body = serde_json::from_slice::<ClaimBody>(body)
        .map_err(|error| refusal("InvalidObject", format!("it cannot be read: {error}")))?;
    let storage = body.wanted.storage;
    match parse(&Quantity(storage.clone())) {
        Ok(amount) if amount > 0 => Ok(amounts(amount)),
        _ => Err(refusal("InvalidObject", format!("{storage:?} is no size of a volume"))),
    }
}

fn amounts(storage: Milli) -> Amounts {
    Amounts::from([(STORAGE.to_owned(), storage), (CLAIMS.to_owned(), 1_000)])
}

/// The labels and annotations of a claim, and which of them come from home.
fn metadata(consumer: &Consumer, target: &Ref, hash: Hash, wanted: &WantedClaim) -> Value {
    let mut labels = strings(Some(&json!(wanted.labels)));
    let mut annotations = strings(Some(&json!(wanted.annotations)));
    annotations.retain(|name, _| is_portable(name));
    let from_home = keys(&labels, &annotations);
    labels.insert(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned());
    labels.insert(ORIGIN_CLUSTER.to_owned(), consumer.id.to_string());
    labels.insert(ORIGIN_NAMESPACE.to_owned(), target.key.namespace.to_string());
    annotations.insert(HOME_KEYS.to_owned(), from_home);
    annotations.insert(HASH.to_owned(), hash.to_string());
    annotations.insert(ORIGIN_UID.to_owned(), target.uid.to_string());
    annotations.insert(ORIGIN_NAME.to_owned(), wanted.name.clone());
    json!({ "labels": labels, "annotations": annotations })
}

/// The claim a consumer wants, of the class `class` of this cluster.
fn object(consumer: &Consumer, target: &Ref, hash: Hash, wanted: &WantedClaim, class: &str) -> Value {
    let mut resources = json!({ "requests": { "storage": wanted.storage } });
    if let Some(limit) = &wanted.storage_limit {
        resources["limits"] = json!({ "storage": limit });
    }
    let mut metadata = metadata(consumer, target, hash, wanted);
    metadata["name"] = json!(target.key.name.as_ref());
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {
            "accessModes": wanted.access_modes,
            "volumeMode": wanted.volume_mode,
            "storageClassName": class,
            "resources": resources,
        },
    })
}

/// The patch that brings the claim `there` in line with what is wanted: its size, labels and annotations. Nothing else of a
/// claim can be changed.
fn adjustment(there: &Value, mut metadata: Value, wanted: &WantedClaim) -> Value {
    // What others have added is theirs; what home has taken away goes.
    let ours = there.pointer("/metadata/annotations").and_then(|annotations| annotations.get(HOME_KEYS));
    let ours: Value =
        ours.and_then(Value::as_str).and_then(|ours| serde_json::from_str(ours).ok()).unwrap_or_default();
    for field in ["labels", "annotations"] {
        let from_home = ours.get(field).and_then(Value::as_array).into_iter().flatten();
        for key in from_home.filter_map(Value::as_str) {
            if metadata[field].get(key).is_none() {
                metadata[field][key] = Value::Null;
            }
        }
    }
    metadata["uid"] = there["metadata"]["uid"].clone();
    json!({ "metadata": metadata, "spec": { "resources": { "requests": { "storage": wanted.storage } } } })
}

/// The sentence beside [`KEPT`].
fn kept_because(consumer: &str, namespace: &str) -> String {
    format!(
        "cluster {consumer} has given up its namespace {namespace}, and volumes of claims in it were not to be deleted. They are \
         found again when it offloads that namespace here; deleting this one deletes them"
    )
}

impl Job {
    pub(super) async fn run_claim(&self) -> Result<Outcome, Refusal> {
        let name = self.target.key.name.as_ref();
        let Some(namespace) = self.namespace.as_deref() else {
            return match &self.step {
                // What was there may be there still, under a name that is not known now.
                Step::Reclaim { .. } => {
                    let message = format!("where namespace {} is, is not known", self.target.key.namespace);
                    Err(refusal("NamespaceUnknown", message))
                }
                _ => self.without_namespace(),
            };
        };
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        match &self.step {
            Step::Store { body, hash, replaces } => {
                let ClaimBody { wanted, bound } = serde_json::from_slice(body)
                    .map_err(|error| refusal("InvalidObject", format!("it cannot be read: {error}")))?;
                let stored = match replaces {
                    Some(object) => self.change_claim(&api, object, *hash, &wanted).await?,
                    None if bound => {
                        let message = "the claim was deleted in the provider, and its data with it; to begin with an \
                                       empty volume, delete the claim here and make it anew";
                        return Err(refusal("VolumeLost", message.to_owned()));
                    }
                    None => self.make_claim(&api, namespace, *hash, &wanted).await?,
                };
                let record = read(&stored).and_then(|owned| self.ours(owned));
                let lost = || refusal("Conflict", format!("claim {name} lost its labels"));
                Ok(Outcome::Stored(record.ok_or_else(lost)?))
            }
            Step::Reclaim { object, version } => self.reclaim(&api, name, object, *version).await,
            Step::Look => {
                let found = call(api.get_opt(name)).await?.and_then(|claim| read(&claim));
                Ok(Outcome::Found { record: found.and_then(|owned| self.ours(owned)), instance: None })
            }
            Step::Erase(_)
            | Step::Retire(_)
            | Step::Start
            | Step::Adjust(_)
            | Step::Stop { .. }
            | Step::Finish => Ok(Outcome::Done),
        }
    }

    async fn make_claim(
        &self,
        api: &Api<PersistentVolumeClaim>,
        namespace: &str,
        hash: Hash,
        wanted: &WantedClaim,
    ) -> Result<PersistentVolumeClaim, Refusal> {
        let name = self.target.key.name.as_ref();
        if self.consumer.lend.state == LendState::Cordoned {
            let message = "the provider takes no new claims of this cluster for now (cordoned)".to_owned();
            return Err(refusal("ProviderCordoned", message));
        }
        let classes = self.classes.borrow().clone();
        let classes = classes.ok_or_else(|| {
            refusal("ApiUnavailable", "the provider has not read its storage classes yet".to_owned())
        })?;
        let class = resolve(&classes, wanted.class.as_deref(), self.consumer.lend.storage.as_ref())
            .map_err(|why| refusal("StorageClassNotOffered", why))?;
        // A deletion of the namespace that was decided on without this claim must not meet it.
        let touched = json!({ "metadata": { "annotations": { LAST_CLAIM: self.target.uid.as_str() } } });
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        call(namespaces.patch_metadata(namespace, &PatchParams::default(), &Patch::Merge(&touched))).await?;
        let claim = typed(object(&self.consumer, &self.target, hash, wanted, class))?;
        match request(api.create(&PostParams::default(), &claim)).await {
            Err(RequestError::Api(status)) if status.is_already_exists() => {
                let there = call(api.get(name)).await?;
                let ours = read(&there).and_then(|owned| self.ours(owned));
                if ours.is_some_and(|record| record.home == self.target.uid) {
                    return Ok(there);
                }
                Err(refusal("Conflict", format!("the provider has a claim {name} of its own")))
            }
            other => other.map_err(RequestError::refusal),
        }
    }

    async fn change_claim(
        &self,
        api: &Api<PersistentVolumeClaim>,
        object: &Uid,
        hash: Hash,
        wanted: &WantedClaim,
    ) -> Result<PersistentVolumeClaim, Refusal> {
        let name = self.target.key.name.as_ref();
        let there = call(api.get(name)).await?;
        if object_uid(&there.metadata) != *object {
            return Err(refusal("Conflict", format!("claim {name} is another one by now")));
        }
        let patch = adjustment(&json!(there), metadata(&self.consumer, &self.target, hash, wanted), wanted);
        call(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))).await
    }

    /// Deletes an object unless something has happened to it.
    pub(super) async fn reclaim<K>(
        &self,
        api: &Api<K>,
        name: &str,
        object: &Uid,
        version: u64,
    ) -> Result<Outcome, Refusal>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug + kube::Resource,
    {
        let mut params = only(object, None);
        params.preconditions = Some(Preconditions {
            uid: Some(object.to_string()),
            resource_version: Some(version.to_string()),
        });
        match request(api.delete(name, &params)).await {
            Ok(_) => Ok(Outcome::Done),
            Err(RequestError::Api(status)) if status.is_not_found() => Ok(Outcome::Done),
            Err(RequestError::Api(status)) if status.is_conflict() => {
                let there = call(api.get_metadata_opt(name)).await?;
                let same = there.is_some_and(|there| object_uid(&there.metadata) == *object);
                Ok(if same { Outcome::Outdated } else { Outcome::Done })
            }
            Err(error) => Err(error.refusal()),
        }
    }

    /// Keeps a namespace for the claims in it, although its consumer has given it up.
    pub(super) async fn retire(
        &self,
        namespaces: &Api<Namespace>,
        name: &str,
        object: &Uid,
    ) -> Result<Option<Namespace>, Refusal> {
        let because = kept_because(&self.consumer.name, &self.target.key.name);
        let kept = json!({ "metadata": {
            "uid": object.as_str(),
            "labels": { KEPT: "true" },
            "annotations": { KEPT_BECAUSE: because },
        }});
        match request(namespaces.patch(name, &PatchParams::default(), &Patch::Merge(&kept))).await {
            Ok(namespace) => Ok(Some(namespace)),
            Err(RequestError::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(None),
            Err(error) => Err(error.refusal()),
        }
    }

    /// Whether there are claims in a namespace, whosever.
    pub(super) async fn has_claims(&self, namespace: &str) -> Result<bool, Refusal> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        Ok(!call(claims.list_metadata(&ListParams::default().limit(1))).await?.items.is_empty())
    }
}

/// Reads what is told of a claim.
pub(super) async fn report(
    client: &kube::Client,
    namespace: &str,
    target: &Ref,
) -> Result<(StatusFound, Value), Refusal> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let claim = call(claims.get_opt(&target.key.name)).await?;
    let owned = claim.as_ref().and_then(read).filter(|owned| owned.what.home == target.uid);
    let status = owned.and_then(|owned| owned.what.status);
    let found = status.map_or(StatusFound::Nothing, StatusFound::Kept);
    Ok((found, json!(claim.map(|claim| ClaimReport::of(&json!(claim))))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_that_kubernetes_takes_counts_and_all_others_are_refused() {
        let of = |storage: &str| {
            let wanted = WantedClaim { storage: storage.to_owned(), ..WantedClaim::default() };
            body_demand(json!(ClaimBody { wanted, bound: false }).to_string().as_bytes())
        };
        for (size, amount) in [
            ("101Gi", 101 * (1000 << 30)),
            ("0000000000000000000101Gi", 101 * (1000 << 30)),
            ("100.0000000000Ti", 100 * (1000 << 40)),
            ("1e99", MAX),
        ] {
            assert_eq!(of(size).unwrap()[STORAGE], amount, "{size}");
        }
        for none in ["-101Gi", "0", "0.0Gi", "", "much"] {
            assert_eq!(of(none).unwrap_err().reason, "InvalidObject", "{none}");
        }
        assert_eq!(body_demand(b"{}").unwrap_err().reason, "InvalidObject");
        let negative = json!({"spec": {"resources": {"requests": {"storage": "-1Gi"}}}});
        assert_eq!(demand(&serde_json::from_value(negative).unwrap())[STORAGE], 0);
    }
}
