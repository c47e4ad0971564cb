//! Pods of a peer in further clusters are reached there where these clusters are peers, too. Pure.
//!
//! Endpoints get the addresses that this cluster has for them anyway. Both ends come to that by themselves, and for the same
//! reasons, so that what one of them sends from is listed in the policies of the other.

use super::announcement::{Announcement, Origin, mark};
use super::ipam::{Mapping, moved};
use super::own::Own;
use super::{Heard, is_peered};
use ipnet::IpNet;
use liquid_crds::{AccessSpec, ClusterId, DirectCidr, NetworkStatus, Peer};
use liquid_link::digest::Hash;
use std::collections::BTreeMap;

/// A peer with whose pods those here speak without a restriction.
struct Neighbour<'a> {
    name: &'a str,
    /// What is new begins to use it.
    steady: bool,
    /// Its own pods.
    pods: &'a [Mapping],
}

/// The peers that are reached now.
#[derive(Default)]
pub(super) struct Neighbours<'a>(BTreeMap<Hash, Neighbour<'a>>);

impl<'a> Neighbours<'a> {
    /// Of a peer, what was heard of it, where its pods are seen, and whether it is reached for long enough.
    pub(super) fn add(
        &mut self,
        me: &ClusterId,
        peer: (&'a str, &'a Peer),
        pods: &'a [Mapping],
        steady: bool,
    ) {
        let (name, peer) = peer;
        let mark = mark(&peer.spec.cluster_id, me.as_str());
        self.0.insert(mark, Neighbour { name, steady, pods });
    }

    /// Where those of a prefix are reached. `known` is where they are so far.
    pub(super) fn reach(&self, origin: &Origin, known: Option<&DirectCidr>) -> Option<DirectCidr> {
        let neighbour = self.0.get(&origin.cluster)?;
        let holds = |pods: &&Mapping| pods.real.contains(&origin.real);
        let pods = neighbour.pods.iter().find(holds)?;
        let seen = moved(&origin.real, &pods.real, &pods.seen).to_string();
        let direct = DirectCidr { peer: neighbour.name.to_owned(), seen };
        (neighbour.steady || known.is_some_and(|known| known.peer == direct.peer)).then_some(direct)
    }

    /// Whether its prefix is one of the peer that it names.
    pub(super) fn has(&self, direct: &DirectCidr) -> bool {
        let seen = direct.seen.parse::<IpNet>();
        let holds = |pods: &Mapping| seen.as_ref().is_ok_and(|seen| pods.seen.contains(seen));
        self.0.values().any(|it| it.name == direct.peer && it.pods.iter().any(holds))
    }
}

/// Whether pods of the peer may reach all pods here.
pub(super) fn is_open(peer: &Peer) -> bool {
    let access = peer.spec.network.as_ref().and_then(|network| network.access.as_ref());
    is_peered(peer)
        && peer.metadata.deletion_timestamp.is_none()
        && !access.is_some_and(AccessSpec::restricts)
}

/// Whether pods of both sides may reach each other. As long as nothing was heard since this process began, that is as it was.
pub(super) fn lets_all_in(peer: &Peer, heard: Option<&Heard>) -> bool {
    let theirs = match heard {
        Some(Heard::Told(Announcement { open, .. })) => *open,
        Some(Heard::Absent(_)) => false,
        Some(Heard::Invalid(_)) | None => true,
    };
    theirs && is_open(peer)
}

/// Whether a gateway of this cluster reaches one of the peer's.
pub(super) fn is_reached(peer: &Peer, own: &Own) -> bool {
    let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
    let tunnels = network.into_iter().flat_map(|NetworkStatus { tunnels, .. }| tunnels);
    let mut ready = tunnels.filter(|tunnel| own.ready.contains(&tunnel.gateway));
    ready.any(|tunnel| tunnel.ways.iter().any(|way| way.up))
}
