//! Warnings of the provider about pods, policies and claims, shown at home as Events of the objects there.
//!
//! They explain and decide nothing: each is written once, in order, and what cannot be written is passed over. Repeated by
//! the provider, an Event is the same at home, with another count.

use crate::request::within;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use liquid_link::digest::Hash;
use liquid_reflection::Uid;
use liquid_reflection::frame::Ref;
use liquid_reflection::warning::Warning;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::debug;

/// Warnings that wait to be written. More at once come from pods that all have the same trouble.
const QUEUE: usize = 512;
/// Longest name of an object, and what of it the digest of an Event takes with its dot.
const MAX_NAME: usize = 253;
const SUFFIX: usize = 17;

/// The writer.
pub(super) struct Warnings(mpsc::Sender<(Ref, Uid, Box<Warning>)>);

impl Warnings {
    /// Starts the writer; `provider` gave the warnings. It ends with the handle.
    pub(super) fn new(client: Client, provider: String) -> Self {
        let (queue, mut warnings) = mpsc::channel::<(Ref, Uid, Box<Warning>)>(QUEUE);
        tokio::spawn(async move {
            while let Some((target, id, warning)) = warnings.recv().await {
                let (name, event) = event(&provider, &target, &id, &warning);
                let events: Api<Event> = Api::namespaced(client.clone(), &target.key.namespace);
                let params = PatchParams::apply("liquid-kubelet").force();
                if let Err(error) = within(events.patch(&name, &params, &Patch::Apply(&event))).await {
                    debug!(pod = %target.key, %error, "warning not shown");
                }
            }
        });
        Self(queue)
    }

    /// Shows a warning about an object at home.
    pub(super) fn show(&self, target: Ref, id: Uid, warning: Box<Warning>) {
        if let Err(error) = self.0.try_send((target, id, warning)) {
            debug!(%error, "warning passed over");
        }
    }
}

/// Name and content of an Event at home.
fn event(provider: &str, target: &Ref, id: &Uid, warning: &Warning) -> (String, Value) {
    let pod: String = target.key.name.chars().take(MAX_NAME - SUFFIX).collect();
    let digest = Hash::of(format!("{provider} {id}").as_bytes()).to_string();
    let name = format!("{pod}.{}", &digest[..SUFFIX - 1]);
    // `kubectl describe` shows this and not the host.
    let source = format!("{provider}/{}", warning.component);
    let Warning { reason, message, count, first, last, field_path, component: _ } = warning;
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": target.key.namespace.as_ref() },
        "involvedObject": {
            "apiVersion": target.set.kind.api_version(),
            "kind": target.set.kind.as_str(),
            "namespace": target.key.namespace.as_ref(),
            "name": target.key.name.as_ref(),
            "uid": target.uid.as_str(),
            "fieldPath": field_path.as_deref().unwrap_or_default(),
        },
        "type": "Warning",
        "reason": reason,
        "message": message,
        "count": count,
        "firstTimestamp": first,
        "lastTimestamp": last,
        "source": { "component": source, "host": provider },
        "reportingComponent": source,
        "reportingInstance": provider,
    });
    (name, event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_reflection::{Key, SetRef};

    #[test]
    fn an_event_that_is_repeated_is_the_same_object() {
        let target = |name: &str| Ref {
            set: SetRef::pods("liquid-milan"),
            key: Key::new("shop", name),
            uid: Uid::from("u1"),
        };
        let made = |name: &str, id: &str, count| {
            event("milan", &target(name), &Uid::from(id), &Warning { count, ..Warning::default() })
        };
        let (name, first) = made("web", "e1", 1);
        let (again, second) = made("web", "e1", 2);
        assert_eq!(name, again);
        assert_eq!((&first["count"], &second["count"]), (&json!(1), &json!(2)));
        assert_eq!(
            (&first["involvedObject"]["uid"], &first["involvedObject"]["kind"]),
            (&json!("u1"), &json!("Pod"))
        );
        assert_ne!(made("web", "e2", 1).0, name);
        assert_eq!(made(&"x".repeat(253), "e1", 1).0.len(), MAX_NAME);
    }
}
