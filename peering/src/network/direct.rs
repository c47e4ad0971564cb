//! Pods of a peer in further clusters are reached there where these clusters are peers, too. Pure.
//!
//! Endpoints get the addresses that this cluster has for them anyway. Each end chooses for itself; that the other end expects what
//! comes this way is seen to by policies, which list both addresses from the beginning.

use super::announcement::{Origin, mark, overlap};
use super::ipam::{Mapping, moved};
use super::own::{Own, common_families};
use super::{Heard, is_peered};
use ipnet::IpNet;
use liquid_crds::{ClusterId, DirectCidr, NetworkSpec, NetworkStatus, Peer};
use liquid_link::digest::Hash;

/// Whether the pods of a peer can be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// They cannot, or what they answer does not arrive.
    No,
    /// Not for long enough, or it is not quite known: what is sent to them already still is.
    Kept,
    /// They can.
    Steady,
}

/// A peer in which pods of another one may run.
struct Neighbour<'a> {
    name: &'a str,
    mark: Hash,
    /// Its own pods.
    pods: &'a [Mapping],
    reach: Reach,
}

/// All peers, as places where pods of others run.
#[derive(Default)]
pub(super) struct Neighbours<'a>(Vec<Neighbour<'a>>);

impl<'a> Neighbours<'a> {
    /// A peer, and where its own pods are seen from this cluster, `me`.
    pub(super) fn add(
        &mut self,
        me: &ClusterId,
        name: &'a str,
        peer: &Peer,
        pods: &'a [Mapping],
        reach: Reach,
    ) {
        self.0.push(Neighbour { name, mark: mark(&peer.spec.cluster_id, me.as_str()), pods, reach });
    }

    /// Where the pods of a prefix are besides. Of an `origin` that was not told yet, as it is `known`.
    pub(super) fn find(&self, origin: Option<&Origin>, known: Option<&DirectCidr>) -> Option<DirectCidr> {
        let is_it = |it: &&Neighbour<'_>| match origin {
            Some(origin) => it.mark == origin.cluster,
            None => known.is_some_and(|known| known.peer == it.name),
        };
        let neighbour = self.0.iter().find(is_it)?;
        let was_used = known.is_some_and(|known| known.used && known.peer == neighbour.name);
        let (seen, is_whole) = match origin {
            Some(Origin { real, .. }) => {
                let pods = neighbour.pods.iter().find(|pods| overlap(&pods.real, real))?;
                (moved(real, &pods.real, &pods.seen).to_string(), pods.real.contains(real))
            }
            None => (known?.seen.clone(), false),
        };
        let used = match neighbour.reach {
            Reach::No => false,
            Reach::Kept => was_used,
            Reach::Steady => is_whole || was_used,
        };
        Some(DirectCidr { peer: neighbour.name.to_owned(), seen, used })
    }
}

/// Whether the peer can be sent to. `steady`: it has been reached for long enough.
pub(super) fn reach(peer: &Peer, own: &Own, heard: Option<&Heard>, steady: bool, patient: bool) -> Reach {
    if !is_reached(peer, own) || !is_open(peer) {
        return Reach::No;
    }
    let is_behind = is_behind(own, heard);
    match heard {
        Some(Heard::Absent(_)) => Reach::No,
        Some(Heard::Told(told)) if told.admits.is_none() || (is_behind && !patient) => Reach::No,
        Some(Heard::Told(_)) if steady && !is_behind => Reach::Steady,
        // As it was, also while nothing is known.
        Some(Heard::Told(_) | Heard::Invalid(_)) | None => Reach::Kept,
    }
}

/// Whether what a peer lets in are other prefixes than the ones pods have here: it may not have heard of the last change.
pub(super) fn is_behind(own: &Own, heard: Option<&Heard>) -> bool {
    let Some(Heard::Told(told)) = heard else { return false };
    let ours = common_families(&told.pod_cidrs, &own.announcement.pod_cidrs);
    told.admits.is_some_and(|admits| admits != digest(&ours))
}

/// What is told to a peer whose pods, seen as these prefixes, may reach all pods here.
pub(super) fn admits(peer: &Peer, prefixes: &[IpNet]) -> Option<Hash> {
    is_open(peer).then(|| digest(prefixes))
}

pub(super) fn digest(prefixes: &[IpNet]) -> Hash {
    let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    Hash::of(texts.join(",").as_bytes())
}

/// Whether pods of the peer may reach all pods here.
pub(super) fn is_open(peer: &Peer) -> bool {
    is_peered(peer)
        && peer.metadata.deletion_timestamp.is_none()
        && peer.spec.network.as_ref().is_none_or(NetworkSpec::is_open)
}

/// Whether a gateway of this cluster reaches one of the peer's.
pub(super) fn is_reached(peer: &Peer, own: &Own) -> bool {
    let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
    let mut tunnels = network.into_iter().flat_map(|NetworkStatus { tunnels, .. }| tunnels);
    tunnels.any(|tunnel| tunnel.up && own.ready.contains(&tunnel.gateway))
}
