//! liquid-kubelet may read what pods need beside them (Secrets, say) in offloaded namespaces, and nowhere else: it is
//! bound there to the ClusterRole that the chart has for it.

use futures::StreamExt as _;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{ListParams, PartialObjectMeta, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{MANAGED_BY, MANAGED_BY_LIQUID, OFFLOADING_NAME};
use liquid_crds::{GROUP, NamespaceOffloading, VERSION};
use liquid_runtime::watch::{Change, changes};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tracing::{info, warn};

/// The ClusterRole, and the name of the bindings.
const ROLE: &str = "liquid-kubelet-offloaded";
/// How often bindings that somebody has deleted, or that could not be made, are made again.
const REPAIR_INTERVAL: Duration = Duration::from_secs(30);

/// Keeps a binding in every offloaded namespace, for ever. Each goes with its `NamespaceOffloading`, which owns it.
pub(crate) async fn bind(client: Client, own_namespace: String) {
    let offloadings: Api<PartialObjectMeta<NamespaceOffloading>> = Api::all(client.clone());
    let mut news = changes(offloadings, watcher::Config::default()).boxed();
    let mut repair = tokio::time::interval(REPAIR_INTERVAL);
    let mut offloaded = BTreeMap::new();
    loop {
        tokio::select! {
            change = news.next() => match change {
                Some(Change::Applied(offloading)) => {
                    let namespace = offloading.namespace().unwrap_or_default();
                    let uid = offloading.uid().unwrap_or_default();
                    if offloaded.insert(namespace.clone(), uid.clone()).as_ref() != Some(&uid) {
                        bind_in(&client, &own_namespace, &namespace, &uid).await;
                    }
                }
                Some(Change::Deleted(offloading)) => {
                    offloaded.remove(&offloading.namespace().unwrap_or_default());
                }
                Some(Change::Listed(seen)) => {
                    offloaded.retain(|name, _| seen.iter().any(|(namespace, _)| namespace == name));
                }
                None => return,
            },
            _ = repair.tick() => {
                let bindings: Api<RoleBinding> = Api::all(client.clone());
                let params = ListParams::default().fields(&format!("metadata.name={ROLE}"));
                let bound: BTreeSet<String> = match bindings.list_metadata(&params).await {
                    Ok(bound) => bound.iter().filter_map(kube::ResourceExt::namespace).collect(),
                    Err(error) => {
                        warn!(%error, "RoleBindings not read; trying again");
                        continue;
                    }
                };
                for (namespace, uid) in offloaded.iter().filter(|(namespace, _)| !bound.contains(*namespace)) {
                    bind_in(&client, &own_namespace, namespace, uid).await;
                }
            }
        }
    }
}

async fn bind_in(client: &Client, own_namespace: &str, namespace: &str, offloading: &str) {
    let binding: RoleBinding = match serde_json::from_value(json!({
        "metadata": {
            "name": ROLE,
            "labels": { MANAGED_BY: MANAGED_BY_LIQUID },
            "ownerReferences": [{
                "apiVersion": format!("{GROUP}/{VERSION}"),
                "kind": "NamespaceOffloading",
                "name": OFFLOADING_NAME,
                "uid": offloading,
            }],
        },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE },
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
        Ok(_) => info!(%namespace, "liquid-kubelet may read the namespace"),
        // One that is owned by an earlier NamespaceOffloading goes with it, and is made anew then.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => warn!(%namespace, %error, "RoleBinding not made; trying again"),
    }
}
