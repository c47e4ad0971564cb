//! What the API server has of all consumers: a few watches, whatever their number.

use super::claims;
use super::companions;
use super::events::{self, Warned};
use super::objects::{
    Owned, PodView, ShadowView, read_namespace, read_pod, read_shadow, shadow_resource, version,
};
use super::walls::{self, PolicyView};
use crate::lend::demand::demand;
use futures::Stream;
use futures::stream::{StreamExt as _, select_all};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client};
use liquid_crds::quantity::Amounts;
use liquid_crds::vocabulary::ORIGIN_CLUSTER;
use liquid_link::digest::Hash;
use liquid_reflection::Kind;
use liquid_reflection::provider::{Deleted, Instance, Record};
use liquid_runtime::watch::{Change, ObjectName, changes, changes_of};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Which watch something comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Namespaces,
    Shadows,
    Pods,
    Claims,
    Companions(Kind),
    Walls,
}

impl Source {
    /// Every watch there is.
    pub(super) fn all() -> BTreeSet<Self> {
        let companions = Kind::COMPANIONS.map(Self::Companions);
        let own = [Self::Namespaces, Self::Shadows, Self::Pods, Self::Claims, Self::Walls];
        own.into_iter().chain(companions).collect()
    }
}

/// News of one watch.
#[derive(Debug)]
pub(super) enum News {
    /// A namespace: its record, and its name here.
    Namespace(Owned<Result<Record, Deleted>>, Arc<str>),
    /// A ShadowPod, with what it asks for.
    Shadow(Owned<Result<Record, Deleted>>, Amounts),
    /// A companion of pods, with the digest of what this cluster has put into it.
    Companion(Owned<Result<Record, Deleted>>, Option<Hash>),
    /// A pod, with what else matters of it.
    Pod(Owned<Result<Instance, Deleted>>, Option<Seen>),
    /// A claim, with what it asks for.
    Claim(Owned<Result<Record, Deleted>>, Amounts),
    /// A NetworkPolicy of this cluster's own.
    Wall(Change<PolicyView>),
    /// Somebody warns of a pod or a claim.
    Warned(Warned),
    /// A list was read to its end; these objects (by namespace and name here) exist.
    Listed(Source, BTreeSet<ObjectName>),
}

/// What is seen of a pod beside its [`Instance`].
#[derive(Debug)]
pub(super) struct Seen {
    /// Its status as the API server has it.
    pub(super) status: Option<Value>,
    /// The node it is bound to.
    pub(super) host: Option<String>,
    /// What it asks for.
    pub(super) demand: Amounts,
}

/// All watches as one stream.
pub(super) fn watch(client: &Client) -> impl Stream<Item = News> + Send + Unpin + use<> {
    let config = || watcher::Config::default().labels(ORIGIN_CLUSTER);
    let namespaces = changes(Api::<Namespace>::all(client.clone()), config()).filter_map(|change| {
        std::future::ready(match change {
            Change::Applied(namespace) => {
                let name = Arc::from(namespace.metadata.name.as_deref().unwrap_or_default());
                read_namespace(&namespace.metadata).map(|owned| News::Namespace(owned.map(Ok), name))
            }
            Change::Deleted(namespace) => {
                let name = Arc::from(namespace.metadata.name.as_deref().unwrap_or_default());
                read_namespace(&namespace.metadata).map(|owned| {
                    let gone = Deleted { object: owned.what.object.clone(), version: owned.what.version };
                    News::Namespace(owned.map(|_| Err(gone)), name)
                })
            }
            Change::Listed(seen) => Some(News::Listed(Source::Namespaces, seen)),
        })
    });
    let shadows: Api<ShadowView> = Api::all_with(client.clone(), &shadow_resource());
    let shadows = changes_of(shadows, "ShadowPod", config()).filter_map(|change| {
        std::future::ready(match change {
            Change::Applied(shadow) => {
                let owned = read_shadow(&shadow);
                owned.map(|owned| News::Shadow(owned.map(Ok), shadow.spec.demand))
            }
            Change::Deleted(shadow) => read_shadow(&shadow).map(|owned| {
                let gone = Deleted { object: owned.what.object.clone(), version: version(&shadow.metadata) };
                News::Shadow(owned.map(|_| Err(gone)), Amounts::new())
            }),
            Change::Listed(seen) => Some(News::Listed(Source::Shadows, seen)),
        })
    });
    let pods: Api<PodView> = Api::all_with(client.clone(), &pod_resource());
    let pods = changes_of(pods, "Pod", config()).filter_map(|change| {
        std::future::ready(match change {
            Change::Applied(mut pod) => {
                let owned = read_pod(&pod);
                let (host, demand) = (pod.spec.node_name.take(), demand(&pod.spec));
                let seen = Seen { status: pod.status.take(), host, demand };
                owned.map(|owned| News::Pod(owned.map(Ok), Some(seen)))
            }
            Change::Deleted(pod) => read_pod(&pod).map(|owned| {
                let gone = Deleted { object: owned.what.object.clone(), version: owned.what.version };
                News::Pod(owned.map(|_| Err(gone)), None)
            }),
            Change::Listed(seen) => Some(News::Listed(Source::Pods, seen)),
        })
    });
    let claims = changes(Api::<PersistentVolumeClaim>::all(client.clone()), config()).filter_map(|change| {
        std::future::ready(match change {
            Change::Applied(claim) => {
                claims::read(&claim).map(|owned| News::Claim(owned.map(Ok), claims::demand(&claim)))
            }
            Change::Deleted(claim) => claims::read(&claim).map(|owned| {
                let gone = Deleted { object: owned.what.object.clone(), version: owned.what.version };
                News::Claim(owned.map(|_| Err(gone)), Amounts::new())
            }),
            Change::Listed(seen) => Some(News::Listed(Source::Claims, seen)),
        })
    });
    let companions = Kind::COMPANIONS.map(|kind| companions(client, kind, config()).boxed());
    let warnings = events::watch(client).map(News::Warned);
    let walls = walls::watch(client).map(News::Wall);
    let streams =
        [namespaces.boxed(), shadows.boxed(), pods.boxed(), claims.boxed(), warnings.boxed(), walls.boxed()];
    select_all(streams.into_iter().chain(companions))
}

/// The watch of a kind of companions. What they hold is of no interest here.
fn companions(
    client: &Client,
    kind: Kind,
    config: watcher::Config,
) -> impl Stream<Item = News> + Send + use<> {
    let objects: Api<PartialObjectMeta<DynamicObject>> =
        Api::all_with(client.clone(), &companions::resource(kind));
    changes_of(objects, kind.as_str(), config).filter_map(move |change| {
        std::future::ready(match change {
            Change::Applied(object) => {
                let made_on = companions::made_on(&object.metadata);
                companions::read(kind, &object.metadata).map(|owned| News::Companion(owned.map(Ok), made_on))
            }
            Change::Deleted(object) => companions::read(kind, &object.metadata).map(|owned| {
                let gone = Deleted { object: owned.what.object.clone(), version: owned.what.version };
                News::Companion(owned.map(|_| Err(gone)), None)
            }),
            Change::Listed(seen) => Some(News::Listed(Source::Companions(kind), seen)),
        })
    })
}

/// How the API server calls pods.
pub(super) fn pod_resource() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())
}

impl<T> Owned<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Owned<U> {
        Owned { cluster: self.cluster, set: self.set, key: self.key, what: change(self.what) }
    }
}
