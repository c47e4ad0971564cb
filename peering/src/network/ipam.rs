//! Under which prefixes this cluster sees the pods of a peer. Pure: everything it depends on is handed in, and the same
//! always gives the same.
//!
//! A prefix of a peer is seen unchanged if nothing here uses these addresses. Otherwise the whole *block* it lies in gets
//! an image in a pool, and each prefix of the block its place there. A cluster grows by prefixes of further nodes from
//! its block: those fit in without moving what is there.

use super::announcement::overlap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// Length of blocks: what most clusters take for all their pods.
const BLOCK_V4: u8 = 16;
const BLOCK_V6: u8 = 48;

/// A prefix of a peer, as the peer has it and as it is seen here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mapping {
    pub(crate) real: IpNet,
    pub(crate) seen: IpNet,
}

impl Mapping {
    fn is_identity(&self) -> bool {
        self.real == self.seen
    }

    /// What this mapping keeps others from: where it is an image, its block may grow.
    pub(crate) fn claims(&self) -> IpNet {
        if self.is_identity() { self.seen } else { block(&self.seen) }
    }
}

/// There is no room.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{block} is taken in this cluster, and the pool has no free prefix of this size for it: give network.remapPool of the chart more room"
)]
pub(crate) struct NoRoom {
    block: IpNet,
}

/// Addresses of this cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// What has a meaning here: own pods, services, nodes, and what the user has named.
    pub(crate) reserved: Vec<IpNet>,
    /// Where prefixes are taken from.
    pub(crate) pool: Vec<IpNet>,
}

/// The block that holds `prefix`.
pub(crate) fn block(prefix: &IpNet) -> IpNet {
    let length = match prefix {
        IpNet::V4(_) => BLOCK_V4,
        IpNet::V6(_) => BLOCK_V6,
    };
    if prefix.prefix_len() <= length {
        return prefix.trunc();
    }
    resized(prefix, length)
}

fn resized(prefix: &IpNet, length: u8) -> IpNet {
    IpNet::new(prefix.addr(), length).map_or(*prefix, |net| net.trunc())
}

/// What others claim.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Others<'a> {
    /// Nothing gets in the way of this.
    pub(crate) firm: &'a [IpNet],
    /// What is new keeps clear of this as long as there is room elsewhere.
    pub(crate) soft: &'a [IpNet],
}

/// How the peer's prefixes `real` are seen. `known` is what was found before and stays as far as it can; `seed` makes peers begin
/// at different places of the pool, and one peer always at the same. All find a place, or it is an error.
pub(crate) fn assign(
    real: &[IpNet],
    known: &[Mapping],
    others: Others<'_>,
    space: &Space,
    seed: u64,
) -> Result<Vec<Mapping>, NoRoom> {
    match assign_some(real, known, others, space, seed) {
        (assigned, None) => Ok(assigned),
        (_, Some(error)) => Err(error),
    }
}

/// As [`assign`], but those for which there is room find a place, whatever else there is; the error is of the first that has none.
pub(crate) fn assign_some(
    real: &[IpNet],
    known: &[Mapping],
    others: Others<'_>,
    space: &Space,
    seed: u64,
) -> (Vec<Mapping>, Option<NoRoom>) {
    let mut no_room = None;
    let mut assigned: Vec<Mapping> = Vec::with_capacity(real.len());
    let mut blocks: Vec<IpNet> = real.iter().map(block).collect();
    blocks.sort();
    blocks.dedup();
    // What was known is settled first, so that nothing new gets in its way.
    let (old, new): (Vec<_>, Vec<_>) =
        blocks.into_iter().partition(|wanted| known.iter().any(|mapping| block(&mapping.real) == *wanted));
    let order: Vec<IpNet> = old.into_iter().chain(new).collect();
    for (place, wanted) in order.iter().copied().enumerate() {
        // What is known of the blocks still to come is theirs to keep.
        let later = known.iter().filter(|mapping| order[place + 1..].contains(&block(&mapping.real)));
        let firm: Vec<IpNet> = space
            .reserved
            .iter()
            .chain(others.firm)
            .copied()
            .chain(later.chain(&assigned).map(Mapping::claims))
            .collect();
        let all: Vec<IpNet> = firm.iter().chain(others.soft).copied().collect();
        let members: Vec<IpNet> = real.iter().filter(|prefix| block(prefix) == wanted).copied().collect();
        let placed = |image: IpNet| -> Vec<Mapping> {
            members.iter().map(|real| Mapping { real: *real, seen: moved(real, &wanted, &image) }).collect()
        };
        let kept = known.iter().find(|mapping| block(&mapping.real) == wanted);
        let kept = kept.map(|mapping| placed(moved(&wanted, &mapping.real, &mapping.seen)));
        let kept = kept.filter(|kept| kept.iter().all(|mapping| is_free(&mapping.claims(), &firm)));
        let anew = |taken: &[IpNet]| {
            let unchanged = Some(wanted).filter(|_| members.iter().all(|member| is_free(member, taken)));
            let image = || space.pool.iter().find_map(|pool| gap(pool, wanted.prefix_len(), taken, seed));
            unchanged.or_else(image).map(placed)
        };
        match kept.or_else(|| anew(&all)).or_else(|| anew(&firm)) {
            Some(found) => assigned.extend(found),
            None => no_room = no_room.or(Some(NoRoom { block: wanted })),
        }
    }
    assigned.sort();
    (assigned, no_room)
}

/// How prefixes of hosts outside of a peer are seen: each under an image of its own size, for what has these addresses here is not
/// known. They keep to the last block of a pool as long as that has room; `known` as in [`assign`], nothing is in `taken`.
pub(crate) fn assign_outside(
    real: &[IpNet],
    known: &[Mapping],
    taken: &[IpNet],
    space: &Space,
) -> (Vec<Mapping>, Option<IpNet>) {
    let mut taken: Vec<IpNet> = taken.iter().chain(&space.reserved).copied().collect();
    let stays = |it: &&Mapping| real.contains(&it.real) && is_free(&it.seen, &taken);
    let kept: Vec<&Mapping> = known.iter().filter(stays).collect();
    taken.extend(kept.iter().map(|it| it.seen));
    let (mut assigned, mut no_image) = (Vec::with_capacity(real.len()), None);
    for real in real {
        let known = kept.iter().find(|it| it.real == *real).map(|it| it.seen);
        let anew = || {
            let in_pool = |pool: &IpNet| {
                let last = block(&IpNet::from(pool.broadcast()));
                let last = Some(last).filter(|last| pool.contains(last));
                let within = |pool: &IpNet| gap(pool, real.prefix_len(), &taken, 0);
                last.as_ref().and_then(within).or_else(|| within(pool))
            };
            space.pool.iter().filter(|pool| pool.max_prefix_len() == real.max_prefix_len()).find_map(in_pool)
        };
        match known.or_else(anew) {
            Some(seen) => {
                taken.push(seen);
                assigned.push(Mapping { real: *real, seen });
            }
            None => no_image = no_image.or(Some(*real)),
        }
    }
    (assigned, no_image)
}

fn is_free(prefix: &IpNet, taken: &[IpNet]) -> bool {
    !taken.iter().any(|taken| overlap(taken, prefix))
}

/// `prefix`, which lies within `from` or holds it, moved as `from` is moved to `to`.
pub(super) fn moved(prefix: &IpNet, from: &IpNet, to: &IpNet) -> IpNet {
    if prefix.prefix_len() <= from.prefix_len() {
        return resized(to, prefix.prefix_len());
    }
    let (base, width) = number(&from.network());
    let offset = number(&prefix.network()).0 - base;
    at(number(&to.network()).0 + offset, width, prefix.prefix_len())
}

/// A prefix of `length` in `pool` that is clear of `blocked`: the first from a place that `seed` chooses, around the end.
fn gap(pool: &IpNet, length: u8, blocked: &[IpNet], seed: u64) -> Option<IpNet> {
    let (base, width) = number(&pool.network());
    if length < pool.prefix_len() || length > width {
        return None;
    }
    let blocked: Vec<&IpNet> = blocked.iter().filter(|prefix| number(&prefix.network()).1 == width).collect();
    let size = 1_u128.checked_shl(u32::from(width - length))?;
    let count = 1_u128.checked_shl(u32::from(length - pool.prefix_len()))?;
    let start = u128::from(seed) % count;
    let search = |mut place: u128, end: u128| {
        while place < end {
            let candidate = at(base + place * size, width, length);
            let in_the_way = blocked.iter().filter(|prefix| overlap(prefix, &candidate));
            // Behind the last address of what is in the way; one of the same or a larger size ends at a boundary.
            let Some(last) = in_the_way.map(|prefix| number(&prefix.broadcast()).0).max() else {
                return Some(candidate);
            };
            place = (last.saturating_sub(base) / size) + 1;
        }
        None
    };
    search(start, count).or_else(|| search(0, start))
}

/// An address as a number, and how many bits it has.
fn number(address: &std::net::IpAddr) -> (u128, u8) {
    match address {
        std::net::IpAddr::V4(v4) => (u128::from(u32::from(*v4)), 32),
        std::net::IpAddr::V6(v6) => (u128::from(*v6), 128),
    }
}

/// The prefix of `length` at a number of `width` bits.
fn at(number: u128, width: u8, length: u8) -> IpNet {
    if width == 32 {
        let address = Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX));
        IpNet::V4(Ipv4Net::new_assert(address, length)).trunc()
    } else {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(number), length)).trunc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| net(text)).collect()
    }

    fn none<'a>() -> Others<'a> {
        Others::default()
    }

    fn firm(claims: &[IpNet]) -> Others<'_> {
        Others { firm: claims, soft: &[] }
    }

    fn space(reserved: &[&str]) -> Space {
        Space { reserved: nets(reserved), pool: nets(&["10.192.0.0/10", "fd6c:6971::/32"]) }
    }

    #[test]
    fn what_is_free_stays_as_it_is() {
        let seen = assign(&nets(&["10.1.0.0/16", "fd00:1::/64"]), &[], none(), &space(&["10.244.0.0/16"]), 7)
            .unwrap();
        assert!(seen.iter().all(Mapping::is_identity), "{seen:?}");
    }

    #[test]
    fn equal_prefixes_are_moved_into_the_pool_with_their_size() {
        let seen = assign(
            &nets(&["10.244.0.0/16", "fd00:10:244::/56"]),
            &[],
            none(),
            &space(&["10.244.0.0/16", "fd00:10:244::/56"]),
            3,
        )
        .unwrap();
        assert_eq!(seen[0], Mapping { real: net("10.244.0.0/16"), seen: net("10.195.0.0/16") });
        assert_eq!(seen[1], Mapping { real: net("fd00:10:244::/56"), seen: net("fd6c:6971:3::/56") });
    }

    #[test]
    fn hosts_outside_have_images_of_their_own_size_side_by_side() {
        let hosts = nets(&["192.0.2.8/32", "198.51.100.0/24", "2001:db8::7/128"]);
        let (found, none) = assign_outside(&hosts, &[], &nets(&["10.255.0.0/24"]), &space(&[]));
        assert_eq!(none, None);
        let seen: Vec<IpNet> = found.iter().map(|it| it.seen).collect();
        assert_eq!(seen[..2], nets(&["10.255.1.0/32", "10.255.2.0/24"]));
        assert!(net("fd6c:6971::/32").contains(&seen[2]));
        let more = [hosts.as_slice(), &nets(&["192.0.2.9/32"])].concat();
        let (then, _) = assign_outside(&more, &found, &[], &space(&[]));
        assert_eq!(then[..3], found);
        let (moved, _) = assign_outside(&hosts, &found, &nets(&["10.255.1.0/32"]), &space(&[]));
        assert_ne!(moved[0], found[0]);
        let nowhere = Space { reserved: Vec::new(), pool: nets(&["10.0.0.0/30"]) };
        assert_eq!(assign_outside(&hosts[..2], &[], &[], &nowhere).0.len(), 1, "for which there is room");
    }

    #[test]
    fn a_cluster_that_grows_keeps_what_it_had() {
        let space = space(&["10.244.0.0/16"]);
        let small = assign(&nets(&["10.244.0.0/24", "10.244.3.0/24"]), &[], none(), &space, 9).unwrap();
        let grown = assign(&nets(&["10.244.0.0/22", "10.244.9.0/24"]), &small, none(), &space, 9).unwrap();
        assert_eq!(grown[0].seen, resized(&small[0].seen, 22));
        assert_eq!(grown[1].seen, net("10.201.9.0/24"));
    }

    #[test]
    fn what_was_found_stays_although_its_reason_is_gone_and_moves_when_it_is_in_the_way() {
        let real = nets(&["10.244.0.0/16"]);
        let moved = assign(&real, &[], none(), &space(&["10.244.0.0/16"]), 1).unwrap();
        assert_eq!(assign(&real, &moved, none(), &space(&[]), 1).unwrap(), moved);
        let claimed = [moved[0].seen];
        assert_ne!(assign(&real, &moved, firm(&claimed), &space(&["10.244.0.0/16"]), 1).unwrap(), moved);
    }

    #[test]
    fn what_gives_way_moves_nothing_that_is_there_and_is_kept_clear_of_while_there_is_room() {
        let (pod, soft) = (nets(&["10.1.0.0/24"]), nets(&["10.1.1.0/24"]));
        let others = Others { firm: &[], soft: &soft };
        let space = space(&[]);
        let seen = assign(&pod, &[], others, &space, 0).unwrap();
        assert!(seen[0].is_identity());
        let grown = assign(&nets(&["10.1.0.0/24", "10.1.1.0/24"]), &seen, others, &space, 0).unwrap();
        assert!(grown.iter().all(Mapping::is_identity), "it stays where it was: {grown:?}");
        let new = assign(&soft, &[], others, &space, 0).unwrap();
        assert!(!new[0].is_identity(), "there is room elsewhere");
        let narrow = Space { pool: Vec::new(), ..space };
        assert!(assign(&soft, &[], others, &narrow, 0).unwrap()[0].is_identity(), "there is none");
    }

    #[test]
    fn a_full_pool_is_an_error_that_says_what_to_do() {
        let full =
            Space { reserved: nets(&["10.244.0.0/16", "10.192.0.0/10"]), pool: nets(&["10.192.0.0/10"]) };
        let error = assign(&nets(&["10.244.7.0/24"]), &[], none(), &full, 0).unwrap_err();
        assert!(error.to_string().starts_with("10.244.0.0/16 is taken"), "{error}");
    }

    /// Prefixes of pods: clusters choose from few ranges, so that they meet.
    fn a_prefix() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0_u32..8, 14_u8..=28, any::<u32>()).prop_map(|(second, length, rest)| {
                let address = (10 << 24) | ((second + 190) << 16) | (rest & 0xffff);
                IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(address), length)).trunc()
            }),
            (0_u128..4, 44_u8..=72, any::<u128>()).prop_map(|(site, length, rest)| {
                let address = (0xfd6c_6971_u128 << 96) | (site << 80) | (rest & ((1 << 80) - 1));
                IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(address), length)).trunc()
            }),
        ]
    }

    /// Prefixes that are apart, as announcements are.
    fn apart(prefixes: Vec<IpNet>) -> Vec<IpNet> {
        let mut kept: Vec<IpNet> = Vec::new();
        for prefix in prefixes {
            if !kept.iter().any(|other| overlap(other, &prefix)) {
                kept.push(prefix);
            }
        }
        kept
    }

    fn prefixes(most: usize) -> impl Strategy<Value = Vec<IpNet>> {
        prop::collection::vec(a_prefix(), 0..most).prop_map(apart)
    }

    /// What must hold of every assignment.
    fn check(real: &[IpNet], seen: &[Mapping], others: &[IpNet], space: &Space) {
        let mut sorted = real.to_vec();
        sorted.sort();
        assert_eq!(seen.iter().map(|mapping| mapping.real).collect::<Vec<_>>(), sorted, "every prefix once");
        for (at, mapping) in seen.iter().enumerate() {
            assert_eq!(mapping.real.prefix_len(), mapping.seen.prefix_len());
            assert_eq!(mapping.real.max_prefix_len(), mapping.seen.max_prefix_len());
            assert_eq!(mapping.seen, mapping.seen.trunc());
            let taken = space.reserved.iter().chain(others).find(|taken| overlap(taken, &mapping.seen));
            assert_eq!(taken, None, "{mapping:?}");
            let twice = seen[..at].iter().find(|other| overlap(&other.seen, &mapping.seen));
            assert_eq!(twice, None, "{mapping:?}");
            let from_pool = space.pool.iter().any(|pool| pool.contains(&mapping.seen));
            assert!(mapping.is_identity() || from_pool, "{mapping:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_address_is_seen_twice_and_asking_again_changes_nothing(
            real in prefixes(6), others in prefixes(4), reserved in prefixes(4), seed in any::<u64>()
        ) {
            let space = Space { reserved, pool: nets(&["10.192.0.0/10", "fd6c:6971::/32"]) };
            if let Ok(seen) = assign(&real, &[], firm(&others), &space, seed) {
                check(&real, &seen, &others, &space);
                prop_assert_eq!(&assign(&real, &seen, firm(&others), &space, seed).unwrap(), &seen);
                prop_assert_eq!(&assign(&real, &[], firm(&others), &space, seed).unwrap(), &seen);
                let mut turned = real.clone();
                turned.reverse();
                prop_assert_eq!(&assign(&turned, &[], firm(&others), &space, seed).unwrap(), &seen);
            }
        }

        #[test]
        fn more_prefixes_move_none_of_those_known(
            real in prefixes(6), kept in 0_usize..6, reserved in prefixes(3), seed in any::<u64>()
        ) {
            let space = Space { reserved, pool: nets(&["10.192.0.0/10", "fd6c:6971::/32"]) };
            let few = &real[..kept.min(real.len())];
            let Ok(before) = assign(few, &[], none(), &space, seed) else { return Ok(()) };
            let Ok(after) = assign(&real, &before, none(), &space, seed) else { return Ok(()) };
            check(&real, &after, &[], &space);
            for mapping in &before {
                // A prefix seen unchanged has to give way if what is new in its block is taken here.
                let images: Vec<IpNet> =
                    before.iter().filter(|other| !other.is_identity()).map(Mapping::claims).collect();
                let crowded = mapping.is_identity() && real.iter().any(|new| {
                    block(new) == block(&mapping.real)
                        && space.reserved.iter().chain(&images).any(|taken| overlap(taken, new))
                });
                prop_assert!(crowded || after.contains(mapping), "{mapping:?} in {after:?}");
            }
        }

        #[test]
        fn whatever_was_recorded_the_result_is_sound(
            real in prefixes(5), recorded in prop::collection::vec((a_prefix(), a_prefix()), 0..5),
            others in prefixes(3), reserved in prefixes(3), seed in any::<u64>()
        ) {
            let space = Space { reserved, pool: nets(&["10.192.0.0/10", "fd6c:6971::/32"]) };
            let known: Vec<Mapping> = recorded
                .iter()
                .filter(|(real, seen)| real.max_prefix_len() == seen.max_prefix_len())
                .map(|(real, seen)| Mapping { real: *real, seen: resized(seen, real.prefix_len()) })
                .collect();
            {
                let (seen, no_room) = assign_some(&real, &known, firm(&others), &space, seed);
                prop_assert_eq!(no_room.is_none(), seen.len() == real.len());
                prop_assert_eq!(&assign_some(&real, &seen, firm(&others), &space, seed).0, &seen);
                let apart = seen.iter().enumerate().all(|(at, mapping)| {
                    seen[..at].iter().all(|other| !overlap(&other.seen, &mapping.seen))
                });
                prop_assert!(apart, "{seen:?}");
                for mapping in &seen {
                    let taken = space.reserved.iter().chain(&others).any(|taken| overlap(taken, &mapping.seen));
                    prop_assert!(!taken && mapping.seen.prefix_len() == mapping.real.prefix_len(), "{mapping:?}");
                }
            }
        }
    }
}
