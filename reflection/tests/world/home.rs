//! The home cluster: its user, its watches, and the shell of the consumer half.

use super::{HomeEvent, HomeObject, NAMES, NODES, World};
use liquid_reflection::Prefixes;
use liquid_reflection::consumer::{self, Consumer};
use liquid_reflection::frame::{Ref, Wanted};
use liquid_reflection::key::{Key, Kind, Role, SetRef};
use liquid_reflection::provider::Hold;
use std::collections::BTreeSet;

impl World {
    /// Somebody else writes the status of a pod at home.
    pub(super) fn foreign_step(&mut self) {
        let status = self.fresh_hash();
        let pods: Vec<_> = self.home.keys().filter(|(kind, _)| *kind == Kind::Pod).cloned().collect();
        if pods.is_empty() {
            return;
        }
        let at = pods[self.index(pods.len())].clone();
        let object = self.home.get_mut(&at).unwrap();
        if object.status.is_some() {
            object.status = Some(status);
            self.home_events.push_back(HomeEvent::Changed(at.1));
        }
    }

    pub(super) fn user_step(&mut self) {
        let name = format!("n{}", self.below(NAMES));
        let at = match self.below(6) {
            0 => (Kind::Namespace, Key::new("", &name)),
            1 => (Kind::ConfigMap, Key::new("shop", &name)),
            _ => (Kind::Pod, Key::new("shop", &name)),
        };
        let Some(object) = self.home.get(&at).cloned() else {
            self.create_at_home(at);
            return;
        };
        if at.0 == Kind::ConfigMap && self.chance(1, 2) {
            // Its last user goes, or another one comes.
            let object = self.home.get_mut(&at).unwrap();
            object.unwanted = !object.unwanted;
            self.released.insert(object.uid.clone());
            self.home_events.push_back(HomeEvent::Changed(at.1));
            return;
        }
        match self.below(6) {
            0..3 if object.deleting.is_none() => {
                let hash = self.fresh_hash();
                self.home.get_mut(&at).unwrap().hash = hash;
                self.home_events.push_back(HomeEvent::Changed(at.1));
            }
            3 | 4 if at.0 != Kind::ConfigMap => {
                let grace = match self.below(3) {
                    0 => None,
                    1 => Some(5),
                    _ => Some(30),
                };
                let entry = self.home.get_mut(&at).unwrap();
                if entry.deleting.is_none() {
                    entry.deleting = Some(grace);
                    self.released.insert(object.uid);
                    self.home_events.push_back(HomeEvent::Changed(at.1));
                }
            }
            _ => self.remove_at_home(&at, Some(0)),
        }
    }

    pub(super) fn create_at_home(&mut self, at: (Kind, Key)) {
        let set = match at.0.role() {
            Role::Namespace => SetRef::namespaces(),
            Role::Claim => SetRef::claims(),
            Role::Companion => SetRef::companions(at.0, &at.1.namespace),
            Role::Pod => SetRef::pods(NODES[self.index(NODES.len())]),
        };
        let uid = self.fresh_uid("home-");
        let hash = self.fresh_hash();
        self.counts.created += 1;
        if self.records.contains_key(&at) {
            self.counts.reused_names += 1;
        }
        self.home
            .insert(at.clone(), HomeObject { set, uid, hash, deleting: None, status: None, unwanted: false });
        self.home_events.push_back(HomeEvent::Changed(at.1));
    }

    pub(super) fn remove_at_home(&mut self, at: &(Kind, Key), grace: Option<u32>) {
        let Some(object) = self.home.remove(at) else {
            return;
        };
        self.released.insert(object.uid.clone());
        let event = HomeEvent::Removed { set: object.set, key: at.1.clone(), uid: object.uid, grace };
        self.home_events.push_back(event);
    }

    pub(super) fn deliver_home_event(&mut self) {
        if let Some(event) = self.home_events.front() {
            self.tell(format_args!("watch at home {event:?}"));
        }
        match self.home_events.pop_front() {
            None => {}
            Some(HomeEvent::Removed { set, key, uid, grace }) => {
                self.consumer.removed(&set, &key, &uid, grace);
            }
            Some(HomeEvent::Released { set, key }) => self.consumer.released(&set, &key),
            // The newest state stands for all changes that led to it, as a watch cache may do.
            Some(HomeEvent::Changed(key)) => {
                for kind in [Kind::Namespace, Kind::ConfigMap, Kind::PersistentVolumeClaim, Kind::Pod] {
                    if let Some(object) = self.home.get(&(kind, key.clone())) {
                        observe(&mut self.consumer, &key, object);
                    }
                }
            }
        }
    }

    pub(super) fn sets() -> Vec<SetRef> {
        let mut sets = vec![SetRef::namespaces(), SetRef::companions(Kind::ConfigMap, "shop")];
        sets.extend(NODES.map(SetRef::pods));
        sets
    }

    pub(super) fn restart_consumer(&mut self) {
        self.tell(format_args!("consumer restarts"));
        self.lose_link();
        self.consumer = Consumer::default();
        self.consumer.see_addresses(self.prefixes.clone());
        self.consumer_todo.clear();
        self.settled.clear();
        self.consumer.add_set(SetRef::claims());
        for set in Self::sets() {
            self.consumer.add_set(set);
        }
        self.relist_home();
    }

    /// Home comes to see the addresses of the provider's pods in another way, or no longer.
    pub(super) fn renumber(&mut self) {
        let seen = self.below(3);
        let pair = || ("10.244.0.0/16".parse().unwrap(), format!("100.{seen}.0.0/16").parse().unwrap());
        self.prefixes = Prefixes::new((seen > 0).then(pair));
        self.tell(format_args!("seen as {:?}", self.prefixes));
        self.consumer.see_addresses(self.prefixes.clone());
    }

    pub(super) fn relist_home(&mut self) {
        self.home_events.clear();
        self.relist_claims();
        for set in Self::sets() {
            let mut seen = BTreeSet::new();
            for ((_, key), object) in self.home.iter().filter(|(_, object)| object.set == set) {
                observe(&mut self.consumer, key, object);
                seen.insert(key.clone());
            }
            self.consumer.resynced(&set, &seen);
        }
    }

    /// Carries out one thing the consumer asked for at home; it may fail and be tried again.
    pub(super) fn consumer_step(&mut self) {
        let Some(action) = self.consumer_todo.pop_front() else {
            return;
        };
        // That a claim is there is only a message; what follows from it is tried until it is done.
        let told = matches!(&action, consumer::Action::Settled(target) if target.set == SetRef::claims());
        if !told && self.chance(1, 10) {
            self.counts.failed_requests += 1;
            self.consumer_todo.push_back(action);
            return;
        }
        match action {
            consumer::Action::FinishDeletion(target) if target.set == SetRef::claims() => {
                self.claim_gone(&target)
            }
            consumer::Action::FinishDeletion(target) => {
                let at = (target.set.kind, target.key.clone());
                if self.home.get(&at).is_some_and(|object| object.uid == target.uid) {
                    self.nothing_is_left_of(&target);
                    self.remove_at_home(&at, None);
                }
            }
            consumer::Action::ApplyStatus { target, hash, .. } => {
                let at = (target.set.kind, target.key.clone());
                if let Some(object) = self.home.get_mut(&at).filter(|object| object.uid == target.uid) {
                    object.status = Some(hash);
                    self.home_events.push_back(HomeEvent::Changed(target.key));
                }
            }
            consumer::Action::Settled(target) if target.set == SetRef::claims() => self.provision(&target),
            consumer::Action::Settled(target) => {
                self.settled.insert(target.uid);
            }
            consumer::Action::Refused { .. }
            | consumer::Action::Recovered(_)
            | consumer::Action::Warned { .. }
            | consumer::Action::Send(_)
            | consumer::Action::SendBody { .. } => {}
        }
    }

    pub(super) fn nothing_is_left_of(&self, target: &Ref) {
        if self.haunted.contains(&target.uid) {
            return;
        }
        let record = self.records.get(&(target.set.kind, target.key.clone()));
        assert!(
            record.is_none_or(|(_, record)| record.home != target.uid || record.hold == Hold::Retired),
            "seed {}: {target:?} was finished off at home while its record is still there",
            self.seed
        );
        let pod = self.pods.get(&target.key).filter(|_| target.set.kind == Kind::Pod);
        assert!(
            pod.is_none_or(|pod| pod.instance.home != target.uid),
            "seed {}: {target:?} was finished off at home while its pod is still there",
            self.seed
        );
    }
}

pub(super) fn observe(consumer: &mut Consumer, key: &Key, object: &HomeObject) {
    if object.unwanted {
        consumer.removed(&object.set, key, &object.uid, None);
        return;
    }
    let target = Ref { set: object.set.clone(), key: key.clone(), uid: object.uid.clone() };
    let wanted = match object.deleting {
        None => Wanted::Present(object.hash),
        Some(grace) => Wanted::Deleting { grace },
    };
    consumer.observe(target, wanted, object.status);
}
