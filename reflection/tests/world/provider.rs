//! The provider cluster: its API server, its owner and its kubelet.

use super::{Pod, Request, StoredAt, World};
use liquid_reflection::frame::{Ref, Refusal};
use liquid_reflection::key::{Key, Kind, SetRef, Uid};
use liquid_reflection::provider::{Deleted, Instance, Outcome, Provider, Record, Step};

impl World {
    pub(super) fn rare_step(&mut self) {
        match self.below(7) {
            6 => {
                self.counts.endings += 1;
                self.end_peering();
            }
            5 => {
                self.counts.renumberings += 1;
                self.renumber();
            }
            0 => {
                self.counts.consumer_restarts += 1;
                self.restart_consumer();
            }
            1 | 2 => {
                self.counts.provider_restarts += 1;
                self.restart_provider();
            }
            3 => {
                self.counts.watch_gaps += 1;
                self.relist_home();
            }
            _ => {
                self.counts.watch_gaps += 1;
                self.relist_provider();
            }
        }
    }

    pub(super) fn restart_provider(&mut self) {
        self.tell(format_args!("provider restarts"));
        self.lose_link();
        // Requests on their way may still take effect; nobody waits for the answers.
        let requests = std::mem::take(&mut self.requests);
        for request in requests {
            if request.answer.is_none() {
                match self.below(3) {
                    0 => {}
                    1 => drop(self.carry_out(&request.target, &request.step)),
                    _ => self.ghosts.push((request.target, request.step)),
                }
            }
        }
        self.provider = Provider::paused();
        self.record_events.clear();
        self.pod_events.clear();
        for ((_, key), (set, record)) in &self.records {
            self.provider.record_changed(set, key, Ok(record.clone()));
        }
        for (key, pod) in &self.pods {
            self.provider.instance_changed(&pod.set, key, Ok(pod.instance.clone()));
        }
        self.provider.resume();
    }

    /// The peering ends, and everything at home is given up with it; another one may begin.
    pub(super) fn end_peering(&mut self) {
        self.tell(format_args!("the peering ends"));
        self.lose_link();
        self.released.extend(self.home.values().map(|object| object.uid.clone()));
        self.provider.end();
    }

    pub(super) fn relist_provider(&mut self) {
        self.tell(format_args!("provider lists anew"));
        self.record_events.clear();
        self.pod_events.clear();
        for ((_, key), (set, record)) in &self.records {
            self.provider.record_changed(set, key, Ok(record.clone()));
        }
        for (key, pod) in &self.pods {
            self.provider.instance_changed(&pod.set, key, Ok(pod.instance.clone()));
        }
        let mut missing = Vec::new();
        for (set, key, record, instance) in self.provider.objects() {
            let stored = self.records.get(&(set.kind, key.clone()));
            let stored = record.is_none_or(|known| stored.is_some_and(|(_, r)| r.object == known.object));
            let runs = self.pods.get(key);
            let runs =
                instance.is_none_or(|known| runs.is_some_and(|pod| pod.instance.object == known.object));
            if !stored || !runs {
                missing.push((set.clone(), key.clone()));
            }
        }
        self.provider.relisted(missing);
    }

    pub(super) fn deliver_watch_event(&mut self) {
        if self.chance(1, 2) {
            self.deliver_record_event();
        } else {
            self.deliver_pod_event();
        }
    }

    pub(super) fn deliver_record_event(&mut self) {
        if let Some((set, key, news)) = self.record_events.pop_front() {
            self.tell(format_args!("watch of records {key} {news:?}"));
            self.provider.record_changed(&set, &key, news);
        }
    }

    pub(super) fn deliver_pod_event(&mut self) {
        if let Some((set, key, news)) = self.pod_events.pop_front() {
            self.tell(format_args!("watch of pods {key} {news:?}"));
            self.provider.instance_changed(&set, &key, news);
        }
    }

    /// The owner of the provider deletes a pod, or even a record.
    pub(super) fn owner_step(&mut self) {
        if self.chance(1, 20) {
            self.foreign_claim();
        } else if self.chance(1, 3) {
            let keys: Vec<_> = self.records.keys().filter(|(kind, _)| *kind == Kind::Pod).cloned().collect();
            if !keys.is_empty() {
                self.counts.owner_deletions += 1;
                let at = keys[self.index(keys.len())].clone();
                self.delete_record(&at);
            }
        } else {
            let keys: Vec<_> = self.pods.keys().cloned().collect();
            if !keys.is_empty() {
                self.counts.owner_deletions += 1;
                let key = keys[self.index(keys.len())].clone();
                self.terminate(&key);
            }
        }
    }

    /// Pods start, change, end, and go away; orphans are collected.
    pub(super) fn kubelet_step(&mut self) {
        let keys: Vec<_> = self.pods.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[self.index(keys.len())].clone();
        let pod = &self.pods[&key];
        let orphan = !self.records.values().any(|(_, record)| record.object == pod.owner);
        if orphan && self.chance(1, 3) {
            self.terminate(&key);
        } else if self.pods[&key].instance.terminating {
            if self.chance(1, 2) {
                self.delete_pod(&key);
            }
        } else if !self.pods[&key].instance.finished {
            let status = self.fresh_status();
            let ends = self.chance(1, 12);
            self.counts.finished += u64::from(ends);
            self.change_pod(&key, |instance| {
                instance.status = Some(status);
                instance.finished = ends;
            });
        }
    }

    pub(super) fn change_pod(&mut self, key: &Key, change: impl FnOnce(&mut Instance)) -> Instance {
        let version = self.serial();
        let pod = self.pods.get_mut(key).unwrap();
        change(&mut pod.instance);
        pod.instance.version = version;
        let (set, instance) = (pod.set.clone(), pod.instance.clone());
        self.pod_events.push_back((set, key.clone(), Ok(instance.clone())));
        instance
    }

    pub(super) fn terminate(&mut self, key: &Key) {
        if !self.pods[key].instance.terminating {
            let (status, interim) = (self.fresh_status(), self.fresh_status());
            self.change_pod(key, |instance| {
                instance.terminating = true;
                instance.status = Some(status);
                instance.interim = Some(interim);
            });
        }
    }

    pub(super) fn delete_pod(&mut self, key: &Key) {
        let version = self.serial();
        let Some(pod) = self.pods.remove(key) else { return };
        let gone = Deleted { object: pod.instance.object, version };
        self.pod_events.push_back((pod.set, key.clone(), Err(gone)));
    }

    /// One request reaches the API server, or its answer comes back.
    pub(super) fn request_step(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let index = self.index(self.requests.len());
        let Some(request) = self.requests.get(index) else {
            return;
        };
        if request.answer.is_some() {
            let Request { target, answer, .. } = self.requests.swap_remove(index);
            let entropy = self.next();
            self.tell(format_args!("answer {} {} {answer:?}", target.key, target.uid));
            self.provider.done(&target, answer.unwrap(), self.now, entropy);
            return;
        }
        let (target, step) = (request.target.clone(), request.step.clone());
        let fault = self.below(12);
        let answer = match fault {
            0 => failed("the request was lost"),
            1 => {
                self.carry_out(&target, &step);
                failed("the answer was lost")
            }
            _ => self.carry_out(&target, &step),
        };
        self.counts.failed_requests += u64::from(fault < 2);
        self.requests[index].answer = Some(answer);
    }

    pub(super) fn ghost_step(&mut self) {
        if let Some((target, step)) = self.ghosts.pop() {
            self.tell(format_args!("late effect of an earlier process"));
            self.haunted.insert(target.uid.clone());
            self.carry_out(&target, &step);
        }
    }

    pub(super) fn may_destroy(&self, home: &Uid, what: &str) {
        assert!(
            self.released.contains(home) || self.haunted.contains(home),
            "seed {}: {what} of {home} is destroyed, but nobody gave it up",
            self.seed
        );
    }

    pub(super) fn carry_out(&mut self, target: &Ref, step: &Step) -> Outcome {
        self.tell(format_args!("request {} {} {step:?}", target.key, target.uid));
        let at = (target.set.kind, target.key.clone());
        match step {
            Step::Store { hash, replaces, .. } => {
                let existing = self.records.get(&at).map(|(_, record)| record.clone());
                if target.set.kind == Kind::PersistentVolumeClaim
                    && existing.is_none()
                    && !self.touch_namespace(&target.key.namespace)
                {
                    return failed("there is no such namespace");
                }
                let object = match (&existing, replaces) {
                    (None, None) => self.fresh_uid("record-"),
                    (Some(existing), Some(replaces)) if existing.object == *replaces => replaces.clone(),
                    _ => return failed("the record is another one by now"),
                };
                let record = Record {
                    object,
                    version: self.serial(),
                    home: target.uid.clone(),
                    hash: *hash,
                    terminating: false,
                    finished: existing.as_ref().is_some_and(|existing| existing.finished),
                    hold: existing
                        .as_ref()
                        .map(|existing| existing.hold)
                        .filter(|_| target.set.kind == Kind::PersistentVolumeClaim)
                        .unwrap_or_default(),
                    status: existing.and_then(|existing| existing.status),
                };
                self.write_record(&at, target.set.clone(), record)
            }
            Step::Start => {
                let Some((set, record)) = self.record_of(target) else {
                    return Outcome::Done;
                };
                // The shell reads the record before it starts what it describes.
                if record.finished {
                    return Outcome::Stored(record);
                }
                match self.pods.get(&target.key) {
                    Some(pod) if pod.instance.home == record.home => Outcome::Running(pod.instance.clone()),
                    Some(_) => failed("another pod has that name"),
                    None => {
                        let instance = Instance {
                            fresh: false,
                            object: self.fresh_uid("pod-"),
                            version: self.serial(),
                            home: record.home,
                            hash: record.hash,
                            terminating: false,
                            finished: false,
                            status: None,
                            interim: None,
                        };
                        let pod = Pod { set: set.clone(), owner: record.object, instance: instance.clone() };
                        self.pods.insert(target.key.clone(), pod);
                        self.pod_events.push_back((set, target.key.clone(), Ok(instance.clone())));
                        Outcome::Running(instance)
                    }
                }
            }
            Step::Adjust(object) => {
                let Some((_, record)) = self.record_of(target) else {
                    return Outcome::Done;
                };
                match self.pods.get(&target.key) {
                    Some(pod) if pod.instance.object == *object => {
                        let hash = record.hash;
                        Outcome::Running(self.change_pod(&target.key, |instance| instance.hash = hash))
                    }
                    _ => Outcome::Done,
                }
            }
            Step::Stop { object, .. } => {
                let pod = self.pods.get(&target.key).cloned();
                if let Some(pod) = pod.filter(|pod| pod.instance.object == *object) {
                    let kept = self.records.values().any(|(_, r)| r.home == pod.instance.home);
                    if kept {
                        self.may_destroy(&pod.instance.home, "the pod");
                    }
                    self.terminate(&target.key);
                }
                Outcome::Done
            }
            Step::Finish => {
                let Some((set, mut record)) = self.record_of(target) else {
                    return Outcome::Done;
                };
                let pod = self.pods.get(&target.key).filter(|pod| pod.instance.home == target.uid);
                let Some(pod) = pod.filter(|pod| pod.instance.finished) else {
                    return Outcome::Done;
                };
                record.finished = true;
                record.status = pod.instance.status;
                record.version = self.serial();
                self.write_record(&at, set, record)
            }
            Step::Look => {
                // The same name may be taken by another set by now: that is not an answer for this one.
                let record = self.records.get(&at).filter(|(set, _)| *set == target.set);
                let record = record.map(|(_, record)| record.clone());
                let pod = self.pods.get(&target.key).filter(|pod| pod.set == target.set);
                Outcome::Found { record, instance: pod.map(|pod| pod.instance.clone()) }
            }
            Step::Reclaim { object, version } => self.reclaim(&at, object, *version),
            Step::Retire(object) => self.retire(&at, object),
            Step::Erase(object) => {
                let record = self.records.get(&at).map(|(_, record)| record.clone());
                if let Some(record) = record.filter(|record| record.object == *object) {
                    self.may_destroy(&record.home, "the record");
                    self.delete_record(&at);
                }
                Outcome::Done
            }
        }
    }

    /// The record a step is about; one of that name may stand for another object by now.
    pub(super) fn record_of(&self, target: &Ref) -> Option<(SetRef, Record)> {
        let (set, record) = self.records.get(&(target.set.kind, target.key.clone()))?;
        (*set == target.set && record.home == target.uid).then(|| (set.clone(), record.clone()))
    }

    pub(super) fn write_record(&mut self, at: &StoredAt, set: SetRef, record: Record) -> Outcome {
        self.records.insert(at.clone(), (set.clone(), record.clone()));
        self.record_events.push_back((set, at.1.clone(), Ok(record.clone())));
        Outcome::Stored(record)
    }
}

pub(super) fn failed(message: &str) -> Outcome {
    Outcome::Failed(Refusal { reason: "Test".to_owned(), message: message.to_owned() })
}
