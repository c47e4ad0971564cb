//! Companions of pods: ConfigMaps, Secrets, Services and EndpointSlices in shadow namespaces.

use super::objects::{Owned, annotation, label, origin, read_record, strings};
use super::steps::{Job, RequestError, call, delete, only, refusal, request, typed};
use crate::lend::consumers::Consumer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use liquid_crds::vocabulary::{ADDRESSES, HASH, ORIGIN_CLUSTER, ORIGIN_NAMESPACE, ORIGIN_UID};
use liquid_link::digest::Hash;
use liquid_reflection::companion::{ENDPOINTS_MANAGED_BY, is_reflected, portable, translate_endpoints};
use liquid_reflection::frame::{Ref, Refusal};
use liquid_reflection::provider::{Outcome, Record, Step};
use liquid_reflection::{Key, Kind, SetRef, Uid};
use serde_json::{Value, json};

/// Whose EndpointSlices these are: Kubernetes' own controller leaves them alone.
const MANAGER: &str = "controller.liquid.mesh";

/// How the API server calls companions of this kind.
pub(super) fn resource(kind: Kind) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(kind.group(), "v1", kind.as_str()))
}

/// Reads a companion; `None` if it is not one of ours.
pub(super) fn read(kind: Kind, meta: &ObjectMeta) -> Option<Owned<Record>> {
    let namespace = label(meta, ORIGIN_NAMESPACE)?;
    Some(Owned {
        cluster: origin(meta)?,
        set: SetRef::companions(kind, namespace),
        key: Key::new(namespace, meta.name.as_deref()?),
        what: read_record(meta)?,
    })
}

/// Digest of the prefixes by which the addresses in an object were translated, if there are any in it.
pub(super) fn translated_by(meta: &ObjectMeta) -> Option<Hash> {
    annotation(meta, ADDRESSES).and_then(Hash::from_hex)
}

/// The object a consumer wants, from what it sent. Only what means something here counts: whatever else there is was
/// not asked for.
fn object(consumer: &Consumer, target: &Ref, hash: Hash, wanted: &Value) -> Result<Value, String> {
    let (kind, name) = (target.set.kind, target.key.name.as_ref());
    if !is_reflected(kind, &target.key.namespace, name) {
        return Err(format!("every cluster has a {} {name} of its own", kind.as_str()));
    }
    let mut object = portable(kind, wanted)?;
    let mut labels = strings(object.pointer("/metadata/labels"));
    labels.insert(ORIGIN_CLUSTER.to_owned(), consumer.id.to_string());
    labels.insert(ORIGIN_NAMESPACE.to_owned(), target.key.namespace.to_string());
    let mut annotations = strings(object.pointer("/metadata/annotations"));
    annotations.insert(HASH.to_owned(), hash.to_string());
    annotations.insert(ORIGIN_UID.to_owned(), target.uid.to_string());
    if kind == Kind::EndpointSlice {
        // Addresses beyond the consumer's pods would draw traffic to somebody else.
        translate_endpoints(&mut object, |address| consumer.prefixes.seen(address));
        labels.insert(ENDPOINTS_MANAGED_BY.to_owned(), MANAGER.to_owned());
        annotations.insert(ADDRESSES.to_owned(), consumer.prefixes.digest().to_string());
    }
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.as_str());
    object["metadata"] = json!({ "name": name, "labels": labels, "annotations": annotations });
    Ok(object)
}

impl Job {
    pub(super) async fn run_companion(&self) -> Result<Outcome, Refusal> {
        let Some(namespace) = self.namespace.as_deref() else { return self.without_namespace() };
        let (kind, name) = (self.target.set.kind, self.target.key.name.as_ref());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource(kind));
        match &self.step {
            Step::Store { body, hash, replaces } => {
                let wanted: Value = serde_json::from_slice(body)
                    .map_err(|error| refusal("InvalidObject", format!("it cannot be read: {error}")))?;
                let wanted = object(&self.consumer, &self.target, *hash, &wanted)
                    .map_err(|why| refusal("Forbidden", why))?;
                let stored = self.store_companion(&api, wanted, replaces.as_ref()).await?;
                let record = read(kind, &stored.metadata).and_then(|owned| self.ours(owned));
                let lost = || refusal("Conflict", format!("{} {name} lost its labels", kind.as_str()));
                Ok(Outcome::Stored(record.ok_or_else(lost)?))
            }
            Step::Erase(object) => {
                delete(api.delete(name, &only(object, None))).await?;
                Ok(Outcome::Done)
            }
            Step::Look => {
                let found = call(api.get_metadata_opt(name)).await?;
                let owned = found.and_then(|object| read(kind, &object.metadata));
                Ok(Outcome::Found { record: owned.and_then(|owned| self.ours(owned)), instance: None })
            }
            Step::Start | Step::Adjust(_) | Step::Stop { .. } | Step::Finish => Ok(Outcome::Done),
        }
    }

    async fn store_companion(
        &self,
        api: &Api<DynamicObject>,
        mut wanted: Value,
        replaces: Option<&Uid>,
    ) -> Result<DynamicObject, Refusal> {
        let name = self.target.key.name.as_ref();
        if let Some(object) = replaces {
            // With the UID, another object of this name is left alone. What the API server has assigned to a Service
            // it carries over itself.
            wanted["metadata"]["uid"] = Value::from(object.as_str());
            return call(api.replace(name, &PostParams::default(), &typed(wanted)?)).await;
        }
        match request(api.create(&PostParams::default(), &typed(wanted)?)).await {
            Err(RequestError::Api(status)) if status.is_already_exists() => {
                let kind = self.target.set.kind.as_str();
                Err(refusal("Conflict", format!("the provider has a {kind} {name} of its own")))
            }
            other => other.map_err(RequestError::refusal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_reflection::Prefixes;

    fn target(kind: Kind, name: &str) -> Ref {
        let (set, key) = (SetRef::companions(kind, "shop"), Key::new("shop", name));
        Ref { set, key, uid: Uid::from("u-1") }
    }

    #[test]
    fn a_companion_is_read_back_as_it_was_made() {
        let wanted = json!({
            "metadata": {"labels": {"app": "db", ORIGIN_NAMESPACE: "other"}, "ownerReferences": [{"uid": "x"}]},
            "data": {"a": "YQ=="}, "type": "Opaque", "addressType": "IPv4",
        });
        for kind in Kind::COMPANIONS {
            let target = target(kind, "db");
            let mut object = object(&Consumer::for_tests(), &target, Hash::of(b"x"), &wanted).unwrap();
            assert_eq!(object["kind"], kind.as_str());
            assert_eq!(object["metadata"]["labels"]["app"], "db");
            assert!(object["metadata"].get("ownerReferences").is_none());
            object["metadata"]["uid"] = json!("s1");
            let meta: ObjectMeta = serde_json::from_value(object["metadata"].clone()).unwrap();
            let record = read(kind, &meta).unwrap();
            assert_eq!(
                (record.cluster, record.set, record.key),
                (Consumer::for_tests().id, target.set, target.key)
            );
            assert_eq!((record.what.home, record.what.hash), (target.uid, Hash::of(b"x")));
        }
    }

    #[test]
    fn a_consumer_passes_no_credentials_and_takes_no_place_of_the_cluster() {
        let token = json!({"type": "kubernetes.io/service-account-token"});
        let made = |kind, name| object(&Consumer::for_tests(), &target(kind, name), Hash::of(b"x"), &token);
        assert!(made(Kind::Secret, "db").is_err());
        assert!(made(Kind::ConfigMap, "kube-root-ca.crt").is_err());
    }

    #[test]
    fn endpoints_are_those_of_the_consumer_as_they_are_seen_here() {
        let mut consumer = Consumer::for_tests();
        let pair = ("10.244.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap());
        consumer.prefixes = Prefixes::new([pair]);
        let wanted = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web", ENDPOINTS_MANAGED_BY: "x"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.1.7"]}, {"addresses": ["192.0.2.1"]}],
        });
        let slice =
            object(&consumer, &target(Kind::EndpointSlice, "web-x"), Hash::of(b"x"), &wanted).unwrap();
        assert_eq!(slice["apiVersion"], "discovery.k8s.io/v1");
        assert_eq!(slice["endpoints"], json!([{"addresses": ["100.64.1.7"]}]));
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
        assert_eq!(slice["metadata"]["labels"][ENDPOINTS_MANAGED_BY], MANAGER);
        let meta: ObjectMeta = serde_json::from_value(slice["metadata"].clone()).unwrap();
        assert_eq!(translated_by(&meta), Some(consumer.prefixes.digest()));
    }
}
