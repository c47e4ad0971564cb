//! How much of this cluster a consumer has been promised, and whether there is room for more. Pure.
//!
//! Two bounds hold: that of the consumer for all its pods, and what a virtual node is offered for those that are bound to
//! it.
//!
//! What counts is what has been *promised*: a pod takes its share when its record is about to be stored, and keeps it
//! until nothing of it is left or it has ended. So a restart, which finds the records, comes to the same sum; pods that
//! run are never asked again, whatever the limits are by then; and of two that come at once one is first.

use liquid_crds::quantity::{Amounts, Milli, format};
use liquid_reflection::{Key, SetRef};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, LazyLock};

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

/// What a consumer may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// All its pods together.
    pub(crate) whole: Amounts,
    /// Those of each virtual node whose offer is accepted, if it negotiates; then no others are taken.
    pub(crate) nodes: Option<BTreeMap<Arc<str>, Amounts>>,
}

/// Every pod takes one of `pods`.
static NOTHING: LazyLock<Amounts> = LazyLock::new(|| Amounts::from([("pods".to_owned(), 0)]));

impl Limits {
    /// What pods of a virtual node may have. `None` is no limit of its own: claims belong to no node, and have no name of one.
    fn of_node(&self, node: &str) -> Option<&Amounts> {
        self.nodes.as_ref().filter(|_| !node.is_empty()).map(|nodes| nodes.get(node).unwrap_or(&NOTHING))
    }

    /// Whether no pods of a virtual node are taken because its offer is not accepted.
    fn closes(&self, node: &str) -> bool {
        !node.is_empty() && self.nodes.as_ref().is_some_and(|nodes| !nodes.contains_key(node))
    }
}

/// What is missing for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shortage {
    /// Of what all pods of the consumer may have: requested, used, limited.
    whole: Vec<(String, [Milli; 3])>,
    /// Of what its virtual node is offered.
    node: Vec<(String, [Milli; 3])>,
    /// Its virtual node has no offer that is accepted.
    unaccepted: bool,
}

impl Shortage {
    /// CamelCase, for programs.
    pub(crate) fn reason(&self) -> &'static str {
        if self.unaccepted { "OfferNotAccepted" } else { "QuotaExceeded" }
    }
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.unaccepted {
            return write!(
                f,
                "the provider offers nothing for this virtual node, or its offer is not accepted; the pod starts when that \
                 has changed"
            );
        }
        for (what, last, short) in [
            ("the provider's quota for this cluster is exceeded", "limited", &self.whole),
            ("what the provider offers for this virtual node is used up", "offered", &self.node),
        ] {
            let list = |which: usize| {
                let amounts =
                    short.iter().map(|(name, amounts)| format!("{name}={}", format(amounts[which]).0));
                amounts.collect::<Vec<_>>().join(",")
            };
            if !short.is_empty() {
                write!(f, "{what}: requested {}, used {}, {last} {}; ", list(0), list(1), list(2))?;
            }
        }
        write!(f, "the pod starts when others have ended, or when the provider lends more")
    }
}

/// The shares of one consumer.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    claims: BTreeMap<At, Claim>,
    used: Used,
    /// Pods there was no room for, in the order they came, and what they ask for.
    waiting: VecDeque<(At, Arc<Amounts>)>,
    /// Replicas ask for the same: each set of amounts is held once.
    shared: HashSet<Arc<Amounts>>,
    /// Something was given back since [`Ledger::fitting`].
    freed: bool,
}

/// What is taken: by all pods, and by those of each virtual node.
#[derive(Debug, Default, Clone, PartialEq)]
struct Used {
    whole: Amounts,
    nodes: BTreeMap<Arc<str>, Amounts>,
}

impl Used {
    fn of_node(&self, node: &str, resource: &str) -> Milli {
        self.nodes.get(node).and_then(|used| used.get(resource)).copied().unwrap_or(0)
    }

    fn of_whole(&self, resource: &str) -> Milli {
        self.whole.get(resource).copied().unwrap_or(0)
    }

    /// Changes both by `more`, which may be negative.
    fn add(&mut self, node: &Arc<str>, resource: &str, more: Milli) {
        let of_node = self.nodes.entry(node.clone()).or_default();
        for sums in [&mut self.whole, of_node] {
            match sums.get_mut(resource) {
                Some(sum) => *sum = sum.saturating_add(more),
                None => drop(sums.insert(resource.to_owned(), more)),
            }
        }
        if self.nodes.get(node).is_some_and(|used| used.values().all(|sum| *sum == 0)) {
            self.nodes.remove(node);
        }
    }
}

impl Ledger {
    /// Takes the share of a pod whose record is about to be stored, if that fits into `limits` beside those of all
    /// others. Of what it has already it may always keep as much; what it does not ask for does not matter.
    ///
    /// # Errors
    /// If it does not fit. Then it waits, and [`Ledger::fitting`] will name it.
    pub(crate) fn admit(&mut self, at: &At, demand: Amounts, limits: &Limits) -> Result<(), Shortage> {
        let own = self.claims.get(at).cloned().unwrap_or_default();
        let node = &at.0.scope;
        let short = |limits: &Amounts, used: &dyn Fn(&str) -> Milli| -> Vec<(String, [Milli; 3])> {
            let short = demand.iter().filter_map(|(resource, requested)| {
                let limit = *limits.get(resource)?;
                let has = own.of(resource);
                let used = used(resource).saturating_sub(has);
                let fits = *requested <= has || used.saturating_add(*requested) <= limit;
                (!fits).then(|| (resource.clone(), [*requested, used, limit]))
            });
            short.collect()
        };
        let of_node = limits.of_node(node);
        let shortage = Shortage {
            whole: short(&limits.whole, &|resource| self.used.of_whole(resource)),
            node: of_node
                .map(|limits| short(limits, &|resource| self.used.of_node(node, resource)))
                .unwrap_or_default(),
            unaccepted: limits.closes(node),
        };
        let demand = self.share(demand);
        if shortage.whole.is_empty() && shortage.node.is_empty() {
            self.waiting.retain(|(waiting, _)| waiting != at);
            self.change(at, |claim| claim.reserved = Some(demand));
            return Ok(());
        }
        match self.waiting.iter_mut().find(|(waiting, _)| waiting == at) {
            Some((_, known)) => *known = demand,
            None => self.waiting.push_back((at.clone(), demand)),
        }
        Err(shortage)
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
    pub(crate) fn fitting(&mut self, limits: &Limits) -> BTreeSet<At> {
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
            let node = &at.0.scope;
            let of_node = limits.of_node(node);
            let fits = demand.iter().all(|(resource, requested)| {
                let more = more(resource, *requested);
                let within = |limits: &Amounts, used: Milli| {
                    limits.get(resource).is_none_or(|limit| used.saturating_add(more) <= *limit)
                };
                more == 0
                    || within(&limits.whole, used.of_whole(resource))
                        && of_node.is_none_or(|limits| within(limits, used.of_node(node, resource)))
            });
            if fits {
                for (resource, requested) in demand.iter() {
                    used.add(node, resource, more(resource, *requested));
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
                self.used.add(&at.0.scope, resource, has.saturating_sub(had));
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

    /// Even pods are bound to one virtual node, odd ones to another.
    fn at(index: usize) -> At {
        let node = if index.is_multiple_of(2) { "even" } else { "odd" };
        (SetRef::pods(node), Key::new("shop", &format!("web-{index}")))
    }

    fn whole(whole: Amounts) -> Limits {
        Limits { whole, nodes: None }
    }

    fn amounts(cpu: Milli, memory: Milli) -> Amounts {
        Amounts::from([("cpu".to_owned(), cpu), ("memory".to_owned(), memory)])
    }

    #[test]
    fn of_two_that_come_at_once_only_one_takes_the_last_room() {
        let limits = whole(amounts(1000, 0));
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
        let limits = whole(amounts(500, 100));
        assert_eq!(ledger.admit(&at(0), amounts(900, 20), &limits), Ok(()), "it keeps what it has");
        ledger.stored(&at(0));
        assert!(ledger.admit(&at(0), amounts(901, 20), &limits).is_err());
        assert_eq!(ledger.admit(&at(1), amounts(0, 80), &limits), Ok(()), "it asks for no processor time");
        assert!(ledger.admit(&at(2), amounts(0, 1), &limits).is_err());
    }

    #[test]
    fn what_still_ends_takes_its_room_until_it_is_gone() {
        let limits = whole(amounts(1000, 1000));
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

    #[test]
    fn a_virtual_node_takes_what_it_is_offered_and_no_more() {
        let cpu = |amount| Amounts::from([("cpu".to_owned(), amount), ("pods".to_owned(), 1000)]);
        let offered = |even: Milli| Limits {
            whole: Amounts::new(),
            nodes: Some([(Arc::from("even"), Amounts::from([("cpu".to_owned(), even)]))].into()),
        };
        let mut ledger = Ledger::default();
        assert_eq!(ledger.admit(&at(0), cpu(600), &offered(1000)), Ok(()));
        let shortage = ledger.admit(&at(2), cpu(600), &offered(1000)).unwrap_err();
        assert_eq!(shortage.reason(), "QuotaExceeded");
        let message = shortage.to_string();
        assert!(
            message
                .contains("this virtual node is used up: requested cpu=600m, used cpu=600m, offered cpu=1;"),
            "{message}"
        );
        assert_eq!(ledger.admit(&at(1), cpu(1), &offered(1000)).unwrap_err().reason(), "OfferNotAccepted");
        ledger.stored(&at(0));
        assert_eq!(
            ledger.admit(&at(0), cpu(600), &Limits { nodes: Some(BTreeMap::new()), ..offered(0) }),
            Ok(()),
            "it runs"
        );
        ledger.limits_changed();
        assert_eq!(ledger.fitting(&offered(1200)), BTreeSet::from([at(2)]));
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
    fn counted(ledger: &Ledger) -> [Amounts; 3] {
        let mut sums = [amounts(0, 0), amounts(0, 0), amounts(0, 0)];
        for ((set, _), claim) in &ledger.claims {
            let node = if &*set.scope == "even" { 1 } else { 2 };
            for which in [0, node] {
                for (resource, sum) in &mut sums[which] {
                    *sum += claim.of(resource);
                }
            }
        }
        sums
    }

    /// What is used: by all, and by the two virtual nodes.
    fn used(ledger: &Ledger) -> [Amounts; 3] {
        let of = |used: Option<&Amounts>| {
            let mut sums = amounts(0, 0);
            sums.extend(used.cloned().unwrap_or_default());
            sums
        };
        let nodes = &ledger.used.nodes;
        [of(Some(&ledger.used.whole)), of(nodes.get("even")), of(nodes.get("odd"))]
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_claims_and_nobody_is_let_in_above_the_limits(
            events in prop::collection::vec(event(), 1..80),
            cpu in 0..20_i128,
            memory in 0..20_i128,
            offered in prop::option::of((0..15_i128, 0..15_i128, prop::option::of(0..15_i128))),
        ) {
            let nodes = offered.map(|(cpu, memory, odd)| {
                let even = (Arc::from("even"), amounts(cpu, memory));
                std::iter::once(even).chain(odd.map(|odd| (Arc::from("odd"), amounts(odd, odd)))).collect::<BTreeMap<Arc<str>, _>>()
            });
            let limits = Limits { whole: amounts(cpu, memory), nodes };
            let mut ledger = Ledger::default();
            for event in events {
                let before = used(&ledger);
                match event {
                    Event::Admit(pod, cpu, memory) => {
                        let had = ledger.claims.get(&at(pod)).cloned().unwrap_or_default();
                        let admitted = ledger.admit(&at(pod), amounts(cpu, memory), &limits);
                        let after = used(&ledger);
                        let all = [Some(&limits.whole), limits.of_node("even"), limits.of_node("odd")];
                        for (which, limits) in all.into_iter().enumerate() {
                            for (resource, limit) in limits.into_iter().flatten().filter(|(name, _)| *name != "pods") {
                                let raised = after[which][resource] > before[which][resource];
                                prop_assert!(!raised || after[which][resource] <= *limit, "{resource} is let in above {limit}");
                            }
                        }
                        let waits = ledger.waiting.iter().any(|(waiting, _)| *waiting == at(pod));
                        prop_assert_eq!(waits, admitted.is_err());
                        if let Err(shortage) = admitted {
                            prop_assert_eq!(before, after);
                            prop_assert!(!shortage.whole.is_empty() || !shortage.node.is_empty());
                            for (resource, [requested, used, limit]) in shortage.whole.into_iter().chain(shortage.node) {
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
