//! The course of things: what the two halves ask for, and what must hold when all is calm.

use super::home::observe;
use super::{MOST_REQUESTS, Request, World};
use bytes::Bytes;
use liquid_link::digest::Hash;
use liquid_reflection::consumer::{self};
use liquid_reflection::frame::{ConsumerFrame, ProviderFrame, Ref};
use liquid_reflection::key::{Kind, SetRef};
use liquid_reflection::provider::{self, StatusFound};
use std::time::Duration;

impl World {
    /// Moves what the halves ask for to where it is carried out.
    pub(super) fn drain(&mut self) {
        while let Some(action) = self.consumer.poll_action() {
            match action {
                consumer::Action::Send(frame) => self.to_provider.push_back(frame),
                consumer::Action::SendBody { target, .. } => self.send_body(target),
                consumer::Action::ApplyStatus { ref target, .. } => {
                    // A newer status takes the place of one that is still to be written.
                    let same = |other: &consumer::Action| matches!(other, consumer::Action::ApplyStatus { target: t, .. } if t == target);
                    self.consumer_todo.retain(|other| !same(other));
                    self.consumer_todo.push_back(action);
                }
                consumer::Action::FinishDeletion(_)
                | consumer::Action::Refused { .. }
                | consumer::Action::Recovered(_)
                | consumer::Action::Warned { .. }
                | consumer::Action::Settled(_) => self.consumer_todo.push_back(action),
            }
        }
        while let Some(action) = self.provider.poll_action() {
            match action {
                provider::Action::Send(frame) => self.to_consumer.push_back(frame),
                provider::Action::Run { target, step } => {
                    self.requests.push(Request { target, step, answer: None });
                }
                provider::Action::SendStatus { target, hash, interim } => {
                    let at_hand = self.pods.get(&target.key).map(|pod| &pod.instance);
                    let at_hand = at_hand.filter(|instance| instance.home == target.uid);
                    let shown = at_hand.and_then(|i| if interim { i.interim } else { i.status });
                    let shown = shown.map(|status| status.seen(self.provider.prefixes()));
                    if shown == Some(hash) && self.chance(1, 2) {
                        self.send_status(target, hash);
                    } else {
                        self.reads.push((target, None));
                    }
                }
            }
        }
    }

    pub(super) fn send_status(&mut self, target: Ref, hash: Hash) {
        self.to_consumer.push_back(ProviderFrame::Status { target, hash, body: Bytes::new() });
    }

    /// A status is read, or what was read comes back.
    pub(super) fn read_step(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let index = self.index(self.reads.len());
        let (target, found) = self.reads[index].clone();
        if let Some(found) = found {
            self.reads.swap_remove(index);
            self.tell(format_args!("status of {} read: {found:?}", target.key));
            if let Some((hash, _)) = self.provider.status_read(&target, found) {
                self.send_status(target, hash);
            }
            return;
        }
        let kept = self.record_of(&target).and_then(|(_, record)| record.status);
        self.reads[index].1 = Some(match (self.pods.get(&target.key), kept) {
            (Some(pod), _) => StatusFound::Running(pod.instance.clone()),
            (None, Some(status)) => StatusFound::Kept(status),
            (None, None) => StatusFound::Nothing,
        });
    }

    /// Reads the object anew, as a shell does, and sends its body.
    pub(super) fn send_body(&mut self, target: Ref) {
        let at = (target.set.kind, target.key.clone());
        match self.home.get(&at) {
            Some(object) if object.uid == target.uid && object.deleting.is_none() && !object.unwanted => {
                let hash = object.hash;
                let body = Bytes::copy_from_slice(hash.as_bytes());
                self.to_provider.push_back(ConsumerFrame::Upsert { target, hash, body });
                let object = object.clone();
                observe(&mut self.consumer, &at.1, &object);
            }
            Some(object) => {
                let object = object.clone();
                observe(&mut self.consumer, &at.1, &object);
            }
            // That a claim is gone does not say what becomes of its data; what follows does.
            None if target.set == SetRef::claims() => {}
            None => self.consumer.removed(&target.set, &target.key, &target.uid, Some(0)),
        }
    }

    /// Lets everything settle without faults, and compares the two sides.
    pub(crate) fn calm_down(&mut self) {
        self.open_link();
        self.foreign.clear();
        while !self.ghosts.is_empty() {
            self.ghost_step();
        }
        let mut requests = 0;
        for round in 0..20_000 {
            self.now += Duration::from_secs(1);
            self.drain();
            self.provider.handle_timeout(self.now);
            self.drain();
            while !self.home_events.is_empty() {
                self.deliver_home_event();
                self.drain();
            }
            while !self.to_provider.is_empty() {
                self.deliver_to_provider();
                self.drain();
            }
            while !self.to_consumer.is_empty() {
                self.deliver_to_consumer();
                self.drain();
            }
            while let Some(Request { target, step, answer }) = self.requests.pop() {
                requests += 1;
                assert!(
                    requests < MOST_REQUESTS,
                    "seed {}: requests without end, the last for {target:?}: {step:?}",
                    self.seed
                );
                let outcome = answer.unwrap_or_else(|| self.carry_out(&target, &step));
                self.provider.done(&target, outcome, self.now, 0);
                self.drain();
            }
            while !self.reads.is_empty() {
                self.read_step();
                self.drain();
            }
            while !self.record_events.is_empty() {
                self.deliver_record_event();
                self.drain();
            }
            while !self.pod_events.is_empty() {
                self.deliver_pod_event();
                self.drain();
            }
            while !self.consumer_todo.is_empty() {
                self.consumer_step();
            }
            let pods: Vec<_> = self.pods.keys().cloned().collect();
            for key in pods {
                let orphan = !self.records.values().any(|(_, r)| r.object == self.pods[&key].owner);
                if self.pods[&key].instance.terminating {
                    self.delete_pod(&key);
                } else if orphan {
                    self.terminate(&key);
                }
            }
            let quiet = self.home_events.is_empty()
                && self.to_provider.is_empty()
                && self.to_consumer.is_empty()
                && self.requests.is_empty()
                && self.reads.is_empty()
                && self.record_events.is_empty()
                && self.pod_events.is_empty()
                && self.consumer_todo.is_empty();
            // A retry may still be pending: two minutes of silence are more than the longest wait.
            if quiet && self.provider.poll_timeout().is_none() {
                self.compare();
                return;
            }
            assert!(round < 19_999, "seed {}: no agreement", self.seed);
        }
    }

    /// The peering ends for good, and the provider alone goes on until it says that nothing is left of it.
    pub(crate) fn leave(&mut self) {
        self.end_peering();
        self.foreign.clear();
        for _ in 0..1000 {
            self.now += Duration::from_secs(60);
            self.provider.handle_timeout(self.now);
            self.drain();
            while let Some(Request { target, step, answer }) = self.requests.pop() {
                let outcome = answer.unwrap_or_else(|| self.carry_out(&target, &step));
                self.provider.done(&target, outcome, self.now, 0);
                self.drain();
            }
            while !self.record_events.is_empty() {
                self.deliver_record_event();
                self.drain();
            }
            let ending: Vec<_> = self
                .pods
                .iter()
                .filter(|(_, pod)| pod.instance.terminating)
                .map(|(key, _)| key.clone())
                .collect();
            for key in ending {
                self.delete_pod(&key);
            }
            while !self.pod_events.is_empty() {
                self.deliver_pod_event();
                self.drain();
            }
            let quiet =
                self.requests.is_empty() && self.record_events.is_empty() && self.pod_events.is_empty();
            if quiet && self.provider.poll_timeout().is_none() {
                break;
            }
        }
        let seed = self.seed;
        assert!(self.provider.is_empty(), "seed {seed}: the peering never ends: {:?}", self.provider);
        assert!(self.pods.is_empty(), "seed {seed}: pods are left: {:?}", self.pods);
    }

    pub(super) fn compare(&mut self) {
        self.counts.agreements += 1;
        let seed = self.seed;
        let wanted: Vec<_> = self.home.iter().filter(|(_, object)| !object.unwanted).collect();
        for ((kind, key), object) in &wanted {
            assert!(object.deleting.is_none(), "seed {seed}: {key} is still being deleted at home");
            let stored = self.records.get(&(*kind, key.clone()));
            if *kind == Kind::PersistentVolumeClaim && stored.is_none() && !self.must_exist(key, object) {
                continue;
            }
            let Some((set, record)) = stored else {
                panic!("seed {seed}: {kind:?} {key} ({}) was lost: {:?}", object.uid, self.provider);
            };
            assert_eq!(
                (set, &record.home, record.hash),
                (&object.set, &object.uid, object.hash),
                "seed {seed}: {key}"
            );
            if *kind == Kind::Namespace {
                assert!(
                    self.settled.contains(&object.uid),
                    "seed {seed}: nobody was told that {key} is there"
                );
            }
            if *kind == Kind::Pod {
                match self.pods.get(key) {
                    None => {
                        assert!(record.finished, "seed {seed}: {key} does not run");
                        let kept = record.status.map(|status| status.seen(&self.prefixes));
                        assert_eq!(kept, object.status, "seed {seed}: how {key} ended");
                    }
                    Some(pod) => {
                        assert_eq!(pod.instance.home, object.uid, "seed {seed}: {key}");
                        let current = pod.instance.hash == object.hash || pod.instance.finished;
                        assert!(current, "seed {seed}: {key} runs an old body");
                        if let Some(status) = pod.instance.status {
                            assert_eq!(
                                Some(status.seen(&self.prefixes)),
                                object.status,
                                "seed {seed}: status of {key}"
                            );
                        }
                    }
                }
            }
        }
        self.only_data_is_kept();
        let pods = self.home.keys().filter(|(kind, _)| *kind == Kind::Pod).count();
        assert!(self.pods.len() <= pods, "seed {seed}: pods nobody wants: {:?}", self.pods);
        assert_eq!(
            self.consumer.unsettled(),
            [],
            "seed {seed}: the consumer waits for something of {:?}",
            self.provider
        );
        assert_eq!(self.consumer.len(), wanted.len(), "seed {seed}: the consumer remembers too much");
    }
}
