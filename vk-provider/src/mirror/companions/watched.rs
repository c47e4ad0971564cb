//! What is known of the objects of one kind in one namespace. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Whether an object is as it was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    News,
    Nothing,
}

#[derive(Debug)]
struct Object {
    uid: Box<str>,
    version: Box<str>,
}

/// The objects there are, and which of them have to be read before all is known.
#[derive(Debug, Default)]
pub(super) struct Watched {
    listed: bool,
    objects: BTreeMap<Arc<str>, Object>,
    unread: BTreeSet<Arc<str>>,
}

impl Watched {
    /// The object exists in this version.
    pub(super) fn applied(&mut self, name: Arc<str>, uid: &str, version: &str) -> Heard {
        let object = Object { uid: uid.into(), version: version.into() };
        match self.objects.insert(name, object) {
            Some(earlier) if *earlier.uid == *uid && *earlier.version == *version => Heard::Nothing,
            _ => Heard::News,
        }
    }

    /// The object is gone; returns its UID if it was known.
    pub(super) fn deleted(&mut self, name: &str) -> Option<Box<str>> {
        self.unread.remove(name);
        self.objects.remove(name).map(|object| object.uid)
    }

    /// A list was read to its end; what is not in it is gone, and returned.
    pub(super) fn listed(&mut self, seen: impl Fn(&str) -> bool) -> Vec<(Arc<str>, Box<str>)> {
        self.listed = true;
        let gone = self.objects.extract_if(.., |name, _| !seen(name));
        let gone: Vec<_> = gone.map(|(name, object)| (name, object.uid)).collect();
        self.unread.retain(|name| self.objects.contains_key(name));
        gone
    }

    /// Names of the objects there are.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.objects.keys()
    }

    /// UID of an object, if there is one of that name.
    pub(super) fn uid(&self, name: &str) -> Option<Box<str>> {
        self.objects.get(name).map(|object| object.uid.clone())
    }

    /// The object is to be read.
    pub(super) fn unread(&mut self, name: &Arc<str>) {
        self.unread.insert(name.clone());
    }

    /// It was.
    pub(super) fn was_read(&mut self, name: &str) {
        self.unread.remove(name);
    }

    /// Whether everything is known.
    pub(super) fn is_read(&self) -> bool {
        self.listed && self.unread.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_known_when_the_list_has_ended_and_what_is_wanted_of_it_was_read() {
        let mut watched = Watched::default();
        let (a, b): (Arc<str>, Arc<str>) = (Arc::from("a"), Arc::from("b"));
        assert_eq!(watched.applied(a.clone(), "u1", "1"), Heard::News);
        watched.unread(&a);
        watched.was_read("a");
        assert!(!watched.is_read(), "there may be more");
        watched.applied(b.clone(), "u2", "2");
        watched.unread(&b);
        assert_eq!(watched.listed(|_| true), []);
        assert!(!watched.is_read());
        watched.was_read("b");
        assert!(watched.is_read());
        assert_eq!(watched.applied(a.clone(), "u1", "1"), Heard::Nothing);
        assert_eq!(watched.applied(a.clone(), "u3", "5"), Heard::News);
        watched.unread(&a);
        assert_eq!(watched.listed(|name| name == "b"), [(a, "u3".into())]);
        assert!(watched.is_read(), "nobody waits for what is gone");
        assert_eq!(watched.deleted("b"), Some("u2".into()));
        assert_eq!(watched.deleted("b"), None);
    }
}
