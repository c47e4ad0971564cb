//! The packet filter table, written and read over netlink (`linux/netfilter/nf_tables.h`).
//!
//! There is no crate for it that could be used: those that know NAT need the `nft` program or C libraries, which are not
//! in an image that is made from nothing, or are under the GPL.

use super::message::{Attributes, Message, Reply, address};
use super::socket::{CREATE, Error, Netlink};
use crate::filter::{Action, AddressSet, Base, Chain, ChainOutline, Condition, Outline, Rule, TABLE, Table};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Length of `struct nfgenmsg`.
pub(super) const HEADER: usize = 4;
const SUBSYSTEM: u16 = 10;
/// Family `inet`: IPv4 and IPv6.
const INET: u8 = 1;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;
/// The name of the table, in messages about any object but a set element's value.
pub(super) const NAME_OF_TABLE: u16 = 1;

const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USER_DATA: u16 = 7;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_ID: u16 = 10;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ITEM: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

/// The register that ends a rule, and the one values go through.
const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_IN_NAME: u32 = 6;
const META_OUT_NAME: u32 = 7;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const NOT_MORE: u32 = 3;
const NOT_LESS: u32 = 5;
/// `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`.
const STATES_CONNECTED: u32 = 1 << 1 | 1 << 2;
/// `NF_CT_STATE_INVALID_BIT`.
const STATE_INVALID: u32 = 1;
/// `NFT_LOOKUP_F_INV`.
const NOT_IN_SET: u32 = 1;
const UDP: u8 = 17;
const ICMP: [u8; 2] = [1, 58];
/// Of the header structures of either family: where source and destination are, and how long they are.
const SOURCE: [(u32, usize); 2] = [(12, 4), (8, 16)];
const DESTINATION: [(u32, usize); 2] = [(16, 4), (24, 16)];
/// Within UDP: behind its own header (8), VXLAN's flags (4).
const VNI_OFFSET: u32 = 12;
/// Type of comments in the user data of rules, as `nft` writes and shows them.
const COMMENT: u8 = 0;
/// Set elements in a message: 2,000 IPv6 addresses take 48 kB of the 64 kB that fit in an attribute.
const ELEMENTS_PER_MESSAGE: usize = 2000;
/// Types of set keys, as `nft` shows them.
const KEY_TYPES: [u32; 2] = [7, 8];

fn message(kind: u16, flags: u16) -> Message {
    let mut message = Message::new(SUBSYSTEM << 8 | kind, flags, &[INET, 0, 0, 0]);
    message.put_text(NAME_OF_TABLE, TABLE);
    message
}

fn batch(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

/// Puts the table in the place of the one that may be there, in one transaction.
pub(super) fn set(netlink: &mut Netlink, table: &Table) -> Result<(), Error> {
    // To delete what may not be there, make it first.
    let mut changes = vec![message(NEW_TABLE, CREATE), message(DELETE_TABLE, 0), message(NEW_TABLE, CREATE)];
    for (number, (name, set)) in (1..).zip(&table.sets) {
        new_set(&mut changes, number, name, set);
    }
    // Before any rule: rules may lead to chains that come later.
    changes.extend(table.chains.iter().map(new_chain));
    for chain in &table.chains {
        changes.extend(chain.rules.iter().map(|rule| new_rule(&chain.name, rule)));
    }
    netlink.transaction(batch(BATCH_BEGIN), changes, batch(BATCH_END))
}

/// Removes the table.
pub(super) fn remove(netlink: &mut Netlink) -> Result<(), Error> {
    let removed = netlink.transaction(batch(BATCH_BEGIN), vec![message(DELETE_TABLE, 0)], batch(BATCH_END));
    super::gone(removed, &[Errno::ENOENT])
}

fn new_set(changes: &mut Vec<Message>, number: u32, name: &str, set: &AddressSet) {
    let length = if set.v6 { 16 } else { 4 };
    let mut made = message(NEW_SET, CREATE);
    made.put_text(SET_NAME, name)
        .put_be32(SET_FLAGS, 0)
        .put_be32(SET_KEY_TYPE, KEY_TYPES[usize::from(set.v6)])
        .put_be32(SET_KEY_LENGTH, length)
        .put_be32(SET_ID, number);
    changes.push(made);
    let addresses: Vec<_> = set.addresses.iter().collect();
    for some in addresses.chunks(ELEMENTS_PER_MESSAGE) {
        let mut elements = message(NEW_ELEMENTS, CREATE);
        elements.put_text(ELEMENTS_SET, name).nest(ELEMENTS_LIST, |list| {
            for address in some {
                list.nest(ITEM, |element| {
                    element.nest(ELEMENT_KEY, |key| {
                        key.put_address(VALUE, **address);
                    });
                });
            }
        });
        changes.push(elements);
    }
}

fn new_chain(chain: &Chain) -> Message {
    let mut made = message(NEW_CHAIN, CREATE);
    made.put_text(CHAIN_NAME, &chain.name);
    if let Some(Base { hook, priority }) = chain.base {
        made.nest(CHAIN_HOOK, |place| {
            place.put_be32(HOOK_NUMBER, hook.number()).put_be32(HOOK_PRIORITY, priority.cast_unsigned());
        })
        .put_text(CHAIN_TYPE, hook.kind());
    }
    made
}

/// `NLM_F_APPEND`: behind the rules that are there.
fn new_rule(chain: &str, rule: &Rule) -> Message {
    let mut made = message(NEW_RULE, CREATE | super::socket::APPEND);
    made.put_text(RULE_CHAIN, chain).nest(RULE_EXPRESSIONS, |list| {
        let mut expressions = Expressions(list);
        for condition in &rule.when {
            expressions.condition(condition);
        }
        expressions.action(&rule.action);
    });
    made.put(RULE_USER_DATA, &comment(rule));
    made
}

/// User data with a rule's comment.
fn comment(rule: &Rule) -> Vec<u8> {
    let mut text = rule.comment().into_bytes();
    text.push(0);
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[COMMENT, length], text.as_slice()].concat()
}

/// Writes the expressions of a rule.
struct Expressions<'a>(&'a mut Message);

impl Expressions<'_> {
    fn add(&mut self, name: &str, data: impl FnOnce(&mut Message)) {
        self.0.nest(ITEM, |item| {
            item.put_text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data);
        });
    }

    fn meta(&mut self, key: u32) {
        self.add("meta", |meta| {
            meta.put_be32(1, REGISTER).put_be32(2, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.add("payload", |payload| {
            payload.put_be32(1, REGISTER).put_be32(2, base).put_be32(3, offset).put_be32(4, length);
        });
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        self.add("cmp", |compare| {
            compare.put_be32(1, REGISTER).put_be32(2, operator).nest(3, |data| {
                data.put(VALUE, value);
            });
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        let zeros = vec![0; mask.len()];
        self.add("bitwise", |bitwise| {
            bitwise.put_be32(1, REGISTER).put_be32(2, REGISTER).put_be32(3, length);
            for (attribute, value) in [(4, mask), (5, &zeros)] {
                bitwise.nest(attribute, |data| {
                    data.put(VALUE, value);
                });
            }
        });
    }

    fn device(&mut self, key: u32, name: &str) {
        // All of the 16 bytes of a name, so that longer names do not match.
        let mut padded = name.as_bytes().to_vec();
        padded.resize(libc::IFNAMSIZ, 0);
        self.meta(key);
        self.compare(EQUAL, &padded);
    }

    fn family(&mut self, v6: bool) {
        let family = if v6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
        self.meta(META_FAMILY);
        self.compare(EQUAL, &[u8::try_from(family).unwrap_or(0)]);
    }

    fn protocol(&mut self, protocol: u8) {
        self.meta(META_PROTOCOL);
        self.compare(EQUAL, &[protocol]);
    }

    fn address(&mut self, place: [(u32, usize); 2], v6: bool) {
        let (offset, length) = place[usize::from(v6)];
        self.payload(NETWORK_HEADER, offset, u32::try_from(length).unwrap_or(0));
    }

    fn prefix(&mut self, place: [(u32, usize); 2], operator: u32, prefix: &IpNet) {
        let v6 = matches!(prefix, IpNet::V6(_));
        self.family(v6);
        self.address(place, v6);
        self.mask(&bytes(prefix.netmask()));
        self.compare(operator, &bytes(prefix.network()));
    }

    /// Whether an address is in a set, or is not.
    fn member(&mut self, place: [(u32, usize); 2], v6: bool, set: &str, flags: u32) {
        self.family(v6);
        self.address(place, v6);
        self.add("lookup", |lookup| {
            lookup.put_text(1, set).put_be32(2, REGISTER).put_be32(5, flags);
        });
    }

    /// What a connection has of these states, against none.
    fn state(&mut self, states: u32, operator: u32) {
        // Key 0: the state, in the byte order of this machine.
        self.add("ct", |ct| {
            ct.put_be32(1, REGISTER).put_be32(2, 0);
        });
        self.mask(&states.to_ne_bytes());
        self.compare(operator, &[0; 4]);
    }

    fn condition(&mut self, condition: &Condition) {
        match condition {
            Condition::InDevice(name) => self.device(META_IN_NAME, name),
            Condition::OutDevice(name) => self.device(META_OUT_NAME, name),
            Condition::Family { v6 } => self.family(*v6),
            Condition::Source(prefix) => self.prefix(SOURCE, EQUAL, prefix),
            Condition::NotSource(prefix) => self.prefix(SOURCE, NOT_EQUAL, prefix),
            Condition::Destination(prefix) => self.prefix(DESTINATION, EQUAL, prefix),
            Condition::NotDestination(prefix) => self.prefix(DESTINATION, NOT_EQUAL, prefix),
            Condition::SourceNotIn { v6, set } => self.member(SOURCE, *v6, set, NOT_IN_SET),
            Condition::DestinationIn { v6, set } => self.member(DESTINATION, *v6, set, 0),
            Condition::DestinationNotIn { v6, set } => self.member(DESTINATION, *v6, set, NOT_IN_SET),
            Condition::Ports { protocol, first, last } => {
                self.protocol(*protocol);
                // In network byte order, which the kernel compares byte by byte.
                self.payload(TRANSPORT_HEADER, 2, 2);
                self.compare(NOT_LESS, &first.to_be_bytes());
                self.compare(NOT_MORE, &last.to_be_bytes());
            }
            Condition::UdpPort(port) => {
                self.protocol(UDP);
                self.payload(TRANSPORT_HEADER, 2, 2);
                self.compare(EQUAL, &port.to_be_bytes());
            }
            Condition::Vni(vni) => {
                self.payload(TRANSPORT_HEADER, VNI_OFFSET, 3);
                self.compare(EQUAL, &vni.to_be_bytes()[1..]);
            }
            Condition::Icmp { v6 } => {
                self.family(*v6);
                self.protocol(ICMP[usize::from(*v6)]);
            }
            Condition::Unconnected => self.state(STATES_CONNECTED, EQUAL),
            Condition::Invalid => self.state(STATE_INVALID, NOT_EQUAL),
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::KeepSource { v6 } => {
                self.address(SOURCE, *v6);
                self.source_nat(*v6);
            }
            Action::Source(address) => {
                self.immediate(|value| {
                    value.put_address(VALUE, *address);
                });
                self.source_nat(address.is_ipv6());
            }
            Action::Masquerade => self.add("masq", |_| {}),
            Action::Accept => self.verdict(libc::NF_ACCEPT, None),
            Action::Drop => {
                self.add("counter", |_| {});
                self.verdict(libc::NF_DROP, None);
            }
            Action::Jump(chain) => self.verdict(libc::NFT_JUMP, Some(chain)),
        }
    }

    fn immediate(&mut self, value: impl FnOnce(&mut Message)) {
        self.add("immediate", |immediate| {
            immediate.put_be32(1, REGISTER).nest(2, value);
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.add("immediate", |immediate| {
            immediate.put_be32(1, REGISTER_VERDICT).nest(2, |data| {
                data.nest(VERDICT, |verdict| {
                    verdict.put_be32(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        verdict.put_text(2, chain);
                    }
                });
            });
        });
    }

    /// Source NAT to the address in the register.
    fn source_nat(&mut self, v6: bool) {
        let family = if v6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
        self.add("nat", |nat| {
            nat.put_be32(1, 0).put_be32(2, family.cast_unsigned()).put_be32(3, REGISTER);
        });
    }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What is read of a table, besides its outline.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) outline: Outline,
    /// Packets dropped, by chain.
    pub(super) dropped: BTreeMap<String, u64>,
}

/// Reads the table back; nothing if there is none.
pub(super) fn read(netlink: &mut Netlink) -> Result<Option<Found>, Error> {
    match netlink.get(message(GET_TABLE, 0)) {
        Ok(_) => {}
        Err(error) if error.is(&[Errno::ENOENT]) => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut found = Found::default();
    for reply in objects(netlink, GET_CHAIN)? {
        let attributes = reply.attributes(HEADER);
        let Some(name) = attributes.text(CHAIN_NAME) else { continue };
        let hook = attributes.inner(CHAIN_HOOK);
        let base = hook.be32(HOOK_NUMBER).map(|number| {
            let priority = hook.be32(HOOK_PRIORITY).unwrap_or(0).cast_signed();
            (attributes.text(CHAIN_TYPE).unwrap_or_default(), number, priority)
        });
        found.outline.chains.insert(name, ChainOutline { base, rules: Vec::new() });
    }
    for reply in objects(netlink, GET_RULE)? {
        let attributes = reply.attributes(HEADER);
        let chain = attributes.text(RULE_CHAIN).unwrap_or_default();
        if let Some(chain) = found.outline.chains.get_mut(&chain) {
            chain.rules.push(attributes.get(RULE_USER_DATA).and_then(read_comment).unwrap_or_default());
        }
        *found.dropped.entry(chain).or_default() += packets(attributes.inner(RULE_EXPRESSIONS));
    }
    for reply in objects(netlink, GET_SET)? {
        let Some(name) = reply.attributes(HEADER).text(SET_NAME) else { continue };
        let request = || {
            let mut request = message(GET_ELEMENTS, 0);
            request.put_text(ELEMENTS_SET, &name);
            request
        };
        let replies = super::or_nothing(netlink.list(request), &[Errno::ENOENT])?;
        found.outline.sets.insert(name.clone(), replies.iter().flat_map(elements).collect());
    }
    Ok(Some(found))
}

/// Objects of our table. Kernels that do not filter list those of others too.
fn objects(netlink: &mut Netlink, kind: u16) -> Result<Vec<Reply>, Error> {
    let mut replies = super::or_nothing(netlink.list(|| message(kind, 0)), &[Errno::ENOENT])?;
    replies.retain(|reply| {
        reply.header(HEADER).is_some_and(|header| header[0] == INET)
            && reply.attributes(HEADER).text(NAME_OF_TABLE).as_deref() == Some(TABLE)
    });
    Ok(replies)
}

fn elements(reply: &Reply) -> BTreeSet<IpAddr> {
    let list = reply.attributes(HEADER).inner(ELEMENTS_LIST);
    let read = |(_, item)| Attributes(item).inner(ELEMENT_KEY).get(VALUE).and_then(address);
    list.iter().filter_map(read).collect()
}

fn read_comment(data: &[u8]) -> Option<String> {
    let (kind, length) = (*data.first()?, usize::from(*data.get(1)?));
    let text = data.get(2..2 + length).filter(|_| kind == COMMENT)?;
    Some(super::message::text(text))
}

/// Packets counted by a rule.
fn packets(expressions: Attributes<'_>) -> u64 {
    let counter = |(_, item)| {
        let item = Attributes(item);
        let counter = item.text(EXPRESSION_NAME).filter(|name| name == "counter");
        let packets = counter.and_then(|_| item.inner(EXPRESSION_DATA).get(2))?;
        packets.first_chunk().map(|packets| u64::from_be_bytes(*packets))
    };
    expressions.iter().filter_map(counter).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_read_back_as_the_text_of_its_rule() {
        let rule = Rule { when: vec![Condition::UdpPort(7)], action: Action::Drop };
        assert_eq!(read_comment(&comment(&rule)).as_deref(), Some("udp dport 7 drop"));
        assert_eq!(read_comment(&[COMMENT, 9, b'x']), None);
        assert_eq!(read_comment(&[]), None);
    }
}
