//! Warnings about pods and claims here (Events of the scheduler, of kubelets, of provisioners), for the consumers they belong to.
//!
//! Only warnings: what goes well is seen in the status, and for every pod that starts there are four other Events. What is
//! said while nobody listens is not repeated; schedulers and kubelets repeat what lasts.

use futures::stream::select_all;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Event;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use liquid_reflection::warning::Warning;
use liquid_reflection::{Kind, Uid};

/// What warnings are about.
const KINDS: [Kind; 2] = [Kind::Pod, Kind::PersistentVolumeClaim];

/// A warning, and the object here it is about.
#[derive(Debug)]
pub(super) struct Warned {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) object: Uid,
    /// UID of the Event: repeated, it is the same.
    pub(super) id: Uid,
    pub(super) warning: Warning,
}

/// Warnings, as they are given.
pub(super) fn watch(client: &Client) -> impl Stream<Item = Warned> + Send + use<> {
    select_all(KINDS.map(|kind| about(client, kind).boxed()))
}

fn about(client: &Client, kind: Kind) -> impl Stream<Item = Warned> + Send + use<> {
    let events: Api<Event> = Api::all(client.clone());
    let fields = format!("type=Warning,involvedObject.kind={}", kind.as_str());
    let news = watcher(events, watcher::Config::default().fields(&fields)).default_backoff();
    news.filter_map(move |news| {
        std::future::ready(match news {
            Ok(watcher::Event::Apply(event)) => read(kind, event),
            // What was said before this process began, the one before it has passed on.
            Ok(
                watcher::Event::InitApply(_)
                | watcher::Event::Init
                | watcher::Event::InitDone
                | watcher::Event::Delete(_),
            )
            | Err(_) => None,
        })
    })
}

/// Events of the older and of the newer API (events.k8s.io) differ in where they count.
fn read(kind: Kind, event: Event) -> Option<Warned> {
    let about = event.involved_object;
    let series = event.series.as_ref();
    let count = series.and_then(|series| series.count).or(event.count).unwrap_or(1);
    let micro = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime| time.0.to_string();
    let made = event.metadata.creation_timestamp.map(|time| time.0.to_string()).unwrap_or_default();
    let first = event.first_timestamp.map(|time| time.0.to_string());
    let first = first.or(event.event_time.as_ref().map(micro)).unwrap_or_else(|| made.clone());
    let last = series.and_then(|series| series.last_observed_time.as_ref().map(micro));
    let last = last.or(event.last_timestamp.map(|time| time.0.to_string())).unwrap_or_else(|| first.clone());
    let component =
        event.source.and_then(|source| source.component).filter(|component| !component.is_empty());
    let warning = Warning {
        reason: event.reason.unwrap_or_default(),
        message: event.message.unwrap_or_default(),
        count: u32::try_from(count).unwrap_or(1),
        first,
        last,
        field_path: about.field_path.filter(|path| !path.is_empty()),
        component: component.or(event.reporting_component).unwrap_or_default(),
    };
    Some(Warned {
        kind,
        namespace: about.namespace?,
        name: about.name?,
        object: Uid::from(about.uid?.as_str()),
        id: Uid::from(event.metadata.uid?.as_str()),
        warning: warning.bounded(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_of_both_apis_are_read() {
        let about = json!({"kind": "Pod", "namespace": "shop-home", "name": "web", "uid": "p1", "fieldPath": "spec.containers{c}"});
        let meta = json!({"name": "web.1", "namespace": "shop-home", "uid": "e1", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let older = json!({
            "metadata": meta, "involvedObject": about, "reason": "BackOff", "message": "m", "count": 7,
            "firstTimestamp": "2026-01-01T00:00:01Z", "lastTimestamp": "2026-01-01T00:00:09Z", "source": {"component": "kubelet"},
        });
        let newer = json!({
            "metadata": meta, "involvedObject": about, "reason": "BackOff", "message": "m",
            "eventTime": "2026-01-01T00:00:01.000000Z", "reportingComponent": "kubelet", "source": {},
            "series": {"count": 7, "lastObservedTime": "2026-01-01T00:00:09.000000Z"},
        });
        for event in [older, newer] {
            let warned = read(Kind::Pod, serde_json::from_value(event).unwrap()).unwrap();
            assert_eq!((warned.namespace.as_str(), warned.name.as_str()), ("shop-home", "web"));
            assert_eq!((warned.object.as_str(), warned.id.as_str()), ("p1", "e1"));
            let Warning { count, first, last, field_path, component, .. } = warned.warning;
            assert_eq!((count, component.as_str()), (7, "kubelet"));
            assert!(first.starts_with("2026-01-01T00:00:01") && last.starts_with("2026-01-01T00:00:09"));
            assert_eq!(field_path.as_deref(), Some("spec.containers{c}"));
        }
        assert!(read(Kind::Pod, Event::default()).is_none());
    }
}
