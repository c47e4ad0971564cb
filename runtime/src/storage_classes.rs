//! Storage classes of a cluster.

use crate::watch::{Change, changes, object_name};
use futures::StreamExt as _;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// Marks the class of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Storage classes of a cluster, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageClasses(BTreeMap<String, Class>);

/// What matters of a class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Class {
    /// Who makes its volumes.
    pub provisioner: String,
    /// Its parameters.
    pub parameters: BTreeMap<String, String>,
    /// What becomes of a volume whose claim is deleted: `Delete` or `Retain`.
    pub reclaim_policy: String,
    /// Volumes are made when it is known for which node.
    pub waits_for_consumer: bool,
    /// Whether claims may grow.
    pub expands: bool,
    /// If it is marked as the default one: when it was made (RFC 3339).
    pub default_since: Option<String>,
}

impl StorageClasses {
    /// The class of that name, with its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&str, &Class)> {
        self.0.get_key_value(name).map(|(name, class)| (name.as_str(), class))
    }

    /// The default one of those that `count`: as Kubernetes has it, the youngest of several.
    pub fn default_of(&self, count: impl Fn(&Class) -> bool) -> Option<&str> {
        let defaults = self.0.iter().filter(|(_, class)| class.default_since.is_some() && count(class));
        let youngest = defaults.max_by(|(a, x), (b, y)| x.default_since.cmp(&y.default_since).then(b.cmp(a)));
        youngest.map(|(name, _)| name.as_str())
    }

    /// The classes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Class)> {
        self.0.iter().map(|(name, class)| (name.as_str(), class))
    }
}

impl FromIterator<(String, Class)> for StorageClasses {
    fn from_iter<I: IntoIterator<Item = (String, Class)>>(classes: I) -> Self {
        Self(classes.into_iter().collect())
    }
}

fn read(class: StorageClass) -> Class {
    let default = class.annotations().get(DEFAULT_CLASS).is_some_and(|default| default == "true");
    let made = class.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
    Class {
        provisioner: class.provisioner,
        parameters: class.parameters.unwrap_or_default(),
        reclaim_policy: class.reclaim_policy.unwrap_or("Delete".to_owned()),
        waits_for_consumer: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
        expands: class.allow_volume_expansion.unwrap_or(false),
        default_since: default.then_some(made),
    }
}

/// Keeps `classes` up to date, for ever; `None` until all are known.
pub async fn observe(client: Client, classes: watch::Sender<Option<StorageClasses>>) {
    let mut news = changes(Api::<StorageClass>::all(client), watcher::Config::default()).boxed();
    let mut known = StorageClasses::default();
    let mut listed = false;
    while let Some(change) = news.next().await {
        match change {
            Change::Applied(class) => drop(known.0.insert(object_name(&class).1, read(class))),
            Change::Deleted(class) => drop(known.0.remove(&object_name(&class).1)),
            Change::Listed(seen) => {
                known.0.retain(|name, _| seen.contains(&(String::new(), name.clone())));
                listed = true;
            }
        }
        if listed {
            classes.send_if_modified(|told| {
                let changed = told.as_ref() != Some(&known);
                *told = Some(known.clone());
                changed
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_default_classes_the_youngest_counts() {
        let class = |name: &str, provisioner: &str, default_since: Option<&str>| {
            let provisioner = provisioner.to_owned();
            let default_since = default_since.map(str::to_owned);
            (name.to_owned(), Class { provisioner, default_since, ..Class::default() })
        };
        let classes: StorageClasses =
            [class("a", "x", Some("2025")), class("b", "y", Some("2026")), class("c", "x", None)]
                .into_iter()
                .collect();
        assert_eq!(classes.default_of(|_| true), Some("b"));
        assert_eq!(classes.default_of(|class| class.provisioner == "x"), Some("a"));
        assert_eq!(classes.default_of(|class| class.provisioner == "z"), None);
    }
}
