//! Who gets how much: shares what there is among the slices of one consumer. Pure.
//!
//! Nothing is promised twice, however the selectors of slices overlap: each node's free amount is handed out, to those
//! that may run there. What slices ask for by name is served first; of what is left of each resource all others get as
//! equal parts as their nodes allow.

use liquid_crds::quantity::{Amounts, Milli};
use std::collections::{BTreeMap, BTreeSet};

/// What a node has free, and which slices (by index) may take of it.
#[derive(Debug, Clone)]
pub(super) struct Source<'a> {
    pub(super) free: &'a Amounts,
    /// Whether pods can be placed there now.
    pub(super) usable: bool,
    pub(super) slices: BTreeSet<usize>,
}

/// What bounds all slices together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    /// What the consumer may have, where that is limited.
    pub(super) limits: &'a Amounts,
    /// What pods of this cluster ask for that are not on a node yet.
    pub(super) unbound: &'a Amounts,
    /// How much may be promised, in percent of what there is.
    pub(super) overcommit_percent: u16,
}

/// What each slice is offered; `asked` says what each of them asks for by name.
pub(super) fn share(sources: &[Source<'_>], asked: &[&Amounts], bounds: Bounds<'_>) -> Vec<Amounts> {
    let mut offered = vec![Amounts::new(); asked.len()];
    let resources: BTreeSet<&String> = sources.iter().flat_map(|source| source.free.keys()).collect();
    for resource in resources {
        let shares = Resource::new(resource, sources, asked, bounds).share();
        for (slice, share) in shares {
            offered[slice].insert(resource.clone(), share);
        }
    }
    offered
}

/// Nodes that serve the same slices count as one.
#[derive(Debug, Default, Clone, Copy)]
struct Group {
    /// What its nodes have free: no slice gets more of it.
    free: Milli,
    /// What is left to promise.
    left: Milli,
}

/// One resource, while it is shared out.
struct Resource {
    /// Smallest part of it that is given when it is divided.
    quantum: Milli,
    groups: BTreeMap<BTreeSet<usize>, Group>,
    /// The most that all slices may get together.
    total: Milli,
    slices: BTreeMap<usize, Slice>,
}

#[derive(Debug, Clone, Copy)]
struct Slice {
    named: bool,
    /// It gets no more than this.
    ceiling: Milli,
    got: Milli,
}

impl Resource {
    fn new(name: &str, sources: &[Source<'_>], asked: &[&Amounts], bounds: Bounds<'_>) -> Self {
        let quantum = quantum(name);
        let whole = |amount: Milli| if name == "cpu" { amount } else { amount / 1000 * 1000 };
        let of = |amounts: &Amounts| whole(amounts.get(name).copied().unwrap_or(0).max(0));
        let percent = Milli::from(bounds.overcommit_percent);
        let mut groups: BTreeMap<BTreeSet<usize>, Group> = BTreeMap::new();
        let (mut usable, mut all) = (0, 0);
        for source in sources {
            let free = of(source.free);
            all += free;
            usable += if source.usable { free } else { 0 };
            let group = groups.entry(source.slices.clone()).or_default();
            group.free += free;
        }
        for group in groups.values_mut() {
            group.left = whole(group.free * percent / 100);
        }
        // Own pods that wait for a node will take from those there are.
        let unbound = of(bounds.unbound).min(usable);
        let limit = bounds.limits.get(name).map_or(Milli::MAX, |limit| (*limit).max(0));
        let promised = all - unbound;
        let slices = asked.iter().enumerate().filter_map(|(index, asked)| {
            let mut own = sources.iter().filter(|source| source.slices.contains(&index));
            // What no node of it has is not offered at all.
            own.clone().any(|source| source.free.contains_key(name)).then(|| {
                let lost = if own.clone().all(|source| source.usable) { unbound } else { 0 };
                let there: Milli = own.by_ref().map(|source| of(source.free)).sum();
                let named = asked.contains_key(name);
                let wish = if named { of(asked) } else { Milli::MAX };
                // As many of the waiting pods as do not fit elsewhere will be here.
                let elsewhere = usable - if lost > 0 { there } else { 0 };
                let ceiling = there - (lost - elsewhere).max(0);
                (index, Slice { named, ceiling: whole(wish.min(limit).min(ceiling)), got: 0 })
            })
        });
        Self {
            quantum,
            slices: slices.collect(),
            groups,
            total: whole(limit.min(promised).saturating_mul(percent) / 100),
        }
    }

    fn share(mut self) -> impl Iterator<Item = (usize, Milli)> {
        for named in [true, false] {
            let phase: Vec<usize> = self
                .slices
                .iter()
                .filter(|(_, slice)| slice.named == named)
                .map(|(index, _)| *index)
                .collect();
            // First where there is the least choice: who has other nodes, too, takes from those then.
            let mut groups: Vec<(usize, BTreeSet<usize>)> = self
                .groups
                .keys()
                .map(|serves| (phase.iter().filter(|index| serves.contains(index)).count(), serves.clone()))
                .filter(|(count, _)| *count > 0)
                .collect();
            groups.sort();
            for (_, serves) in groups {
                self.hand_out(&phase, &serves);
            }
            self.keep_total(&phase);
        }
        self.slices.into_iter().map(|(index, slice)| (index, slice.got))
    }

    /// Hands out what one group of nodes has.
    fn hand_out(&mut self, phase: &[usize], serves: &BTreeSet<usize>) {
        let Some(group) = self.groups.get_mut(serves) else { return };
        let takers: Vec<usize> = phase.iter().copied().filter(|index| serves.contains(index)).collect();
        let vessels: Vec<Vessel> = takers
            .iter()
            .map(|index| {
                let slice = self.slices[index];
                Vessel { level: slice.got, room: (slice.ceiling - slice.got).clamp(0, group.free) }
            })
            .collect();
        for (index, given) in takers.into_iter().zip(pour(group.left, &vessels, self.quantum)) {
            group.left -= given;
            if let Some(slice) = self.slices.get_mut(&index) {
                slice.got += given;
            }
        }
    }

    /// Takes back what would be more than all slices may get together.
    fn keep_total(&mut self, phase: &[usize]) {
        let vessels: Vec<Vessel> =
            phase.iter().map(|index| Vessel { level: 0, room: self.slices[index].got }).collect();
        let kept = pour(self.total, &vessels, self.quantum);
        for (index, kept) in phase.iter().zip(kept) {
            self.total -= kept;
            if let Some(slice) = self.slices.get_mut(index) {
                slice.got = kept;
            }
        }
    }
}

/// Smallest part of a resource that is given when it is divided: what people would write.
fn quantum(resource: &str) -> Milli {
    let bytes = matches!(resource, "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    match resource {
        "cpu" => 1,
        _ if bytes => 1000 << 20,
        _ => 1000,
    }
}

/// Somebody who takes: how much they have, and how much more they may get.
#[derive(Debug, Clone, Copy)]
struct Vessel {
    level: Milli,
    room: Milli,
}

/// Pours `amount` into `vessels` so that the lowest rise first; says what each gets.
fn pour(amount: Milli, vessels: &[Vessel], quantum: Milli) -> Vec<Milli> {
    let amount = amount.max(0);
    let takers = vessels.iter().filter(|vessel| vessel.room > 0).count();
    let needed = vessels.iter().fold(0, |sum: Milli, vessel| sum.saturating_add(vessel.room.max(0)));
    if needed <= amount {
        return vessels.iter().map(|vessel| vessel.room.max(0)).collect();
    }
    if takers == 1 {
        return vessels.iter().map(|vessel| vessel.room.clamp(0, amount)).collect();
    }
    let at = |level: Milli| -> Vec<Milli> {
        let rise = |vessel: &Vessel| (level - vessel.level).clamp(0, vessel.room.max(0)) / quantum * quantum;
        vessels.iter().map(rise).collect()
    };
    // The highest level at which there is enough.
    let (mut low, mut high) = (0, vessels.iter().map(|v| v.level + v.room).max().unwrap_or(0));
    while low < high {
        let middle = low + (high - low + 1) / 2;
        if at(middle).iter().sum::<Milli>() <= amount { low = middle } else { high = middle - 1 }
    }
    let mut given = at(low);
    let mut left = amount - given.iter().sum::<Milli>();
    // What cannot be divided any more goes to the first.
    for (vessel, given) in vessels.iter().zip(&mut given) {
        let more = quantum.min(vessel.room - *given).min(left).max(0);
        let more = if more < quantum && more < vessel.room - *given { 0 } else { more };
        *given += more;
        left -= more;
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: Milli = 1000 << 30;

    fn amounts(of: &[(&str, Milli)]) -> Amounts {
        of.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect()
    }

    /// Shares nodes, each with the slices that may run there.
    fn shared(
        nodes: &[(Amounts, &[usize])],
        asked: &[Amounts],
        limits: &Amounts,
        percent: u16,
    ) -> Vec<Amounts> {
        let sources: Vec<Source<'_>> = nodes
            .iter()
            .map(|(free, slices)| Source { free, usable: true, slices: slices.iter().copied().collect() })
            .collect();
        let bounds = Bounds { limits, unbound: &Amounts::new(), overcommit_percent: percent };
        share(&sources, &asked.iter().collect::<Vec<_>>(), bounds)
    }

    #[test]
    fn one_slice_gets_all_there_is() {
        let node = amounts(&[("cpu", 4000), ("memory", 8 * GIB + 1000), ("pods", 110_000)]);
        assert_eq!(shared(&[(node.clone(), &[0])], &[Amounts::new()], &Amounts::new(), 100), [node]);
    }

    #[test]
    fn what_is_asked_for_by_name_comes_first_and_the_rest_is_divided() {
        let node =
            amounts(&[("cpu", 4000), ("memory", 9 * GIB), ("pods", 110_000), ("example.org/gpu", 2000)]);
        let asked = [Amounts::new(), amounts(&[("cpu", 1500), ("example.org/gpu", 0)]), Amounts::new()];
        let found = shared(&[(node, &[0, 1, 2])], &asked, &Amounts::new(), 100);
        assert_eq!(
            found[1],
            amounts(&[("cpu", 1500), ("memory", 3 * GIB), ("pods", 37_000), ("example.org/gpu", 0)])
        );
        assert_eq!((found[0]["cpu"], found[2]["cpu"]), (1250, 1250));
        assert_eq!((found[0]["pods"], found[2]["pods"]), (37_000, 36_000), "nobody gets part of a pod");
        assert_eq!((found[0]["example.org/gpu"], found[2]["example.org/gpu"]), (1000, 1000));
    }

    #[test]
    fn who_has_other_nodes_leaves_the_scarce_ones_to_those_that_have_not() {
        let node = || amounts(&[("cpu", 4000)]);
        let nodes: [(Amounts, &[usize]); 2] = [(node(), &[0, 1]), (node(), &[0])];
        let found = shared(&nodes, &[Amounts::new(), Amounts::new()], &Amounts::new(), 100);
        assert_eq!((found[0]["cpu"], found[1]["cpu"]), (4000, 4000));
    }

    #[test]
    fn limits_hold_for_all_slices_together_and_overcommit_promises_more_than_once() {
        let nodes: [(Amounts, &[usize]); 2] =
            [(amounts(&[("cpu", 4000)]), &[0]), (amounts(&[("cpu", 4000)]), &[1])];
        let asked = [Amounts::new(), Amounts::new()];
        let limits = amounts(&[("cpu", 3000)]);
        let cpu = |found: Vec<Amounts>| (found[0]["cpu"], found[1]["cpu"]);
        assert_eq!(cpu(shared(&nodes, &asked, &limits, 100)), (1500, 1500));
        assert_eq!(cpu(shared(&nodes, &asked, &limits, 200)), (3000, 3000), "never more than the limit");
        let both: [(Amounts, &[usize]); 1] = [(amounts(&[("cpu", 4000)]), &[0, 1])];
        assert_eq!(cpu(shared(&both, &asked, &Amounts::new(), 150)), (3000, 3000));
        assert_eq!(
            cpu(shared(&both, &asked, &Amounts::new(), 900)),
            (4000, 4000),
            "never more than there is"
        );
    }

    #[test]
    fn own_pods_that_wait_for_a_node_take_their_part() {
        let (free, unbound) = (amounts(&[("cpu", 4000)]), amounts(&[("cpu", 1000)]));
        let slices: BTreeSet<usize> = [0].into();
        let one = |usable| {
            let source = Source { free: &free, usable, slices: slices.clone() };
            let bounds = Bounds { limits: &Amounts::new(), unbound: &unbound, overcommit_percent: 300 };
            share(&[source], &[&Amounts::new()], bounds)[0]["cpu"]
        };
        assert_eq!((one(true), one(false)), (3000, 4000));
    }

    proptest! {
        /// Whatever some of the slices are offered, their nodes have it, times the overcommitment; and nobody is offered
        /// more than they ask for, than there is, or than the limit.
        #[test]
        fn slices_never_promise_more_than_there_is(
            nodes in prop::collection::vec((0..20_i128, 0..20_i128, 0..32_usize, any::<bool>()), 0..6),
            asked in prop::collection::vec((prop::option::of(0..30_i128), prop::option::of(0..30_i128)), 1..6),
            limits in (prop::option::of(0..60_i128), prop::option::of(0..60_i128)),
            unbound in (0..10_i128, 0..10_i128),
            percent in prop_oneof![3 => Just(100_u16), 1 => 100..400_u16],
        ) {
            let of = |cpu: Option<i128>, gpu: Option<i128>| {
                let mut amounts = Amounts::new();
                if let Some(cpu) = cpu { amounts.insert("cpu".to_owned(), cpu); }
                if let Some(gpu) = gpu { amounts.insert("gpu".to_owned(), gpu * 1000); }
                amounts
            };
            let free: Vec<Amounts> = nodes.iter().map(|(cpu, gpu, _, _)| of(Some(*cpu), Some(*gpu))).collect();
            let serves = |mask: usize| (0..asked.len()).filter(move |slice| mask & (1 << slice) != 0);
            let sources: Vec<Source<'_>> = nodes.iter().zip(&free)
                .map(|((_, _, mask, usable), free)| Source { free, usable: *usable, slices: serves(*mask).collect() })
                .collect();
            let asked_amounts: Vec<Amounts> = asked.iter().map(|(cpu, gpu)| of(*cpu, *gpu)).collect();
            let (limits, unbound) = (of(limits.0, limits.1), of(Some(unbound.0), Some(unbound.1)));
            let bounds = Bounds { limits: &limits, unbound: &unbound, overcommit_percent: percent };
            let found = share(&sources, &asked_amounts.iter().collect::<Vec<_>>(), bounds);
            for resource in ["cpu", "gpu"] {
                let usable: i128 = sources.iter().filter(|source| source.usable).map(|source| source.free[resource]).sum();
                let got = |slice: usize| found[slice].get(resource).copied().unwrap_or(0);
                let total: i128 = (0..asked.len()).map(got).sum();
                let all: i128 = sources.iter().map(|source| source.free[resource]).sum();
                let promised = (all - unbound[resource].min(usable)).min(limits.get(resource).copied().unwrap_or(i128::MAX));
                prop_assert!(total <= promised * i128::from(percent) / 100, "{resource}: {total} of {promised}");
                for some in 1..(1_usize << asked.len()) {
                    let of_some: i128 = serves(some).map(got).sum();
                    let there: i128 = sources.iter()
                        .filter(|source| source.slices.iter().any(|slice| some & (1 << slice) != 0))
                        .map(|source| source.free[resource]).sum();
                    prop_assert!(of_some * 100 <= there * i128::from(percent), "{resource}: {some:b} get {of_some} of {there}");
                }
                for (slice, asked) in asked_amounts.iter().enumerate() {
                    let there: i128 = sources.iter().filter(|source| source.slices.contains(&slice))
                        .map(|source| source.free[resource]).sum();
                    let most = asked.get(resource).copied().unwrap_or(i128::MAX)
                        .min(limits.get(resource).copied().unwrap_or(i128::MAX)).min(there);
                    prop_assert!((0..=most).contains(&got(slice)));
                    prop_assert!(resource == "cpu" || got(slice) % 1000 == 0, "part of a device");
                }
            }
        }

        /// Where all slices may run everywhere, nothing lies idle while somebody wants more, and of those that ask for
        /// no amount none gets more than another, but for what cannot be divided.
        #[test]
        fn nothing_lies_idle_and_nobody_is_preferred(
            free in 0..1000_i128,
            asked in prop::collection::vec(prop::option::of(0..400_i128), 1..6),
        ) {
            let asked: Vec<Amounts> = asked.iter()
                .map(|cpu| cpu.map(|cpu| amounts(&[("cpu", cpu)])).unwrap_or_default()).collect();
            let node = amounts(&[("cpu", free)]);
            let everybody: Vec<usize> = (0..asked.len()).collect();
            let found = shared(&[(node, &everybody)], &asked, &Amounts::new(), 100);
            let total: i128 = found.iter().map(|found| found["cpu"]).sum();
            let wanted: i128 = asked.iter().map(|asked| asked.get("cpu").copied().unwrap_or(i128::from(u32::MAX))).sum();
            prop_assert_eq!(total, free.min(wanted));
            let equal: Vec<i128> = found.iter().zip(&asked).filter(|(_, asked)| asked.is_empty()).map(|(found, _)| found["cpu"]).collect();
            if let (Some(most), Some(least)) = (equal.iter().max(), equal.iter().min()) {
                prop_assert!(most - least <= 1);
            }
        }
    }
}
