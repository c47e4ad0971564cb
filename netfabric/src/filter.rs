//! The packet filter table of ours: source addresses that peers can answer to, and who may use the overlay.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

/// A comment has one byte for its length, and `nft` allows 128 with the end of the text.
const LONGEST_COMMENT: usize = 127;

/// Name of the table, of family `inet`.
pub const TABLE: &str = "liquid";

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Chains, in the order they are made.
    pub chains: Vec<Chain>,
    /// Sets of addresses by name; each of one family.
    pub sets: BTreeMap<String, AddressSet>,
}

/// Addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressSet {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// A chain that says nothing of what none of its rules is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Where packets pass it; none for chains that rules lead to.
    pub base: Option<Base>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// Where packets pass a chain by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The hook.
    pub hook: Hook,
    /// Chains with lower values come first.
    pub priority: i32,
}

/// Where packets pass a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// Source addresses, on the way out.
    Source,
}

impl Hook {
    /// Type of the chain, as nftables calls it.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Input | Self::Forward => "filter",
            Self::Source => "nat",
        }
    }

    /// Number of the hook (`NF_INET_*`).
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Input => 1,
            Self::Forward => 2,
            Self::Source => 4,
        }
    }
}

/// All conditions have to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions.
    pub when: Vec<Condition>,
    /// What happens then.
    pub action: Action,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It came in here.
    InDevice(String),
    /// It goes out there.
    OutDevice(String),
    /// It is of this family: IPv6 instead of IPv4.
    Family {
        /// IPv6 instead of IPv4.
        v6: bool,
    },
    /// Its source is in the prefix.
    Source(IpNet),
    /// Its source is not in the prefix.
    NotSource(IpNet),
    /// Its destination is in the prefix.
    Destination(IpNet),
    /// Its destination is not in the prefix.
    NotDestination(IpNet),
    /// Its source is not in the set of that name.
    SourceNotIn {
        /// IPv6 instead of IPv4.
        v6: bool,
        /// Name of the set.
        set: String,
    },
    /// Its destination is in the set of that name.
    DestinationIn {
        /// IPv6 instead of IPv4.
        v6: bool,
        /// Name of the set.
        set: String,
    },
    /// Its destination is not in the set of that name.
    DestinationNotIn {
        /// IPv6 instead of IPv4.
        v6: bool,
        /// Name of the set.
        set: String,
    },
    /// It is for one of these ports.
    Ports {
        /// Number of a protocol with ports.
        protocol: u8,
        /// The first.
        first: u16,
        /// The last.
        last: u16,
    },
    /// It is UDP for this port.
    UdpPort(u16),
    /// As UDP, it holds VXLAN with this network identifier.
    Vni(u32),
    /// It is ICMP, or ICMPv6.
    Icmp {
        /// ICMPv6 instead of ICMP.
        v6: bool,
    },
    /// It belongs to no connection that was let in.
    Unconnected,
    /// It can belong to no connection: its source would not be translated.
    Invalid,
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Its source stays, whatever later NAT chains would say.
    KeepSource {
        /// IPv6 instead of IPv4.
        v6: bool,
    },
    /// Its source becomes this address.
    Source(IpAddr),
    /// Its source becomes the address of the device by which it leaves.
    Masquerade,
    /// No further rule of the chain is asked.
    Accept,
    /// It is dropped, and counted.
    Drop,
    /// The rules of another chain are asked, then those that follow here.
    Jump(String),
}

/// What can be read back of a table.
///
/// A rule is known by its comment, which is its text: whoever replaces a rule replaces that too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Chains by name.
    pub chains: BTreeMap<String, ChainOutline>,
    /// Sets by name.
    pub sets: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// What can be read back of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainOutline {
    /// `filter` or `nat`, number of the hook, and priority; none for chains that rules lead to.
    pub base: Option<(String, u32, i32)>,
    /// Comments of its rules, in their order.
    pub rules: Vec<String>,
}

impl Table {
    /// What is read back when the table is as it should be.
    #[must_use]
    pub fn outline(&self) -> Outline {
        let chain = |chain: &Chain| {
            let base = |base: Base| (base.hook.kind().to_owned(), base.hook.number(), base.priority);
            let outline = ChainOutline {
                base: chain.base.map(base),
                rules: chain.rules.iter().map(Rule::comment).collect(),
            };
            (chain.name.clone(), outline)
        };
        Outline {
            chains: self.chains.iter().map(chain).collect(),
            sets: self.sets.iter().map(|(name, set)| (name.clone(), set.addresses.clone())).collect(),
        }
    }
}

fn ip(v6: bool) -> &'static str {
    if v6 { "ip6" } else { "ip" }
}

fn family(prefix: &IpNet) -> &'static str {
    ip(matches!(prefix, IpNet::V6(_)))
}

impl Rule {
    /// What it is known by: its text, or as much of that as a comment holds, and a number that stands for the rest.
    #[must_use]
    pub fn comment(&self) -> String {
        let mut text = self.to_string();
        if text.len() > LONGEST_COMMENT {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            // All of it is ASCII.
            text.truncate(LONGEST_COMMENT - 17);
            text.push_str(&format!("#{:016x}", hasher.finish()));
        }
        text
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.when {
            write!(formatter, "{condition} ")?;
        }
        write!(formatter, "{}", self.action)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InDevice(name) => write!(formatter, "iif {name}"),
            Self::OutDevice(name) => write!(formatter, "oif {name}"),
            Self::Family { v6 } => write!(formatter, "{}", ip(*v6)),
            Self::Source(prefix) => write!(formatter, "{} saddr {prefix}", family(prefix)),
            Self::NotSource(prefix) => write!(formatter, "{} saddr != {prefix}", family(prefix)),
            Self::Destination(prefix) => write!(formatter, "{} daddr {prefix}", family(prefix)),
            Self::NotDestination(prefix) => write!(formatter, "{} daddr != {prefix}", family(prefix)),
            Self::SourceNotIn { v6, set } => write!(formatter, "{} saddr != @{set}", ip(*v6)),
            Self::DestinationIn { v6, set } => write!(formatter, "{} daddr @{set}", ip(*v6)),
            Self::DestinationNotIn { v6, set } => write!(formatter, "{} daddr != @{set}", ip(*v6)),
            Self::Ports { protocol, first, last } => {
                write!(formatter, "protocol {protocol} dport {first}-{last}")
            }
            Self::UdpPort(port) => write!(formatter, "udp dport {port}"),
            Self::Vni(vni) => write!(formatter, "vxlan vni {vni}"),
            Self::Icmp { v6 } => write!(formatter, "{}", if *v6 { "icmpv6" } else { "icmp" }),
            Self::Unconnected => formatter.write_str("unconnected"),
            Self::Invalid => formatter.write_str("invalid"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeepSource { .. } => formatter.write_str("keeps its source"),
            Self::Source(address) => write!(formatter, "source becomes {address}"),
            Self::Masquerade => formatter.write_str("masquerade"),
            Self::Accept => formatter.write_str("accept"),
            Self::Drop => formatter.write_str("drop"),
            Self::Jump(chain) => write!(formatter, "jump {chain}"),
        }
    }
}
