//! The UDP socket, with segmentation on the way out and coalescing on the way in.

use super::steering;
use crate::transmit::Transmit;
use liquid_runtime::listen::or_v4;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

/// Receive calls of one system call.
pub const BATCH: usize = 16;
/// Longest receive call: what the kernel coalesces.
pub const MAX_RECEIVE: usize = 65_536;
/// Socket buffers: with 7 MiB nothing was lost under load, with 1 MiB 0.7 % (`datapath.md`). The kernel doubles what is
/// set, so a socket may pin 28 MiB at worst.
const SOCKET_BUFFER: usize = 7 << 20;
/// Hops of a packet, as Linux has it by default.
const DEFAULT_HOPS: u32 = 64;
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
        Self::of(or_v4(listen, UdpSocket::bind)?)
    }

    /// Binds a socket for each of so many lanes to `listen`. The kernel puts each datagram into that of the lane its session
    /// is of; initiations, which belong to no session yet, into any.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind_lanes(listen: SocketAddr, lanes: usize) -> io::Result<Vec<Self>> {
        if lanes <= 1 {
            return Ok(vec![Self::bind(listen)?]);
        }
        let mut all = vec![or_v4(listen, shared)?];
        let bound = all[0].local_addr()?;
        while all.len() < lanes {
            all.push(shared(bound)?);
        }
        // Sockets are counted in the order in which they were bound.
        steering::attach(&all[0], lanes)?;
        for (lane, socket) in (0..).zip(&all) {
            // Datagrams of several lanes are between the same addresses and ports: a kernel that joins them on their way in
            // (GRO) looks at this too, and does not mix them.
            let hops = DEFAULT_HOPS - lane;
            let socket = SockRef::from(socket);
            socket.set_ttl_v4(hops)?;
            if bound.is_ipv6() {
                socket.set_unicast_hops_v6(hops)?;
            }
        }
        all.into_iter().map(Self::of).collect()
    }

    fn of(socket: UdpSocket) -> io::Result<Self> {
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

/// A socket that shares its address with others of this gateway.
fn shared(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// What the kernel knows of the MTU of the path to an address: that of the route, or less if a router said so.
#[must_use]
pub fn path_mtu(to: SocketAddr) -> Option<u16> {
    let v4 = to.is_ipv4();
    let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    let mtu = if v4 { ip_mtu(&socket) } else { ipv6_mtu(&socket) };
    Some(u16::try_from(mtu.ok()?).unwrap_or(u16::MAX))
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
    fn each_lane_gets_the_datagrams_of_its_sessions_over_both_families() {
        use crate::lanes::Lane;
        for listen in ["[::]:0", "127.0.0.1:0"] {
            let lanes = Udp::bind_lanes(listen.parse().unwrap(), 3).unwrap();
            let port = lanes[0].local_address().unwrap().port();
            let mut expected = vec![Vec::new(); 3];
            for (kind, at) in [(4, 4), (2, 8), (3, 4)] {
                for (number, expected) in expected.iter_mut().enumerate() {
                    let index =
                        Lane { number, count: 3 }.own_index(0x1234_56ff - u32::from(kind)).to_le_bytes();
                    let mut datagram = vec![0xab; 100];
                    datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                    datagram[at..at + 4].copy_from_slice(&index);
                    for to in
                        ["127.0.0.1", "::1"].iter().filter(|to| to.contains('.') || listen.contains('['))
                    {
                        let to = SocketAddr::new(to.parse().unwrap(), port);
                        let own = if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
                        let sender = Udp::bind(own.parse().unwrap()).unwrap();
                        sender.send(&Transmit { to, contents: &datagram, segment: 100 }).unwrap();
                        expected.push(datagram.clone());
                    }
                }
            }
            for (lane, expected) in lanes.iter().zip(expected) {
                let got = receive_all(lane, expected.len());
                assert_eq!(
                    got.into_iter().map(|(_, datagram)| datagram).collect::<Vec<_>>(),
                    expected,
                    "{listen}"
                );
            }
        }
    }

    #[test]
    fn the_path_to_this_host_has_an_mtu() {
        for host in ["127.0.0.1:9", "[::1]:9"] {
            assert!(path_mtu(host.parse().unwrap()).is_some_and(|mtu| mtu >= 1500), "{host}");
        }
    }
}
