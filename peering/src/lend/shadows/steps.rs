//! Carries out the steps the state machine asks for, one request of the API server after the other.

use super::claims;
use super::objects::{
    Owned, PodView, ShadowView, adjustment, created, debugging, forbidden, lead_home, may_take_back,
    namespace, namespace_body, pod, reaches_home, read_namespace, read_pod, read_shadow, resizing, shadow,
    shadow_resource,
};
use super::walls::Walled;
use super::watches::pod_resource;
use crate::lend::consumers::Consumer;
use bytes::Bytes;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Api, Client};
use liquid_crds::vocabulary::{KEPT, KEPT_BECAUSE, ORIGIN_CLUSTER, ORIGIN_NAMESPACE, RELEASED_TO};
use liquid_crds::{LendState, Placement, ShadowPod};
use liquid_link::digest::Hash;
use liquid_reflection::companion::HOME_API_SERVER;
use liquid_reflection::frame::{Ref, Refusal};
use liquid_reflection::provider::{Hold, Instance, Outcome, Record, StatusFound, Step};
use liquid_reflection::{Role, Uid};
use liquid_runtime::backoff::{Backoff, entropy};
use liquid_runtime::storage_classes::StorageClasses;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

/// No request to the API server may take longer; its own limit for non-watch requests is 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a status is read in vain before the consumer is made to start over, with which pauses: about 15 s.
const READ_TRIES: usize = 6;
const READ_FIRST: Duration = Duration::from_millis(250);
const READ_CAP: Duration = Duration::from_secs(8);

/// How often the Service that leads to home's API server is looked for, with which pause: about 1 s, within which it comes
/// if it is on its way. After that the step is tried again as any other.
const SERVICE_TRIES: usize = 10;
const SERVICE_PAUSE: Duration = Duration::from_millis(100);

/// Reason of a refusal that says nothing of what has become of the request.
pub(super) const UNAVAILABLE: &str = "ApiUnavailable";

/// Namespaces no consumer may have here, whatever it asks for.
const RESERVED: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// What this cluster lets consumers do.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Pod Security Standard enforced on their namespaces.
    pub(crate) pod_security: String,
    /// Namespace of Liquid itself.
    pub(crate) own_namespace: String,
}

/// Everything a step needs.
pub(super) struct Job {
    pub(super) client: Client,
    pub(super) policy: Arc<Policy>,
    pub(super) classes: watch::Receiver<Option<StorageClasses>>,
    pub(super) consumer: Consumer,
    /// On which nodes a pod may run, if it is one and is made now.
    pub(super) placement: Placement,
    /// Name here of the namespace of the object, if the consumer has it; of a claim also one that is kept.
    pub(super) namespace: Option<Arc<str>>,
    /// Where policies of this cluster's own decide in that namespace; of interest for NetworkPolicies.
    pub(super) walled: Walled,
    pub(super) target: Ref,
    pub(super) step: Step,
}

impl Job {
    /// Carries out the step.
    pub(super) async fn run(self) -> Outcome {
        let result = match self.target.set.kind.role() {
            Role::Namespace => self.run_namespace().await,
            Role::Pod => self.run_pod().await,
            Role::Claim => self.run_claim().await,
            Role::Companion => self.run_companion().await,
        };
        result.unwrap_or_else(Outcome::Failed)
    }

    async fn run_namespace(&self) -> Result<Outcome, Refusal> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match &self.step {
            Step::Store { body, hash, replaces } => self.store_namespace(&api, body, *hash, replaces).await,
            Step::Erase(object) => {
                let found = self.find_namespace(&api).await?;
                let found = found.filter(|(_, record)| record.object == *object);
                if let Some((name, _)) = found {
                    delete(api.delete(&name, &only(object, None))).await?;
                }
                Ok(Outcome::Done)
            }
            Step::Reclaim { object, version } => {
                let found = self.find_namespace(&api).await?;
                let Some((name, record)) = found.filter(|(_, record)| record.object == *object) else {
                    return Ok(Outcome::Done);
                };
                // Claims that are not the consumer's, or not known of yet, are somebody's data too.
                if !self.has_claims(&name).await? {
                    return self.reclaim(&api, &name, object, *version).await;
                }
                if record.hold == Hold::Retired {
                    let message = format!("there are claims in namespace {name} that are not its consumer's");
                    return Err(refusal("ClaimsOfOthers", message));
                }
                self.keep_namespace(&api, &name, object).await
            }
            Step::Retire(object) => {
                let found = self.find_namespace(&api).await?;
                match found.filter(|(_, record)| record.object == *object) {
                    Some((name, _)) => self.keep_namespace(&api, &name, object).await,
                    None => Ok(Outcome::Done),
                }
            }
            Step::Look => {
                let record = self.find_namespace(&api).await?.map(|(_, record)| record);
                Ok(Outcome::Found { record, instance: None })
            }
            Step::Start | Step::Adjust(_) | Step::Stop { .. } | Step::Finish => Ok(Outcome::Done),
        }
    }

    async fn keep_namespace(
        &self,
        api: &Api<Namespace>,
        name: &str,
        object: &Uid,
    ) -> Result<Outcome, Refusal> {
        let kept = self.retire(api, name, object).await?;
        let record = kept.and_then(|namespace| read_namespace(&namespace.metadata)).map(|owned| owned.what);
        Ok(record.map_or(Outcome::Done, |record| Outcome::Found { record: Some(record), instance: None }))
    }

    async fn find_namespace(&self, api: &Api<Namespace>) -> Result<Option<(String, Record)>, Refusal> {
        let found = self.look_for_namespace(api).await?;
        Ok(found.and_then(|(namespace, record)| Some((namespace.metadata.name?, record))))
    }

    async fn look_for_namespace(&self, api: &Api<Namespace>) -> Result<Option<(Namespace, Record)>, Refusal> {
        let labels =
            format!("{ORIGIN_CLUSTER}={},{ORIGIN_NAMESPACE}={}", self.consumer.id, self.target.key.name);
        let list = call(api.list(&ListParams::default().labels(&labels))).await?;
        Ok(list.into_iter().find_map(|namespace| {
            let record = read_namespace(&namespace.metadata)?.what;
            Some((namespace, record))
        }))
    }

    /// Refuses what is kept for another cluster, or for one that does not show that it is the same.
    fn check_kept(&self, there: &Namespace, record: &Record) -> Result<(), Refusal> {
        if record.hold != Hold::Retired || may_take_back(&self.consumer, &there.metadata) {
            return Ok(());
        }
        let (name, peering) = (there.metadata.name.as_deref().unwrap_or_default(), &self.consumer.peering);
        warn!(
            namespace = name, peer = %self.consumer.name,
            "a namespace with data is not given back: the consumer has not shown the key of the cluster that had it"
        );
        let message = format!(
            "volumes of claims are kept in namespace {name} of the provider for a cluster with another key; Liquid has been \
             uninstalled there since, or it is another cluster with this one's identity. If they are yours, the provider's \
             administrator gives them back: kubectl annotate namespace {name} {RELEASED_TO}={peering}"
        );
        Err(refusal("NamespaceKeptForAnotherKey", message))
    }

    async fn store_namespace(
        &self,
        api: &Api<Namespace>,
        body: &Bytes,
        hash: Hash,
        replaces: &Option<Uid>,
    ) -> Result<Outcome, Refusal> {
        let name = namespace_body(body).map_err(|error| refusal("InvalidNamespace", error))?.name;
        if RESERVED.contains(&name.as_str()) || name == self.policy.own_namespace {
            let message = format!("namespace {name} of the provider is not for consumers");
            return Err(refusal("NamespaceReserved", message));
        }
        let wanted = namespace(&self.consumer, &self.target, hash, &name, &self.policy.pod_security);
        let stored: Namespace = if replaces.is_some() {
            // Only what is ours already is written over, and a namespace keeps its name.
            let known = self.look_for_namespace(api).await?;
            if let Some((there, record)) = &known {
                self.check_kept(there, record)?;
            }
            match known.and_then(|(there, record)| Some((there.metadata.name?, record))) {
                Some((known, _)) if known == name => {}
                Some((known, record)) if record.hold == Hold::Retired => {
                    let message = format!(
                        "volumes of claims of this namespace are kept in namespace {known} of the provider: offload it \
                         with --remote-name {known}, or have them deleted"
                    );
                    return Err(refusal("NamespaceKept", message));
                }
                _ => {
                    let message = "a namespace cannot be renamed: unoffload it first".to_owned();
                    return Err(refusal("NamespaceImmutable", message));
                }
            }
            let params = PatchParams::apply("liquid-controller").force();
            call(api.patch(&name, &params, &Patch::Apply(&wanted))).await?;
            // Last, so that a failure before is seen: until then it is kept, and stored anew.
            let again = json!({ "metadata": {
                "labels": { KEPT: null },
                "annotations": { KEPT_BECAUSE: null, RELEASED_TO: null },
            }});
            call(api.patch(&name, &PatchParams::default(), &Patch::Merge(&again))).await?
        } else {
            let typed: Namespace = typed(wanted)?;
            match request(api.create(&PostParams::default(), &typed)).await {
                Err(RequestError::Api(status)) if status.is_already_exists() => {
                    let message = format!("namespace {name} exists in the provider and is not yours");
                    return Err(refusal("NamespaceConflict", message));
                }
                other => other.map_err(RequestError::refusal)?,
            }
        };
        match read_namespace(&stored.metadata) {
            Some(owned) => Ok(Outcome::Stored(owned.what)),
            None => Err(refusal("NamespaceConflict", format!("namespace {name} lost its labels"))),
        }
    }

    /// What a step comes to while the consumer does not have the namespace: nothing in it can exist.
    pub(super) fn without_namespace(&self) -> Result<Outcome, Refusal> {
        match self.step {
            Step::Look => Ok(Outcome::Found { record: None, instance: None }),
            Step::Store { .. } | Step::Start => {
                let message =
                    format!("namespace {} is not offloaded to this provider", self.target.key.namespace);
                Err(refusal("NamespaceNotOffloaded", message))
            }
            Step::Adjust(_)
            | Step::Stop { .. }
            | Step::Finish
            | Step::Erase(_)
            | Step::Reclaim { .. }
            | Step::Retire(_) => Ok(Outcome::Done),
        }
    }

    async fn run_pod(&self) -> Result<Outcome, Refusal> {
        let Some(namespace) = self.namespace.as_deref() else { return self.without_namespace() };
        let shadows: Api<ShadowPod> = Api::namespaced(self.client.clone(), namespace);
        let pods: Api<PodView> = Api::namespaced_with(self.client.clone(), namespace, &pod_resource());
        let name = self.target.key.name.as_ref();
        match &self.step {
            Step::Store { body, hash, replaces } => {
                self.store_pod(&shadows, namespace, body, *hash, replaces).await
            }
            Step::Start => match self.shadow(&shadows).await? {
                None => Ok(Outcome::Done),
                Some(shadow) if is_finished(&shadow) => Ok(Outcome::Stored(record(&shadow)?)),
                Some(shadow) => Ok(Outcome::Running(self.start(&shadow, namespace).await?)),
            },
            Step::Adjust(object) => self.adjust(&shadows, namespace, object).await,
            Step::Stop { object, grace } => {
                delete(pods.delete(name, &only(object, *grace))).await?;
                Ok(Outcome::Done)
            }
            Step::Finish => self.finish(&shadows, &pods).await,
            Step::Erase(object) => {
                delete(shadows.delete(name, &only(object, None))).await?;
                Ok(Outcome::Done)
            }
            Step::Reclaim { .. } | Step::Retire(_) => Ok(Outcome::Done),
            Step::Look => {
                let views: Api<ShadowView> =
                    Api::namespaced_with(self.client.clone(), namespace, &shadow_resource());
                let shadow = call(views.get_opt(name)).await?;
                let shadow = shadow.and_then(|shadow| read_shadow(&shadow));
                let pod = call(pods.get_opt(name)).await?.and_then(|pod| read_pod(&pod));
                Ok(Outcome::Found {
                    record: shadow.and_then(|owned| self.ours(owned)),
                    instance: pod.and_then(|owned| self.ours(owned)),
                })
            }
        }
    }

    /// What was found, if it belongs to the consumer and set of the target.
    pub(super) fn ours<T>(&self, owned: Owned<T>) -> Option<T> {
        (owned.cluster == self.consumer.id && owned.set == self.target.set).then_some(owned.what)
    }

    async fn store_pod(
        &self,
        shadows: &Api<ShadowPod>,
        namespace: &str,
        body: &Bytes,
        hash: Hash,
        replaces: &Option<Uid>,
    ) -> Result<Outcome, Refusal> {
        let pod: Value = serde_json::from_slice(body)
            .map_err(|error| refusal("InvalidPod", format!("the pod cannot be read: {error}")))?;
        if liquid_reflection::digest::json(&pod) != hash {
            return Err(refusal(
                "InvalidPod",
                "the pod does not have the digest it was sent with".to_owned(),
            ));
        }
        if let Some(why) = forbidden(&pod) {
            return Err(refusal("Forbidden", why.to_owned()));
        }
        if let Some(object) = replaces {
            let patch = json!([
                {"op": "test", "path": "/metadata/uid", "value": object.as_str()},
                {"op": "replace", "path": "/spec/pod", "value": pod},
                {"op": "replace", "path": "/spec/hash", "value": hash.to_string()},
            ]);
            let patch: json_patch::Patch = typed(patch)?;
            let params = PatchParams::default();
            let name = &self.target.key.name;
            let stored = call(shadows.patch(name, &params, &Patch::Json::<()>(patch))).await?;
            return Ok(Outcome::Stored(record(&stored)?));
        }
        if self.consumer.lend.state == LendState::Cordoned {
            let message = "the provider takes no new pods of this cluster for now (cordoned)".to_owned();
            return Err(refusal("ProviderCordoned", message));
        }
        let wanted = shadow(&self.consumer, &self.target, hash, pod, self.placement.clone());
        let stored = match request(shadows.create(&PostParams::default(), &wanted)).await {
            Err(RequestError::Api(status)) if status.is_already_exists() => {
                let message = format!(
                    "a ShadowPod {} exists in namespace {namespace} of the provider already",
                    self.target.key.name
                );
                return Err(refusal("PodConflict", message));
            }
            other => other.map_err(RequestError::refusal)?,
        };
        let stored_record = record(&stored)?;
        // Starting it at once, from what is at hand, saves reading it back. If that fails the record stands, and
        // starting it is the next step.
        match self.start(&stored, namespace).await {
            Ok(instance) => Ok(Outcome::Found { record: Some(stored_record), instance: Some(instance) }),
            Err(_) => Ok(Outcome::Stored(stored_record)),
        }
    }

    /// The ShadowPod of the target; one of that name may stand for another object by now.
    async fn shadow(&self, shadows: &Api<ShadowPod>) -> Result<Option<ShadowPod>, Refusal> {
        let shadow = call(shadows.get_opt(&self.target.key.name)).await?;
        Ok(shadow.filter(|shadow| {
            shadow.spec.home.uid == self.target.uid.as_str()
                && *shadow.spec.home.node == *self.target.set.scope
                && super::objects::origin(&shadow.metadata).as_ref() == Some(&self.consumer.id)
                && shadow.metadata.deletion_timestamp.is_none()
        }))
    }

    async fn start(&self, shadow: &ShadowPod, namespace: &str) -> Result<Instance, Refusal> {
        let pods: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &pod_resource());
        let mut wanted = created(pod(shadow));
        if reaches_home(shadow) {
            lead_home(&mut wanted, &self.home_api_server(namespace).await?);
        }
        let wanted: DynamicObject = typed(wanted)?;
        let name = self.target.key.name.as_ref();
        let started = match request(pods.create(&PostParams::default(), &wanted)).await {
            Err(RequestError::Api(status)) if status.is_already_exists() => call(pods.get(name)).await?,
            other => other.map_err(RequestError::refusal)?,
        };
        let view: PodView = typed(serde_json::to_value(&started).unwrap_or_default())?;
        let owned = read_pod(&view).filter(|owned| {
            owned.cluster == self.consumer.id
                && owned.set == self.target.set
                && owned.what.home.as_str() == shadow.spec.home.uid
        });
        owned.map(|owned| owned.what).ok_or_else(|| {
            let message = format!("another pod {name} runs in namespace {namespace} of the provider");
            refusal("PodConflict", message)
        })
    }

    /// The address here that leads to home's API server. It comes beside the pod, and may come a moment later.
    async fn home_api_server(&self, namespace: &str) -> Result<String, Refusal> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        for _ in 0..SERVICE_TRIES {
            let found = call(services.get_opt(HOME_API_SERVER)).await?;
            let ours = found.filter(|service| {
                super::objects::origin(&service.metadata).as_ref() == Some(&self.consumer.id)
            });
            if let Some(address) = ours.and_then(|service| service.spec?.cluster_ip) {
                return Ok(address);
            }
            tokio::time::sleep(SERVICE_PAUSE).await;
        }
        let message =
            format!("Service {HOME_API_SERVER}, by which the pod reaches home's API server, is not there");
        Err(refusal("HomeApiServerUnknown", message))
    }

    async fn adjust(
        &self,
        shadows: &Api<ShadowPod>,
        namespace: &str,
        object: &Uid,
    ) -> Result<Outcome, Refusal> {
        let Some(shadow) = self.shadow(shadows).await? else { return Ok(Outcome::Done) };
        let pods: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &pod_resource());
        let name = self.target.key.name.as_ref();
        let Some(running) = call(pods.get_opt(name)).await? else { return Ok(Outcome::Done) };
        if running.metadata.uid.as_deref() != Some(object.as_str()) {
            return Ok(Outcome::Done);
        }
        let running = serde_json::to_value(&running).unwrap_or_default();
        let wanted = pod(&shadow);
        let params = PatchParams::default();
        // The digest is written last: what is refused here is tried again.
        for (subresource, patch) in
            [("resize", resizing(&running, &wanted)), ("ephemeralcontainers", debugging(&running, &wanted))]
        {
            if let Some(patch) = patch {
                let patch = Patch::Json::<()>(on_condition(object, patch)?);
                call(pods.patch_subresource(subresource, name, &params, &patch)).await?;
            }
        }
        let patch = on_condition(object, adjustment(&running, &wanted))?;
        let adjusted = call(pods.patch(name, &params, &Patch::Json::<()>(patch))).await?;
        let view: PodView = typed(serde_json::to_value(&adjusted).unwrap_or_default())?;
        Ok(read_pod(&view).map_or(Outcome::Done, |owned| Outcome::Running(owned.what)))
    }

    /// Remembers the final status of the pod in its ShadowPod.
    async fn finish(&self, shadows: &Api<ShadowPod>, pods: &Api<PodView>) -> Result<Outcome, Refusal> {
        let name = self.target.key.name.as_ref();
        let Some(pod) = call(pods.get_opt(name)).await? else { return Ok(Outcome::Done) };
        let Some(owned) = read_pod(&pod).filter(|o| o.what.finished && o.what.home == self.target.uid) else {
            return Ok(Outcome::Done);
        };
        debug_assert!(owned.what.finished);
        let status = pod.status.unwrap_or_default();
        let Some(shadow) = self.shadow(shadows).await? else { return Ok(Outcome::Done) };
        let patch = json!({
            "metadata": {"uid": shadow.metadata.uid},
            "status": {"phase": status.get("phase"), "podStatus": status},
        });
        let params = PatchParams::default();
        let stored = call(shadows.patch_status(name, &params, &Patch::Merge(&patch))).await?;
        Ok(Outcome::Stored(record(&stored)?))
    }
}

/// Reads the status of the pod a consumer knows as `target`, the one its ShadowPod keeps of a pod that has ended, or what is
/// told of a claim.
/// `None` if the API server does not answer, for several tries.
pub(super) async fn read_status(
    client: &Client,
    namespace: &str,
    target: &Ref,
) -> Option<(StatusFound, Value)> {
    let mut backoff = Backoff::new(READ_FIRST, READ_CAP);
    for _ in 0..READ_TRIES {
        let read = match target.set.kind.role() {
            Role::Claim => claims::report(client, namespace, target).await,
            _ => status(client, namespace, target).await,
        };
        match read {
            Ok(found) => return Some(found),
            Err(refusal) => debug!(key = %target.key, message = %refusal.message, "status not read"),
        }
        tokio::time::sleep(backoff.next(entropy())).await;
    }
    None
}

async fn status(client: &Client, namespace: &str, target: &Ref) -> Result<(StatusFound, Value), Refusal> {
    let pods: Api<PodView> = Api::namespaced_with(client.clone(), namespace, &pod_resource());
    if let Some(pod) = call(pods.get_opt(&target.key.name)).await? {
        let owned = read_pod(&pod).filter(|owned| owned.what.home == target.uid && owned.set == target.set);
        let found = owned.map_or(StatusFound::Nothing, |owned| StatusFound::Running(owned.what));
        return Ok((found, pod.status.unwrap_or_default()));
    }
    let shadows: Api<ShadowView> = Api::namespaced_with(client.clone(), namespace, &shadow_resource());
    let shadow = call(shadows.get_opt(&target.key.name)).await?;
    let kept = shadow.as_ref().and_then(read_shadow).filter(|kept| kept.what.home == target.uid);
    let found = kept.and_then(|kept| kept.what.status).map_or(StatusFound::Nothing, StatusFound::Kept);
    let status = shadow.and_then(|shadow| shadow.status?.pod_status);
    Ok((found, status.unwrap_or_default()))
}

fn is_finished(shadow: &ShadowPod) -> bool {
    shadow.status.as_ref().is_some_and(|status| status.phase.is_some())
}

fn record(shadow: &ShadowPod) -> Result<Record, Refusal> {
    let view: ShadowView = typed(serde_json::to_value(shadow).unwrap_or_default())?;
    let owned = read_shadow(&view);
    owned
        .map(|owned| owned.what)
        .ok_or_else(|| refusal("PodConflict", "the ShadowPod in the provider lost its labels".to_owned()))
}

/// The patch for the object with this UID and for no other.
fn on_condition(object: &Uid, mut patch: json_patch::Patch) -> Result<json_patch::Patch, Refusal> {
    let test = json!([{"op": "test", "path": "/metadata/uid", "value": object.as_str()}]);
    let test: json_patch::Patch = typed(test)?;
    patch.0.splice(0..0, test.0);
    Ok(patch)
}

pub(super) fn only(object: &Uid, grace: Option<u32>) -> DeleteParams {
    DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions { uid: Some(object.to_string()), resource_version: None }),
        ..DeleteParams::default()
    }
}

pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    serde_json::from_value(value).map_err(|error| refusal("InvalidObject", error.to_string()))
}

pub(super) fn refusal(reason: &str, message: String) -> Refusal {
    Refusal { reason: reason.to_owned(), message }
}

pub(super) enum RequestError {
    Api(Box<Status>),
    Other(String),
}

impl RequestError {
    pub(super) fn refusal(self) -> Refusal {
        match self {
            RequestError::Api(status) => {
                let reason = if status.reason.is_empty() { "ApiError" } else { &status.reason };
                refusal(reason, format!("the provider's API server says: {}", status.message))
            }
            RequestError::Other(message) => refusal(UNAVAILABLE, message),
        }
    }
}

pub(super) async fn request<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) => Err(RequestError::Api(status)),
        Ok(Err(error)) => Err(RequestError::Other(format!("the provider's API server failed: {error}"))),
        Err(_) => Err(RequestError::Other("the provider's API server did not answer in time".to_owned())),
    }
}

pub(super) async fn call<T>(inner: impl Future<Output = kube::Result<T>>) -> Result<T, Refusal> {
    request(inner).await.map_err(RequestError::refusal)
}

/// A deletion; an object that is gone or another one by now needs none.
pub(super) async fn delete<T>(inner: impl Future<Output = kube::Result<T>>) -> Result<(), Refusal> {
    match request(inner).await {
        Ok(_) => Ok(()),
        Err(RequestError::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error.refusal()),
    }
}
