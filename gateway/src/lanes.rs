//! Lanes: several state machines of one gateway, each with a thread, a key, sessions and flows of its own.
//!
//! To the other end, each lane is an ordinary WireGuard peer. The first has the gateway's key and is all that plain
//! WireGuard, and peers of earlier versions, ever see. The keys of the others follow from it, and are told to the other
//! gateway inside the first lane's tunnel. Lane `n` of one gateway talks to lane `n` of the other, counted round and round
//! where one has fewer. All use one UDP port: which lane a datagram is for follows from the index of its session.

use crate::gateway::Config;
use crate::peer::PeerConfig;
use crate::tunnel::TunnelConfig;
use crate::wireguard::key::PublicKey;
use std::collections::HashSet;

/// Most lanes of a gateway. Each pins 1.3 MiB of buffers and up to 28 MiB of socket buffers, and 15 keys fit a packet.
pub const MAX_LANES: usize = 16;

/// A lane of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// Which, from 0.
    pub number: usize,
    /// Of how many.
    pub count: usize,
}

impl Lane {
    /// The only lane.
    pub const ONLY: Self = Self { number: 0, count: 1 };

    /// Whether it is the first, which takes what the others have no way for.
    #[must_use]
    pub fn is_first(self) -> bool {
        self.number == 0
    }

    /// The lane a session index belongs to. The first byte on the wire decides, so that the kernel finds it too.
    #[must_use]
    pub fn of_index(self, index: u32) -> usize {
        usize::from(index.to_le_bytes()[0]) % self.count
    }

    /// An index of this lane, made of a random one.
    #[must_use]
    pub fn own_index(self, random: u32) -> u32 {
        let [first, rest @ ..] = random.to_le_bytes();
        let (count, number) =
            (u8::try_from(self.count).unwrap_or(1), u8::try_from(self.number).unwrap_or_default());
        let base = first - first % count;
        let own = base.checked_add(number).unwrap_or_else(|| base - count + number);
        u32::from_le_bytes([own, rest[0], rest[1], rest[2]])
    }

    /// What this lane is told, of what the gateway is told. `learned` has the keys of the further lanes of gateways at the
    /// other ends, by peer and tunnel; none for ends that have not told, which have no lanes.
    #[must_use]
    pub fn config<'a>(
        self,
        whole: &Config,
        learned: impl Fn(&str, &str) -> Option<&'a [PublicKey]>,
    ) -> Config {
        let tunnels = || whole.peers.iter().flat_map(|peer| &peer.tunnels);
        // A peer that names the key of another one shall not get its packets.
        let mut keys: HashSet<PublicKey> = tunnels().map(|tunnel| tunnel.public_key).collect();
        let peers = whole.peers.iter().map(|peer| {
            let mut mine = Vec::new();
            for tunnel in &peer.tunnels {
                if self.is_first() {
                    mine.push(tunnel.clone());
                }
                let Some(further) = learned(&peer.name, &tunnel.name) else { continue };
                for number in
                    (1..self.count.max(further.len() + 1)).filter(|it| it % self.count == self.number)
                {
                    let key = match number % (further.len() + 1) {
                        // With the first lane of the other end, each lane of ours has a tunnel of its own.
                        0 => tunnel.public_key,
                        other => further[other - 1],
                    };
                    let is_own = key == tunnel.public_key;
                    if !is_own && !keys.insert(key) {
                        continue;
                    }
                    mine.push(TunnelConfig {
                        name: format!("{}/{number}", tunnel.name),
                        public_key: key,
                        tells_lanes: false,
                        // What gateways say to each other is little, and passes in the tunnel of the first lanes.
                        control: None,
                        ..tunnel.clone()
                    });
                }
            }
            PeerConfig { tunnels: mine, ..peer.clone() }
        });
        let peers = peers.collect();
        Config {
            private_key: whole.private_key.lane(self.number),
            local: whole.local.clone(),
            peers,
            transit: whole.transit.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transit::Transit;
    use crate::wireguard::key::PrivateKey;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const TOLD: fn(usize) -> Vec<PublicKey> = |lanes| further(&PrivateKey::new([9; 32]), lanes);

    fn further(key: &PrivateKey, lanes: usize) -> Vec<PublicKey> {
        (1..lanes).map(|lane| key.lane(lane).public()).collect()
    }

    fn whole(probes: bool) -> Config {
        let tunnel = TunnelConfig {
            name: "g0".to_owned(),
            public_key: PrivateKey::new([9; 32]).public(),
            preshared_key: None,
            endpoints: Vec::new(),
            keepalive: None,
            probes,
            tells_lanes: probes,
            own_key: None,
            control: Some(std::net::Ipv4Addr::new(169, 254, 112, 7)),
        };
        let peer = PeerConfig { name: "b".to_owned(), remaps: Vec::new(), mtu: 1420, tunnels: vec![tunnel] };
        Config {
            private_key: PrivateKey::new([1; 32]),
            local: Vec::new(),
            peers: vec![peer],
            transit: Transit::default(),
        }
    }

    /// Pairs of keys, ours and theirs, of all tunnels of all lanes.
    fn pairs(whole: &Config, lanes: usize, told: Option<&[PublicKey]>) -> Vec<(PublicKey, PublicKey)> {
        let mut pairs = Vec::new();
        for number in 0..lanes {
            let config = Lane { number, count: lanes }.config(whole, |_, _| told);
            let own = config.private_key.public();
            pairs.extend(config.peers[0].tunnels.iter().map(|tunnel| (own, tunnel.public_key)));
        }
        pairs
    }

    #[test]
    fn an_end_without_lanes_sees_only_the_first() {
        let whole = whole(false);
        let only = vec![(whole.private_key.public(), whole.peers[0].tunnels[0].public_key)];
        assert_eq!(pairs(&whole, 4, None), only);
    }

    #[test]
    fn both_ends_pair_the_same_lanes_and_each_pair_has_one_tunnel() {
        let ours = whole(true);
        let mut theirs = ours.clone();
        theirs.private_key = PrivateKey::new([9; 32]);
        theirs.peers[0].tunnels[0].public_key = ours.private_key.public();
        for (a, b) in [(1, 1), (2, 2), (4, 2), (2, 4), (1, 3), (3, 2), (16, 16), (16, 1)] {
            let here = pairs(&ours, a, Some(&TOLD(b)));
            let there = pairs(&theirs, b, Some(&further(&ours.private_key, a)));
            let here: BTreeSet<_> = here.iter().map(|(own, other)| (own.0, other.0)).collect();
            let there: BTreeSet<_> = there.iter().map(|(own, other)| (other.0, own.0)).collect();
            assert_eq!(here, there, "{a} and {b}");
            assert_eq!(here.len(), a.max(b));
        }
    }

    #[test]
    fn gateways_speak_in_one_tunnel_of_all_lanes() {
        let whole = whole(true);
        for (ours, theirs) in [(1, 1), (4, 2), (2, 4), (3, 3)] {
            let told = TOLD(theirs);
            let lanes = (0..ours).map(|number| {
                let config = Lane { number, count: ours }.config(&whole, |_, _| Some(&told));
                config.peers[0].tunnels.iter().filter(|tunnel| tunnel.control.is_some()).count()
            });
            let expected: Vec<usize> = (0..ours).map(|number| usize::from(number == 0)).collect();
            assert_eq!(lanes.collect::<Vec<_>>(), expected, "{ours} and {theirs}");
        }
    }

    #[test]
    fn a_peer_that_tells_the_key_of_another_gets_nothing_by_it() {
        let mut whole = whole(true);
        let victim = PrivateKey::new([5; 32]).public();
        let mut other = whole.peers[0].clone();
        other.name = "victim".to_owned();
        other.tunnels[0].public_key = victim;
        whole.peers.push(other);
        let liar = [victim];
        let told = |peer: &str, _: &str| (peer == "b").then_some(&liar[..]);
        for number in 0..2 {
            let config = Lane { number, count: 2 }.config(&whole, told);
            assert!(config.peers[0].tunnels.iter().all(|tunnel| tunnel.public_key != victim));
        }
    }

    proptest! {
        #[test]
        fn an_index_leads_to_the_lane_that_made_it(random: u32, count in 1usize..=MAX_LANES, number in 0usize..MAX_LANES) {
            let lane = Lane { number: number % count, count };
            prop_assert_eq!(lane.of_index(lane.own_index(random)), lane.number);
            prop_assert_eq!(lane.own_index(random) >> 8, random >> 8);
        }
    }
}
