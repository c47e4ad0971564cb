//! Claims: what users do with them at home, and their volumes in the provider.
//!
//! A claim at home is *provisioned* once the provider has said that it is there; from then on pods may write to its volume.
//! What is written may be lost only after the claim was deleted at home, with the policy to delete its volume.

use super::{HomeEvent, HomeObject, NAMES, StoredAt, World};
use liquid_reflection::frame::Ref;
use liquid_reflection::key::{Key, Kind, SetRef, Uid};
use liquid_reflection::provider::{Deleted, Hold, Outcome, Record};
use std::sync::Arc;

/// Claims at home at once, in few namespaces: enough for several in one.
const MOST_CLAIMS: usize = 6;

impl World {
    pub(super) fn claim_step(&mut self) {
        let claims: Vec<Key> = self
            .home
            .keys()
            .filter(|(kind, _)| *kind == Kind::PersistentVolumeClaim)
            .map(|(_, key)| key.clone())
            .collect();
        if claims.is_empty() || (claims.len() < MOST_CLAIMS && self.chance(1, 3)) {
            return self.create_claim();
        }
        let key = claims[self.index(claims.len())].clone();
        let at = (Kind::PersistentVolumeClaim, key.clone());
        let object = self.home[&at].clone();
        if object.deleting.is_some() {
            return;
        }
        let provisioned = self.provisioned.contains(&object.uid);
        match self.below(6) {
            0 | 1 if !object.unwanted => {
                let hash = self.fresh_hash();
                self.home.get_mut(&at).unwrap().hash = hash;
            }
            // The scheduler chooses another node, or this one again.
            2 | 3 if !provisioned => {
                let object = self.home.get_mut(&at).unwrap();
                self.released.insert(object.uid.clone());
                if object.unwanted {
                    object.unwanted = false;
                } else {
                    object.deleting = Some(None);
                }
            }
            4 if provisioned => {
                self.counts.retained += 1;
                self.retained.insert(object.uid.clone());
                // Without data nothing is retained with it.
                self.released.insert(object.uid);
                self.home.remove(&at);
                self.home_events.push_back(HomeEvent::Released { set: object.set, key });
                return;
            }
            5 if provisioned => {
                self.erasable.insert(object.uid.clone());
                self.released.insert(object.uid);
                self.home.get_mut(&at).unwrap().deleting = Some(None);
            }
            5 => {
                self.erasable.insert(object.uid);
                return self.remove_at_home(&at, None);
            }
            _ => return,
        }
        self.home_events.push_back(HomeEvent::Changed(key));
    }

    fn create_claim(&mut self) {
        let uid = self.fresh_uid("home-");
        let (namespace, name) = (format!("n{}", self.below(NAMES)), format!("data-{uid}"));
        let key = Key::new(&namespace, &name);
        let (set, hash) = (SetRef::claims(), self.fresh_hash());
        let object = HomeObject { set, uid, hash, deleting: None, status: None, unwanted: false };
        self.home.insert((Kind::PersistentVolumeClaim, key.clone()), object);
        self.home_events.push_back(HomeEvent::Changed(key));
    }

    /// The provider has the claim: a volume is bound to it at home, and pods may come.
    pub(super) fn provision(&mut self, target: &Ref) {
        let object = self.home.get(&(Kind::PersistentVolumeClaim, target.key.clone()));
        if object.is_some_and(|object| !object.unwanted && object.deleting.is_none()) {
            self.provisioned.insert(target.uid.clone());
        }
    }

    /// The provider has nothing of the claim (any more).
    pub(super) fn claim_gone(&mut self, target: &Ref) {
        self.nothing_is_left_of(target);
        let at = (Kind::PersistentVolumeClaim, target.key.clone());
        if self.provisioned.contains(&target.uid) {
            return self.remove_at_home(&at, None);
        }
        if let Some(object) = self.home.get_mut(&at).filter(|object| object.deleting.is_some()) {
            object.deleting = None;
            object.unwanted = true;
            self.home_events.push_back(HomeEvent::Changed(target.key.clone()));
        }
    }

    /// All claims are told anew, after a restart or a gap of the watch.
    pub(super) fn relist_claims(&mut self) {
        let set = SetRef::claims();
        let unsettled = self
            .home
            .iter_mut()
            .filter(|((kind, _), object)| *kind == Kind::PersistentVolumeClaim && object.deleting.is_some());
        for (_, object) in unsettled {
            // Nothing at home says that it was once asked for.
            if !self.provisioned.contains(&object.uid) && self.consumer.is_empty() {
                object.deleting = None;
                object.unwanted = true;
            }
        }
        let known: Vec<(Key, Uid)> =
            self.consumer.members(&set).map(|(key, uid)| (key.clone(), uid.clone())).collect();
        for (key, uid) in known {
            if self.home.contains_key(&(Kind::PersistentVolumeClaim, key.clone())) {
                continue;
            }
            if self.erasable.contains(&uid) {
                self.consumer.removed(&set, &key, &uid, None);
            } else {
                self.consumer.released(&set, &key);
            }
        }
        for ((_, key), object) in self.home.iter().filter(|(_, object)| object.set == set) {
            super::home::observe(&mut self.consumer, key, object);
        }
        self.consumer.synced(&set);
    }

    /// A pod uses a claim in the provider for the first time, or its volume grows.
    pub(super) fn volume_step(&mut self) {
        let claims: Vec<StoredAt> = self
            .records
            .iter()
            .filter(|((kind, _), (_, record))| {
                *kind == Kind::PersistentVolumeClaim
                    && !record.terminating
                    && self.provisioned.contains(&record.home)
            })
            .map(|(at, _)| at.clone())
            .collect();
        if claims.is_empty() {
            return;
        }
        let at = claims[self.index(claims.len())].clone();
        let (version, status) = (self.serial(), self.fresh_status());
        let (set, record) = self.records.get_mut(&at).unwrap();
        record.hold = Hold::Data;
        record.version = version;
        record.status = Some(status);
        self.written.insert(record.home.clone());
        self.counts.written += 1;
        let news = (set.clone(), at.1, Ok(record.clone()));
        self.record_events.push_back(news);
    }

    /// A new claim needs its namespace, which is changed first, so that what was decided about it before is void.
    pub(super) fn touch_namespace(&mut self, namespace: &str) -> bool {
        let version = self.serial();
        let at = (Kind::Namespace, Key::new("", namespace));
        let Some((set, record)) = self.records.get_mut(&at) else { return false };
        record.version = version;
        self.record_events.push_back((set.clone(), at.1, Ok(record.clone())));
        true
    }

    /// Deletes a record if nothing has happened to it since `version`; a namespace goes with all in it.
    pub(super) fn reclaim(&mut self, at: &StoredAt, object: &Uid, version: u64) -> Outcome {
        let Some(record) = self.records.get(at).map(|(_, record)| record.clone()) else {
            return Outcome::Done;
        };
        if record.object != *object {
            return Outcome::Done;
        }
        if at.0 == Kind::Namespace && self.foreign.contains(&at.1.name) {
            // There is somebody else's claim in it.
            if record.hold == Hold::Retired {
                return super::provider::failed("there are claims of others");
            }
            self.counts.foreign += 1;
            return self.retire(at, object);
        }
        if record.version != version {
            self.counts.outdated += 1;
            return Outcome::Outdated;
        }
        self.lose(at, &record);
        if at.0 == Kind::Namespace {
            let within: Vec<_> = self
                .records
                .iter()
                .filter(|((kind, key), _)| {
                    *kind == Kind::PersistentVolumeClaim && *key.namespace == *at.1.name
                })
                .map(|(at, (_, record))| (at.clone(), record.clone()))
                .collect();
            for (at, record) in within {
                self.lose(&at, &record);
            }
        }
        Outcome::Done
    }

    /// Keeps a namespace that its consumer has given up.
    pub(super) fn retire(&mut self, at: &StoredAt, object: &Uid) -> Outcome {
        let Some((set, record)) = self.records.get(at).cloned() else { return Outcome::Done };
        if record.object != *object {
            return Outcome::Done;
        }
        self.counts.retired += 1;
        let record = Record { version: self.serial(), hold: Hold::Retired, ..record };
        self.records.insert(at.clone(), (set.clone(), record.clone()));
        self.record_events.push_back((set, at.1.clone(), Ok(record.clone())));
        Outcome::Found { record: Some(record), instance: None }
    }

    /// The provider's owner makes a claim in a namespace of the consumer, or deletes it.
    pub(super) fn foreign_claim(&mut self) {
        let namespace: Arc<str> = Arc::from(format!("n{}", self.below(NAMES)));
        if !self.foreign.remove(&namespace) {
            self.foreign.insert(namespace);
        }
    }

    fn lose(&mut self, at: &StoredAt, record: &Record) {
        if self.written.contains(&record.home) {
            assert!(
                self.erasable.contains(&record.home),
                "seed {}: the data of {} is lost, but its owner did not give it up",
                self.seed,
                at.1
            );
            self.counts.erased += 1;
        } else if at.0 == Kind::Namespace && record.hold == Hold::Retired {
            // It was given up, and what it was kept for is gone.
        } else {
            self.may_destroy(&record.home, "the record");
        }
        self.delete_record(at);
    }

    /// What is left that nobody wants now is kept for data that nobody gave up.
    pub(super) fn only_data_is_kept(&self) {
        let seed = self.seed;
        for (at, (_, record)) in &self.records {
            match at.0 {
                Kind::PersistentVolumeClaim => {
                    assert!(!self.erasable.contains(&record.home), "seed {seed}: {} was not erased", at.1);
                    let wanted = self.home.get(at).is_some_and(|object| !object.unwanted);
                    // What was retained is not named any more; until all are named anew it is wanted as it was.
                    let owned = self.written.contains(&record.home) || self.retained.contains(&record.home);
                    assert!(wanted || owned, "seed {seed}: {} is kept for nothing", at.1);
                }
                Kind::Namespace if !self.home.contains_key(at) => {
                    let kept = |(kind, key): &StoredAt| {
                        *kind == Kind::PersistentVolumeClaim && *key.namespace == *at.1.name
                    };
                    assert!(record.hold == Hold::Retired, "seed {seed}: {} is not given up", at.1);
                    assert!(self.records.keys().any(kept), "seed {seed}: {} is kept for nothing", at.1);
                }
                _ => assert!(self.home.contains_key(at), "seed {seed}: nobody wants {}", at.1),
            }
        }
        for home in self.written.difference(&self.erasable) {
            let there = self.records.values().any(|(_, record)| record.home == *home);
            assert!(there, "seed {seed}: the data of {home} is lost");
        }
    }

    /// Whether a claim that is wanted at home must be there: its namespace is, or it was there before.
    pub(super) fn must_exist(&self, key: &Key, object: &HomeObject) -> bool {
        let namespace = (Kind::Namespace, Key::new("", &key.namespace));
        self.home.contains_key(&namespace) || self.written.contains(&object.uid)
    }

    /// The news that a record is gone.
    pub(super) fn delete_record(&mut self, at: &StoredAt) {
        let version = self.serial();
        let Some((set, record)) = self.records.remove(at) else {
            return;
        };
        let gone = Deleted { object: record.object, version };
        self.record_events.push_back((set, at.1.clone(), Err(gone)));
    }
}
