//! What the status of each `Peer` should show, from what is known of this cluster and what was heard of the peers. Pure.

use super::announcement::{Announcement, MAX_TRANSIT};
use super::condition::{self, Trouble};
use super::direct::{Neighbours, reach};
use super::guest::guest;
use super::invitation::Invited;
use super::ipam::{Mapping, NoRoom, Others, Space, assign, assign_outside, assign_some};
use super::own::{Own, addresses, common_families};
use super::transit::{Shared, Told, about_external, external, takes, told};
use super::{CONDITION, Heard, is_peered, seed};
use ipnet::IpNet;
use liquid_crds::{
    ClusterId, ConditionUpdate, DirectCidr, NetworkStatus, Peer, PodCidr, Transport,
    condition as find_condition,
};
use std::collections::{BTreeMap, BTreeSet};

/// What came of a peer since this process began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Word<'a> {
    /// Over a link.
    pub(super) heard: Option<&'a Heard>,
    /// By a join token.
    pub(super) invited: Option<&'a Invited>,
}

/// What one `Peer` should show.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    pub(super) network: Option<NetworkStatus>,
    pub(super) condition: Option<ConditionUpdate<'static>>,
    /// Others have not taken what is new about it.
    pub(super) waits: bool,
}

/// What it depends on, apart from the peers and this cluster's gateways.
pub(super) struct Given<'a> {
    /// This cluster.
    pub(super) me: &'a ClusterId,
    /// Where peers get prefixes from.
    pub(super) pool: &'a [IpNet],
    /// Unknown at first.
    pub(super) shared: Option<&'a Shared>,
    /// Peers for which others had the time to take what is new.
    pub(super) impatient: BTreeSet<String>,
    /// Peers that had the time to take what is new here.
    pub(super) behind: BTreeSet<String>,
    /// Peers that are reached for long enough.
    pub(super) steady: BTreeSet<String>,
}

/// What each `Peer` should show. Peers that were seen under other prefixes before are settled first.
pub(super) fn wanted<'a, 'h>(
    peers: &'a BTreeMap<String, Peer>,
    own: &Own,
    word: impl Fn(&Peer) -> Word<'h>,
    given: &Given<'_>,
) -> Vec<(&'a Peer, Wanted)> {
    let endpoints = peers.values().flat_map(|peer| {
        let link = peer.spec.consume.as_ref().map(|consume| peer.endpoints(consume)).unwrap_or_default();
        let gateways = peer.status.as_ref().and_then(|status| status.network.as_ref());
        let gateways = gateways.into_iter().flat_map(|network| &network.gateways);
        link.into_iter().chain(gateways.flat_map(|gateway| gateway.endpoints.clone()))
    });
    let mut outside: Vec<String> = endpoints.collect();
    for peer in peers.values() {
        if let Some(Heard::Told(told)) = word(peer).heard {
            outside.extend(told.gateways.iter().flat_map(|gateway| gateway.endpoints.iter().cloned()));
        }
    }
    let reserved = own.reserved.iter().copied().chain(addresses(outside.iter())).collect();
    let space = Space { reserved, pool: given.pool.to_vec() };

    let taken = |peer: &Peer| -> Option<&'h [IpNet]> {
        match word(peer).heard {
            Some(Heard::Told(told)) => Some(&told.taken),
            Some(Heard::Absent(_)) => Some(&[]),
            Some(Heard::Invalid(_)) | None => None,
        }
    };
    let (peered, others): (Vec<_>, Vec<_>) = peers.iter().partition(|(_, peer)| is_peered(peer));
    let known = peered.into_iter().map(|(name, peer)| (name.as_str(), peer, recorded(peer)));
    let (settled, new): (Vec<_>, Vec<_>) = known.partition(|(_, _, known)| !known.own.is_empty());
    let peered: Vec<(&str, &Peer, Mapped)> = settled.into_iter().chain(new).collect();
    let recorded_claims = |of: fn(&Mapped) -> &[Mapping]| -> Claims<'_> {
        Claims(peered.iter().map(|(name, _, known)| (*name, claimed(of(known)))).collect())
    };
    let mut own_claims = recorded_claims(|mapped| &mapped.own);
    let mut transit_claims = recorded_claims(|mapped| &mapped.transit);
    let mut external_claims =
        Claims(peered.iter().map(|(name, _, known)| (*name, seen(&known.external))).collect());

    // First the pods of all peers themselves: those in further clusters are never in their way.
    let mut views = Vec::with_capacity(peered.len());
    for (name, peer, known) in &peered {
        let said = heard_of(peer, known, own, word(peer));
        let soft: Vec<IpNet> = transit_claims.others(name).into_iter().chain(external_claims.all()).collect();
        let others = Others { firm: &own_claims.others(name), soft: &soft };
        let found = assign(&said.theirs.pod_cidrs, &known.own, others, &space, seed(peer));
        own_claims.0.insert(name, claimed(found.as_deref().unwrap_or_default()));
        views.push((said, found));
    }
    let mut neighbours = Neighbours::default();
    for ((name, peer, _), (_, found)) in peered.iter().zip(&views) {
        let (steady, patient) = (given.steady.contains(*name), !given.behind.contains(*name));
        let reach = reach(peer, own, word(peer).heard, steady, patient);
        neighbours.add(given.me, name, peer, found.as_deref().unwrap_or_default(), reach);
    }
    let mut all = Vec::with_capacity(peers.len());
    for ((name, peer, known), (said, found)) in peered.iter().zip(&views) {
        let further = if takes(peer) && found.as_ref().is_ok_and(|own_pods| !own_pods.is_empty()) {
            said.theirs.transit.as_slice()
        } else {
            &[]
        };
        let others: Vec<IpNet> = own_claims.all().chain(transit_claims.others(name)).collect();
        let others = Others { firm: &others, soft: &external_claims.all().collect::<Vec<_>>() };
        let (transit, without_room) = assign_some(further, &known.transit, others, &space, seed(peer));
        transit_claims.0.insert(name, claimed(&transit));
        // Hosts outside may have the addresses of others here, of which nothing is known: they always get an image.
        let outside = if takes(peer) && found.as_ref().is_ok_and(|own| !own.is_empty()) {
            said.theirs.external.as_slice()
        } else {
            &[]
        };
        let others: Vec<IpNet> =
            own_claims.all().chain(transit_claims.all()).chain(external_claims.others(name)).collect();
        let (external, no_image) = assign_outside(outside, &known.external, &others, &space);
        external_claims.0.insert(name, seen(&external));
        let (own_pods, no_room) = match found {
            Ok(found) => (found.clone(), None),
            Err(error) => (Vec::new(), Some(error.clone())),
        };
        // What a consumer says of its pods in another peer is not proved, and an ingress controller would show them to everybody.
        let publishes = peer.spec.lend.as_ref().is_some_and(|lend| lend.ingress.is_some());
        let besides = |Mapping { real, .. }: &Mapping| {
            // What it told before this process began holds until it says something else.
            let known = known.direct.get(real);
            let origin = said.theirs.origins.get(real);
            let has_spoken = matches!(word(peer).heard, Some(Heard::Told(_) | Heard::Absent(_)));
            let is_told = origin.is_some() || !has_spoken;
            let mut direct = neighbours.find(origin, known).filter(|_| is_told)?;
            direct.used &= !publishes;
            Some((*real, direct))
        };
        let direct = transit.iter().filter_map(besides).collect();
        let view = View {
            mapped: Mapped { own: own_pods, transit, direct, external },
            no_room,
            without_room,
            no_image,
        };
        let told = told(name, peers, given.shared, taken, !given.impatient.contains(*name));
        all.push((*peer, status_of(peer, own, word(peer), said, &view, told)));
    }
    all.extend(others.into_iter().map(|(_, peer)| (peer, Wanted::default())));
    all
}

/// What peers keep others from, by their names.
struct Claims<'a>(BTreeMap<&'a str, Vec<IpNet>>);

impl Claims<'_> {
    fn all(&self) -> impl Iterator<Item = IpNet> {
        self.0.values().flatten().copied()
    }

    /// Those of all but this.
    fn others(&self, name: &str) -> Vec<IpNet> {
        self.0.iter().filter(|(other, _)| **other != name).flat_map(|(_, claims)| claims).copied().collect()
    }
}

/// What holds of a peer's network.
struct Said<'a> {
    theirs: Announcement,
    trouble: Option<Trouble<'a>>,
}

fn heard_of<'a>(peer: &Peer, known: &Mapped, own: &Own, word: Word<'a>) -> Said<'a> {
    let gateways = || {
        let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
        network.map(|network| network.gateways.clone()).unwrap_or_default()
    };
    let persisted = || Announcement {
        pod_cidrs: known.own.iter().map(|mapping| mapping.real).collect(),
        gateways: gateways(),
        transit: known.transit.iter().map(|mapping| mapping.real).collect(),
        external: known.external.iter().map(|mapping| mapping.real).collect(),
        ..Announcement::default()
    };
    // What a peer told before this process began holds until it says something else.
    let (mut theirs, mut trouble) = match word.heard {
        Some(Heard::Told(told)) => (told.clone(), None),
        // The link depends on what is known of the gateways: they stay, so that it finds the peer when it has them again.
        Some(Heard::Absent(why)) if is_in_band(peer) => {
            let kept = Announcement { gateways: gateways(), ..Announcement::default() };
            (kept, Some(Trouble::Absent(why)))
        }
        Some(Heard::Absent(why)) => (Announcement::default(), Some(Trouble::Absent(why))),
        Some(Heard::Invalid(why)) => (persisted(), Some(Trouble::Invalid(why))),
        None if known.own.is_empty() => (persisted(), Some(Trouble::Untold)),
        None => (persisted(), None),
    };
    // A token is newer than what was heard before it was made, and there is no other way while it is not used.
    if let Some(Invited::With(invitation)) = word.invited {
        theirs.gateways.clone_from(&invitation.gateways);
    }
    // What no pod here has an address of leads nowhere.
    let common = common_families(&own.announcement.pod_cidrs, &theirs.pod_cidrs);
    if common.is_empty() && !theirs.pod_cidrs.is_empty() {
        trouble = trouble.or(Some(Trouble::NoCommonFamily));
    }
    theirs.pod_cidrs = common;
    theirs.transit = common_families(&own.announcement.pod_cidrs, &theirs.transit);
    theirs.external = common_families(&own.announcement.pod_cidrs, &theirs.external);
    Said { theirs, trouble }
}

/// Where a peer is seen, and what is not.
struct View {
    mapped: Mapped,
    /// There is none for its own pods.
    no_room: Option<NoRoom>,
    /// There is none for some of those in further clusters.
    without_room: Option<NoRoom>,
    /// There is none for hosts outside of this prefix.
    no_image: Option<IpNet>,
}

/// What the `Peer` should show.
fn status_of(peer: &Peer, own: &Own, word: Word<'_>, said: &Said<'_>, view: &View, told: Told) -> Wanted {
    let status = peer.status.as_ref().and_then(|status| status.network.clone());
    let network = NetworkStatus {
        pod_cidrs: view.mapped.shown().collect(),
        transit: told.cidrs,
        our_pod_cidrs: own.announcement.pod_cidrs.iter().map(ToString::to_string).collect(),
        our_external_cidrs: external(own, peer).iter().map(ToString::to_string).collect(),
        gateways: said.theirs.gateways.clone(),
        guest: guest(word.invited, status.as_ref(), &own.ready),
        // The gateways write these.
        tunnels: status.map(|network| network.tunnels).unwrap_or_default(),
    };
    let no_room = view.no_room.as_ref().map(ToString::to_string);
    let trouble = said.trouble.or(no_room.as_deref().map(Trouble::NoRoom));
    let mut update = condition::of(own, Some(&network), trouble);
    if let Some(why) = &view.without_room {
        update.message =
            format!("{}; not all its pods in further clusters are reached: {why}", update.message);
    }
    if let Some(prefix) = &view.no_image {
        update.message = format!(
            "{}; not all hosts outside are reached through it: no pool has room for {prefix}; see network.remapPool",
            update.message
        );
    }
    if let Some(external) = about_external(own, peer) {
        update.message = format!("{}; {external}", update.message);
    }
    if !told.left_out.is_empty() {
        update.message = format!(
            "{}; not all pods there and in {} reach each other: it would have to be told of more than {MAX_TRANSIT} prefixes",
            update.message,
            told.left_out.join(", ")
        );
    }
    let network = NetworkStatus { tunnels: Vec::new(), ..network };
    Wanted { network: Some(network), condition: Some(update), waits: told.waits }
}

/// Whether this cluster borrows from the peer through a tunnel.
fn is_in_band(peer: &Peer) -> bool {
    peer.spec.consume.as_ref().is_some_and(|consume| consume.transport == Transport::InBand)
}

/// How a peer is seen.
#[derive(Debug, Default)]
struct Mapped {
    /// Its own pods.
    own: Vec<Mapping>,
    /// Those in further clusters that are reached through it.
    transit: Vec<Mapping>,
    /// Of these, those that are in other peers.
    direct: BTreeMap<IpNet, DirectCidr>,
    /// Hosts outside that are reached through it.
    external: Vec<Mapping>,
}

impl Mapped {
    fn shown(&self) -> impl Iterator<Item = PodCidr> {
        let own = self.own.iter().map(|Mapping { real, seen }| PodCidr::own(real, seen));
        let transit = self.transit.iter().map(|Mapping { real, seen }| PodCidr {
            direct: self.direct.get(real).cloned(),
            ..PodCidr::transit(real, seen)
        });
        let external = self.external.iter().map(|Mapping { real, seen }| PodCidr::external(real, seen));
        own.chain(transit).chain(external)
    }
}

/// How the peer was seen so far.
fn recorded(peer: &Peer) -> Mapped {
    let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
    let mut mapped = Mapped::default();
    for cidr in network.into_iter().flat_map(|network| &network.pod_cidrs) {
        let Some((real, seen)) = cidr.prefixes() else { continue };
        let of = match cidr {
            PodCidr { external: true, .. } => &mut mapped.external,
            PodCidr { transit: true, .. } => &mut mapped.transit,
            _ => &mut mapped.own,
        };
        of.push(Mapping { real, seen });
        mapped.direct.extend(cidr.direct.clone().map(|direct| (real, direct)));
    }
    mapped
}

fn seen(mapped: &[Mapping]) -> Vec<IpNet> {
    mapped.iter().map(|mapping| mapping.seen).collect()
}

fn claimed(mapped: &[Mapping]) -> Vec<IpNet> {
    mapped.iter().map(Mapping::claims).collect()
}

pub(super) fn is_written(peer: &Peer, Wanted { network, condition, .. }: &Wanted) -> bool {
    let status = peer.status.clone().unwrap_or_default();
    let written = status.network.map(|network| NetworkStatus { tunnels: Vec::new(), ..network });
    let written = written.filter(|network| *network != NetworkStatus::default());
    let wanted = network.clone().filter(|network| *network != NetworkStatus::default());
    let shown = find_condition(&status.conditions, CONDITION);
    let said = match (shown, condition) {
        (None, None) => true,
        (Some(shown), Some(update)) => {
            let status = if update.status == Some(true) { "True" } else { "False" };
            (shown.status.as_str(), shown.reason.as_str(), &shown.message)
                == (status, update.reason, &update.message)
        }
        _ => false,
    };
    written == wanted && said
}

/// Gateways that are said to have tunnels to a peer, and are no more: they cannot take back themselves what they said.
pub(super) fn stale<'a>(peer: &'a Peer, own: &Own) -> impl Iterator<Item = (&'a Peer, &'a str)> {
    let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
    let said = network.into_iter().flat_map(|network| &network.tunnels).map(|tunnel| tunnel.gateway.as_str());
    said.filter(|gateway| !own.gateways.contains(*gateway)).map(move |gateway| (peer, gateway))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::announcement::{Origin, mark, overlap};
    use crate::network::direct::digest;
    use crate::network::name;
    use liquid_crds::{ConsumeSpec, PeerGateway, PeerSpec, PeerStatus, TunnelStatus};
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::LazyLock;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn peer(name: &str, seen: &[(&str, &str)]) -> (String, Peer) {
        let consume = ConsumeSpec { endpoints: vec!["192.0.2.9:7443".to_owned()], ..ConsumeSpec::default() };
        let cluster_id = format!("{}0000000-0000-4000-8000-000000000000", name.len());
        let mut peer =
            Peer::new(name, PeerSpec { cluster_id, consume: Some(consume), lend: None, network: None });
        let pod_cidrs = seen.iter().map(|(real, seen)| PodCidr::own(real, seen));
        let network = NetworkStatus { pod_cidrs: pod_cidrs.collect(), ..NetworkStatus::default() };
        peer.status = Some(PeerStatus { network: Some(network), ..PeerStatus::default() });
        (name.to_owned(), peer)
    }

    fn own() -> Own {
        Own {
            announcement: Announcement { pod_cidrs: nets(&["10.244.0.0/24"]), ..Announcement::default() },
            reserved: nets(&["10.244.0.0/16"]),
            ..Own::default()
        }
    }

    fn said(heard: &Heard) -> Word<'_> {
        Word { heard: Some(heard), invited: None }
    }

    fn told(pods: &[&str]) -> Heard {
        Heard::Told(Announcement { pod_cidrs: nets(pods), ..Announcement::default() })
    }

    fn seen(all: &[(&Peer, Wanted)], name: &str) -> Vec<String> {
        let (_, wanted) = all.iter().find(|(peer, _)| crate::network::name(peer) == name).unwrap();
        wanted.network.as_ref().unwrap().pod_cidrs.iter().map(|cidr| cidr.seen.clone()).collect()
    }

    /// What is wanted where no two peers have anything in common.
    fn found<'a, 'h>(
        peers: &'a BTreeMap<String, Peer>,
        own: &Own,
        word: impl Fn(&Peer) -> Word<'h>,
        pool: &[IpNet],
    ) -> Vec<(&'a Peer, Wanted)> {
        wanted(peers, own, word, &given(pool, None))
    }

    fn given<'a>(pool: &'a [IpNet], shared: Option<&'a Shared>) -> Given<'a> {
        static ME: LazyLock<ClusterId> =
            LazyLock::new(|| "90000000-0000-4000-8000-000000000000".parse().unwrap());
        Given {
            me: &ME,
            pool,
            shared,
            impatient: BTreeSet::new(),
            behind: BTreeSet::new(),
            steady: BTreeSet::new(),
        }
    }

    fn only(mut all: Vec<(&Peer, Wanted)>) -> NetworkStatus {
        assert_eq!(all.len(), 1);
        all.remove(0).1.network.unwrap()
    }

    #[test]
    fn two_peers_with_equal_prefixes_are_seen_apart_and_the_earlier_stays() {
        let peers = BTreeMap::from([peer("a", &[]), peer("bb", &[("10.1.0.0/16", "10.1.0.0/16")])]);
        let heard = told(&["10.1.0.0/16"]);
        let all = found(&peers, &own(), |_| said(&heard), &nets(&["10.192.0.0/10"]));
        assert_eq!(seen(&all, "bb"), ["10.1.0.0/16"]);
        assert!(seen(&all, "a")[0].starts_with("10.") && seen(&all, "a") != seen(&all, "bb"));
    }

    #[test]
    fn a_peer_that_is_silent_after_a_restart_stays_as_it_was() {
        let peers = BTreeMap::from([peer("b", &[("10.244.0.0/24", "10.200.0.0/24")])]);
        let all = found(&peers, &own(), |_| Word::default(), &nets(&["10.192.0.0/10"]));
        assert_eq!(seen(&all, "b"), ["10.200.0.0/24"]);
        let absent = Heard::Absent("none".to_owned());
        let all = found(&peers, &own(), |_| said(&absent), &nets(&["10.192.0.0/10"]));
        assert!(seen(&all, "b").is_empty(), "it says itself that it has none");
    }

    #[test]
    fn gateways_are_never_behind_their_own_tunnel() {
        let peers = BTreeMap::from([peer("b", &[])]);
        let gateway = PeerGateway {
            name: None,
            public_key: "k".to_owned(),
            endpoints: vec!["10.1.0.7:51820".to_owned()],
            probes: false,
        };
        let heard = Heard::Told(Announcement {
            pod_cidrs: nets(&["10.1.0.0/16"]),
            gateways: vec![gateway],
            ..Announcement::default()
        });
        let all = found(&peers, &own(), |_| said(&heard), &nets(&["10.192.0.0/10"]));
        assert_ne!(seen(&all, "b"), ["10.1.0.0/16"]);
    }

    #[test]
    fn a_peer_is_seen_in_the_families_that_pods_here_have() {
        let peers = BTreeMap::from([peer("b", &[])]);
        let mut own = own();
        let both = told(&["10.1.0.0/16", "fd00:1::/64"]);
        assert_eq!(seen(&found(&peers, &own, |_| said(&both), &[]), "b"), ["10.1.0.0/16"]);
        own.announcement.pod_cidrs = nets(&["10.244.0.0/24", "fd00:2::/64"]);
        assert_eq!(seen(&found(&peers, &own, |_| said(&both), &[]), "b"), ["10.1.0.0/16", "fd00:1::/64"]);
        own.announcement.pod_cidrs = nets(&["fd00:2::/64"]);
        let other = told(&["10.1.0.0/16"]);
        let all = found(&peers, &own, |_| said(&other), &[]);
        assert_eq!(all[0].1.condition.as_ref().unwrap().reason, "NoCommonIPFamily");
        own.announcement.pod_cidrs.clear();
        assert_eq!(seen(&found(&peers, &own, |_| said(&other), &[]), "b"), ["10.1.0.0/16"]);
    }

    #[test]
    fn only_what_a_gateway_said_that_is_gone_is_stale() {
        let (_, mut peer) = peer("b", &[]);
        let tunnel = |gateway: &str| TunnelStatus {
            gateway: gateway.to_owned(),
            up: true,
            ways: Vec::new(),
            relay: None,
            since: None,
        };
        let network = peer.status.as_mut().unwrap().network.as_mut().unwrap();
        network.tunnels = ["liquid-gateway-0", "liquid-gateway-1"].map(tunnel).into();
        let own = Own { gateways: ["liquid-gateway-0".to_owned()].into(), ..own() };
        assert_eq!(stale(&peer, &own).map(|(_, gateway)| gateway).collect::<Vec<_>>(), ["liquid-gateway-1"]);
    }

    fn gateway(key: &str) -> PeerGateway {
        PeerGateway { name: None, public_key: key.to_owned(), endpoints: Vec::new(), probes: true }
    }

    #[test]
    fn a_token_says_where_the_gateways_are_until_it_is_used() {
        use crate::network::invitation::Invitation;
        let ready = Own { ready: ["g0".to_owned()].into(), ..own() };
        let peers = BTreeMap::from([peer("b", &[])]);
        let of = |heard, invited| {
            let word = Word { heard: Some(heard), invited: Some(invited) };
            only(found(&peers, &ready, |_| word, &[]))
        };
        let invitation = Invitation { gateways: vec![gateway("new")], guest: Some("g".to_owned()) };
        let (heard, invited) = (
            Heard::Told(Announcement { gateways: vec![gateway("old")], ..Announcement::default() }),
            Invited::With(invitation),
        );
        let network = of(&heard, &invited);
        assert_eq!(network.gateways, [gateway("new")]);
        assert_eq!(network.guest.unwrap().gateway, "g0");
        let network = of(&heard, &Invited::No);
        assert_eq!(network.gateways, [gateway("old")]);
        assert_eq!(network.guest, None);
    }

    #[test]
    fn a_peer_reached_through_its_gateways_keeps_them_although_it_says_that_it_has_none() {
        let (name, mut peer) = peer("b", &[("10.1.0.0/16", "10.1.0.0/16")]);
        peer.spec.consume.as_mut().unwrap().transport = Transport::InBand;
        let gateway = gateway("k");
        peer.status.as_mut().unwrap().network.as_mut().unwrap().gateways = vec![gateway.clone()];
        let absent = Heard::Absent("none".to_owned());
        let peers = BTreeMap::from([(name, peer)]);
        let network = only(found(&peers, &own(), |_| said(&absent), &[]));
        assert_eq!((network.gateways, network.pod_cidrs), (vec![gateway], Vec::new()));
    }

    /// B's view of A, which lets its pods run here and tells of those in C.
    fn of_hub(known: &[(&str, &str, bool)], pods: &[&str], transit: &[&str], allowed: bool) -> Vec<PodCidr> {
        let (name, mut peer) = peer("a", &[]);
        peer.spec.lend = Some(liquid_crds::LendSpec::default());
        let transit_policy = (!allowed).then_some(liquid_crds::TransitPolicy::None);
        peer.spec.network = Some(liquid_crds::NetworkSpec { access: None, transit: transit_policy });
        let pod_cidrs = known
            .iter()
            .map(|(real, seen, transit)| PodCidr { transit: *transit, ..PodCidr::own(real, seen) });
        peer.status.as_mut().unwrap().network.as_mut().unwrap().pod_cidrs = pod_cidrs.collect();
        let heard = Heard::Told(Announcement {
            pod_cidrs: nets(pods),
            transit: nets(transit),
            ..Announcement::default()
        });
        let peers = BTreeMap::from([(name, peer)]);
        only(found(&peers, &own(), |_| said(&heard), &nets(&["10.192.0.0/15"]))).pod_cidrs
    }

    fn shown(cidrs: &[PodCidr]) -> Vec<(&str, &str, bool)> {
        cidrs.iter().map(|cidr| (cidr.real.as_str(), cidr.seen.as_str(), cidr.transit)).collect()
    }

    #[test]
    fn pods_in_further_clusters_find_a_place_beside_the_peers_own() {
        let found = of_hub(&[], &["10.244.0.0/24"], &["10.50.0.0/24", "10.244.7.0/24"], true);
        let [own, free, moved] = found.as_slice() else { panic!("{found:?}") };
        assert!(own.real == "10.244.0.0/24" && own.seen != own.real && !own.transit);
        assert_eq!(shown(std::slice::from_ref(free)), [("10.50.0.0/24", "10.50.0.0/24", true)]);
        assert!(moved.real == "10.244.7.0/24" && moved.seen != moved.real && moved.transit);
        let known: Vec<_> = shown(&found);
        assert_eq!(of_hub(&known, &["10.244.0.0/24"], &["10.50.0.0/24", "10.244.7.0/24"], true), found);
        assert_eq!(
            of_hub(&known, &["10.244.0.0/24"], &["10.50.0.0/24"], false),
            found[..1],
            "not wanted here"
        );
    }

    #[test]
    fn hosts_outside_have_an_image_where_the_peers_pods_run_and_keep_it() {
        let (name, mut hub) = peer("hub", &[]);
        let pool = nets(&["10.192.0.0/15"]);
        let told = Heard::Told(Announcement {
            pod_cidrs: nets(&["10.244.0.0/24"]),
            external: nets(&["192.0.2.8/32", "198.51.100.0/24"]),
            ..Announcement::default()
        });
        let outside = |hub: &Peer| {
            let peers = BTreeMap::from([(name.clone(), hub.clone())]);
            only(found(&peers, &own(), |_| said(&told), &pool))
        };
        assert_eq!(outside(&hub).pod_cidrs.len(), 1, "none of its pods run here");
        hub.spec.lend = Some(liquid_crds::LendSpec::default());
        let network = outside(&hub);
        let external = [
            PodCidr::external("192.0.2.8/32", "10.193.0.0/32"),
            PodCidr::external("198.51.100.0/24", "10.193.1.0/24"),
        ];
        assert_eq!(network.pod_cidrs[1..], external);
        hub.status.as_mut().unwrap().network = Some(network.clone());
        assert_eq!(outside(&hub), network);
        assert_eq!(network.own_pods().count(), 1);
    }

    #[test]
    fn a_peers_own_pods_have_their_place_whatever_there_is_in_further_clusters() {
        // Two places in the pool, and three blocks that need one.
        let transit = ["10.244.7.0/24", "10.245.0.0/24"];
        let known = [("10.244.7.0/24", "10.192.7.0/24", true), ("10.245.0.0/24", "10.193.0.0/24", true)];
        let found = of_hub(&known, &["10.244.0.0/24"], &transit, true);
        assert_eq!(found.iter().filter(|cidr| !cidr.transit).count(), 1);
        assert!(found[0].seen.starts_with("10.19"), "{found:?}");
    }

    #[test]
    fn a_new_peer_finds_its_place_before_those_in_further_clusters_of_others_and_these_as_far_as_there_is_room()
     {
        let (name, mut hub) = peer("hub", &[("10.244.0.0/24", "10.192.0.0/24")]);
        hub.spec.lend = Some(liquid_crds::LendSpec::default());
        let known = PodCidr::transit("10.245.0.0/24", "10.194.0.0/24");
        hub.status.as_mut().unwrap().network.as_mut().unwrap().pod_cidrs.push(known);
        let peers = BTreeMap::from([(name, hub), peer("newcomer", &[])]);
        let (of_hub, of_newcomer) = (
            Heard::Told(Announcement {
                pod_cidrs: nets(&["10.244.0.0/24"]),
                transit: nets(&["10.245.0.0/24", "10.246.0.0/24"]),
                ..Announcement::default()
            }),
            told(&["10.244.0.0/24"]),
        );
        let word =
            |peer: &Peer| said(if crate::network::name(peer) == "hub" { &of_hub } else { &of_newcomer });
        let own = Own { reserved: nets(&["10.244.0.0/14"]), ..own() };
        // Three places: of the hub's pods, of what is known of 10.245, and one that the newcomer gets, and not 10.246.
        let all = found(&peers, &own, word, &nets(&["10.192.0.0/15", "10.194.0.0/16"]));
        assert_eq!(seen(&all, "newcomer").len(), 1);
        assert_eq!(seen(&all, "hub"), ["10.192.0.0/24", "10.194.0.0/24"]);
        let message = &all
            .iter()
            .find(|(peer, _)| crate::network::name(peer) == "hub")
            .unwrap()
            .1
            .condition
            .as_ref()
            .unwrap()
            .message;
        assert!(
            message.contains("not all its pods in further clusters are reached: 10.246.0.0/16"),
            "{message}"
        );
    }

    /// B's view of A, which tells of pods in C, a peer of B, and of others.
    struct Triangle {
        peers: BTreeMap<String, Peer>,
        steady: bool,
        patient: bool,
        hub: Option<Heard>,
        neighbour: Option<Heard>,
    }

    impl Triangle {
        fn new() -> Self {
            let (hub, mut at_hub) = peer("hub", &[("10.1.0.0/16", "10.1.0.0/16")]);
            at_hub.spec.lend = Some(liquid_crds::LendSpec::default());
            let (neighbour, mut at_neighbour) = peer("neighbour", &[("10.244.0.0/24", "10.192.0.0/24")]);
            let tunnel = TunnelStatus {
                gateway: "ours".to_owned(),
                up: true,
                ways: Vec::new(),
                relay: None,
                since: None,
            };
            at_neighbour.status.as_mut().unwrap().network.as_mut().unwrap().tunnels = vec![tunnel];
            let origins = [
                ("10.50.0.0/24", at_neighbour.spec.cluster_id.as_str(), "10.244.0.0/24"),
                ("10.51.0.0/24", at_neighbour.spec.cluster_id.as_str(), "10.9.0.0/24"),
                ("10.52.0.0/24", "somebody", "10.244.0.0/24"),
            ];
            let net = |text: &str| text.parse().unwrap();
            let origins = origins.map(|(seen, cluster, real)| {
                (net(seen), Origin { cluster: mark(cluster, given(&[], None).me.as_str()), real: net(real) })
            });
            let told_by_hub = Announcement {
                pod_cidrs: nets(&["10.1.0.0/16"]),
                transit: nets(&["10.50.0.0/24", "10.51.0.0/24", "10.52.0.0/24"]),
                origins: origins.into(),
                ..Announcement::default()
            };
            let told_by_neighbour = Announcement {
                pod_cidrs: nets(&["10.244.0.0/24"]),
                admits: Some(digest(&own().announcement.pod_cidrs)),
                ..Announcement::default()
            };
            Self {
                peers: BTreeMap::from([(hub, at_hub), (neighbour, at_neighbour)]),
                steady: true,
                patient: true,
                hub: Some(Heard::Told(told_by_hub)),
                neighbour: Some(Heard::Told(told_by_neighbour)),
            }
        }

        /// Which prefixes of the hub are those of the neighbour, as what, and whether endpoints are there. It is written.
        fn direct(&mut self) -> Vec<(String, String, bool)> {
            let own = Own { ready: ["ours".to_owned()].into(), ..own() };
            let pool = nets(&["10.192.0.0/10"]);
            let mut given = given(&pool, None);
            given.steady = self.peers.keys().filter(|_| self.steady).cloned().collect();
            given.behind = self.peers.keys().filter(|_| !self.patient).cloned().collect();
            let word = |peer: &Peer| Word {
                heard: if name(peer) == "hub" { &self.hub } else { &self.neighbour }.as_ref(),
                invited: None,
            };
            let all = wanted(&self.peers, &own, word, &given);
            let network = all.iter().find(|(peer, _)| name(peer) == "hub").unwrap().1.network.clone();
            let cidrs = network.as_ref().unwrap().pod_cidrs.clone();
            self.peers.get_mut("hub").unwrap().status.as_mut().unwrap().network = network;
            let direct = cidrs.into_iter().filter_map(|cidr| Some((cidr.real, cidr.direct?)));
            direct
                .map(|(real, direct)| {
                    assert_eq!(direct.peer, "neighbour");
                    (real, direct.seen, direct.used)
                })
                .collect()
        }

        fn neighbour(&mut self) -> &mut Peer {
            self.peers.get_mut("neighbour").unwrap()
        }

        fn tunnel(&mut self, up: bool) {
            let network = self.neighbour().status.as_mut().unwrap().network.as_mut().unwrap();
            network.tunnels[0].up = up;
        }
    }

    fn at_the_neighbour(used: bool) -> Vec<(String, String, bool)> {
        vec![("10.50.0.0/24".to_owned(), "10.192.0.0/24".to_owned(), used)]
    }

    #[test]
    fn pods_in_a_peer_of_ours_are_reached_there_as_long_as_they_are() {
        let mut triangle = Triangle::new();
        assert_eq!(triangle.direct(), at_the_neighbour(true), "and none of which it has not told");
        triangle.tunnel(false);
        assert_eq!(triangle.direct(), at_the_neighbour(false), "policies go on to list them");
        triangle.tunnel(true);
        triangle.steady = false;
        assert_eq!(triangle.direct(), at_the_neighbour(false), "not with the first packet");
        triangle.steady = true;
        assert_eq!(triangle.direct(), at_the_neighbour(true));
        triangle.steady = false;
        assert_eq!(triangle.direct(), at_the_neighbour(true), "a restart changes nothing");
        let hub = triangle.peers.get_mut("hub").unwrap();
        hub.spec.lend.as_mut().unwrap().ingress =
            Some(serde_json::from_value(json!({"className": "nginx", "hosts": ["*"]})).unwrap());
        assert_eq!(triangle.direct(), at_the_neighbour(false), "an ingress controller would publish them");
        triangle.peers.get_mut("hub").unwrap().spec.lend = None;
        assert_eq!(triangle.direct(), []);
    }

    #[test]
    fn who_does_not_let_everybody_in_is_reached_through_the_hub() {
        let deny = || liquid_crds::AccessSpec {
            default: liquid_crds::Verdict::Deny,
            ..liquid_crds::AccessSpec::default()
        };
        let mut triangle = Triangle::new();
        triangle.neighbour().spec.network =
            Some(liquid_crds::NetworkSpec { access: Some(deny()), transit: None });
        assert_eq!(triangle.direct(), at_the_neighbour(false), "what they answer would not get in");
        let mut triangle = Triangle::new();
        triangle.neighbour = Some(told(&["10.244.0.0/24"]));
        assert_eq!(triangle.direct(), at_the_neighbour(false), "so does an earlier version");
        for heard in [None, Some(Heard::Invalid("?".to_owned()))] {
            let mut triangle = Triangle::new();
            let told = std::mem::replace(&mut triangle.neighbour, heard.clone());
            assert_eq!(triangle.direct(), at_the_neighbour(false), "it has not said so");
            triangle.neighbour = told;
            triangle.direct();
            triangle.neighbour = heard;
            assert_eq!(triangle.direct(), at_the_neighbour(true), "it had said so");
        }
    }

    #[test]
    fn who_has_not_taken_the_prefixes_here_is_not_waited_for_long() {
        let with = |prefixes: &[&str]| {
            let admits = Some(digest(&nets(prefixes)));
            Some(Heard::Told(Announcement {
                pod_cidrs: nets(&["10.244.0.0/24"]),
                admits,
                ..Announcement::default()
            }))
        };
        let mut triangle = Triangle::new();
        triangle.neighbour = with(&[]);
        assert_eq!(triangle.direct(), at_the_neighbour(false), "it may have no room for them");
        let mut triangle = Triangle::new();
        triangle.direct();
        triangle.neighbour = with(&["10.244.0.0/25"]);
        assert_eq!(triangle.direct(), at_the_neighbour(true), "there is a node more here");
        triangle.patient = false;
        assert_eq!(triangle.direct(), at_the_neighbour(false));
    }

    #[test]
    fn what_is_reached_directly_stays_so_until_the_hub_has_spoken_again() {
        let mut triangle = Triangle::new();
        triangle.direct();
        let hub = triangle.hub.take();
        assert_eq!(triangle.direct(), at_the_neighbour(true));
        triangle.tunnel(false);
        assert_eq!(triangle.direct(), at_the_neighbour(false), "which is no reason to send packets nowhere");
        triangle.tunnel(true);
        triangle.hub = hub;
        assert_eq!(triangle.direct(), at_the_neighbour(true));
        triangle.hub = Some(Heard::Invalid("?".to_owned()));
        assert_eq!(triangle.direct(), at_the_neighbour(true));
        triangle.hub = Some(told(&["10.1.0.0/16"]));
        assert_eq!(triangle.direct(), []);
    }

    #[test]
    fn the_network_stays_until_everything_is_given_back() {
        let (_, mut peer) = peer("b", &[]);
        peer.spec.consume = None;
        assert!(!is_peered(&peer));
        peer.metadata.finalizers = Some(vec![liquid_crds::vocabulary::FINALIZER_CONSUME.to_owned()]);
        assert!(is_peered(&peer));
    }

    #[test]
    fn what_was_written_is_not_written_again() {
        let peers = BTreeMap::from([peer("b", &[])]);
        let heard = told(&["10.1.0.0/16"]);
        let (peer, wanted) = found(&peers, &own(), |_| said(&heard), &[]).remove(0);
        assert!(!is_written(peer, &wanted));
        let mut written = peer.clone();
        let status = written.status.as_mut().unwrap();
        status.network = wanted.network.clone();
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
        liquid_crds::set_condition(&mut status.conditions, wanted.condition.clone().unwrap(), None, &now);
        assert!(is_written(&written, &wanted));
    }

    /// A cluster of peers, as `Peer`s and as what they say: prefixes of their own pods, and of those in further clusters.
    fn network() -> impl Strategy<Value = (BTreeMap<String, Peer>, BTreeMap<String, Heard>, Shared)> {
        let prefix =
            || (0_u8..4, 0_u8..3).prop_map(|(block, part)| format!("10.{}.{part}.0/24", 244 + block % 3));
        let of_peer = (
            prop::collection::btree_set(prefix(), 0..3),
            prop::collection::btree_set(prefix(), 0..4),
            prop::collection::btree_set(prefix(), 0..3),
            any::<bool>(),
        );
        (prop::collection::vec(of_peer, 1..4), any::<bool>()).prop_map(|(all, in_common)| {
            let (mut peers, mut heard) = (BTreeMap::new(), BTreeMap::new());
            for (at, (pods, transit, taken, is_known)) in all.into_iter().enumerate() {
                let (name, mut peer) = peer(&"p".repeat(at + 1), &[]);
                peer.spec.lend = Some(liquid_crds::LendSpec::default());
                let nets = |texts: BTreeSet<String>| texts.iter().map(|text| text.parse().unwrap()).collect();
                let transit = transit.difference(&pods).cloned().collect();
                let told = Announcement {
                    pod_cidrs: nets(pods),
                    transit: nets(transit),
                    taken: nets(taken),
                    ..Announcement::default()
                };
                if is_known {
                    heard.insert(name.clone(), Heard::Told(told));
                }
                peers.insert(name, peer);
            }
            let namespaces = [peers.keys().cloned().collect()];
            let shared = Shared::new(namespaces.iter().filter(|_| in_common));
            (peers, heard, shared)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// However it begins: no address is seen twice, and what was written settles.
        #[test]
        fn what_was_found_stays((mut peers, heard, shared) in network(), later in network(), patient in any::<bool>()) {
            for (heard, shared) in [(&heard, &shared), (&later.1, &later.2)] {
                let mut before = None;
                // What is told follows from what was written: it takes two rounds to come about.
                for round in 0..4 {
                    let all: Vec<(String, Wanted)> = {
                        let word = |peer: &Peer| Word { heard: heard.get(&name(peer)), invited: None };
                        let pool = nets(&["10.192.0.0/15"]);
                        let mut given = given(&pool, Some(shared));
                        given.impatient = peers.keys().filter(|_| !patient).cloned().collect();
                        let all = wanted(&peers, &own(), word, &given);
                        all.into_iter().map(|(peer, wanted)| (name(peer), wanted)).collect()
                    };
                    let networks: Vec<_> = all.iter().map(|(_, wanted)| wanted.network.clone().unwrap()).collect();
                    let seen: Vec<IpNet> = networks
                        .iter()
                        .flat_map(|network| &network.pod_cidrs)
                        .map(|cidr| cidr.seen.parse().unwrap())
                        .collect();
                    for (at, one) in seen.iter().enumerate() {
                        let other = seen[..at].iter().find(|other| overlap(other, one));
                        prop_assert_eq!(other, None, "{}", one);
                    }
                    for (name, wanted) in all {
                        let status = peers.get_mut(&name).unwrap().status.as_mut().unwrap();
                        status.network = wanted.network;
                    }
                    if round == 3 {
                        prop_assert_eq!(before.as_ref(), Some(&networks));
                    }
                    before = Some(networks);
                }
            }
        }
    }
}
