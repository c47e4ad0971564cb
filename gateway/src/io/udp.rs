//! The UDP socket, with segmentation on the way out and coalescing on the way in.

use crate::transmit::Transmit;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{IpMtu, RcvBufForce, SndBufForce};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

/// Receive calls of one system call.
pub const BATCH: usize = 16;
/// Longest receive call: what the kernel coalesces.
pub const MAX_RECEIVE: usize = 65_536;
/// Socket buffers: with 7 MiB nothing was lost under load, with 1 MiB 0.7 % (`datapath.md`). The kernel doubles what is
/// set, so a socket may pin 28 MiB at worst.
const SOCKET_BUFFER: usize = 7 << 20;
/// How long a full socket is waited for, before datagrams are dropped as a network would.
const FULL_SOCKET_WAIT_MILLIS: u8 = 10;

/// A UDP socket for IPv4 and IPv6.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    v6: bool,
}

/// Why datagrams were not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// The network takes no more.
    Full,
    /// Longer than the path takes.
    TooLong,
    /// Something else, for example no route.
    Failed,
}

impl Udp {
    /// Binds to `listen`; `[::]` serves IPv4 too, unless the host has no IPv6.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind(listen: SocketAddr) -> io::Result<Self> {
        let bound = UdpSocket::bind(listen);
        let socket = match bound {
            Err(error) if listen.ip().is_unspecified() && listen.is_ipv6() && !is_in_use(&error) => {
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, listen.port()))?
            }
            bound => bound?,
        };
        // Without CAP_NET_ADMIN the limits of the system count, which only costs speed.
        let _ = setsockopt(&socket, RcvBufForce, &SOCKET_BUFFER);
        let _ = setsockopt(&socket, SndBufForce, &SOCKET_BUFFER);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let v6 = socket.local_addr()?.is_ipv6();
        Ok(Self { socket, state, v6 })
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Receives into `buffer`, which is `BATCH * MAX_RECEIVE` long; does not wait. Returns how many calls are filled,
    /// each described by `metas`.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing.
    pub fn receive(&self, buffer: &mut [u8], metas: &mut [RecvMeta; BATCH]) -> io::Result<usize> {
        let mut chunks = buffer.chunks_mut(MAX_RECEIVE);
        let mut slices: [IoSliceMut<'_>; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        self.state.recv(UdpSockRef::from(&self.socket), &mut slices, metas)
    }

    /// Where a received datagram came from: IPv4 as IPv4, whatever the socket.
    #[must_use]
    pub fn sender(meta: &RecvMeta) -> SocketAddr {
        SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port())
    }

    /// Sends datagrams.
    ///
    /// # Errors
    /// If they are lost.
    pub fn send(&self, transmit: &Transmit<'_>) -> Result<(), NotSent> {
        let one = transmit.contents.len() <= transmit.segment;
        if one || self.state.max_gso_segments() > 1 {
            let segment = Some(transmit.segment).filter(|_| !one);
            let sent = self.send_call(transmit.to, transmit.contents, segment);
            // The first failure of segmentation switches it off, and says nothing about the datagrams.
            if one || sent.is_ok() || self.state.max_gso_segments() > 1 {
                return sent;
            }
        }
        let datagrams = transmit.contents.chunks(transmit.segment);
        datagrams.map(|datagram| self.send_call(transmit.to, datagram, None)).fold(Ok(()), Result::and)
    }

    fn send_call(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> Result<(), NotSent> {
        let destination = match to.ip() {
            IpAddr::V4(address) if self.v6 => SocketAddr::new(address.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        let transmit = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        for _ in 0..2 {
            match self.state.try_send(UdpSockRef::from(&self.socket), &transmit) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_writable(),
                Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
                    return Err(NotSent::TooLong);
                }
                Err(_) => return Err(NotSent::Failed),
            }
        }
        Err(NotSent::Full)
    }

    fn wait_writable(&self) {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        let _ = poll(&mut fds, PollTimeout::from(FULL_SOCKET_WAIT_MILLIS));
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

/// What the kernel knows of the MTU of the path to an IPv4 address: that of the route, or less if a router said so.
#[must_use]
pub fn path_mtu(to: SocketAddr) -> Option<u16> {
    if !to.is_ipv4() {
        return None;
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(to).ok()?;
    let mtu = nix::sys::socket::getsockopt(&socket, IpMtu).ok()?;
    Some(u16::try_from(mtu).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn receive_all(udp: &Udp, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut buffer = vec![0; BATCH * MAX_RECEIVE];
        let mut metas = [RecvMeta::default(); BATCH];
        let mut out = Vec::new();
        while out.len() < count && Instant::now() < deadline {
            let mut fds = [PollFd::new(udp.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(100u8)).unwrap();
            let Ok(calls) = udp.receive(&mut buffer, &mut metas) else { continue };
            for (chunk, meta) in buffer.chunks(MAX_RECEIVE).zip(&metas[..calls]) {
                let datagrams = chunk[..meta.len].chunks(meta.stride);
                out.extend(datagrams.map(|datagram| (Udp::sender(meta), datagram.to_vec())));
            }
        }
        out
    }

    #[test]
    fn a_run_of_datagrams_arrives_as_it_was_sent_over_both_families() {
        let receiver = Udp::bind("[::]:0".parse().unwrap()).unwrap();
        let port = receiver.local_address().unwrap().port();
        for (bind, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let sender = Udp::bind(bind.parse().unwrap()).unwrap();
            let contents: Vec<u8> = (0..10_500u32).map(|byte| u8::try_from(byte / 1000).unwrap()).collect();
            let to = SocketAddr::new(to.parse().unwrap(), port);
            sender.send(&Transmit { to, contents: &contents, segment: 1000 }).unwrap();
            let got = receive_all(&receiver, 11);
            assert_eq!(
                got.iter().map(|(_, datagram)| datagram.clone()).collect::<Vec<_>>().concat(),
                contents
            );
            assert!(got.len() == 11 && got.iter().all(|(from, _)| from.is_ipv4() == to.is_ipv4()), "{bind}");
        }
    }

    #[test]
    fn the_path_to_this_host_has_an_mtu() {
        assert!(path_mtu("127.0.0.1:9".parse().unwrap()).is_some_and(|mtu| mtu >= 1500));
    }
}
