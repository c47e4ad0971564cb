//! A netlink socket. It belongs to the network namespace of the thread that opened it.

use super::message::{HEADER, Message, Reply, number};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::io;
use thiserror::Error;

/// The kernel answers while it takes the request. If not even this long is enough, something is wrong with it.
const ANSWER_SECONDS: i64 = 5;
/// A listing that others change meanwhile is asked for anew so many times.
const DUMP_TRIES: u32 = 5;

pub(super) const ACK: u16 = flag(libc::NLM_F_ACK);
pub(super) const CREATE: u16 = flag(libc::NLM_F_CREATE);
pub(super) const EXCLUSIVE: u16 = flag(libc::NLM_F_EXCL);
pub(super) const REPLACE: u16 = flag(libc::NLM_F_REPLACE);
pub(super) const APPEND: u16 = flag(libc::NLM_F_APPEND);
const REQUEST: u16 = flag(libc::NLM_F_REQUEST);
const DUMP: u16 = flag(libc::NLM_F_DUMP);
const INTERRUPTED: u16 = flag(libc::NLM_F_DUMP_INTR);

/// Flags have 16 bits in the header.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "constants below 2^16")]
const fn flag(value: i32) -> u16 {
    value as u16
}

/// An open socket.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// For links, addresses, neighbours, routes and rules.
    pub(super) fn route() -> Result<Self, Error> {
        let netlink = Self::open(NETLINK_ROUTE)?;
        // The kernel then filters listings itself (since 4.20), and refuses what it does not understand.
        netlink.socket.set_netlink_get_strict_chk(true)?;
        Ok(netlink)
    }

    /// For nftables.
    pub(super) fn netfilter() -> Result<Self, Error> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        let timeout = TimeVal::new(ANSWER_SECONDS, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(io::Error::from)?;
        Ok(Self { socket, sequence: 0 })
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Has one change made.
    pub(super) fn change(&mut self, message: Message) -> Result<(), Error> {
        let sequence = self.next();
        self.socket.send(&message.finish(sequence, REQUEST | ACK), 0)?;
        loop {
            for reply in self.receive()? {
                if reply.sequence == sequence && reply.kind == kind(libc::NLMSG_ERROR) {
                    return outcome(&reply);
                }
            }
        }
    }

    /// Asks for one object.
    pub(super) fn get(&mut self, message: Message) -> Result<Reply, Error> {
        let sequence = self.next();
        self.socket.send(&message.finish(sequence, REQUEST), 0)?;
        loop {
            for reply in self.receive()? {
                if reply.sequence == sequence {
                    if reply.kind == kind(libc::NLMSG_ERROR) {
                        outcome(&reply)?;
                    }
                    return Ok(reply);
                }
            }
        }
    }

    /// Lists objects; `message` makes the request.
    pub(super) fn list(&mut self, message: impl Fn() -> Message) -> Result<Vec<Reply>, Error> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.next();
            self.socket.send(&message().finish(sequence, REQUEST | DUMP), 0)?;
            if let Some(replies) = self.listing(sequence)? {
                return Ok(replies);
            }
        }
        Err(Error::Unsteady)
    }

    /// The whole listing; nothing if it was changed meanwhile.
    fn listing(&mut self, sequence: u32) -> Result<Option<Vec<Reply>>, Error> {
        let mut found = Vec::new();
        let mut whole = true;
        loop {
            for reply in self.receive()? {
                if reply.sequence != sequence {
                    continue;
                }
                whole &= reply.flags & INTERRUPTED == 0;
                if reply.kind == kind(libc::NLMSG_ERROR) {
                    outcome(&reply)?;
                } else if reply.kind == kind(libc::NLMSG_DONE) {
                    outcome(&reply)?;
                    return Ok(whole.then_some(found));
                } else {
                    found.push(reply);
                }
            }
        }
    }

    /// Has all of these changes made or none: nftables only. They come between a first and a last message.
    pub(super) fn transaction(
        &mut self,
        first: Message,
        changes: Vec<Message>,
        last: Message,
    ) -> Result<(), Error> {
        let mut batch = first.finish(self.next(), REQUEST);
        let count = changes.len();
        for (at, change) in changes.into_iter().enumerate() {
            // One answer is enough: errors are told without being asked for, and before it.
            let flags = if at + 1 == count { REQUEST | ACK } else { REQUEST };
            batch.extend(change.finish(self.next(), flags));
        }
        let acknowledged = self.sequence;
        batch.extend(last.finish(self.next(), REQUEST));
        self.make_room(batch.len())?;
        self.socket.send(&batch, 0)?;
        loop {
            for reply in self.receive()? {
                if reply.kind != kind(libc::NLMSG_ERROR) {
                    continue;
                }
                let outcome = outcome(&reply);
                // Answers to an earlier transaction that failed are behind the first of them: nobody waits for those.
                let first = acknowledged.wrapping_sub(u32::try_from(count).unwrap_or(0));
                let ours = reply.sequence.wrapping_sub(first) <= u32::try_from(count + 1).unwrap_or(u32::MAX);
                if ours && (outcome.is_err() || reply.sequence == acknowledged) {
                    return outcome;
                }
            }
        }
    }

    /// A transaction is one message, whose length the send buffer bounds: 200 kB by default, which a few hundred rules take.
    fn make_room(&self, length: usize) -> Result<(), Error> {
        if getsockopt(&self.socket, sockopt::SndBuf).map_err(io::Error::from)? < 2 * length {
            setsockopt(&self.socket, sockopt::SndBufForce, &(2 * length)).map_err(io::Error::from)?;
        }
        Ok(())
    }

    fn receive(&self) -> Result<Vec<Reply>, Error> {
        let (datagram, _) = self.socket.recv_from_full()?;
        Ok(Reply::all(&datagram))
    }
}

fn kind(value: i32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// What an answer says: nothing, or an error with the kernel's own words for it.
fn outcome(reply: &Reply) -> Result<(), Error> {
    let code = number(&reply.payload).cast_signed();
    if code >= 0 {
        return Ok(());
    }
    // With NETLINK_CAP_ACK, only the header of the request is between the code and the attributes.
    let words = reply.attributes(4 + HEADER).text(NLMSGERR_ATTR_MSG);
    Err(Error::Refused {
        errno: Errno::from_raw(-code),
        words: words.map(|words| format!(": {words}")).unwrap_or_default(),
    })
}

/// Why the kernel did not do it.
#[derive(Debug, Error)]
pub enum Error {
    /// The socket failed.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused.
    #[error("{}{words}", errno.desc())]
    Refused {
        /// Its code.
        errno: Errno,
        /// What it says itself, after a colon.
        words: String,
    },
    /// A listing was changed each time before it was read to its end.
    #[error("a listing changes faster than it can be read")]
    Unsteady,
}

impl Error {
    /// Whether the kernel refused for one of these reasons.
    pub(super) fn is(&self, reasons: &[Errno]) -> bool {
        matches!(self, Self::Refused { errno, .. } if reasons.contains(errno))
    }
}

/// Text of an error (`enum nlmsgerr_attrs`).
const NLMSGERR_ATTR_MSG: u16 = 1;
