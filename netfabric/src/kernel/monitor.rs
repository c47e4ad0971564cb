//! Tells when somebody changes what is ours, or what it depends on.

use super::message::{Reply, number};
use super::{Error, links, neighbours, nftables, routes};
use crate::filter::TABLE;
use crate::state::{TABLE_PEERS, TABLE_PODS};
use crate::topology::Settings;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket};
use nix::libc;
use nix::net::if_::if_nametoindex;
use std::io;

/// Links, neighbours, addresses, routes and rules of both families (`enum rtnetlink_groups`).
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];
/// `NFNLGRP_NFTABLES`.
const NFTABLES: u32 = 7;
/// Length of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;

/// Two sockets that hear of changes.
pub struct Monitor {
    route: TokioSocket,
    netfilter: TokioSocket,
    overlay: String,
    tunnel: String,
    /// Number of the overlay device, if there is one.
    index: Option<u32>,
}

impl Monitor {
    /// Begins to listen in the network namespace of this thread.
    ///
    /// # Errors
    /// If the sockets cannot be opened.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let open = |protocol, groups: &[u32]| {
            let mut socket = TokioSocket::new(protocol)?;
            socket.socket_mut().bind_auto()?;
            for group in groups {
                socket.socket_ref().add_membership(*group)?;
            }
            Ok::<_, io::Error>(socket)
        };
        Ok(Self {
            route: open(NETLINK_ROUTE, &GROUPS)?,
            netfilter: open(NETLINK_NETFILTER, &[NFTABLES])?,
            overlay: settings.overlay.clone(),
            tunnel: settings.tunnel.clone(),
            index: if_nametoindex(settings.overlay.as_str()).ok(),
        })
    }

    /// Resolves when something of ours has changed, or when that cannot be ruled out. It can be cancelled.
    ///
    /// # Errors
    /// If a socket fails for good.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let ours = tokio::select! {
                replies = receive(&self.route) => match replies? {
                    Some(replies) => replies.iter().filter(|reply| self.is_ours(reply)).count() > 0,
                    None => true,
                },
                replies = receive(&self.netfilter) => match replies? {
                    Some(replies) => replies.iter().any(is_our_table),
                    None => true,
                },
            };
            if ours {
                return Ok(());
            }
        }
    }

    fn is_ours(&mut self, reply: &Reply) -> bool {
        match reply.kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                let name = reply.attributes(links::HEADER).text(libc::IFLA_IFNAME).unwrap_or_default();
                if name == self.overlay {
                    // Numbers are not used again soon: that of a device that is gone does no harm.
                    self.index = reply.header(links::HEADER).map(|header| number(&header[4..]));
                }
                name == self.overlay || name == self.tunnel
            }
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => self.is_overlay(reply, neighbours::HEADER),
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.is_overlay(reply, ADDRESS_HEADER),
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE | libc::RTM_NEWRULE | libc::RTM_DELRULE => {
                // Both kinds have the table in the attribute of this number.
                let table = reply.attributes(routes::HEADER).u32(libc::RTA_TABLE);
                table.is_some_and(|table| [TABLE_PEERS, TABLE_PODS].contains(&table))
            }
            _ => false,
        }
    }

    fn is_overlay(&self, reply: &Reply, header: usize) -> bool {
        let index = reply.header(header).map(|header| number(&header[4..]));
        index.is_some() && index == self.index
    }
}

fn is_our_table(reply: &Reply) -> bool {
    reply.attributes(nftables::HEADER).text(nftables::NAME_OF_TABLE).as_deref() == Some(TABLE)
}

/// The next messages; nothing if the kernel had to leave some out, as nobody read fast enough.
async fn receive(socket: &TokioSocket) -> io::Result<Option<Vec<Reply>>> {
    match socket.recv_from_full().await {
        Ok((datagram, _)) => Ok(Some(Reply::all(&datagram))),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None),
        Err(error) => Err(error),
    }
}
