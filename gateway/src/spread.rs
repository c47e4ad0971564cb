//! Which of several tunnels a flow takes: always the same one, as long as that works.

use crate::liveness::Way;
use crate::packet::ip::{Fragment, Ip, protocol};
use std::net::IpAddr;

/// Classes of flows: each of 8 tunnels gets 32 of them, give or take 5. They take 512 bytes per peer.
const CLASSES: usize = 256;

/// The tunnel of each class of flows.
///
/// Rendezvous hashing (Thaler and Ravishankar, 1998): a tunnel that fails hands its classes to the others, and takes back
/// the same ones; all other flows stay where they are.
#[derive(Debug, Clone)]
pub(crate) struct Spread {
    classes: Box<[u16; CLASSES]>,
    best: Option<Way>,
}

impl Default for Spread {
    fn default() -> Self {
        Self { classes: Box::new([0; CLASSES]), best: None }
    }
}

impl Spread {
    /// Spreads flows over the best of these tunnels: each with what it is known by here, a number of its own that stays,
    /// and how it is. If none works, flows go on over all of them: the fault may be with who judges.
    pub(crate) fn over(&mut self, tunnels: &[(usize, u64, Way)]) {
        let best = tunnels.iter().map(|(_, _, way)| *way).max();
        let used = || tunnels.iter().filter(|(_, _, way)| Some(*way) == best);
        self.best = best;
        for (class, chosen) in (0..).zip(self.classes.iter_mut()) {
            let first = used().max_by_key(|(_, number, _)| mix(number ^ mix(class)));
            *chosen = first.and_then(|(at, ..)| u16::try_from(*at).ok()).unwrap_or_default();
        }
    }

    /// How the tunnels are that flows are spread over; none without tunnels.
    pub(crate) fn best(&self) -> Option<Way> {
        self.best
    }

    /// The tunnel for flows with this hash; none if there are no tunnels.
    pub(crate) fn choose(&self, flow: u64) -> Option<usize> {
        // Of the upper bits: the lower ones are worse in a product.
        let class = usize::try_from(flow >> 56).unwrap_or_default();
        self.classes.get(class).filter(|_| self.best.is_some()).map(|at| usize::from(*at))
    }
}

/// A hash of the flow a packet belongs to: of addresses, protocol and ports. Fragments have no ports, and those of one
/// packet stay together.
pub(crate) fn flow(packet: &[u8], ip: &Ip, seed: u64) -> u64 {
    let fold = |address: IpAddr| match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            u64::try_from(bits >> 64).unwrap_or_default()
                ^ u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default()
        }
    };
    let has_ports = matches!(ip.protocol, protocol::TCP | protocol::UDP) && ip.fragment == Fragment::Whole;
    let ports = packet.get(ip.payload..).filter(|_| has_ports).and_then(|rest| rest.first_chunk());
    let ports = ports.map_or(0, |ports| u64::from(u32::from_be_bytes(*ports)));
    let ends = mix(seed ^ fold(ip.source)).wrapping_add(fold(ip.destination));
    mix(mix(ends) ^ ports ^ u64::from(ip.protocol) << 32)
}

/// A number for something that has a name of these bytes.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| mix(sum ^ u64::from(*byte)))
}

/// The finisher of `splitmix64` (Steele, Lea, Flood 2014): each bit of the input turns half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::{Body, Packet};
    use std::collections::BTreeMap;

    fn tunnels(ways: &[Way]) -> Vec<(usize, u64, Way)> {
        ways.iter().enumerate().map(|(at, way)| (at, number(format!("t{at}").as_bytes()), *way)).collect()
    }

    fn flows() -> impl Iterator<Item = u64> {
        (0..4000u16).map(|port| {
            let body = Body::Udp { ports: [port, 80], checksum: true, payload: vec![] };
            let packet = Packet::new("10.0.0.1", "10.1.0.1", body).bytes();
            flow(&packet, &Ip::parse(&packet).unwrap(), 7)
        })
    }

    fn chosen(ways: &[Way]) -> Vec<usize> {
        let mut spread = Spread::default();
        spread.over(&tunnels(ways));
        flows().map(|flow| spread.choose(flow).unwrap()).collect()
    }

    #[test]
    fn flows_are_spread_evenly_and_only_those_of_a_dead_tunnel_move() {
        use Way::{Down, Up};
        let all = chosen(&[Up; 4]);
        let mut shares = BTreeMap::<_, usize>::new();
        all.iter().for_each(|at| *shares.entry(at).or_default() += 1);
        assert!(shares.len() == 4 && shares.values().all(|share| (700..1300).contains(share)), "{shares:?}");

        let without = chosen(&[Up, Down, Up, Up]);
        for (before, after) in all.iter().zip(&without) {
            assert!(*after != 1 && (before == after || *before == 1));
        }
        assert_eq!(chosen(&[Up; 4]), all, "and they come back");
    }

    #[test]
    fn only_the_best_are_used_and_all_if_none_works() {
        use Way::{Down, Recovering, Standby, Up};
        let used = |ways: &[Way]| chosen(ways).into_iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(used(&[Standby, Up, Down, Recovering]), [1].into());
        assert_eq!(used(&[Standby, Down, Standby, Recovering]), [0, 2].into());
        assert_eq!(used(&[Recovering, Down]), [0].into());
        assert_eq!(used(&[Down, Down]), [0, 1].into());
        assert_eq!(Spread::default().choose(1), None);
    }

    #[test]
    fn both_families_and_fragments_have_flows() {
        let payload = vec![1; 64];
        let mut packet =
            Packet::new("fd00::1", "fd00::2", Body::Udp { ports: [1, 2], checksum: true, payload });
        let of = |packet: &Packet| {
            let bytes = packet.bytes();
            flow(&bytes, &Ip::parse(&bytes).unwrap(), 7)
        };
        let first = of(&packet);
        assert_eq!(of(&packet), first);
        packet.destination = "fd00::3".parse().unwrap();
        assert_ne!(of(&packet), first);
        // The first fragment has ports, the others do not: they must not part.
        let mut bytes =
            Packet::new("10.0.0.1", "10.0.0.2", Body::Other { protocol: 17, payload: vec![9; 64] }).bytes();
        let hash = |bytes: &[u8]| flow(bytes, &Ip::parse(bytes).unwrap(), 7);
        bytes[6] = 0x20;
        let first = hash(&bytes);
        bytes[6..8].copy_from_slice(&[0, 8]);
        assert_eq!(hash(&bytes), first);
    }
}
