//! What is asked of home's API server about companions.

use super::News;
use super::issue::{NotIssued, issue};
use super::references::Companion;
use super::tokens::Order;
use crate::request::within;
use futures::StreamExt as _;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client};
use liquid_reflection::companion::{HOME_ROOT_CA, ROOT_CA};
use liquid_reflection::frame::Ref;
use liquid_reflection::{Kind, SetRef};
use liquid_runtime::backoff::{Backoff, entropy};
use liquid_runtime::watch::changes_of;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use tracing::{debug, warn};

/// First and longest pause after a request has failed.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(30);
/// Failures before the user is told: a right that was just granted takes a moment.
const QUIET_FAILURES: usize = 3;

/// Follows the metadata of a kind in a namespace.
pub(super) async fn follow(client: Client, set: SetRef, number: u64, news: mpsc::Sender<News>) {
    let objects: Api<PartialObjectMeta<DynamicObject>> =
        Api::namespaced_with(client, &set.scope, &resource(set.kind));
    let mut changes = changes_of(objects, set.kind.as_str(), watcher::Config::default()).boxed();
    while let Some(change) = changes.next().await {
        if news.send(News::Changed(set.clone(), number, change)).await.is_err() {
            return;
        }
    }
}

/// Reads an object, for as long as it takes, and tells.
pub(super) async fn read(
    client: Client,
    companion: Companion,
    slots: Arc<Semaphore>,
    news: mpsc::Sender<News>,
) {
    let permit = slots.acquire_owned().await;
    let found = get(client, &companion).await;
    drop(permit);
    // The actor is gone only when the process ends.
    drop(news.send(News::Read(companion, found)).await);
}

/// Reads an object; `None` if there is none.
async fn get(client: Client, (kind, key): &Companion) -> Option<DynamicObject> {
    let api: Api<DynamicObject> = Api::namespaced_with(client, &key.namespace, &resource(*kind));
    let name = match (kind, &*key.name) {
        (Kind::ConfigMap, HOME_ROOT_CA) => ROOT_CA,
        (_, name) => name,
    };
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        match within(api.get_opt(name)).await {
            Ok(found) => return found,
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                debug!(kind = kind.as_str(), %key, message = %status.message, "not read; trying again");
            }
            Err(error) => warn!(kind = kind.as_str(), %key, %error, "not read; trying again"),
        }
        sleep(backoff.next(entropy())).await;
    }
}

/// Asks for tokens, for as long as it takes, and tells. They are for the Secret `target`.
pub(super) async fn issue_for(
    client: Client,
    target: Ref,
    order: Order,
    slots: Arc<Semaphore>,
    news: mpsc::Sender<News>,
) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    for failures in 0.. {
        let permit = slots.clone().acquire_owned().await;
        let answer = issue(&client, &order).await;
        drop(permit);
        let told = match answer {
            Ok(issued) => News::Issued(target, issued),
            Err(NotIssued::Gone) => return,
            Err(NotIssued::Failed(why)) => {
                debug!(pod = %order.pod.key, %why, "no token; trying again");
                if failures >= QUIET_FAILURES {
                    drop(news.send(News::NotIssued(order.pod.clone(), why)).await);
                }
                sleep(backoff.next(entropy())).await;
                continue;
            }
        };
        drop(news.send(told).await);
        return;
    }
}

fn resource(kind: Kind) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(kind.group(), "v1", kind.as_str()))
}
