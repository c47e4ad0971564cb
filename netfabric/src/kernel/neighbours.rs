//! Neighbours and forwarding database of the overlay device.

use super::message::{Message, Reply, number, short};
use super::socket::{CREATE, Error, Netlink, REPLACE};
use crate::state::Mac;
use nix::errno::Errno;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Length of `struct ndmsg`.
pub(super) const HEADER: usize = 12;
/// `linux/neighbour.h`.
const NDA_IFINDEX: u16 = 8;
const BRIDGE: u8 = 7;

fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

fn entries(netlink: &mut Netlink, index: u32, family: u8) -> Result<Vec<Reply>, Error> {
    let request = || {
        let mut message = Message::new(libc::RTM_GETNEIGH, 0, &header(family, 0, 0, 0));
        message.put_u32(NDA_IFINDEX, index);
        message
    };
    let mut found = netlink.list(request)?;
    found.retain(|reply| reply.header(HEADER).is_some_and(|header| number(&header[4..]) == index));
    Ok(found)
}

/// Permanent neighbours of a device.
pub(super) fn list(netlink: &mut Netlink, index: u32) -> Result<BTreeMap<IpAddr, Mac>, Error> {
    let read = |reply: &Reply| {
        let attributes = reply.attributes(HEADER);
        let permanent = short(&reply.header(HEADER)?[8..]) & libc::NUD_PERMANENT != 0;
        let mac = Mac(*attributes.get(libc::NDA_LLADDR)?.first_chunk()?);
        Some((attributes.address(libc::NDA_DST)?, mac)).filter(|_| permanent)
    };
    Ok(entries(netlink, index, 0)?.iter().filter_map(read).collect())
}

/// Forwarding database of a VXLAN device.
pub(super) fn forwarding(netlink: &mut Netlink, index: u32) -> Result<BTreeSet<(Mac, IpAddr)>, Error> {
    let read = |reply: &Reply| {
        let attributes = reply.attributes(HEADER);
        let mac = Mac(*attributes.get(libc::NDA_LLADDR)?.first_chunk()?);
        Some((mac, attributes.address(libc::NDA_DST)?))
    };
    Ok(entries(netlink, index, BRIDGE)?.iter().filter_map(read).collect())
}

fn neighbour(kind: u16, flags: u16, index: u32, address: IpAddr) -> Message {
    let header = header(super::family(address), index, libc::NUD_PERMANENT, 0);
    let mut message = Message::new(kind, flags, &header);
    message.put_address(libc::NDA_DST, address);
    message
}

pub(super) fn set(netlink: &mut Netlink, index: u32, address: IpAddr, mac: Mac) -> Result<(), Error> {
    let mut message = neighbour(libc::RTM_NEWNEIGH, CREATE | REPLACE, index, address);
    message.put(libc::NDA_LLADDR, &mac.0);
    netlink.change(message)
}

pub(super) fn remove(netlink: &mut Netlink, index: u32, address: IpAddr) -> Result<(), Error> {
    super::gone(netlink.change(neighbour(libc::RTM_DELNEIGH, 0, index, address)), &[Errno::ENOENT])
}

fn forward(kind: u16, flags: u16, index: u32, mac: Mac, address: IpAddr) -> Message {
    let state = libc::NUD_PERMANENT | libc::NUD_NOARP;
    let mut message = Message::new(kind, flags, &header(BRIDGE, index, state, libc::NTF_SELF));
    message.put(libc::NDA_LLADDR, &mac.0).put_address(libc::NDA_DST, address);
    message
}

pub(super) fn set_forwarding(
    netlink: &mut Netlink,
    index: u32,
    mac: Mac,
    address: IpAddr,
) -> Result<(), Error> {
    netlink.change(forward(libc::RTM_NEWNEIGH, CREATE | REPLACE, index, mac, address))
}

pub(super) fn remove_forwarding(
    netlink: &mut Netlink,
    index: u32,
    mac: Mac,
    address: IpAddr,
) -> Result<(), Error> {
    super::gone(netlink.change(forward(libc::RTM_DELNEIGH, 0, index, mac, address)), &[Errno::ENOENT])
}
