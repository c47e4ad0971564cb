//! How much of this cluster a consumer has been promised, and whether there is room for more. Pure.
//!
//! What counts is what has been *promised*: a pod takes its share when its record is about to be stored, and keeps it
//! until nothing of it is left or it has ended. So a restart, which finds the records, comes to the same sum; pods that
//! run are never asked again, whatever the limits are by then; and of two that come at once one is first.

use liquid_crds::quantity::{Amounts, Milli, format};
use liquid_reflection::{Key, SetRef};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

/// A pod, by its virtual node and its names at home.
pub(crate) type At = (SetRef, Key);

/// The share of one pod, by where it is known from.
#[derive(Debug, Clone, Default)]
struct Claim {
    /// Its record is being stored, or may have been.
    reserved: Option<Arc<Amounts>>,
    /// Its record.
    recorded: Option<Arc<Amounts>>,
    /// What runs; it may differ from the record for a while, and outlive it.
    running: Option<Arc<Amounts>>,
}

impl Claim {
    /// The most of these.
    fn of(&self, resource: &str) -> Milli {
        let known = [&self.reserved, &self.recorded, &self.running].into_iter().flatten();
        known.filter_map(|amounts| amounts.get(resource)).copied().max().unwrap_or(0)
    }

    fn resources(&self) -> BTreeSet<&str> {
        let known = [&self.reserved, &self.recorded, &self.running].into_iter().flatten();
        known.flat_map(|amounts| amounts.keys()).map(String::as_str).collect()
    }

    fn is_empty(&self) -> bool {
        self.reserved.is_none() && self.recorded.is_none() && self.running.is_none()
    }
}

/// What is missing for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shortage(Vec<(String, [Milli; 3])>);

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |which: usize| {
            let amounts = self.0.iter().map(|(name, amounts)| format!("{name}={}", format(amounts[which]).0));
            amounts.collect::<Vec<_>>().join(",")
        };
        write!(
            f,
            "the provider's quota for this cluster is exceeded: requested {}, used {}, limited {}; the pod starts when \
             others have ended, or when the provider raises the limit",
            list(0),
            list(1),
            list(2)
        )
    }
}

/// The shares of one consumer.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    claims: BTreeMap<At, Claim>,
    used: Amounts,
    /// Pods there was no room for, in the order they came, and what they ask for.
    waiting: VecDeque<(At, Arc<Amounts>)>,
    /// Replicas ask for the same: each set of amounts is held once.
    shared: HashSet<Arc<Amounts>>,
    /// Something was given back since [`Ledger::fitting`].
    freed: bool,
}

impl Ledger {
    /// Takes the share of a pod whose record is about to be stored, if that fits into `limits` beside those of all
    /// others. Of what it has already it may always keep as much; what it does not ask for does not matter.
    ///
    /// # Errors
    /// If it does not fit. Then it waits, and [`Ledger::fitting`] will name it.
    pub(crate) fn admit(&mut self, at: &At, demand: Amounts, limits: &Amounts) -> Result<(), Shortage> {
        let own = self.claims.get(at).cloned().unwrap_or_default();
        let short = |(resource, requested): (&String, &Milli)| {
            let limit = *limits.get(resource)?;
            let has = own.of(resource);
            let used = self.used.get(resource).copied().unwrap_or(0).saturating_sub(has);
            let fits = *requested <= has || used.saturating_add(*requested) <= limit;
            (!fits).then(|| (resource.clone(), [*requested, used, limit]))
        };
        let shortage: Vec<_> = demand.iter().filter_map(short).collect();
        let demand = self.share(demand);
        if shortage.is_empty() {
            self.waiting.retain(|(waiting, _)| waiting != at);
            self.change(at, |claim| claim.reserved = Some(demand));
            return Ok(());
        }
        match self.waiting.iter_mut().find(|(waiting, _)| waiting == at) {
            Some((_, known)) => *known = demand,
            None => self.waiting.push_back((at.clone(), demand)),
        }
        Err(Shortage(shortage))
    }

    /// The record that was to be stored is there.
    pub(crate) fn stored(&mut self, at: &At) {
        self.change(at, |claim| {
            if let Some(reserved) = claim.reserved.take() {
                claim.recorded = Some(reserved);
            }
        });
    }

    /// The record was not stored.
    pub(crate) fn released(&mut self, at: &At) {
        self.change(at, |claim| claim.reserved = None);
    }

    /// There is a record that asks for this.
    pub(crate) fn recorded(&mut self, at: &At, demand: Amounts) {
        let demand = self.share(demand);
        self.change(at, |claim| claim.recorded = Some(demand));
    }

    /// A pod runs that asks for this.
    pub(crate) fn running(&mut self, at: &At, demand: Amounts) {
        let demand = self.share(demand);
        self.change(at, |claim| claim.running = Some(demand));
    }

    /// Of a pod there is, unfinished, a record or not, and something that runs or not.
    pub(crate) fn keep(&mut self, at: &At, record: bool, instance: bool) {
        self.change(at, |claim| {
            claim.recorded = claim.recorded.take().filter(|_| record);
            claim.running = claim.running.take().filter(|_| instance);
        });
    }

    /// Nobody knows of the pod any more.
    pub(crate) fn forget(&mut self, at: &At) {
        self.change(at, |claim| *claim = Claim::default());
        self.waiting.retain(|(waiting, _)| waiting != at);
    }

    /// The limits are others than before.
    pub(crate) fn limits_changed(&mut self) {
        self.freed = true;
    }

    /// Pods that wait and would fit by now, all of them together, those that came first first. Empty if nothing has
    /// been given back since the last call.
    pub(crate) fn fitting(&mut self, limits: &Amounts) -> BTreeSet<At> {
        if !std::mem::take(&mut self.freed) || self.waiting.is_empty() {
            return BTreeSet::new();
        }
        let mut used = self.used.clone();
        let mut fitting = BTreeSet::new();
        for (at, demand) in &self.waiting {
            let own = self.claims.get(at);
            let more = |resource: &String, requested: Milli| {
                requested.saturating_sub(own.map_or(0, |own| own.of(resource))).max(0)
            };
            let fits = demand.iter().all(|(resource, requested)| {
                let more = more(resource, *requested);
                let used = used.get(resource).copied().unwrap_or(0);
                more == 0 || limits.get(resource).is_none_or(|limit| used.saturating_add(more) <= *limit)
            });
            if fits {
                for (resource, requested) in demand.iter() {
                    let sum = used.entry(resource.clone()).or_default();
                    *sum = sum.saturating_add(more(resource, *requested));
                }
                fitting.insert(at.clone());
            }
        }
        fitting
    }

    fn share(&mut self, amounts: Amounts) -> Arc<Amounts> {
        if let Some(known) = self.shared.get(&amounts) {
            return known.clone();
        }
        // Those that nobody asks for any more go when as many have come as there are pods.
        if self.shared.len() > self.claims.len() + self.waiting.len() {
            self.shared.retain(|amounts| Arc::strong_count(amounts) > 1);
        }
        let amounts = Arc::new(amounts);
        self.shared.insert(amounts.clone());
        amounts
    }

    fn change(&mut self, at: &At, change: impl FnOnce(&mut Claim)) {
        let before = self.claims.get(at).cloned().unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        for resource in &before.resources() | &after.resources() {
            let (had, has) = (before.of(resource), after.of(resource));
            if had != has {
                self.freed |= has < had;
                let sum = self.used.entry(resource.to_owned()).or_default();
                *sum = sum.saturating_sub(had).saturating_add(has);
            }
        }
        if after.is_empty() {
            self.claims.remove(at);
        } else {
            self.claims.insert(at.clone(), after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(index: usize) -> At {
        (SetRef::pods("liquid-milan"), Key::new("shop", &format!("web-{index}")))
    }

    fn amounts(cpu: Milli, memory: Milli) -> Amounts {
        Amounts::from([("cpu".to_owned(), cpu), ("memory".to_owned(), memory)])
    }

    #[test]
    fn of_two_that_come_at_once_only_one_takes_the_last_room() {
        let limits = amounts(1000, 0);
        let mut ledger = Ledger::default();
        let cpu = |amount| Amounts::from([("cpu".to_owned(), amount)]);
        assert_eq!(ledger.admit(&at(0), cpu(600), &limits), Ok(()));
        let shortage = ledger.admit(&at(1), cpu(600), &limits).unwrap_err();
        let message = shortage.to_string();
        assert!(message.contains("requested cpu=600m, used cpu=600m, limited cpu=1;"), "{message}");
        assert!(ledger.fitting(&limits).is_empty());
        ledger.released(&at(0));
        assert_eq!(ledger.fitting(&limits), BTreeSet::from([at(1)]));
        assert!(ledger.fitting(&limits).is_empty(), "once is enough");
        assert_eq!(ledger.admit(&at(1), cpu(600), &limits), Ok(()));
    }

    #[test]
    fn lowered_limits_touch_only_who_asks_for_more() {
        let mut ledger = Ledger::default();
        ledger.recorded(&at(0), amounts(900, 10));
        let limits = amounts(500, 100);
        assert_eq!(ledger.admit(&at(0), amounts(900, 20), &limits), Ok(()), "it keeps what it has");
        ledger.stored(&at(0));
        assert!(ledger.admit(&at(0), amounts(901, 20), &limits).is_err());
        assert_eq!(ledger.admit(&at(1), amounts(0, 80), &limits), Ok(()), "it asks for no processor time");
        assert!(ledger.admit(&at(2), amounts(0, 1), &limits).is_err());
    }

    #[test]
    fn what_still_ends_takes_its_room_until_it_is_gone() {
        let limits = amounts(1000, 1000);
        let mut ledger = Ledger::default();
        ledger.recorded(&at(0), amounts(1000, 0));
        ledger.running(&at(0), amounts(1000, 0));
        ledger.keep(&at(0), false, true);
        assert!(ledger.admit(&at(1), amounts(1, 0), &limits).is_err());
        ledger.keep(&at(0), false, false);
        assert_eq!(ledger.fitting(&limits), BTreeSet::from([at(1)]));
        ledger.forget(&at(1));
        ledger.limits_changed();
        assert!(ledger.fitting(&limits).is_empty());
    }

    #[derive(Debug, Clone)]
    enum Event {
        Admit(usize, Milli, Milli),
        Stored(usize),
        Released(usize),
        Recorded(usize, Milli, Milli),
        Running(usize, Milli, Milli),
        Keep(usize, bool, bool),
        Forget(usize),
        Restart,
    }

    fn event() -> impl Strategy<Value = Event> {
        let pod = 0..6_usize;
        let amount = || 0..8_i128;
        prop_oneof![
            4 => (pod.clone(), amount(), amount()).prop_map(|(p, c, m)| Event::Admit(p, c, m)),
            3 => pod.clone().prop_map(Event::Stored),
            1 => pod.clone().prop_map(Event::Released),
            1 => (pod.clone(), amount(), amount()).prop_map(|(p, c, m)| Event::Recorded(p, c, m)),
            1 => (pod.clone(), amount(), amount()).prop_map(|(p, c, m)| Event::Running(p, c, m)),
            2 => (pod.clone(), any::<bool>(), any::<bool>()).prop_map(|(p, r, i)| Event::Keep(p, r, i)),
            1 => pod.prop_map(Event::Forget),
            1 => Just(Event::Restart),
        ]
    }

    /// The sums, counted anew from all claims.
    fn counted(ledger: &Ledger) -> Amounts {
        let mut sum = Amounts::from([("cpu".to_owned(), 0), ("memory".to_owned(), 0)]);
        for claim in ledger.claims.values() {
            for (resource, sum) in &mut sum {
                *sum += claim.of(resource);
            }
        }
        sum
    }

    fn used(ledger: &Ledger) -> Amounts {
        let mut used = amounts(0, 0);
        used.extend(ledger.used.clone());
        used
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_claims_and_nobody_is_let_in_above_the_limits(
            events in prop::collection::vec(event(), 1..80),
            cpu in 0..20_i128,
            memory in 0..20_i128,
        ) {
            let limits = amounts(cpu, memory);
            let mut ledger = Ledger::default();
            for event in events {
                let before = used(&ledger);
                match event {
                    Event::Admit(pod, cpu, memory) => {
                        let had = ledger.claims.get(&at(pod)).cloned().unwrap_or_default();
                        let admitted = ledger.admit(&at(pod), amounts(cpu, memory), &limits);
                        let after = used(&ledger);
                        for (resource, limit) in &limits {
                            let raised = after[resource] > before[resource];
                            prop_assert!(!raised || after[resource] <= *limit, "{resource} is let in above {limit}");
                        }
                        let waits = ledger.waiting.iter().any(|(waiting, _)| *waiting == at(pod));
                        prop_assert_eq!(waits, admitted.is_err());
                        if let Err(Shortage(short)) = admitted {
                            prop_assert_eq!(before, after);
                            for (resource, [requested, used, limit]) in short {
                                prop_assert!(requested > had.of(&resource) && used + requested > limit);
                            }
                        }
                    }
                    Event::Stored(pod) => ledger.stored(&at(pod)),
                    Event::Released(pod) => ledger.released(&at(pod)),
                    Event::Recorded(pod, cpu, memory) => ledger.recorded(&at(pod), amounts(cpu, memory)),
                    Event::Running(pod, cpu, memory) => ledger.running(&at(pod), amounts(cpu, memory)),
                    Event::Keep(pod, record, instance) => ledger.keep(&at(pod), record, instance),
                    Event::Forget(pod) => ledger.forget(&at(pod)),
                    Event::Restart => {
                        // Records and what runs are found again; reservations were requests that have ended.
                        let mut again = Ledger::default();
                        for (at, claim) in &ledger.claims {
                            if let Some(recorded) = &claim.recorded {
                                again.recorded(at, (**recorded).clone());
                            }
                            if let Some(running) = &claim.running {
                                again.running(at, (**running).clone());
                            }
                        }
                        let pods: Vec<At> = ledger.claims.keys().cloned().collect();
                        pods.iter().for_each(|at| ledger.released(at));
                        prop_assert_eq!(used(&ledger), used(&again));
                        ledger = again;
                    }
                }
                prop_assert_eq!(counted(&ledger), used(&ledger));
            }
            // All that are named fit, together and one after the other.
            ledger.limits_changed();
            for pod in ledger.fitting(&limits) {
                let demand = ledger.waiting.iter().find(|(at, _)| *at == pod).map(|(_, demand)| (**demand).clone());
                prop_assert_eq!(ledger.admit(&pod, demand.unwrap(), &limits), Ok(()));
            }
        }
    }
}
