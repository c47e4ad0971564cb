//! liquid-kubelet may read what pods need beside them (Secrets, say) in offloaded namespaces, and ask for tokens of their
//! service accounts where these are to have them, and nowhere else: it is bound there to the ClusterRoles that the chart has
//! for it.

use futures::StreamExt as _;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{MANAGED_BY, MANAGED_BY_LIQUID, OFFLOADING_NAME};
use liquid_crds::{GROUP, NamespaceOffloading, TokenReflection, VERSION};
use liquid_runtime::watch::{Change, changes};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tracing::{info, warn};

/// The ClusterRole with what is read of every offloaded namespace, and the name of the bindings to it.
const READER: &str = "liquid-kubelet-offloaded";
/// The ClusterRole with tokens of service accounts, and the name of the bindings to it.
const ISSUER: &str = "liquid-kubelet-tokens";
/// How often bindings that somebody has deleted, or that could not be made or removed, are seen to again.
const REPAIR_INTERVAL: Duration = Duration::from_secs(30);

/// An offloaded namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offloaded {
    /// UID of its `NamespaceOffloading`.
    uid: String,
    /// Its pods are to have tokens in providers.
    tokens: bool,
}

impl Offloaded {
    fn of(offloading: &NamespaceOffloading) -> Self {
        let tokens = offloading.spec.reflection.service_account_tokens == TokenReflection::Bound;
        Self { uid: offloading.uid().unwrap_or_default(), tokens }
    }

    fn roles(&self) -> impl Iterator<Item = &'static str> {
        [READER].into_iter().chain(self.tokens.then_some(ISSUER))
    }
}

/// Keeps the bindings in every offloaded namespace, for ever. Each goes with its `NamespaceOffloading`, which owns it.
pub(crate) async fn bind(client: Client, own_namespace: String) {
    let offloadings: Api<NamespaceOffloading> = Api::all(client.clone());
    let mut news = changes(offloadings, watcher::Config::default()).boxed();
    let mut repair = tokio::time::interval(REPAIR_INTERVAL);
    let mut offloaded: BTreeMap<String, Offloaded> = BTreeMap::new();
    let mut listed = false;
    loop {
        tokio::select! {
            change = news.next() => match change {
                Some(Change::Applied(offloading)) => {
                    let namespace = offloading.namespace().unwrap_or_default();
                    let wanted = Offloaded::of(&offloading);
                    if offloaded.insert(namespace.clone(), wanted.clone()).as_ref() != Some(&wanted) {
                        for role in wanted.roles() {
                            bind_in(&client, &own_namespace, &namespace, role, &wanted.uid).await;
                        }
                        if listed && !wanted.tokens {
                            unbind(&client, &namespace).await;
                        }
                    }
                }
                Some(Change::Deleted(offloading)) => {
                    offloaded.remove(&offloading.namespace().unwrap_or_default());
                }
                Some(Change::Listed(seen)) => {
                    offloaded.retain(|name, _| seen.iter().any(|(namespace, _)| namespace == name));
                    listed = true;
                }
                None => return,
            },
            _ = repair.tick() => repair_all(&client, &own_namespace, &offloaded).await,
        }
    }
}

async fn repair_all(client: &Client, own_namespace: &str, offloaded: &BTreeMap<String, Offloaded>) {
    for role in [READER, ISSUER] {
        let bindings: Api<RoleBinding> = Api::all(client.clone());
        let params = ListParams::default().fields(&format!("metadata.name={role}"));
        let bound: BTreeSet<String> = match bindings.list_metadata(&params).await {
            Ok(bound) => bound.iter().filter_map(kube::ResourceExt::namespace).collect(),
            Err(error) => {
                warn!(%error, "RoleBindings not read; trying again");
                return;
            }
        };
        for (namespace, wanted) in offloaded {
            match (wanted.roles().any(|wanted| wanted == role), bound.contains(namespace)) {
                (true, false) => bind_in(client, own_namespace, namespace, role, &wanted.uid).await,
                (false, true) => unbind(client, namespace).await,
                _ => {}
            }
        }
    }
}

async fn bind_in(client: &Client, own_namespace: &str, namespace: &str, role: &str, offloading: &str) {
    let binding: RoleBinding = match serde_json::from_value(json!({
        "metadata": {
            "name": role,
            "labels": { MANAGED_BY: MANAGED_BY_LIQUID },
            "ownerReferences": [{
                "apiVersion": format!("{GROUP}/{VERSION}"),
                "kind": "NamespaceOffloading",
                "name": OFFLOADING_NAME,
                "uid": offloading,
            }],
        },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [{ "kind": "ServiceAccount", "name": "liquid-kubelet", "namespace": own_namespace }],
    })) {
        Ok(binding) => binding,
        Err(error) => {
            warn!(%namespace, %error, "RoleBinding not made");
            return;
        }
    };
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    match bindings.create(&PostParams::default(), &binding).await {
        Ok(_) => info!(%namespace, role, "liquid-kubelet has the role in the namespace"),
        // One that is owned by an earlier NamespaceOffloading goes with it, and is made anew then.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => warn!(%namespace, role, %error, "RoleBinding not made; trying again"),
    }
}

/// Takes the right to tokens of a namespace back, if it was given by us.
async fn unbind(client: &Client, namespace: &str) {
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    let gone = async {
        let Some(binding) = bindings.get_metadata_opt(ISSUER).await? else { return Ok(false) };
        if binding.labels().get(MANAGED_BY).map(String::as_str) != Some(MANAGED_BY_LIQUID) {
            return Ok(false);
        }
        let only = Preconditions { uid: binding.metadata.uid, resource_version: None };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        bindings.delete(ISSUER, &params).await.map(|_| true)
    };
    match gone.await {
        Ok(true) => info!(%namespace, role = ISSUER, "liquid-kubelet has the role in the namespace no more"),
        Ok(false) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
        Err(error) => warn!(%namespace, role = ISSUER, %error, "RoleBinding not removed; trying again"),
    }
}
