//! Companions of pods: what they need beside them in shadow namespaces.

use super::ingress::{admit, classified, taken};
use super::objects::{Owned, annotation, label, origin, read_record, strings};
use super::steps::{Job, RequestError, call, delete, only, refusal, request, typed};
use super::walls::Walled;
use crate::lend::consumers::Consumer;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use liquid_crds::vocabulary::{HASH, ORIGIN_CLUSTER, ORIGIN_NAMESPACE, ORIGIN_UID, TERMS};
use liquid_link::digest::Hash;
use liquid_reflection::companion::{ENDPOINTS_MANAGED_BY, is_reflected, portable, translate_endpoints};
use liquid_reflection::frame::{Ref, Refusal};
use liquid_reflection::policy::{Marks, translate};
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

/// Digest of what this cluster has put into an object of its own, if it has.
pub(super) fn made_on(meta: &ObjectMeta) -> Option<Hash> {
    annotation(meta, TERMS).and_then(Hash::from_hex)
}

/// Digest of what this cluster puts into objects of this kind, if anything, whatever their namespace.
pub(super) fn terms(kind: Kind, consumer: &Consumer) -> Option<Hash> {
    match kind {
        Kind::EndpointSlice => Some(consumer.prefixes.digest()),
        Kind::NetworkPolicy => Some(consumer.sources.digest()),
        Kind::Ingress => Some(Hash::of(json!(consumer.lend.ingress).to_string().as_bytes())),
        Kind::Namespace
        | Kind::PersistentVolumeClaim
        | Kind::Pod
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::Service => None,
    }
}

/// The same in a namespace where policies of this cluster's own decide so.
pub(super) fn mixed_terms(kind: Kind, consumer: &Consumer, walled: Walled) -> Option<Hash> {
    terms(kind, consumer).map(|terms| walled.mixed(terms))
}

/// The object a consumer wants, from what it sent. Only what means something here counts: whatever else there is was
/// not asked for.
fn object(
    consumer: &Consumer,
    walled: Walled,
    target: &Ref,
    hash: Hash,
    wanted: &Value,
) -> Result<Value, Refusal> {
    let (kind, name) = (target.set.kind, target.key.name.as_ref());
    let forbidden = |why: String| refusal("Forbidden", why);
    if !is_reflected(kind, &target.key.namespace, name) {
        return Err(forbidden(format!("every cluster has a {} {name} of its own", kind.as_str())));
    }
    let mut object = portable(kind, wanted).map_err(forbidden)?;
    let mut labels = strings(object.pointer("/metadata/labels"));
    labels.insert(ORIGIN_CLUSTER.to_owned(), consumer.id.to_string());
    labels.insert(ORIGIN_NAMESPACE.to_owned(), target.key.namespace.to_string());
    let mut annotations = strings(object.pointer("/metadata/annotations"));
    match kind {
        Kind::EndpointSlice => {
            // Addresses beyond the consumer's pods would draw traffic to somebody else.
            translate_endpoints(&mut object, |address| consumer.prefixes.seen(address));
            labels.insert(ENDPOINTS_MANAGED_BY.to_owned(), MANAGER.to_owned());
        }
        Kind::NetworkPolicy => {
            let policy = serde_json::from_value(object["spec"].take())
                .map_err(|error| forbidden(format!("the policy cannot be read: {error}")))?;
            let marks =
                Marks { cluster: ORIGIN_CLUSTER, namespace: ORIGIN_NAMESPACE, id: consumer.id.as_str() };
            object["spec"] = translate(&policy, &consumer.sources, marks);
            walled.close(&mut object["spec"]);
        }
        Kind::Ingress => {
            let lent = consumer.lend.ingress.as_ref();
            let lent = admit(&object["spec"], lent).map_err(|why| refusal("IngressNotLent", why))?;
            classified(&mut object["spec"], &mut annotations, lent);
        }
        Kind::Namespace
        | Kind::PersistentVolumeClaim
        | Kind::Pod
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::Service => {}
    }
    if let Some(terms) = mixed_terms(kind, consumer, walled) {
        annotations.insert(TERMS.to_owned(), terms.to_string());
    }
    annotations.insert(HASH.to_owned(), hash.to_string());
    annotations.insert(ORIGIN_UID.to_owned(), target.uid.to_string());
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
                let wanted = match object(&self.consumer, self.walled, &self.target, *hash, &wanted) {
                    Ok(wanted) => wanted,
                    Err(refusal) => {
                        // What is not lent any more does not stay open as it was.
                        if let (Kind::Ingress, Some(object)) = (kind, replaces) {
                            delete(api.delete(name, &only(object, None))).await?;
                        }
                        return Err(refusal);
                    }
                };
                if kind == Kind::Ingress {
                    self.hosts_are_free(namespace, &wanted).await?;
                }
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
            Step::Reclaim { .. }
            | Step::Retire(_)
            | Step::Start
            | Step::Adjust(_)
            | Step::Stop { .. }
            | Step::Finish => Ok(Outcome::Done),
        }
    }

    /// Refuses an Ingress for hosts that another namespace has one for: whose requests these are is up to chance then.
    async fn hosts_are_free(&self, namespace: &str, wanted: &Value) -> Result<(), Refusal> {
        let all: Api<Ingress> = Api::all(self.client.clone());
        let all = call(all.list(&ListParams::default())).await?;
        let others = all.iter().filter(|other| other.metadata.namespace.as_deref() != Some(namespace));
        match taken(wanted, others) {
            None => Ok(()),
            Some(host) => {
                let message = format!("the provider has an Ingress for {host} in another namespace already");
                Err(refusal("IngressHostConflict", message))
            }
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
    use liquid_crds::LendIngress;
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
            "spec": {"podSelector": {}, "policyTypes": []},
        });
        let mut consumer = Consumer::for_tests();
        consumer.lend.ingress = Some(LendIngress {
            class_name: "c".to_owned(),
            hosts: vec!["*".to_owned()],
            annotations: vec![],
        });
        for kind in Kind::COMPANIONS {
            let target = target(kind, "db");
            let mut object = object(&consumer, Walled::default(), &target, Hash::of(b"x"), &wanted).unwrap();
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
        let made = |kind, name| {
            object(&Consumer::for_tests(), Walled::default(), &target(kind, name), Hash::of(b"x"), &token)
        };
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
        let slice = object(
            &consumer,
            Walled::default(),
            &target(Kind::EndpointSlice, "web-x"),
            Hash::of(b"x"),
            &wanted,
        )
        .unwrap();
        assert_eq!(slice["apiVersion"], "discovery.k8s.io/v1");
        assert_eq!(slice["endpoints"], json!([{"addresses": ["100.64.1.7"]}]));
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
        assert_eq!(slice["metadata"]["labels"][ENDPOINTS_MANAGED_BY], MANAGER);
        let meta: ObjectMeta = serde_json::from_value(slice["metadata"].clone()).unwrap();
        assert_eq!(made_on(&meta), Some(consumer.prefixes.digest()));
        assert_eq!(made_on(&meta), terms(Kind::EndpointSlice, &consumer));
    }

    #[test]
    fn a_policy_is_about_the_pods_of_the_consumer_and_no_others() {
        let consumer = Consumer::for_tests();
        let wanted = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
        let made = object(
            &consumer,
            Walled::default(),
            &target(Kind::NetworkPolicy, "closed"),
            Hash::of(b"x"),
            &wanted,
        )
        .unwrap();
        assert_eq!(made["spec"]["podSelector"]["matchLabels"], json!({ORIGIN_CLUSTER: consumer.id.as_str()}));
        let raw = json!({"spec": {"podSelector": {}, "policyTypes": [], "ingress": [{"from": []}]}});
        assert!(
            object(&consumer, Walled::default(), &target(Kind::NetworkPolicy, "x"), Hash::of(b"x"), &raw)
                .is_err()
        );
    }

    #[test]
    fn an_ingress_gets_the_class_that_is_lent() {
        let mut consumer = Consumer::for_tests();
        let wanted = json!({
            "metadata": {"annotations": {"a/kept": "x", "a/snippet": "y"}},
            "spec": {"ingressClassName": "home", "rules": [{"host": "web.shop.example.org"}]},
        });
        let made = |consumer: &Consumer| {
            object(consumer, Walled::default(), &target(Kind::Ingress, "web"), Hash::of(b"x"), &wanted)
        };
        assert_eq!(made(&consumer).unwrap_err().reason, "IngressNotLent");
        consumer.lend.ingress = Some(LendIngress {
            class_name: "public".to_owned(),
            hosts: vec!["*.shop.example.org".to_owned()],
            annotations: vec!["a/kept".to_owned()],
        });
        let ingress = made(&consumer).unwrap();
        assert_eq!(ingress["spec"]["ingressClassName"], "public");
        assert_eq!(ingress["metadata"]["annotations"]["a/kept"], "x");
        assert!(ingress["metadata"]["annotations"].get("a/snippet").is_none());
        let meta: ObjectMeta = serde_json::from_value(ingress["metadata"].clone()).unwrap();
        assert_eq!(made_on(&meta), terms(Kind::Ingress, &consumer));
    }
}
