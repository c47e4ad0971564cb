//! Addresses of the overlay device.

use super::message::{Message, Reply};
use super::socket::{CREATE, Error, Netlink, REPLACE};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::libc;
use std::collections::BTreeSet;

/// Length of `struct ifaddrmsg`.
const HEADER: usize = 8;
/// IPv6: use it at once, nobody else has it.
const IFA_F_NODAD: u32 = 0x02;

fn header(index: u32, address: Option<IpNet>) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = address.map_or(0, |address| super::family(address.addr()));
    header[1] = address.map_or(0, |address| address.prefix_len());
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// Addresses of a device.
pub(super) fn list(netlink: &mut Netlink, index: u32) -> Result<BTreeSet<IpNet>, Error> {
    let replies = netlink.list(|| Message::new(libc::RTM_GETADDR, 0, &header(index, None)))?;
    let read = |reply: &Reply| {
        let attributes = reply.attributes(HEADER);
        let address =
            attributes.address(libc::IFA_LOCAL).or_else(|| attributes.address(libc::IFA_ADDRESS))?;
        IpNet::new(address, *reply.header(HEADER)?.get(1)?).ok()
    };
    Ok(replies.iter().filter_map(read).collect())
}

fn message(kind: u16, flags: u16, index: u32, address: IpNet) -> Message {
    let mut message = Message::new(kind, flags, &header(index, Some(address)));
    message.put_address(libc::IFA_LOCAL, address.addr()).put_address(libc::IFA_ADDRESS, address.addr());
    message
}

pub(super) fn add(netlink: &mut Netlink, index: u32, address: IpNet) -> Result<(), Error> {
    let mut message = message(libc::RTM_NEWADDR, CREATE | REPLACE, index, address);
    message.put_u32(libc::IFA_FLAGS, IFA_F_NODAD);
    netlink.change(message)
}

pub(super) fn remove(netlink: &mut Netlink, index: u32, address: IpNet) -> Result<(), Error> {
    super::gone(netlink.change(message(libc::RTM_DELADDR, 0, index, address)), &[Errno::EADDRNOTAVAIL])
}
