//! Who refers to what: counts users per ConfigMap, Secret and claim. Pure.

use crate::translate::Reference;
use liquid_reflection::{Key, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A companion by kind and names at home.
pub(super) type Companion = (Kind, Key);

/// Who refers to companions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum User {
    /// A pod on a virtual node.
    Pod(Arc<str>, Key),
    /// An Ingress that the provider shall have.
    Ingress(Key),
}

impl User {
    /// A pod on this virtual node.
    pub(super) fn pod(node: &str, pod: &Key) -> Self {
        Self::Pod(Arc::from(node), pod.clone())
    }

    fn namespace(&self) -> &Arc<str> {
        match self {
            Self::Pod(_, key) | Self::Ingress(key) => &key.namespace,
        }
    }
}

/// The references of all pods on the virtual nodes of a provider, and of the Ingresses it shall have.
#[derive(Debug, Default)]
pub(super) struct References {
    /// By user; those without references are not kept.
    by_user: BTreeMap<User, Box<[Companion]>>,
    /// Users per companion.
    users: BTreeMap<Companion, usize>,
}

impl References {
    /// The user refers to these, and to nothing else. Returns what has won its first user or lost its last one.
    pub(super) fn set(&mut self, user: User, references: BTreeSet<Reference>) -> BTreeSet<Companion> {
        let companions: Box<[Companion]> = references
            .into_iter()
            .map(|(kind, name)| (kind, Key { namespace: user.namespace().clone(), name: Arc::from(name) }))
            .collect();
        if self.by_user.get(&user).is_some_and(|known| *known == companions) {
            return BTreeSet::new();
        }
        let mut changed = BTreeSet::new();
        for companion in &companions {
            let users = self.users.entry(companion.clone()).or_default();
            *users += 1;
            if *users == 1 {
                changed.insert(companion.clone());
            }
        }
        let earlier = if companions.is_empty() {
            self.by_user.remove(&user)
        } else {
            self.by_user.insert(user, companions)
        };
        for companion in earlier.into_iter().flatten() {
            self.release(&companion, &mut changed);
        }
        changed
    }

    /// Of the pods on `node`, only these are left.
    pub(super) fn retain(&mut self, node: &str, left: impl Fn(&Key) -> bool) -> BTreeSet<Companion> {
        let gone = self
            .by_user
            .extract_if(.., |user, _| matches!(user, User::Pod(on, pod) if **on == *node && !left(pod)));
        let gone: Vec<_> = gone.flat_map(|(_, companions)| companions).collect();
        let mut changed = BTreeSet::new();
        for companion in gone {
            self.release(&companion, &mut changed);
        }
        changed
    }

    /// Whether somebody refers to it.
    pub(super) fn contains(&self, companion: &Companion) -> bool {
        self.users.contains_key(companion)
    }

    fn release(&mut self, companion: &Companion, changed: &mut BTreeSet<Companion>) {
        let Some(users) = self.users.get_mut(companion) else { return };
        *users -= 1;
        if *users == 0 {
            self.users.remove(companion);
            changed.insert(companion.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn companion(kind: Kind, name: &str) -> Companion {
        (kind, Key::new("shop", name))
    }

    fn to(names: &[&str]) -> BTreeSet<Reference> {
        names.iter().map(|name| (Kind::Secret, (*name).to_owned())).collect()
    }

    #[test]
    fn the_first_user_and_the_last_one_count() {
        let mut references = References::default();
        let (a, b) = (Key::new("shop", "a"), Key::new("shop", "b"));
        let secret = companion(Kind::Secret, "s");
        assert_eq!(references.set(User::pod("n", &a), to(&["s"])), BTreeSet::from([secret.clone()]));
        assert_eq!(references.set(User::pod("n", &a), to(&["s"])), BTreeSet::new());
        assert_eq!(
            references.set(User::pod("n", &b), to(&["s", "t"])),
            BTreeSet::from([companion(Kind::Secret, "t")])
        );
        assert_eq!(references.set(User::pod("n", &a), to(&[])), BTreeSet::new());
        assert!(references.contains(&secret));
        assert_eq!(references.retain("m", |_| false), BTreeSet::new());
        assert_eq!(references.retain("n", |pod| *pod != b).len(), 2);
        assert!(!references.contains(&secret) && references.by_user.is_empty());
        let ingress = User::Ingress(Key::new("shop", "a"));
        assert_eq!(references.set(ingress, to(&["s"])), BTreeSet::from([secret.clone()]));
        assert_eq!(references.retain("n", |_| false), BTreeSet::new(), "an Ingress is on no node");
        assert!(references.contains(&secret));
    }

    proptest! {
        #[test]
        fn what_is_contained_is_what_pods_refer_to(
            course in proptest::collection::vec((0..3u8, 0..4u8, proptest::collection::btree_set(0..4u8, 0..4)), 0..40)
        ) {
            let mut references = References::default();
            let mut contained = BTreeSet::new();
            let mut pods: BTreeMap<(u8, u8), BTreeSet<u8>> = BTreeMap::new();
            for (node, pod, names) in course {
                let (on, key) = (format!("n{node}"), Key::new("shop", &format!("p{pod}")));
                let wanted = names.iter().map(|name| (Kind::Secret, format!("s{name}"))).collect();
                for changed in references.set(User::pod(&on, &key), wanted) {
                    if !contained.remove(&changed) {
                        contained.insert(changed);
                    }
                }
                pods.insert((node, pod), names);
                let expected: BTreeSet<Companion> =
                    pods.values().flatten().map(|name| companion(Kind::Secret, &format!("s{name}"))).collect();
                prop_assert_eq!(&contained, &expected);
                prop_assert!(expected.iter().all(|companion| references.contains(companion)));
                prop_assert_eq!(references.users.len(), expected.len());
            }
        }
    }
}
