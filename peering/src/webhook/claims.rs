//! Pods whose volumes can only be on nodes of this cluster are kept there: the scheduler would learn too late that nobody makes
//! such a volume on a virtual node, and then has chosen it already.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, Client};
use liquid_crds::vocabulary::STORAGE_DRIVER;
use liquid_reflection::Uid;
use liquid_reflection::claim::volume_name;
use liquid_runtime::storage_classes::StorageClasses;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

/// Who creates a pod waits for this.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Claims of one pod that are looked at; a machine takes fewer volumes.
const MAX_CLAIMS: usize = 64;

/// Looks at the claims of pods.
#[derive(Clone)]
pub(crate) struct Claims {
    client: Client,
    classes: watch::Receiver<Option<StorageClasses>>,
}

impl Claims {
    /// With the storage classes of the cluster.
    pub(crate) fn new(client: Client, classes: watch::Receiver<Option<StorageClasses>>) -> Self {
        Self { client, classes }
    }

    /// Whether a pod (as JSON) has to stay on nodes of this cluster. What cannot be read keeps none: it may be a claim that is
    /// made later, and then the scheduler and the virtual node have their say.
    pub(super) async fn stays(&self, namespace: &str, pod: &Value) -> bool {
        let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
        for claim in volumes.filter_map(Asked::of).take(MAX_CLAIMS) {
            let class = match claim {
                Asked::Class(class) => class,
                Asked::Claim(name) => match self.read(namespace, name).await {
                    Some(claim) if is_remote(&claim) => continue,
                    Some(claim) => claim.spec.and_then(|spec| spec.storage_class_name),
                    None => continue,
                },
            };
            if self.is_of_this_cluster(class.as_deref()) {
                return true;
            }
        }
        false
    }

    async fn read(&self, namespace: &str, name: &str) -> Option<PersistentVolumeClaim> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        match timeout(READ_TIMEOUT, claims.get_opt(name)).await {
            Ok(Ok(claim)) => claim,
            Ok(Err(error)) => {
                debug!(%namespace, %name, %error, "claim not read");
                None
            }
            Err(_) => None,
        }
    }

    /// Whether volumes of a class (the default one if unset) are on nodes of this cluster.
    fn is_of_this_cluster(&self, class: Option<&str>) -> bool {
        let classes = self.classes.borrow();
        let Some(classes) = classes.as_ref() else { return false };
        // With an empty name it is bound to a volume that somebody has made by hand, here.
        let name = match class {
            Some(name) => name,
            None => match classes.default_of(|_| true) {
                Some(name) => name,
                None => return false,
            },
        };
        classes.get(name).is_none_or(|(_, class)| class.provisioner != STORAGE_DRIVER)
    }
}

/// A claim as a pod asks for it.
enum Asked<'a> {
    /// One of this name.
    Claim(&'a str),
    /// One that is made for the pod, of this class.
    Class(Option<String>),
}

impl<'a> Asked<'a> {
    fn of(volume: &'a Value) -> Option<Self> {
        if let Some(name) = volume.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str) {
            return Some(Self::Claim(name));
        }
        let template = volume.pointer("/ephemeral/volumeClaimTemplate/spec")?;
        Some(Self::Class(template.get("storageClassName").and_then(Value::as_str).map(str::to_owned)))
    }
}

/// Whether a claim has its volume in another cluster: its class may be gone by now.
fn is_remote(claim: &PersistentVolumeClaim) -> bool {
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_ref());
    let uid = claim.metadata.uid.as_deref().map(Uid::from);
    volume.zip(uid).is_some_and(|(volume, uid)| *volume == volume_name(&uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use liquid_runtime::storage_classes::Class;
    use serde_json::json;

    /// Claims over an API server that has these.
    fn claims(there: Vec<Value>) -> Claims {
        let service = tower::service_fn(move |request: Request<Body>| {
            let name = request.uri().path().rsplit('/').next().unwrap().to_owned();
            let found = there.iter().find(|claim| claim["metadata"]["name"] == name.as_str());
            let (status, body) = match found {
                Some(claim) => (200, claim.to_string()),
                None => (
                    404,
                    json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"})
                        .to_string(),
                ),
            };
            let answer = Response::builder().status(status).body(Body::from(body.into_bytes()));
            async move { Ok::<_, std::convert::Infallible>(answer.unwrap()) }
        });
        let class = |name: &str, provisioner: &str, default: bool| {
            let default_since = default.then(|| "2026".to_owned());
            (
                name.to_owned(),
                Class { provisioner: provisioner.to_owned(), default_since, ..Class::default() },
            )
        };
        let classes =
            [class("liquid", STORAGE_DRIVER, false), class("local", "x", true)].into_iter().collect();
        Claims::new(Client::new(service, "default"), watch::channel(Some(classes)).1)
    }

    fn claim(name: &str, class: Value, volume: Value) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": "u1"},
            "spec": {"storageClassName": class, "volumeName": volume},
        })
    }

    #[tokio::test]
    async fn pods_stay_for_volumes_of_this_cluster_and_for_no_others() {
        let claims = claims(vec![
            claim("ours", json!("liquid"), Value::Null),
            claim("local", json!("local"), Value::Null),
            claim("default", Value::Null, Value::Null),
            claim("by-hand", json!(""), json!("nfs")),
            claim("of-a-class-that-is-gone", json!("old"), json!("liquid-u1")),
            claim("of-a-provisioner-here", json!("local"), json!("pvc-u1")),
        ]);
        let named = |name: &str| json!({"persistentVolumeClaim": {"claimName": name}});
        let made = |spec: Value| json!({"ephemeral": {"volumeClaimTemplate": {"spec": spec}}});
        for (volume, stays) in [
            (named("ours"), false),
            (named("local"), true),
            (named("default"), true),
            (named("by-hand"), true),
            (named("of-a-class-that-is-gone"), false),
            (named("of-a-provisioner-here"), true),
            (named("absent"), false),
            (made(json!({"storageClassName": "liquid"})), false),
            (made(json!({})), true),
            (json!({"emptyDir": {}}), false),
        ] {
            let pod = json!({"spec": {"volumes": [{"emptyDir": {}}, volume]}});
            assert_eq!(claims.stays("shop", &pod).await, stays, "{volume}");
        }
        assert!(!claims.stays("shop", &json!({"spec": {}})).await);
    }
}
