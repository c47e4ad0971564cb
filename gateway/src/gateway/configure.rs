//! Taking over configurations.

use super::{Config, Gateway, Route};
use crate::peer::{Peer, PeerConfig};
use crate::prefix_map::PrefixMap;
use crate::signal;
use crate::tunnel::{Tunnel, TunnelConfig};
use crate::wireguard::cookie::{Jar, Recipient};
use crate::wireguard::key::PrivateKey;
use std::time::Instant;

impl Gateway {
    /// Takes over another configuration. Peers and their tunnels are known by name: sessions go on, also in a tunnel
    /// whose key changes, and in all of them when the own key does, until the next handshake, which uses the new keys.
    /// Tunnels that are new and have an address are called at once, unless it is said that they shall wait for packets.
    ///
    /// `first` is the key of the first lane.
    pub fn configure(&mut self, config: Config, first: &PrivateKey, now: Instant) {
        if config.private_key != self.private_key {
            self.know_lanes(first);
            self.jar = Jar::new(&config.private_key.public(), now, &mut self.random);
            self.private_key = config.private_key;
        }
        self.local = PrefixMap::new(config.local.into_iter().map(|prefix| (prefix, ())));
        let wanted = |peer: &str| config.peers.iter().find(|wanted| wanted.name == peer);
        for at in 0..self.tunnels.len() {
            let Some(tunnel) = &self.tunnels[at] else { continue };
            let peer = self.peers[tunnel.peer].as_ref().and_then(|peer| wanted(&peer.name));
            let stays =
                |peer: &PeerConfig| peer.tunnels.iter().any(|wanted| wanted.name == tunnel.config.name);
            if !peer.is_some_and(stays) {
                self.end_tunnel(at);
            }
        }
        for slot in &mut self.peers {
            slot.take_if(|peer| wanted(&peer.name).is_none());
        }
        let mut calls = Vec::new();
        for wanted in config.peers {
            let known = |peer: &Option<Peer>| peer.as_ref().is_some_and(|peer| peer.name == wanted.name);
            let at = self.peers.iter().position(known).unwrap_or_else(|| {
                let free = free(&mut self.peers);
                self.peers[free] = Some(Peer::new(wanted.name));
                free
            });
            for tunnel in wanted.tunnels {
                calls.extend(self.configure_tunnel(at, tunnel, wanted.mtu));
            }
            if let Some(peer) = &mut self.peers[at] {
                peer.reconfigure(wanted.remaps);
            }
            self.spread(at);
        }
        let tunnels = self.tunnels.iter().enumerate();
        self.by_key =
            tunnels.filter_map(|(at, tunnel)| Some((tunnel.as_ref()?.config.public_key, at))).collect();
        let peers = self.peers.iter().enumerate().filter_map(|(at, peer)| Some((at, peer.as_ref()?)));
        let routes = peers.flat_map(|(at, peer)| {
            peer.remaps.iter().map(move |remap| (remap.view(), Route { peer: at, remap: *remap }))
        });
        self.routes = PrefixMap::new(routes);
        for tunnel in calls {
            self.initiate(tunnel, now);
        }
    }

    /// Works out what follows from the key of the first lane for all of them.
    pub(super) fn know_lanes(&mut self, first: &PrivateKey) {
        let keys: Vec<_> = (0..self.lane.count).map(|number| first.lane(number).public()).collect();
        self.lanes = keys.iter().map(Recipient::new).collect();
        self.lanes_message = signal::encode_lanes(&keys[1..]);
    }

    /// Takes over what is known of a tunnel of the peer at `peer`; returns where it is, if it is to be called.
    fn configure_tunnel(&mut self, peer: usize, wanted: TunnelConfig, limit: u16) -> Option<usize> {
        let known = self.tunnels.iter_mut().flatten();
        let mut known = known.filter(|tunnel| tunnel.peer == peer && tunnel.config.name == wanted.name);
        if let Some(tunnel) = known.next() {
            tunnel.reconfigure(wanted, limit);
            return None;
        }
        let at = free(&mut self.tunnels);
        let tunnel = Tunnel::new(wanted, peer, limit);
        let calls = tunnel.calls();
        self.tunnels[at] = Some(tunnel);
        if let Some(peer) = &mut self.peers[peer] {
            peer.tunnels.push(at);
        }
        calls.then_some(at)
    }

    fn end_tunnel(&mut self, at: usize) {
        let Some(tunnel) = self.tunnels[at].take() else { return };
        for index in tunnel.indices() {
            self.by_index.remove(&index);
        }
        if let Some(peer) = &mut self.peers[tunnel.peer] {
            peer.tunnels.retain(|known| *known != at);
            peer.past += tunnel.traffic;
        }
    }
}

/// A free place, made if there is none.
fn free<T>(slots: &mut Vec<Option<T>>) -> usize {
    slots.iter().position(Option::is_none).unwrap_or_else(|| {
        slots.push(None);
        slots.len() - 1
    })
}
