//! Restart counts of a pod whose instance in the provider was replaced by another: they go on from where they were. An
//! instance is known by its start time, which the first status of every kubelet sets and none changes. How many restarts
//! there were before is kept in an annotation of the pod at home, written together with the status it is part of.

use super::list;
use liquid_crds::vocabulary::RESTARTS_BEFORE;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Containers of all kinds; their names differ.
const STATUSES: [&str; 3] = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];

/// Restarts of each container in earlier instances.
type Before = BTreeMap<String, u64>;

/// Whether a status is of another instance than the one shown at home.
pub(super) fn replaced(home: Option<&Value>, remote: Option<&Value>) -> bool {
    let started = |status: Option<&Value>| Some(status?.get("startTime")?.as_str()?.to_owned());
    matches!((started(home), started(remote)), (Some(shown), Some(new)) if shown != new)
}

/// What the annotation says. One that cannot be read counts nothing.
pub(super) fn before(annotation: Option<&str>) -> Before {
    annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Adds earlier restarts to the counts in a patch that shows a status of the provider. `home` is the status there is,
/// `before` what the annotation beside it says.
pub(super) fn add(patch: &mut Value, home: Option<&Value>, mut before: Before) {
    if replaced(home, patch.get("status")) {
        for status in STATUSES.iter().flat_map(|name| list(home.and_then(|home| home.get(name)))) {
            let Some(name) = status["name"].as_str() else { continue };
            // A container that never ran was not restarted.
            let ran = status["containerID"].as_str().is_some_and(|id| !id.is_empty());
            let count = status["restartCount"].as_u64().unwrap_or_default() + u64::from(ran);
            if count > 0 {
                before.insert(name.to_owned(), count);
            }
        }
        let annotation = serde_json::to_value(&before).unwrap_or_default().to_string();
        patch["metadata"]["annotations"] = json!({ RESTARTS_BEFORE: annotation });
    }
    change(patch.get_mut("status"), &before, u64::saturating_add);
}

/// Takes earlier restarts off the counts of a status at home: what is left is what the provider sent.
pub(super) fn take_off(status: &mut Value, before: &Before) {
    change(Some(status), before, u64::saturating_sub);
}

fn change(status: Option<&mut Value>, before: &Before, by: fn(u64, u64) -> u64) {
    let Some(status) = status.filter(|_| !before.is_empty()) else { return };
    for name in STATUSES {
        for container in status.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten() {
            let earlier = container["name"].as_str().and_then(|name| before.get(name));
            if let (Some(earlier), Some(count)) = (earlier, container["restartCount"].as_u64()) {
                container["restartCount"] = json!(by(count, *earlier));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a provider's kubelet reports of its instance.
    fn remote(started: u32, count: u64) -> Value {
        json!({
            "startTime": format!("2026-01-01T00:00:{started:02}Z"),
            "containerStatuses": [{"name": "main", "restartCount": count, "containerID": "containerd://x"}],
            "initContainerStatuses": [{"name": "sidecar", "restartCount": count, "containerID": "containerd://y"}],
        })
    }

    /// A pod at home: its annotation and its status.
    #[derive(Default)]
    struct Home(Option<String>, Option<Value>);

    impl Home {
        /// Shows a status; returns the count at home, and that of the status as it is compared with the provider's.
        fn show(&mut self, remote: &Value) -> (u64, u64) {
            let mut patch = json!({"metadata": {"uid": "u"}, "status": remote});
            add(&mut patch, self.1.as_ref(), before(self.0.as_deref()));
            if let Some(text) = patch["metadata"]["annotations"][RESTARTS_BEFORE].as_str() {
                self.0 = Some(text.to_owned());
            }
            let status = patch["status"].take();
            let mut compared = status.clone();
            take_off(&mut compared, &before(self.0.as_deref()));
            let count = |status: &Value| {
                let counts: Vec<_> = ["containerStatuses", "initContainerStatuses"]
                    .iter()
                    .map(|name| status[*name][0]["restartCount"].as_u64().unwrap())
                    .collect();
                assert_eq!(counts[0], counts[1], "of all kinds of containers");
                counts[0]
            };
            let counts = (count(&status), count(&compared));
            self.1 = Some(status);
            counts
        }
    }

    #[test]
    fn counts_go_on_over_replaced_instances_and_never_twice() {
        let mut home = Home::default();
        for (started, count, shown) in [
            (1, 0, 0),
            (1, 2, 2),
            (9, 0, 3),
            // The same again, as after a restart of this process or a lost answer.
            (9, 0, 3),
            (9, 1, 4),
            (20, 0, 5),
            (20, 3, 8),
        ] {
            assert_eq!(
                home.show(&remote(started, count)),
                (shown, count),
                "started {started}, {count} restarts"
            );
        }
    }

    #[test]
    fn an_instance_that_has_not_started_replaces_nothing_yet() {
        let home = remote(1, 4);
        assert!(!replaced(Some(&home), Some(&json!({"phase": "Pending"}))));
        assert!(!replaced(None, Some(&home)) && !replaced(Some(&home), Some(&home)));
        assert!(replaced(Some(&home), Some(&remote(2, 0))));
    }

    #[test]
    fn containers_that_never_ran_were_not_restarted() {
        let home = json!({
            "startTime": "2026-01-01T00:00:01Z", "containerStatuses": [{"name": "main", "restartCount": 0}],
        });
        let mut patch = json!({ "metadata": {}, "status": remote(2, 0) });
        add(&mut patch, Some(&home), Before::new());
        assert_eq!(patch["status"]["containerStatuses"][0]["restartCount"], 0);
    }

    #[test]
    fn an_annotation_that_cannot_be_read_counts_nothing() {
        for text in ["", "x", "[]", r#"{"main": -1}"#] {
            assert_eq!(before(Some(text)), Before::new());
        }
    }
}
