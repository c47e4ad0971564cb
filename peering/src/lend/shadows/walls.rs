//! NetworkPolicies that somebody here has put into the namespaces of consumers. Policies add up: what one opens no other closes.
//! So where this cluster has said who may talk to a consumer's pods, what the consumer's own policies open does not count.

use futures::{Stream, StreamExt as _};
use kube::api::{ApiResource, Object};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::ORIGIN_CLUSTER;
use liquid_link::digest::Hash;
use liquid_runtime::watch::{Change, changes_of};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Directions in which this cluster has said who may talk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Walled {
    ingress: bool,
    egress: bool,
}

impl Walled {
    /// Whether there is any.
    pub(super) fn any(self) -> bool {
        self != Self::default()
    }

    /// The directions, for people.
    pub(super) fn directions(self) -> &'static str {
        match (self.ingress, self.egress) {
            (true, true) => "both directions",
            (true, false) => "ingress",
            (false, true) => "egress",
            (false, false) => "no direction",
        }
    }

    /// Takes out of the spec of a consumer's policy what does not count.
    pub(super) fn close(self, spec: &mut Value) {
        for (walled, rules) in [(self.ingress, "ingress"), (self.egress, "egress")] {
            if walled {
                spec[rules] = json!([]);
            }
        }
    }

    /// The digest of something together with this.
    pub(super) fn mixed(self, hash: Hash) -> Hash {
        if self.any() { Hash::of(format!("{hash} {}", self.directions()).as_bytes()) } else { hash }
    }
}

/// A policy without most of it.
pub(super) type PolicyView = Object<SpecView, Value>;

/// Part of the spec of a NetworkPolicy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SpecView {
    policy_types: BTreeSet<String>,
}

/// Policies of this cluster's own, in all namespaces.
pub(super) fn watch(client: &Client) -> impl Stream<Item = Change<PolicyView>> + Send + use<> {
    let resource = ApiResource::erase::<k8s_openapi::api::networking::v1::NetworkPolicy>(&());
    let policies: Api<PolicyView> = Api::all_with(client.clone(), &resource);
    let own = watcher::Config::default().labels(&format!("!{ORIGIN_CLUSTER}"));
    changes_of(policies, "NetworkPolicy", own).boxed()
}

/// The policies of this cluster's own, by namespace and name here.
#[derive(Debug, Default)]
pub(super) struct Walls(BTreeMap<Arc<str>, BTreeMap<String, Walled>>);

impl Walls {
    /// Takes note; returns the namespaces about which something else is true now.
    pub(super) fn learn(&mut self, change: Change<PolicyView>) -> Vec<Arc<str>> {
        match change {
            Change::Applied(policy) => {
                let types = &policy.spec.policy_types;
                let walled = Walled { ingress: types.contains("Ingress"), egress: types.contains("Egress") };
                self.set(Arc::from(policy.namespace().unwrap_or_default()), policy.name_any(), Some(walled))
            }
            Change::Deleted(policy) => {
                self.set(Arc::from(policy.namespace().unwrap_or_default()), policy.name_any(), None)
            }
            Change::Listed(seen) => {
                let gone = |(namespace, name): &(Arc<str>, String)| {
                    !seen.contains(&(namespace.to_string(), name.clone()))
                };
                let known = self.0.iter().flat_map(|(namespace, policies)| {
                    policies.keys().map(move |name| (namespace.clone(), name.clone()))
                });
                let gone: Vec<_> = known.filter(gone).collect();
                gone.into_iter().flat_map(|(namespace, name)| self.set(namespace, name, None)).collect()
            }
        }
    }

    /// In which directions this cluster has said who may talk in a namespace.
    pub(super) fn of(&self, namespace: &str) -> Walled {
        let policies = self.0.get(namespace).into_iter().flat_map(BTreeMap::values);
        policies.fold(Walled::default(), |all, one| Walled {
            ingress: all.ingress || one.ingress,
            egress: all.egress || one.egress,
        })
    }

    fn set(&mut self, namespace: Arc<str>, name: String, walled: Option<Walled>) -> Vec<Arc<str>> {
        let before = self.of(&namespace);
        match walled {
            Some(walled) => _ = self.0.entry(namespace.clone()).or_default().insert(name, walled),
            None => {
                if let Some(policies) = self.0.get_mut(&namespace) {
                    policies.remove(&name);
                    if policies.is_empty() {
                        self.0.remove(&namespace);
                    }
                }
            }
        }
        if self.of(&namespace) == before { Vec::new() } else { vec![namespace] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, types: &[&str]) -> Change<PolicyView> {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop-turin", "name": name}, "spec": {"podSelector": {}, "policyTypes": types},
        });
        Change::Applied(serde_json::from_value(policy).unwrap())
    }

    #[test]
    fn what_this_cluster_says_counts_while_it_says_so() {
        let mut walls = Walls::default();
        assert_eq!(walls.learn(policy("a", &["Egress"])), [Arc::from("shop-turin")]);
        assert_eq!(walls.learn(policy("b", &["Egress"])), Vec::<Arc<str>>::new());
        assert_eq!(walls.of("shop-turin"), Walled { ingress: false, egress: true });
        assert_eq!(walls.of("other"), Walled::default());
        let left = BTreeSet::from([("shop-turin".to_owned(), "b".to_owned())]);
        assert_eq!(walls.learn(Change::Listed(left)), Vec::<Arc<str>>::new());
        assert_eq!(walls.learn(Change::Listed(BTreeSet::new())), [Arc::from("shop-turin")]);
        assert!(walls.0.is_empty());
    }

    #[test]
    fn what_a_consumer_opens_there_does_not_count_and_what_it_closes_does() {
        let rules = json!([{"to": [{"podSelector": {}}]}]);
        let mut spec = json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": rules});
        Walled { ingress: false, egress: true }.close(&mut spec);
        assert_eq!(spec, json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": []}));
        let hash = Hash::of(b"x");
        assert_eq!(Walled::default().mixed(hash), hash);
        assert_ne!(Walled { ingress: true, egress: false }.mixed(hash), hash);
    }
}
