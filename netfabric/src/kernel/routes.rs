//! Routes and rules of the tables of ours.

use super::Devices;
use super::message::{Attributes, Message, Reply, address, number, short};
use super::socket::{CREATE, EXCLUSIVE, Error, Netlink, REPLACE};
use crate::state::{PROTOCOL, Route, RouteKey, Rule, TABLE_PEERS, TABLE_PODS, Target};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Length of `struct rtmsg`, and of `struct fib_rule_hdr`.
pub(super) const HEADER: usize = 12;
/// Length of `struct rtnexthop`.
const NEXT_HOP: usize = 8;
/// `linux/fib_rules.h`.
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
const TO_TABLE: u8 = 1;
/// Families, in the order of `v6 = false, true`.
const FAMILIES: [u8; 2] = [2, 10];
/// The next hop is behind the device whatever the addresses of the device say.
const ONLINK: u8 = 4;

const UNICAST: u8 = libc::RTN_UNICAST;
const UNREACHABLE: u8 = libc::RTN_UNREACHABLE;

fn family(v6: bool) -> u8 {
    FAMILIES[usize::from(v6)]
}

/// Errors that say that there is no such table, or not even the family.
const NOTHING: [Errno; 4] = [Errno::ENOENT, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::ESRCH];

/// Routes of both tables.
pub(super) fn list(netlink: &mut Netlink, devices: &Devices) -> Result<BTreeMap<RouteKey, Route>, Error> {
    let mut routes = BTreeMap::new();
    for family in FAMILIES {
        for table in [TABLE_PEERS, TABLE_PODS] {
            let request = || {
                let mut header = [0; HEADER];
                header[0] = family;
                let mut message = Message::new(libc::RTM_GETROUTE, 0, &header);
                message.put_u32(libc::RTA_TABLE, table);
                message
            };
            let replies = super::or_nothing(netlink.list(request), &NOTHING)?;
            routes.extend(replies.iter().filter_map(|reply| read(reply, table, devices)));
        }
    }
    Ok(routes)
}

fn read(reply: &Reply, table: u32, devices: &Devices) -> Option<(RouteKey, Route)> {
    let header = reply.header(HEADER)?;
    let attributes = reply.attributes(HEADER);
    if attributes.u32(libc::RTA_TABLE) != Some(table) {
        return None;
    }
    let any = if header[0] == FAMILIES[1] { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
    let prefix = IpNet::new(attributes.address(libc::RTA_DST).unwrap_or(any), header[1]).ok()?;
    let route = Route {
        target: target(header, attributes, devices),
        source: attributes.address(libc::RTA_PREFSRC),
        ours: header[5] == PROTOCOL,
    };
    Some((RouteKey { table, prefix }, route))
}

fn target(header: &[u8], attributes: Attributes<'_>, devices: &Devices) -> Target {
    if header[7] == UNREACHABLE {
        return Target::Unreachable;
    }
    if header[7] != UNICAST {
        return Target::Other;
    }
    if let Some(hops) = attributes.get(libc::RTA_MULTIPATH) {
        return next_hops(hops, devices).map_or(Target::Other, Target::Overlay);
    }
    let device = attributes.u32(libc::RTA_OIF).and_then(|index| devices.name(index));
    match (attributes.address(libc::RTA_GATEWAY), device) {
        (Some(hop), Some(device)) if device == devices.overlay && header_flags(header) & ONLINK != 0 => {
            Target::Overlay(BTreeSet::from([hop]))
        }
        (None, Some(device)) => Target::Device(device.to_owned()),
        (Some(_), Some(_)) | (_, None) => Target::Other,
    }
}

/// The flags that matter are in the lowest byte.
fn header_flags(header: &[u8]) -> u8 {
    number(&header[8..]).to_le_bytes()[0]
}

/// Next hops of a multipath route; none if one of them is not over the overlay.
fn next_hops(mut bytes: &[u8], devices: &Devices) -> Option<BTreeSet<IpAddr>> {
    let mut hops = BTreeSet::new();
    while bytes.len() >= NEXT_HOP {
        let length = usize::from(short(bytes));
        let hop = bytes.get(..length).filter(|hop| hop.len() >= NEXT_HOP)?;
        let over = devices.name(number(&hop[4..]))?;
        let via = Attributes(&hop[NEXT_HOP..]).get(libc::RTA_GATEWAY).and_then(address)?;
        // Equal weights (hops 0) only.
        if over != devices.overlay || hop[2] & ONLINK == 0 || hop[3] != 0 {
            return None;
        }
        hops.insert(via);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(hops)
}

fn message(kind: u16, flags: u16, key: RouteKey, target: Option<&Target>) -> Message {
    let mut header = [0; HEADER];
    header[0] = super::family(key.prefix.addr());
    header[1] = key.prefix.prefix_len();
    // Also when a route is removed: one without our mark is not meant.
    header[5] = PROTOCOL;
    if let Some(target) = target {
        header[6] =
            if matches!(target, Target::Device(_)) { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
        header[7] = if *target == Target::Unreachable { UNREACHABLE } else { UNICAST };
        if matches!(target, Target::Overlay(hops) if hops.len() == 1) {
            header[8..12].copy_from_slice(&u32::from(ONLINK).to_ne_bytes());
        }
    } else {
        header[6] = libc::RT_SCOPE_NOWHERE;
    }
    let mut message = Message::new(kind, flags, &header);
    message.put_u32(libc::RTA_TABLE, key.table).put_address(libc::RTA_DST, key.prefix.addr());
    message
}

pub(super) fn set(
    netlink: &mut Netlink,
    devices: &Devices,
    key: RouteKey,
    route: &Route,
) -> Result<(), Error> {
    let mut message = message(libc::RTM_NEWROUTE, CREATE | REPLACE, key, Some(&route.target));
    if let Some(source) = route.source {
        message.put_address(libc::RTA_PREFSRC, source);
    }
    let overlay = devices.index(&devices.overlay).unwrap_or(0);
    match &route.target {
        Target::Overlay(hops) if hops.len() == 1 => {
            message.put_u32(libc::RTA_OIF, overlay);
            for hop in hops {
                message.put_address(libc::RTA_GATEWAY, *hop);
            }
        }
        Target::Overlay(hops) => {
            message.nest(libc::RTA_MULTIPATH, |list| {
                for hop in hops {
                    let start = list.position();
                    list.raw(&[0, 0, ONLINK, 0]).raw(&overlay.to_ne_bytes());
                    list.put_address(libc::RTA_GATEWAY, *hop).patch_length(start);
                }
            });
        }
        Target::Device(name) => {
            message.put_u32(libc::RTA_OIF, devices.index(name).unwrap_or(0));
        }
        Target::Unreachable | Target::Other => {}
    }
    netlink.change(message)
}

pub(super) fn remove(netlink: &mut Netlink, key: RouteKey) -> Result<(), Error> {
    super::gone(netlink.change(message(libc::RTM_DELROUTE, 0, key, None)), &NOTHING)
}

/// Rules of ours.
pub(super) fn rules(netlink: &mut Netlink) -> Result<BTreeSet<Rule>, Error> {
    let mut rules = BTreeSet::new();
    for v6 in [false, true] {
        let request = || {
            let mut header = [0; HEADER];
            header[0] = family(v6);
            Message::new(libc::RTM_GETRULE, 0, &header)
        };
        let replies = super::or_nothing(netlink.list(request), &NOTHING)?;
        rules.extend(replies.iter().filter_map(|reply| read_rule(reply, v6)));
    }
    Ok(rules)
}

fn read_rule(reply: &Reply, v6: bool) -> Option<Rule> {
    let attributes = reply.attributes(HEADER);
    if attributes.get(FRA_PROTOCOL) != Some(&[PROTOCOL]) {
        return None;
    }
    Some(Rule {
        v6,
        priority: attributes.u32(FRA_PRIORITY).unwrap_or(0),
        device: attributes.text(FRA_IIFNAME),
        table: attributes.u32(FRA_TABLE)?,
    })
}

fn rule_message(kind: u16, flags: u16, rule: &Rule) -> Message {
    let mut header = [0; HEADER];
    header[0] = family(rule.v6);
    header[7] = TO_TABLE;
    let mut message = Message::new(kind, flags, &header);
    message
        .put_u32(FRA_TABLE, rule.table)
        .put_u32(FRA_PRIORITY, rule.priority)
        .put(FRA_PROTOCOL, &[PROTOCOL]);
    if let Some(device) = &rule.device {
        message.put_text(FRA_IIFNAME, device);
    }
    message
}

pub(super) fn add_rule(netlink: &mut Netlink, rule: &Rule) -> Result<(), Error> {
    let added = netlink.change(rule_message(libc::RTM_NEWRULE, CREATE | EXCLUSIVE, rule));
    super::gone(added, &[Errno::EEXIST])
}

pub(super) fn remove_rule(netlink: &mut Netlink, rule: &Rule) -> Result<(), Error> {
    super::gone(netlink.change(rule_message(libc::RTM_DELRULE, 0, rule)), &NOTHING)
}
