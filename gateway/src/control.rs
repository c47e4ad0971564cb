//! The address that gateways have inside their tunnels, for what clusters tell each other through them. Pure.
//!
//! Every gateway has the same, and sees that of each other gateway under an address of its own choice: the same exchange of
//! addresses that pods get, so that nothing has to be agreed on before there is a link. Nothing leads from there to pods,
//! nor from pods to there.

use crate::nat::{Mismatch, Remap};
use crate::packet::ip::{Fragment, Ip, protocol};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// The address of every gateway, as it is in the tunnel. Link-local (RFC 3927), as no network routes these; not in those parts
/// of the range that pods meet: routers of pod networks (169.254.1.1), name servers of nodes (169.254.20.10) and services of
/// clouds (169.254.169.0/24 and around).
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 112, 1);
/// Length of the prefix in which other gateways are seen: 4,093 of them.
pub const PREFIX_LENGTH: u8 = 20;
/// The one port there is.
pub const PORT: u16 = 7443;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The prefix in which other gateways are seen.
#[must_use]
pub fn network() -> Ipv4Net {
    Ipv4Net::new_assert(ADDRESS, PREFIX_LENGTH).trunc()
}

/// What a gateway that is seen at `view` really is.
///
/// # Errors
/// Never: both are addresses of IPv4.
pub fn remap(view: Ipv4Addr) -> Result<Remap, Mismatch> {
    Remap::new(IpAddr::from(view).into(), IpAddr::from(ADDRESS).into())
}

/// Whether an address is that of a gateway, as this one sees them or as it is in the tunnel.
#[must_use]
pub fn is_control(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if network().contains(&address))
}

/// Whether a packet between gateways is one of the link: TCP to its port, or back from there, but nothing that would begin
/// a connection to another port. Fragments are none: what this module is for fits the tunnel.
#[must_use]
pub fn is_link(packet: &[u8], ip: &Ip) -> bool {
    if ip.protocol != protocol::TCP || ip.fragment != Fragment::Whole {
        return false;
    }
    let Some(header) = packet.get(ip.payload..).and_then(|rest| rest.first_chunk::<14>()) else {
        return false;
    };
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let begins = header[13] & (SYN | ACK) == SYN;
    port(2) == PORT || (port(0) == PORT && !begins)
}

/// The addresses under which other gateways are seen. One stays the same as long as its gateway is there: connections hang
/// on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Views<K> {
    given: BTreeMap<K, Ipv4Addr>,
}

impl<K: Ord + Clone> Views<K> {
    /// Gives each of `gateways` an address, and takes back those of all others. Gateways for which there is none are left
    /// out.
    pub fn keep(&mut self, gateways: &BTreeSet<K>) {
        self.given.retain(|gateway, _| gateways.contains(gateway));
        let taken: BTreeSet<Ipv4Addr> = self.given.values().copied().chain([ADDRESS]).collect();
        let network = network();
        let mut free = network.hosts().filter(|address| !taken.contains(address));
        for gateway in gateways {
            if !self.given.contains_key(gateway) {
                let Some(address) = free.next() else { return };
                self.given.insert(gateway.clone(), address);
            }
        }
    }

    /// The address of a gateway.
    #[must_use]
    pub fn get(&self, gateway: &K) -> Option<Ipv4Addr> {
        self.given.get(gateway).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        packet.extend([169, 254, 112, 2, 169, 254, 112, 1]);
        packet.extend(from.to_be_bytes());
        packet.extend(to.to_be_bytes());
        packet.extend([0; 8]);
        packet.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        packet
    }

    fn passes(packet: &[u8]) -> bool {
        is_link(packet, &Ip::parse(packet).unwrap())
    }

    #[test]
    fn only_the_port_of_the_link_is_reached() {
        assert!(passes(&tcp(40_000, PORT, SYN)));
        assert!(passes(&tcp(40_000, PORT, ACK)));
        assert!(passes(&tcp(PORT, 40_000, SYN | ACK)), "the answer");
        assert!(passes(&tcp(PORT, 40_000, 0x04)), "a reset");
        assert!(!passes(&tcp(PORT, 9090, SYN)), "nothing else is begun from there");
        for flags in 0..=u8::MAX {
            assert!(!passes(&tcp(40_000, 9090, flags)), "{flags:#x}");
        }
    }

    #[test]
    fn other_protocols_fragments_and_stubs_do_not_pass() {
        let mut udp = tcp(40_000, PORT, SYN);
        udp[9] = 17;
        assert!(!passes(&udp));
        for offset in [[0x20, 0], [0, 5]] {
            let mut fragment = tcp(40_000, PORT, ACK);
            fragment[6..8].copy_from_slice(&offset);
            assert!(!passes(&fragment));
        }
        let mut stub = tcp(40_000, PORT, SYN);
        stub.truncate(28);
        stub[3] = 28;
        assert!(!Ip::parse(&stub).is_ok_and(|ip| is_link(&stub, &ip)));
    }

    #[test]
    fn an_address_stays_while_its_gateway_is_there_and_is_nobody_elses() {
        let set = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
        let mut views = Views::default();
        views.keep(&set(&["b", "c"]));
        let (b, c) = (views.get(&"b").unwrap(), views.get(&"c").unwrap());
        assert_ne!(b, c);
        views.keep(&set(&["a", "c"]));
        assert_eq!(views.get(&"c"), Some(c));
        assert_eq!(views.get(&"b"), None);
        let a = views.get(&"a").unwrap();
        assert!(a != c && a != ADDRESS && is_control(a.into()));
    }

    #[test]
    fn there_are_as_many_addresses_as_the_prefix_has_and_no_more() {
        let all: BTreeSet<u32> = (0..5000).collect();
        let mut views = Views::default();
        views.keep(&all);
        let given: BTreeSet<Ipv4Addr> = all.iter().filter_map(|gateway| views.get(gateway)).collect();
        assert_eq!(given.len(), 4093);
        assert!(given.iter().all(|address| network().contains(address) && *address != ADDRESS));
    }
}
