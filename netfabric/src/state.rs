//! What the kernel has, or shall have, on behalf of the overlay: plain values that can be compared.

use crate::filter::{Outline, Table};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Route table of the prefixes of peers.
pub const TABLE_PEERS: u32 = 7600;
/// Route table of the pods of this cluster, for what comes out of the tunnel at a gateway.
pub const TABLE_PODS: u32 = 7601;
/// Marks routes and rules as ours (the field `protocol`); 76 is nobody's in `rt_protos`.
pub const PROTOCOL: u8 = 76;
/// Reverse-path filter: the source must be routable, over any device. The kernel takes the larger one of a device's and
/// everybody's value, so this holds whatever the node's default is.
pub const LOOSE: u32 = 2;

/// The parts of network configuration that belong to the overlay.
///
/// `Filter` is [`Table`] for what is wanted and [`Outline`] for what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State<Filter> {
    /// The overlay device.
    pub link: Option<Link>,
    /// Settings of devices, by name.
    pub settings: BTreeMap<String, DeviceSettings>,
    /// Addresses of the overlay device.
    pub addresses: BTreeSet<IpNet>,
    /// Permanent neighbours on the overlay device.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Forwarding database of the overlay device: where frames for a MAC are sent.
    pub forwarding: BTreeSet<(Mac, IpAddr)>,
    /// Routes in the tables of ours.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Rules that lead to the tables of ours.
    pub rules: BTreeSet<Rule>,
    /// The packet filter table of ours.
    pub filter: Option<Filter>,
}

/// What shall be.
pub type Desired = State<Table>;
/// What is.
pub type Observed = State<Outline>;

// Not derived: that would ask the same of `Filter`.
impl<Filter> Default for State<Filter> {
    fn default() -> Self {
        Self {
            link: None,
            settings: BTreeMap::new(),
            addresses: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            forwarding: BTreeSet::new(),
            routes: BTreeMap::new(),
            rules: BTreeSet::new(),
            filter: None,
        }
    }
}

/// A VXLAN device that learns nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, at both ends.
    pub port: u16,
    /// Source address of what it sends.
    pub local: IpAddr,
    /// Whether it learns where senders are. Never wanted: the control plane knows.
    pub learning: bool,
    /// Its own MAC.
    pub mac: Mac,
    /// Longest packet inside.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

impl Link {
    /// Whether `self` can become `other` without being made anew.
    #[must_use]
    pub fn can_become(&self, other: &Self) -> bool {
        self.name == other.name
            && self.vni == other.vni
            && self.port == other.port
            && self.local == other.local
            && self.learning == other.learning
    }
}

/// Settings of a device that live in `/proc/sys/net/ipv4/conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Whether packets that come in here are forwarded.
    pub forwarding: bool,
    /// Reverse-path filter.
    pub rp_filter: u32,
}

impl DeviceSettings {
    /// What devices of the overlay need.
    pub const WANTED: Self = Self { forwarding: true, rp_filter: LOOSE };
}

/// What identifies a route within a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Route table.
    pub table: u32,
    /// Destinations.
    pub prefix: IpNet,
}

/// Where packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The way.
    pub target: Target,
    /// Source address of what this host itself sends that way.
    pub source: Option<IpAddr>,
    /// Whether the route carries our mark. Never false in what is wanted.
    pub ours: bool,
}

/// The way of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Over the overlay, to any of these next hops; flows are spread over them.
    Overlay(BTreeSet<IpAddr>),
    /// Into a device.
    Device(String),
    /// Nowhere: senders are told at once, and nothing leaks to the default route.
    Unreachable,
    /// What somebody else has made of a route of ours.
    Other,
}

/// A policy rule: who looks into a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// For IPv6 instead of IPv4.
    pub v6: bool,
    /// Lower ones come first.
    pub priority: u32,
    /// Only packets that come in here.
    pub device: Option<String>,
    /// The table.
    pub table: u32,
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// The address at which an end of the overlay is found over it: its own, as with flannel; of IPv6, where a device has an address
/// of its own anyway, that one.
#[must_use]
pub fn over_overlay(underlay: IpAddr) -> IpAddr {
    match underlay {
        IpAddr::V4(_) => underlay,
        IpAddr::V6(_) => Mac::of(underlay).link_local().into(),
    }
}

impl Mac {
    /// The MAC of the overlay device of whoever has this address: both ends derive it, nobody has to ask.
    ///
    /// It is locally administered. IPv4 fits in whole, so that no two are equal. Of IPv6, 40 bits of FNV-1a have to do:
    /// among a thousand nodes two are equal with a probability of one in two million.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                Self([0x02, 0x4c, a, b, c, d])
            }
            IpAddr::V6(address) => {
                let hash = address.octets().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                    (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
                });
                let [a, b, c, d, e, ..] = hash.to_be_bytes();
                Self([0x06, a, b, c, d, e])
            }
        }
    }

    /// The link-local address that belongs to it (RFC 4291, appendix A).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_local_unicast_and_hold_an_ipv4_address_whole() {
        let v4 = Mac::of("198.18.0.12".parse().unwrap());
        assert_eq!(v4.to_string(), "02:4c:c6:12:00:0c");
        let v6 = Mac::of("2001:db8::1".parse().unwrap());
        assert_ne!(v6, Mac::of("2001:db8::2".parse().unwrap()));
        for mac in [v4, v6] {
            assert_eq!(mac.0[0] & 3, 2, "{mac}");
        }
        assert_eq!(v4.link_local().to_string(), "fe80::4c:c6ff:fe12:c");
    }
}
