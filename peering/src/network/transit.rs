//! Pods of this cluster that run in several peers reach each other through it: what each peer is told of the others. Pure.
//!
//! A peer is told how this cluster sees the pods of another one, as prefixes of its own, so it finds a place for them as for
//! these. It says which it has taken. Endpoints are listed once both have taken what they are told of each other: before
//! that, packets would be dropped on one side.

use super::announcement::{Announcement, MAX_TRANSIT, Origin, mark, overlap};
use super::direct::{admits, is_open};
use super::ipam::moved;
use super::own::{Own, is_v4};
use ipnet::IpNet;
use liquid_crds::{ClusterId, NetworkSpec, NetworkStatus, Peer, PodCidr, TransitCidr};
use std::collections::{BTreeMap, BTreeSet};

/// Which peers have a namespace of this cluster in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shared(BTreeSet<(String, String)>);

impl Shared {
    /// From the peers that have a namespace, for each.
    pub(super) fn new<'a>(namespaces: impl Iterator<Item = &'a BTreeSet<String>>) -> Self {
        let mut pairs = BTreeSet::new();
        for peers in namespaces {
            let others = |one: &'a String| peers.iter().filter(move |other| *other != one);
            pairs.extend(
                peers.iter().flat_map(|one| others(one).map(move |other| (one.clone(), other.clone()))),
            );
        }
        Self(pairs)
    }

    /// The peers that have one in common with this.
    pub(super) fn with(&self, peer: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(one, _)| one == peer).map(|(_, other)| other.as_str())
    }

    /// All peers that have one in common with another.
    pub(super) fn peers(&self) -> BTreeSet<&str> {
        self.0.iter().map(|(one, _)| one.as_str()).collect()
    }
}

/// Whether what the peer tells of its pods in further clusters is taken: it lets its pods run here.
pub(super) fn takes(peer: &Peer) -> bool {
    peer.spec.lend.is_some() && peer.spec.network.as_ref().is_none_or(NetworkSpec::takes_transit)
}

/// Whether this cluster passes packets on to the peer and from it.
fn takes_part(peer: &Peer) -> bool {
    let allowed = peer.spec.network.as_ref().is_none_or(NetworkSpec::passes_on);
    peer.spec.consume.is_some() && peer.metadata.deletion_timestamp.is_none() && allowed
}

/// Where this cluster sees the peer's own pods, as its status has it.
pub(super) fn own_pods(peer: &Peer) -> impl Iterator<Item = IpNet> {
    own_prefixes(peer).map(|(_, seen)| seen)
}

/// The same with the prefixes that the peer itself has.
fn own_prefixes(peer: &Peer) -> impl Iterator<Item = (IpNet, IpNet)> {
    let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
    network.into_iter().flat_map(NetworkStatus::own_pods).filter_map(PodCidr::prefixes)
}

/// What a peer is told of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Sorted.
    pub(super) cidrs: Vec<TransitCidr>,
    /// Others of whose prefixes it is not told, or not of all: there are too many.
    pub(super) left_out: Vec<String>,
    /// Some of them would only be ready because they were, and the peers have not taken what is new.
    pub(super) waits: bool,
}

/// What the peer of this name is told of others. `shared` is unknown at first: then that stays as it was. `taken` says what a
/// peer has taken of what it was told, if it has said.
///
/// Prefixes change when a cluster gets a node. While there is patience, what was ready stays so as long as a part of it still
/// holds: endpoints do not vanish until everybody has taken what is new.
pub(super) fn told<'t>(
    name: &str,
    peers: &BTreeMap<String, Peer>,
    shared: Option<&Shared>,
    taken: impl Fn(&Peer) -> Option<&'t [IpNet]>,
    patient: bool,
) -> Told {
    let mut told = Told::default();
    let Some(peer) = peers.get(name) else { return told };
    let written = peer.status.as_ref().and_then(|status| status.network.as_ref());
    let written = written.map(|network| network.transit.as_slice()).unwrap_or_default();
    let Some(shared) = shared else {
        told.cidrs = written.to_vec();
        return told;
    };
    let others = shared.with(name).filter(|_| takes_part(peer)).filter_map(|name| peers.get_key_value(name));
    let (chosen, left_out) = choose(others.filter(|(_, other)| takes_part(other)), written);
    told.left_out = left_out;
    for (other_name, other, prefix) in chosen {
        let was_ready = written.iter().any(|it| it.ready && is_of(it, other_name, &prefix));
        let back: Vec<IpNet> = own_pods(peer).filter(|own| is_v4(own) == is_v4(&prefix)).collect();
        let has = |who: &Peer, of: &[IpNet]| {
            taken(who).map_or(was_ready, |taken| of.iter().all(|prefix| taken.contains(prefix)))
        };
        let has_some = |who: &Peer, of: &[IpNet]| {
            let meets = |prefix: &IpNet| taken(who).unwrap_or_default().iter().any(|it| overlap(it, prefix));
            taken(who).is_none() || of.iter().any(meets)
        };
        // Without a way back nothing is answered.
        let holds = !back.is_empty() && has(peer, &[prefix]) && has(other, &back);
        let waits = !holds && was_ready && has_some(peer, &[prefix]) && has_some(other, &back);
        told.waits |= waits;
        let ready = holds || (waits && patient);
        told.cidrs.push(TransitCidr { peer: other_name.to_owned(), ready, seen: prefix.to_string() });
    }
    told
}

/// As many prefixes of these others as a peer can be told of, sorted; and of whom not all are among them. What it was told of
/// before keeps its room, whatever comes to that.
fn choose<'p>(
    others: impl Iterator<Item = (&'p String, &'p Peer)>,
    written: &[TransitCidr],
) -> (Vec<(&'p str, &'p Peer, IpNet)>, Vec<String>) {
    let mut chosen = Vec::new();
    let (mut new, mut left_out) = (Vec::new(), Vec::new());
    for (name, other) in others {
        let (known, mut rest): (Vec<_>, Vec<_>) =
            own_pods(other).partition(|prefix| written.iter().any(|it| is_of(it, name, prefix)));
        if chosen.len() + known.len() > MAX_TRANSIT {
            rest.extend(known);
        } else {
            chosen.extend(known.into_iter().map(|prefix| (name.as_str(), other, prefix)));
        }
        new.push((name.as_str(), other, rest));
    }
    for (name, other, rest) in new {
        if chosen.len() + rest.len() > MAX_TRANSIT {
            left_out.push(name.to_owned());
        } else {
            chosen.extend(rest.into_iter().map(|prefix| (name, other, prefix)));
        }
    }
    chosen.sort_by_key(|(name, _, prefix)| (*name, *prefix));
    (chosen, left_out)
}

/// Whether an entry is about a prefix of that peer, or what was made of it.
fn is_of(entry: &TransitCidr, peer: &str, prefix: &IpNet) -> bool {
    entry.peer == peer && entry.seen.parse().is_ok_and(|seen| overlap(&seen, prefix))
}

/// The hosts outside of this cluster that are offered to its pods in the peer. A peer that is not let in everywhere here gets no
/// further either: there are no rules for that.
pub(super) fn external(own: &Own, peer: &Peer) -> Vec<IpNet> {
    let offered = peer.spec.consume.is_some() && is_open(peer);
    if offered { own.announcement.external.clone() } else { Vec::new() }
}

/// What there is to say at home of hosts outside that are offered, or not, to pods in the peer.
pub(super) fn about_external(own: &Own, peer: &Peer) -> Option<String> {
    let list = |of: &[IpNet]| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let all = &own.announcement.external;
    let restricted = peer.spec.network.as_ref().is_some_and(|network| !network.is_open());
    let mut said = Vec::new();
    if peer.spec.consume.is_none() {
        return None;
    } else if !all.is_empty() && restricted {
        said.push(format!(
            "hosts outside ({}) are not offered to it, because its access is restricted",
            list(all)
        ));
    } else if !all.is_empty() {
        said.push(format!(
            "hosts outside of this cluster are offered to pods of this cluster there: {}",
            list(all)
        ));
    }
    if !own.withheld.is_empty() {
        said.push(format!(
            "{} cannot be offered: addresses of pods, Services (ClusterIP) or nodes of this cluster are among these",
            list(&own.withheld)
        ));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

/// What this cluster tells the peer with this identity.
pub(super) fn announcement(own: &Own, peers: &BTreeMap<String, Peer>, to: &ClusterId) -> Announcement {
    let peer = peers.values().find(|peer| peer.spec.cluster_id == to.as_str());
    let network = peer.and_then(|peer| peer.status.as_ref()?.network.as_ref());
    let told = network.into_iter().flat_map(|network| &network.transit);
    let told = told.filter_map(|cidr| Some((cidr.peer.as_str(), cidr.seen.parse::<IpNet>().ok()?)));
    let origin = |(other, seen): (&str, IpNet)| {
        let other = peers.get(other)?;
        // What was told may be from before the other peer's prefixes grew, or are fewer.
        let (real, its) = own_prefixes(other).find(|(_, its)| overlap(its, &seen))?;
        let real = moved(&seen, &its, &real);
        Some((seen, Origin { cluster: mark(&other.spec.cluster_id, to.as_str()), real }))
    };
    let origins = told.clone().filter_map(origin).collect();
    let mut transit: Vec<IpNet> = told.map(|(_, seen)| seen).collect();
    transit.sort();
    let taken = network.into_iter().flat_map(|network| &network.pod_cidrs).filter(|cidr| cidr.transit);
    let taken = taken.filter_map(PodCidr::prefixes).map(|(real, _)| real).collect();
    let known: Vec<IpNet> = peer.into_iter().flat_map(own_prefixes).map(|(real, _)| real).collect();
    let admits = peer.and_then(|peer| admits(peer, &known));
    // While images make room for what is new, some may still be there.
    let apart = |cidr: &IpNet| !transit.iter().any(|transit| overlap(transit, cidr));
    let external = peer.map(|peer| external(own, peer)).unwrap_or_default();
    let external = external.into_iter().filter(apart).collect();
    Announcement { transit, taken, origins, admits, external, ..own.announcement.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::{AccessSpec, ConsumeSpec, PeerSpec, PeerStatus, TransitPolicy, Verdict};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn id(number: usize) -> String {
        format!("{number}0000000-0000-4000-8000-000000000000")
    }

    fn peer(number: usize, pods: &[(&str, bool)]) -> Peer {
        let consume = Some(ConsumeSpec::default());
        let mut peer =
            Peer::new("p", PeerSpec { cluster_id: id(number), consume, lend: None, network: None });
        let pod_cidrs = pods.iter().map(|(seen, transit)| PodCidr {
            // Of the same family and length.
            real: if seen.ends_with("/16") { "10.244.0.0/16" } else { *seen }.to_owned(),
            transit: *transit,
            ..PodCidr::own(seen, seen)
        });
        let network = NetworkStatus { pod_cidrs: pod_cidrs.collect(), ..NetworkStatus::default() };
        peer.status = Some(PeerStatus { network: Some(network), ..PeerStatus::default() });
        peer
    }

    fn peers() -> BTreeMap<String, Peer> {
        let of = |number, name: &str, pods: &[(&str, bool)]| (name.to_owned(), peer(number, pods));
        BTreeMap::from([
            of(1, "b", &[("10.201.0.0/16", false)]),
            of(2, "c", &[("10.202.0.0/16", false), ("10.209.0.0/16", true)]),
            of(3, "d", &[("10.203.0.0/16", false)]),
        ])
    }

    fn shared(namespaces: &[&[&str]]) -> Shared {
        let namespaces: Vec<BTreeSet<String>> =
            namespaces.iter().map(|peers| peers.iter().map(|peer| (*peer).to_owned()).collect()).collect();
        Shared::new(namespaces.iter())
    }

    fn shown(told: &[TransitCidr]) -> Vec<(&str, &str, bool)> {
        told.iter().map(|cidr| (cidr.peer.as_str(), cidr.seen.as_str(), cidr.ready)).collect()
    }

    #[test]
    fn hosts_outside_are_offered_where_pods_of_this_cluster_run_and_access_is_not_restricted() {
        let external = vec![net("192.0.2.8/32"), net("10.202.7.0/24")];
        let announcement = Announcement { external, ..Announcement::default() };
        let own = Own { announcement, withheld: vec![net("192.0.2.0/24")], ..Own::default() };
        let mut peers = peers();
        let told = |peers: &BTreeMap<String, Peer>| {
            let peer = &peers["b"];
            let told = super::announcement(&own, peers, &id(1).parse().unwrap()).external;
            (super::external(&own, peer).len(), told, about_external(&own, peer))
        };
        let (offered, all, said) = told(&peers);
        assert_eq!((offered, all), (2, own.announcement.external.clone()));
        let said = said.unwrap();
        assert!(said.contains("are offered to pods of this cluster there: 192.0.2.8/32"), "{said}");
        assert!(said.contains("192.0.2.0/24 cannot be offered"), "{said}");
        let network = peers.get_mut("b").unwrap().status.as_mut().unwrap().network.as_mut().unwrap();
        network.transit =
            vec![TransitCidr { peer: "c".to_owned(), seen: "10.202.0.0/16".to_owned(), ready: true }];
        assert_eq!(told(&peers).1, [net("192.0.2.8/32")], "what lies in the way is told of later");
        let access = AccessSpec { default: Verdict::Deny, ..AccessSpec::default() };
        let network = NetworkSpec { access: Some(access), ..NetworkSpec::default() };
        peers.get_mut("b").unwrap().spec.network = Some(network);
        let (offered, all, said) = told(&peers);
        assert!(offered == 0 && all.is_empty() && said.unwrap().contains("are not offered to it"));
        peers.get_mut("b").unwrap().spec.consume = None;
        assert_eq!(told(&peers), (0, vec![], None));
    }

    #[test]
    fn peers_are_told_of_those_with_which_they_have_a_namespace_in_common_and_only_of_their_own_pods() {
        let (peers, shared) = (peers(), shared(&[&["b", "c"], &["d"]]));
        let told = |name| told(name, &peers, Some(&shared), |_| None, true).cidrs;
        assert_eq!(shown(&told("b")), [("c", "10.202.0.0/16", false)], "not of what is reached through c");
        assert_eq!(shown(&told("c")), [("b", "10.201.0.0/16", false)]);
        assert_eq!(shown(&told("d")), []);
        assert_eq!(shared.peers(), ["b", "c"].into());
    }

    #[test]
    fn endpoints_are_listed_when_both_know_of_each_other() {
        let (mut peers, shared) = (peers(), shared(&[&["b", "c"]]));
        let (b, c) = ([net("10.202.0.0/16")], [net("10.201.0.0/16")]);
        let ready = |peers: &BTreeMap<String, Peer>, by_b: Option<&[IpNet]>, by_c: Option<&[IpNet]>| {
            let taken = |peer: &Peer| if peer.spec.cluster_id == id(1) { by_b } else { by_c };
            told("b", peers, Some(&shared), taken, true).cidrs[0].ready
        };
        assert!(ready(&peers, Some(&b), Some(&c)));
        assert!(!ready(&peers, Some(&b), Some(&[])), "c drops what comes from there");
        assert!(!ready(&peers, Some(&[]), Some(&c)));
        assert!(!ready(&peers, None, Some(&c)));
        let entry = TransitCidr { seen: b[0].to_string(), peer: "c".to_owned(), ready: true };
        let status = peers.get_mut("b").unwrap().status.as_mut().unwrap();
        status.network.as_mut().unwrap().transit = vec![entry.clone()];
        assert!(ready(&peers, None, Some(&c)), "what was known before this process began holds");
        assert!(ready(&peers, None, None));
        assert_eq!(
            told("b", &peers, None, |_| None, true).cidrs,
            [entry],
            "nothing is known of namespaces yet"
        );
    }

    #[test]
    fn a_family_that_one_of_them_lacks_holds_up_nobody() {
        let shared = shared(&[&["b", "c"]]);
        let (v4_of_b, v4_of_c, v6_of_c) = ("10.201.0.0/16", "10.202.0.0/16", "fd00:202::/64");
        let peers = BTreeMap::from([
            ("b".to_owned(), peer(1, &[(v4_of_b, false)])),
            ("c".to_owned(), peer(2, &[(v4_of_c, false), (v6_of_c, false)])),
        ]);
        let (by_b, by_c) = ([net(v4_of_c)], [net(v4_of_b)]);
        let taken = |peer: &Peer| Some(if peer.spec.cluster_id == id(1) { &by_b[..] } else { &by_c[..] });
        let told = |name| told(name, &peers, Some(&shared), taken, true).cidrs;
        assert_eq!(shown(&told("b")), [("c", v4_of_c, true), ("c", v6_of_c, false)]);
        assert_eq!(shown(&told("c")), [("b", v4_of_b, true)]);
    }

    #[test]
    fn a_node_more_takes_no_endpoints_away() {
        let shared = shared(&[&["b", "c"]]);
        let told_before = |name: &str, seen: &str| TransitCidr {
            peer: name.to_owned(),
            ready: true,
            seen: seen.to_owned(),
        };
        let with = |mut peer: Peer, told: TransitCidr| {
            peer.status.as_mut().unwrap().network.as_mut().unwrap().transit = vec![told];
            peer
        };
        let before = ["10.201.0.0/24", "10.202.0.0/24"];
        let b = peer(1, &[(before[0], false)]);
        for (now, still) in
            [(&["10.202.0.0/23"][..], &[true][..]), (&[before[1], "10.202.7.0/24"], &[true, false])]
        {
            let pods: Vec<_> = now.iter().map(|seen| (*seen, false)).collect();
            let peers = BTreeMap::from([
                ("b".to_owned(), with(b.clone(), told_before("c", before[1]))),
                ("c".to_owned(), with(peer(2, &pods), told_before("b", before[0]))),
            ]);
            // Both have taken what there was before.
            let taken = [[net(before[1])], [net(before[0])]];
            let taken = |peer: &Peer| Some(&taken[usize::from(peer.spec.cluster_id == id(2))][..]);
            let told = |name, patient| told(name, &peers, Some(&shared), taken, patient);
            let ready = |told: &Told| told.cidrs.iter().map(|cidr| cidr.ready).collect::<Vec<_>>();
            let (b, c) = (told("b", true), told("c", true));
            assert_eq!((ready(&b).as_slice(), ready(&c).as_slice()), (still, &[true][..]));
            // The one of B is about a prefix that C's own pods have just got: these are not known there.
            assert!(c.waits);
            assert!(!ready(&told("c", false))[0], "it has not taken them in all this time");
        }
    }

    #[test]
    fn without_a_way_back_nothing_is_ready() {
        let shared = shared(&[&["b", "c"]]);
        let seen = "10.202.0.0/16";
        let mut peers =
            BTreeMap::from([("b".to_owned(), peer(1, &[])), ("c".to_owned(), peer(2, &[(seen, false)]))]);
        let by_b = [net(seen)];
        for was_ready in [false, true] {
            let entry = TransitCidr { seen: seen.to_owned(), peer: "c".to_owned(), ready: was_ready };
            let status = peers.get_mut("b").unwrap().status.as_mut().unwrap();
            status.network.as_mut().unwrap().transit = vec![entry];
            let taken = |peer: &Peer| Some(if peer.spec.cluster_id == id(1) { &by_b[..] } else { &[] });
            let told = told("b", &peers, Some(&shared), taken, true);
            assert_eq!((told.cidrs[0].ready, told.waits), (false, false));
        }
    }

    #[test]
    fn who_finds_no_room_is_named_and_drives_out_nobody() {
        let shared = shared(&[&["a", "b", "c"]]);
        let many: Vec<String> = (0..MAX_TRANSIT).map(|number| format!("10.201.{number}.0/24")).collect();
        let many: Vec<(&str, bool)> = many.iter().map(|prefix| (prefix.as_str(), false)).collect();
        let mut peers = peers();
        peers.insert("a".to_owned(), peer(4, &many));
        let first = told("c", &peers, Some(&shared), |_| None, true);
        assert!(first.cidrs.iter().all(|cidr| cidr.peer == "a"));
        assert_eq!((first.cidrs.len(), first.left_out), (MAX_TRANSIT, vec!["b".to_owned()]));
        let entry = TransitCidr { seen: "10.201.0.0/16".to_owned(), peer: "b".to_owned(), ready: true };
        peers.get_mut("c").unwrap().status.as_mut().unwrap().network.as_mut().unwrap().transit = vec![entry];
        let then = told("c", &peers, Some(&shared), |_| None, true);
        assert_eq!(shown(&then.cidrs), [("b", "10.201.0.0/16", true)]);
        assert_eq!(then.left_out, ["a"]);
    }

    #[test]
    fn one_that_takes_nothing_any_more_is_not_waited_for() {
        let (mut peers, shared) = (peers(), shared(&[&["b", "c"]]));
        let entry = TransitCidr { seen: "10.202.0.0/16".to_owned(), peer: "c".to_owned(), ready: true };
        peers.get_mut("b").unwrap().status.as_mut().unwrap().network.as_mut().unwrap().transit = vec![entry];
        let taken = |peer: &Peer| Some(&[][..]).filter(|_| peer.spec.cluster_id == id(1));
        assert!(
            !told("b", &peers, Some(&shared), taken, true).cidrs[0].ready,
            "although c has said nothing yet"
        );
    }

    #[test]
    fn who_does_not_want_it_or_restricts_access_takes_no_part() {
        let shared = shared(&[&["b", "c"]]);
        let with = |access: bool, transit: Option<TransitPolicy>| {
            let mut peers = peers();
            let access = access.then(|| AccessSpec { default: Verdict::Deny, ..AccessSpec::default() });
            peers.get_mut("c").unwrap().spec.network = Some(NetworkSpec { access, transit });
            let told = |name| told(name, &peers, Some(&shared), |_| None, true).cidrs.len();
            assert_eq!(told("b"), told("c"));
            told("b")
        };
        assert_eq!(with(false, None), 1);
        assert_eq!(with(true, None), 0);
        assert_eq!(with(true, Some(TransitPolicy::OffloadedPods)), 1);
        assert_eq!(with(false, Some(TransitPolicy::None)), 0);
        let mut peers = peers();
        peers.get_mut("c").unwrap().spec.consume = None;
        assert!(
            told("b", &peers, Some(&shared), |_| None, true).cidrs.is_empty(),
            "nothing of ours runs there"
        );
    }

    #[test]
    fn each_peer_is_told_what_concerns_it() {
        let mut peers = peers();
        let status = peers.get_mut("b").unwrap().status.as_mut().unwrap();
        let entry = TransitCidr { seen: "10.202.0.0/16".to_owned(), peer: "c".to_owned(), ready: false };
        status.network.as_mut().unwrap().transit = vec![entry];
        let to = |number| announcement(&Own::default(), &peers, &id(number).parse().unwrap());
        assert_eq!((to(1).transit, to(1).taken), (vec![net("10.202.0.0/16")], vec![]));
        assert_eq!((to(2).transit, to(2).taken), (vec![], vec![net("10.244.0.0/16")]));
        assert_eq!(to(9), Announcement::default());
        // Whose they are is learned by those that know that cluster.
        let origin = Origin { cluster: mark(&id(2), &id(1)), real: net("10.244.0.0/16") };
        assert_eq!(to(1).origins, BTreeMap::from([(net("10.202.0.0/16"), origin)]));
        assert_ne!(origin.cluster, mark(&id(2), &id(3)), "two that are told cannot compare");
        assert!(to(1).admits.is_some());
        let access = Some(AccessSpec { default: Verdict::Deny, ..AccessSpec::default() });
        peers.get_mut("b").unwrap().spec.network = Some(NetworkSpec { access, transit: None });
        assert_eq!(announcement(&Own::default(), &peers, &id(1).parse().unwrap()).admits, None);
    }
}
