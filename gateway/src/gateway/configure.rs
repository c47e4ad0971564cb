//! Taking over configurations.

use super::{Config, Gateway, Route};
use crate::control;
use crate::nat::Remap;
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
    /// A tunnel that is known by another name, or of another peer, but with the same key, is the same. Tunnels that are new
    /// and have an address are called at once, unless it is said that they shall wait for packets.
    ///
    /// `first` is the key of the first lane.
    pub fn configure(&mut self, config: Config, first: &PrivateKey, now: Instant) {
        if config.private_key != self.private_key {
            self.know_lanes(first);
            self.jar = Jar::new(&config.private_key.public(), now, &mut self.random);
            self.private_key = config.private_key;
        }
        self.local = PrefixMap::new(config.local.into_iter().map(|prefix| (prefix, ())));
        self.outside = PrefixMap::new(config.transit.outside.into_iter().map(|prefix| (prefix, ())));
        let adopted = self.adopt(&config.peers);
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
            let at = self.place(&wanted.name);
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
            let route = move |remap: &Remap| (remap.view(), Route { peer: at, remap: *remap, gateway: None });
            peer.remaps.iter().map(route)
        });
        let tunnels = self.tunnels.iter().enumerate().filter_map(|(at, tunnel)| Some((at, tunnel.as_ref()?)));
        let gateways = tunnels.filter_map(|(at, tunnel)| {
            let remap = control::remap(tunnel.config.control?).ok()?;
            Some((remap.view(), Route { peer: tunnel.peer, remap, gateway: Some(at) }))
        });
        self.routes = PrefixMap::new(routes.chain(gateways));
        let at = |name: &String| {
            self.peers.iter().position(|peer| peer.as_ref().is_some_and(|peer| peer.name == *name))
        };
        let pairs = config.transit.between.iter().filter_map(|(one, other)| at(one).zip(at(other)));
        self.transit = pairs.flat_map(|(one, other)| [(one, other), (other, one)]).collect();
        self.pods = config.transit.pods;
        let silent = |at: &usize| {
            self.tunnels[*at].as_ref().is_some_and(|tunnel| tunnel.calls() && !tunnel.can_send(now))
        };
        calls.extend(adopted.into_iter().filter(silent));
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

    /// The place of the peer of this name, which is made if there is none.
    fn place(&mut self, name: &str) -> usize {
        let known = |peer: &Option<Peer>| peer.as_ref().is_some_and(|peer| peer.name == name);
        self.peers.iter().position(known).unwrap_or_else(|| {
            let free = free(&mut self.peers);
            self.peers[free] = Some(Peer::new(name.to_owned()));
            free
        })
    }

    /// Tunnels that are wanted under another name, known by their keys, get that name: whoever was a guest and is a peer
    /// now goes on with its session. Returns where they are.
    fn adopt(&mut self, wanted: &[PeerConfig]) -> Vec<usize> {
        let mut adopted = Vec::new();
        let mut names: Vec<(String, String)> = Vec::with_capacity(self.tunnels.len());
        for tunnel in self.tunnels.iter().flatten() {
            let peer = self.peers[tunnel.peer].as_ref().map(|peer| peer.name.clone()).unwrap_or_default();
            names.push((peer, tunnel.config.name.clone()));
        }
        let all = || wanted.iter().flat_map(|peer| peer.tunnels.iter().map(move |tunnel| (peer, tunnel)));
        let known = |(peer, tunnel): (&PeerConfig, &TunnelConfig)| {
            names.iter().any(|(of, name)| *of == peer.name && *name == tunnel.name)
        };
        for at in 0..self.tunnels.len() {
            let Some(tunnel) = &self.tunnels[at] else { continue };
            let key = tunnel.config.public_key;
            let Some((to, same)) = all().find(|(_, wanted)| wanted.public_key == key) else { continue };
            if known((to, same)) {
                continue;
            }
            let from = tunnel.peer;
            let place = self.place(&to.name);
            if let Some(peer) = &mut self.peers[from] {
                peer.tunnels.retain(|known| *known != at);
            }
            if let Some(peer) = &mut self.peers[place] {
                peer.tunnels.push(at);
            }
            if let Some(tunnel) = &mut self.tunnels[at] {
                tunnel.adopted(place, &same.name);
                adopted.push(at);
            }
        }
        adopted
    }

    /// Takes over what is known of a tunnel of the peer at `peer`; returns where it is, if it is to be called.
    fn configure_tunnel(&mut self, peer: usize, wanted: TunnelConfig, limit: u16) -> Option<usize> {
        let is_it = |tunnel: &Option<Tunnel>| {
            tunnel.as_ref().is_some_and(|tunnel| tunnel.peer == peer && tunnel.config.name == wanted.name)
        };
        if let Some(at) = self.tunnels.iter().position(is_it) {
            let tunnel = self.tunnels[at].as_mut()?;
            let retired = tunnel.reconfigure(wanted, limit);
            let calls = !retired.is_empty() && tunnel.calls();
            self.retire(&retired);
            return calls.then_some(at);
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
