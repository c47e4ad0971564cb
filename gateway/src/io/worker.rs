//! The thread that moves the packets of a lane. It owns the state machine, a queue of the TUN device, a socket and all
//! buffers: nothing is locked, sent to another thread or allocated for a packet, but for those that came to the wrong lane.

use super::tun::{MAX_READ, Tun};
use super::udp::{BATCH, MAX_RECEIVE, NotSent, Udp, path_mtu};
use crate::drops::Drops;
use crate::gateway::{Clock, Config, Gateway, Handled, Handoff};
use crate::lanes::Lane;
use crate::packet::vnet::{self, Offload};
use crate::peer::PeerStatus;
use crate::wireguard::key::PrivateKey;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use quinn_udp::RecvMeta;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tracing::debug;

/// What is sealed at most before it is sent: the other half of the traffic waits meanwhile.
const EGRESS_BYTES: usize = 160 * 1024;
/// Packets read at most before what they became is sent.
const EGRESS_READS: usize = 128;
/// How often others see new figures.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);
/// How often the kernel is asked about the paths. It learns of a shorter one from routers at once, and connections stand
/// still, for longer each time they try, until their senders are told; what it was told it forgets after ten minutes.
const PATH_INTERVAL: Duration = REPORT_INTERVAL;
/// Pause for each endpoint that is asked about, which takes some 10 us: many cost no more than a hundredth of a core.
const PATH_PAUSE: Duration = Duration::from_millis(1);

/// What other lanes may hand over before it is taken: super-packets of 64 KiB, so 16 MiB at worst. It is much only while a
/// lane has no way to a peer yet.
const MAX_GIVEN: usize = 256;

/// What the worker reports.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How the peers are.
    pub peers: Vec<PeerStatus>,
    /// What was not forwarded.
    pub drops: Drops,
    /// What the system did not take.
    pub lost: Lost,
}

/// Packets the system did not take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Calls to send for which the socket was full.
    pub socket_full: u64,
    /// Calls to send longer than the path takes.
    pub too_long: u64,
    /// Other calls to send that failed.
    pub send_failed: u64,
    /// Writes to the TUN device that failed.
    pub tun_failed: u64,
    /// Datagrams and packets for another lane that had no room left for them.
    pub lane_full: u64,
}

impl std::ops::AddAssign for Lost {
    fn add_assign(&mut self, other: Self) {
        self.socket_full += other.socket_full;
        self.too_long += other.too_long;
        self.send_failed += other.send_failed;
        self.tun_failed += other.tun_failed;
        self.lane_full += other.lane_full;
    }
}

/// A worker from outside.
#[derive(Debug, Clone)]
pub struct Handle {
    wake: Arc<EventFd>,
    orders: Sender<Order>,
    given: SyncSender<Given>,
    report: Arc<Mutex<Report>>,
}

/// What a lane hands to another one.
#[derive(Debug)]
enum Given {
    /// It came to the wrong socket.
    Datagram { from: SocketAddr, datagram: Vec<u8> },
    /// The other lane has no way for it: with its virtio header.
    Packet(Vec<u8>),
    /// The same for a packet that is passed on from another peer, which has none.
    Onward(Vec<u8>),
}

/// What a worker is told.
#[derive(Debug)]
enum Order {
    /// The configuration of the lane, and the key of the first one.
    Configure(Config, PrivateKey),
    Standby(bool),
    Stop,
}

impl Handle {
    /// Gives the worker another configuration, that of its lane; `first` is the key of the first lane.
    pub fn configure(&self, config: Config, first: PrivateKey) {
        self.tell(Order::Configure(config, first));
    }

    /// Whether peers are to be told to send elsewhere, if they can.
    pub fn standby(&self, standby: bool) {
        self.tell(Order::Standby(standby));
    }

    /// Ends the worker.
    pub fn stop(&self) {
        self.tell(Order::Stop);
    }

    fn tell(&self, order: Order) {
        // A worker that has ended needs no telling.
        drop(self.orders.send(order));
        let _ = self.wake.write(1);
    }

    /// The last report.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The worker.
#[derive(Debug)]
pub struct Worker {
    gateway: Gateway,
    tun: Tun,
    udp: Udp,
    wake: Arc<EventFd>,
    orders: Receiver<Order>,
    given: Receiver<Given>,
    /// All lanes, this one too, and those that have been given something.
    lanes: Vec<Handle>,
    to_wake: u32,
    report: Arc<Mutex<Report>>,
    lost: Lost,
    read_buffer: Vec<u8>,
    receive_buffer: Vec<u8>,
    metas: [RecvMeta; BATCH],
    next_report: Instant,
    next_path: Instant,
}

impl Worker {
    /// A worker that has not begun; `config` is that of its lane, `first` the key of the first one.
    ///
    /// # Errors
    /// If the system has no event descriptor or no randomness left.
    pub fn new(
        config: Config,
        (lane, first): (Lane, &PrivateKey),
        tun: Tun,
        udp: Udp,
    ) -> io::Result<(Self, Handle)> {
        let mut seed = [0; 32];
        let random = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&random, &mut seed).map_err(|_| io::Error::other("no randomness"))?;
        let now = Instant::now();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let clock = Clock { instant: now, since_epoch };
        let gateway = Gateway::new(config, (lane, first), seed, clock, tun.segments_datagrams());
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (sender, orders) = channel();
        let (giver, given) = sync_channel(MAX_GIVEN);
        let report = Arc::new(Mutex::new(Report::default()));
        let handle = Handle { wake: wake.clone(), orders: sender, given: giver, report: report.clone() };
        let worker = Self {
            gateway,
            tun,
            udp,
            wake,
            orders,
            given,
            lanes: Vec::new(),
            to_wake: 0,
            report,
            lost: Lost::default(),
            read_buffer: vec![0; MAX_READ],
            receive_buffer: vec![0; BATCH * MAX_RECEIVE],
            metas: [RecvMeta::default(); BATCH],
            next_report: now,
            next_path: now,
        };
        Ok((worker, handle))
    }

    /// Makes the lanes known to each other, in their order.
    pub fn meet(&mut self, lanes: &[Handle]) {
        self.lanes = lanes.to_vec();
    }

    /// Moves packets until [`Handle::stop`].
    ///
    /// # Errors
    /// If the TUN device or the socket fails for good.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let now = Instant::now();
            if self.gateway.poll_timeout().is_some_and(|(due, _)| due <= now) {
                self.gateway.handle_timeout(now);
            }
            self.housekeep(now);
            self.flush();
            let (tun, udp, wake) = self.wait(now)?;
            if wake {
                let _ = self.wake.read();
                if !self.take_orders() {
                    return Ok(());
                }
                self.take_given();
            }
            if udp {
                self.ingress()?;
            }
            if tun {
                self.egress()?;
            }
        }
    }

    /// Waits for something to do: what can be read of TUN device, socket and mailbox.
    fn wait(&self, now: Instant) -> io::Result<(bool, bool, bool)> {
        let due = self.gateway.poll_timeout().map_or(self.next_report, |(due, _)| due.min(self.next_report));
        // Rounded up, or the last millisecond would be spent spinning.
        let millis = due.saturating_duration_since(now).as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let fds = [self.tun.as_fd(), self.udp.as_fd(), self.wake.as_fd()];
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [tun, udp, wake] = fds.map(|fd| fd.any().unwrap_or(false));
        Ok((tun, udp, wake))
    }

    /// Takes orders that have come; returns whether to go on.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Configure(config, first)) => self.gateway.configure(config, &first, Instant::now()),
                Ok(Order::Standby(standby)) => self.gateway.set_standby(standby, Instant::now()),
                Err(TryRecvError::Empty) => return true,
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Takes what other lanes have handed over.
    fn take_given(&mut self) {
        for _ in 0..MAX_GIVEN {
            let now = Instant::now();
            match self.given.try_recv() {
                Ok(Given::Datagram { from, mut datagram }) => {
                    let length = datagram.len();
                    self.gateway.handle_datagrams(now, from, &mut datagram, 0..length, length);
                    deliver(&mut self.gateway, &self.tun, &mut datagram, &mut self.lost);
                    self.hand_over();
                }
                Ok(Given::Packet(mut packet)) => {
                    // What comes to the first lane stays there.
                    let _ = handle_packet(&mut self.gateway, now, &mut packet);
                }
                Ok(Given::Onward(mut packet)) => self.gateway.handle_onward(now, &mut packet),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
        // There may be more.
        let _ = self.wake.write(1);
    }

    /// Gives other lanes what they shall take.
    fn hand_over(&mut self) {
        while let Some(handoff) = self.gateway.poll_handoff() {
            match handoff {
                Handoff::Datagram { lane, from, datagram } => {
                    self.give(lane, Given::Datagram { from, datagram });
                }
                Handoff::Onward(packet) => self.give(0, Given::Onward(packet)),
            }
        }
        self.wake_lanes();
    }

    fn give(&mut self, lane: usize, given: Given) {
        let given = self.lanes.get(lane).map(|handle| handle.given.try_send(given));
        match given {
            Some(Ok(())) => self.to_wake |= 1 << lane,
            Some(Err(_)) | None => self.lost.lane_full += 1,
        }
    }

    /// Wakes the lanes that have been given something.
    fn wake_lanes(&mut self) {
        let to_wake = std::mem::take(&mut self.to_wake);
        for (number, lane) in self.lanes.iter().enumerate() {
            if to_wake & 1 << number != 0 {
                let _ = lane.wake.write(1);
            }
        }
    }

    /// From the network to the TUN device.
    fn ingress(&mut self) -> io::Result<()> {
        let calls = match self.udp.receive(&mut self.receive_buffer, &mut self.metas) {
            Ok(calls) => calls,
            Err(error) if is_transient(&error) => return Ok(()),
            // An ICMP error that somebody sent about one of our datagrams.
            Err(error) => {
                debug!(%error, "cannot receive");
                return Ok(());
            }
        };
        let now = Instant::now();
        for (call, meta) in self.metas[..calls].iter().enumerate() {
            let start = call * MAX_RECEIVE;
            let range = start..start + meta.len.min(MAX_RECEIVE);
            self.gateway.handle_datagrams(
                now,
                Udp::sender(meta),
                &mut self.receive_buffer,
                range,
                meta.stride,
            );
        }
        deliver(&mut self.gateway, &self.tun, &mut self.receive_buffer, &mut self.lost);
        self.hand_over();
        Ok(())
    }

    /// From the TUN device to the network.
    fn egress(&mut self) -> io::Result<()> {
        let now = Instant::now();
        for _ in 0..EGRESS_READS {
            let length = match self.tun.read(&mut self.read_buffer) {
                Ok(length) => length,
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error),
            };
            let read = &mut self.read_buffer[..length];
            if handle_packet(&mut self.gateway, now, read) == Handled::ByFirstLane {
                let packet = Given::Packet(read.to_vec());
                self.give(0, packet);
            }
            if self.gateway.transmit_bytes() >= EGRESS_BYTES {
                break;
            }
        }
        while let Some(answer) = self.gateway.poll_answer() {
            if self.tun.write_packet(&answer).is_err() {
                self.lost.tun_failed += 1;
            }
        }
        self.wake_lanes();
        Ok(())
    }

    fn flush(&mut self) {
        while let Some(transmit) = self.gateway.poll_transmit() {
            match self.udp.send(&transmit) {
                Ok(()) => {}
                Err(NotSent::Full) => self.lost.socket_full += 1,
                Err(NotSent::Failed) => self.lost.send_failed += 1,
                Err(NotSent::TooLong) => {
                    self.lost.too_long += 1;
                    self.next_path = Instant::now();
                }
            }
        }
        self.gateway.clear_transmits();
    }

    /// Reports, and asks for the MTU of the paths.
    fn housekeep(&mut self, now: Instant) {
        if now >= self.next_report {
            self.next_report = now + REPORT_INTERVAL;
            let report = Report {
                peers: self.gateway.status().collect(),
                drops: *self.gateway.drops(),
                lost: self.lost,
            };
            *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
        }
        if now >= self.next_path {
            let endpoints: BTreeSet<_> = self.gateway.endpoints().collect();
            let pause = PATH_PAUSE * u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
            self.next_path = now + pause.max(PATH_INTERVAL);
            for endpoint in endpoints {
                if let Some(mtu) = path_mtu(endpoint) {
                    self.gateway.handle_path_mtu(endpoint.ip(), mtu);
                }
            }
        }
    }
}

/// Handles a packet of the TUN device, with its virtio header.
fn handle_packet(gateway: &mut Gateway, now: Instant, read: &mut [u8]) -> Handled {
    let Some((header, packet)) = read.split_first_chunk_mut::<{ vnet::LENGTH }>() else {
        return Handled::Here;
    };
    match Offload::read(header) {
        Ok(offload) => gateway.handle_packet(now, offload, packet),
        Err(unknown) => {
            debug!(%unknown, "packet of the TUN device dropped");
            Handled::Here
        }
    }
}

/// Writes to the TUN device what datagrams in `buffer` have brought.
fn deliver(gateway: &mut Gateway, tun: &Tun, buffer: &mut [u8], lost: &mut Lost) {
    let deliveries = gateway.poll_deliveries(buffer);
    for number in 0..deliveries.deliveries() {
        let Some(delivery) = deliveries.delivery(number) else { break };
        if tun.write(delivery, buffer).is_err() {
            lost.tun_failed += 1;
        }
    }
    gateway.clear_deliveries();
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
