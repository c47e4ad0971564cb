//! The TUN device, with every offload the kernel has.

use crate::packet::coalesce::{Delivery, MAX_PIECES};
use crate::packet::vnet;
use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Packets the kernel queues for us before it drops: a burst of 1,000 super-packets takes us some 100 ms.
const QUEUE_LENGTH: u32 = 1000;
/// Longest read: a super-packet and its header.
pub const MAX_READ: usize = vnet::LENGTH + 65_535;
const IOVECS: usize = MAX_PIECES as usize + 1;

/// A queue of a TUN device with `IFF_VNET_HDR`; the device is gone when all of its queues are dropped.
///
/// Of several queues, the kernel chooses the one that packets of the flow were written to last, and else one by a hash of
/// the flow (`drivers/net/tun.c`, `tun_automq_select_queue`): both directions of a flow that pass this gateway meet in one.
pub struct Tun {
    device: SyncDevice,
}

impl Tun {
    /// Makes the device with so many queues and brings it up, with an address and the length of its prefix, if this host
    /// itself is to be reached through it.
    ///
    /// # Errors
    /// If the kernel refuses: without `CAP_NET_ADMIN` or `/dev/net/tun`, or if there is another device of that name.
    pub fn open(
        name: &str,
        mtu: u16,
        address: Option<(Ipv4Addr, u8)>,
        queues: usize,
    ) -> io::Result<Vec<Self>> {
        let builder = match address {
            Some((address, length)) => DeviceBuilder::new().ipv4(address, length, None),
            None => DeviceBuilder::new(),
        };
        let first = builder
            .name(name)
            .mtu(mtu)
            .offload(true)
            .multi_queue(queues > 1)
            .tx_queue_len(QUEUE_LENGTH)
            .enable(true)
            .build_sync()?;
        let mut devices = vec![first];
        while devices.len() < queues {
            devices.push(devices[0].try_clone()?);
        }
        devices.iter().try_for_each(|device| device.set_nonblocking(true))?;
        Ok(devices.into_iter().map(|device| Self { device }).collect())
    }

    /// Whether the kernel cuts UDP super-packets (Linux 6.2).
    #[must_use]
    pub fn segments_datagrams(&self) -> bool {
        self.device.udp_gso()
    }

    /// Reads a packet with its virtio header; does not wait.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.device.recv(buffer)
    }

    /// Writes pieces of `buffer` as one packet.
    ///
    /// # Errors
    /// If the kernel does not take it, for example because the device is down.
    pub fn write(&self, delivery: Delivery<'_>, buffer: &[u8]) -> io::Result<()> {
        let header = delivery.header;
        let mut slices = [IoSlice::new(&[]); IOVECS];
        slices[0] = IoSlice::new(&header);
        let mut used = 1;
        for (slice, piece) in slices[1..].iter_mut().zip(delivery) {
            *slice = IoSlice::new(&buffer[piece]);
            used += 1;
        }
        self.device.send_vectored(&slices[..used]).map(drop)
    }

    /// Writes a packet that needs nothing more.
    ///
    /// # Errors
    /// As [`Tun::write`].
    pub fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        let header = [0; vnet::LENGTH];
        self.device.send_vectored(&[IoSlice::new(&header), IoSlice::new(packet)]).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tun(..)")
    }
}
