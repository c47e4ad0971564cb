//! The NetworkPolicies of offloaded namespaces. Pure.
//!
//! They are kept whole, as there are few of them and what they mean changes with each pod at home. A policy that needs
//! what is not known yet is no policy yet: saying less than it does would only be put right at once.

use crate::neighbours::Want;
use bytes::Bytes;
use ipnet::IpNet;
use liquid_link::digest::Hash;
use liquid_reflection::policy::{Census, Resolved, View, needs, resolve};
use liquid_reflection::{Key, Prefixes, Uid};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What policies are read by.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Picture {
    pub(super) census: Census,
    /// Namespaces whose pods may run in the provider.
    pub(super) offloaded: BTreeSet<String>,
    /// Prefixes of pods that the provider sees as those of home: at home, and in other providers that are reached through it.
    pub(super) own: Vec<IpNet>,
    /// Prefixes of hosts outside of home, which the provider's pods reach under other addresses, too.
    pub(super) outside: Vec<IpNet>,
    /// Prefixes of the provider's pods, and how they are seen at home.
    pub(super) seen: Prefixes,
}

#[derive(Debug)]
struct Known {
    uid: Uid,
    /// As home has it, without what is its own.
    object: Value,
    /// Digest of what the provider shall have, once that is known.
    hash: Option<Hash>,
    notes: BTreeSet<String>,
    /// The provider has it, in this or an earlier version, or does not take it.
    answered: bool,
}

/// A policy means something else than before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) key: Key,
    pub(super) uid: Uid,
    pub(super) hash: Hash,
    /// What it does not say over there although it does at home, if that is new.
    pub(super) notes: Option<Vec<String>>,
}

#[derive(Debug, Default)]
pub(super) struct Policies {
    known: BTreeMap<Key, Known>,
}

impl Policies {
    /// There is such a policy.
    pub(super) fn insert(&mut self, key: Key, uid: Uid, object: Value) {
        // Of one of the same UID it was told what it does not say.
        let earlier = self.known.remove(&key).filter(|known| known.uid == uid);
        let (notes, answered) = earlier.map(|known| (known.notes, known.answered)).unwrap_or_default();
        self.known.insert(key, Known { uid, object, hash: None, notes, answered });
    }

    /// The provider has said something of a policy.
    pub(super) fn answered(&mut self, key: &Key) {
        if let Some(known) = self.known.get_mut(key) {
            known.answered = true;
        }
    }

    /// Whether the provider has said something of all policies of a namespace.
    pub(super) fn are_answered(&self, namespace: &str) -> bool {
        self.known.iter().all(|(key, known)| *key.namespace != *namespace || known.answered)
    }

    /// There is no such policy any more.
    pub(super) fn remove(&mut self, key: &Key) {
        self.known.remove(key);
    }

    /// There are none in this namespace.
    pub(super) fn remove_all(&mut self, namespace: &str) {
        self.known.retain(|key, _| *key.namespace != *namespace);
    }

    /// What has to be known of home to read them.
    pub(super) fn want(&self, census: &Census) -> Want {
        let mut want = Want::default();
        for (key, known) in &self.known {
            let needs = needs(&known.object["spec"], &key.namespace, census);
            want.namespaces |= needs.namespaces;
            want.pods.extend(needs.pods.into_iter().flatten());
        }
        want
    }

    /// Reads them all anew.
    pub(super) fn read(&mut self, picture: &Picture) -> Vec<Changed> {
        let mut changed = Vec::new();
        for (key, known) in &mut self.known {
            let Some(resolved) = resolved(key, &known.object, picture) else { continue };
            let hash = Hash::of(&body(&known.object, &resolved));
            let notes = (resolved.notes != known.notes).then(|| resolved.notes.iter().cloned().collect());
            if known.hash != Some(hash) || notes.is_some() {
                known.hash = Some(hash);
                known.notes = resolved.notes;
                changed.push(Changed { key: key.clone(), uid: known.uid.clone(), hash, notes });
            }
        }
        changed
    }

    /// Whether all of this namespace could be read.
    pub(super) fn is_read(&self, namespace: &str) -> bool {
        self.known.iter().all(|(key, known)| *key.namespace != *namespace || known.hash.is_some())
    }

    /// The body of a policy with this digest, if it has that.
    pub(super) fn body(&self, key: &Key, hash: Hash, picture: &Picture) -> Option<Bytes> {
        let known = self.known.get(key)?;
        let body = body(&known.object, &resolved(key, &known.object, picture)?);
        (Hash::of(&body) == hash).then_some(body)
    }
}

/// What a policy means; `None` while something is not known that decides.
fn resolved(key: &Key, object: &Value, picture: &Picture) -> Option<Resolved> {
    let Picture { census, offloaded, own, outside, seen } = picture;
    let needed = needs(&object["spec"], &key.namespace, census).pods?;
    let known = |namespace: &Arc<str>| census.pods.contains_key(namespace);
    let view = View { census, offloaded, own, outside, seen };
    needed.iter().all(known).then(|| resolve(&object["spec"], &key.namespace, &view))
}

fn body(object: &Value, resolved: &Resolved) -> Bytes {
    let mut body = object.clone();
    body["spec"] = serde_json::to_value(&resolved.policy).unwrap_or_default();
    Bytes::from(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_reflection::policy::CensusPod;
    use serde_json::json;

    fn policies() -> Policies {
        let mut policies = Policies::default();
        let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
        policies.insert(Key::new("shop", "p"), Uid::from("u"), json!({ "spec": spec }));
        policies
    }

    fn picture(address: Option<&str>) -> Picture {
        let pod =
            |address: &str| CensusPod { addresses: vec![address.parse().unwrap()], ..CensusPod::default() };
        let pods = address.map(|address| {
            let pods = BTreeMap::from([(Arc::from("a"), pod(address))]);
            BTreeMap::from([(Arc::from("shop"), Arc::new(pods))])
        });
        Picture {
            census: Census { namespaces: None, pods: pods.unwrap_or_default() },
            own: vec!["10.244.0.0/16".parse().unwrap()],
            ..Picture::default()
        }
    }

    #[test]
    fn a_policy_waits_for_the_pods_it_is_about_and_follows_them() {
        let mut policies = policies();
        assert_eq!(policies.want(&Census::default()).pods, BTreeSet::from([Arc::from("shop")]));
        assert_eq!(policies.read(&picture(None)), []);
        assert!(!policies.is_read("shop") && policies.is_read("other"));
        let first = policies.read(&picture(Some("10.244.0.5")));
        assert!(policies.is_read("shop"));
        assert_eq!(policies.read(&picture(Some("10.244.0.5"))), [], "nothing has changed");
        let second = policies.read(&picture(Some("10.244.0.6")));
        assert_ne!(first[0].hash, second[0].hash);
        assert!(!policies.are_answered("shop") && policies.are_answered("other"));
        policies.answered(&second[0].key);
        assert!(policies.are_answered("shop"));
        let body = policies.body(&second[0].key, second[0].hash, &picture(Some("10.244.0.6"))).unwrap();
        assert!(String::from_utf8_lossy(&body).contains("10.244.0.6"));
        assert_eq!(policies.body(&second[0].key, first[0].hash, &picture(Some("10.244.0.6"))), None);
    }

    #[test]
    fn what_is_left_out_is_said_once() {
        let mut policies = Policies::default();
        let spec = json!({"podSelector": {}, "ingress": [{"from": [{"fqdn": "x"}]}]});
        policies.insert(Key::new("shop", "p"), Uid::from("u"), json!({ "spec": spec }));
        assert_eq!(policies.read(&picture(None))[0].notes.as_ref().map(Vec::len), Some(1));
        policies.insert(
            Key::new("shop", "p"),
            Uid::from("u"),
            json!({"metadata": {"labels": {}}, "spec": spec}),
        );
        assert_eq!(policies.read(&picture(None))[0].notes, None);
    }
}
