//! The thread that moves packets. It owns the state machine, the TUN device, the socket and all buffers: nothing is
//! locked, sent to another thread or allocated for a packet.

use super::tun::{MAX_READ, Tun};
use super::udp::{BATCH, MAX_RECEIVE, NotSent, Udp, path_mtu};
use crate::drops::Drops;
use crate::gateway::{Clock, Config, Gateway};
use crate::packet::vnet::{self, Offload};
use crate::peer::PeerStatus;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use quinn_udp::RecvMeta;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tracing::{debug, info, warn};

/// What is sealed at most before it is sent: the other half of the traffic waits meanwhile.
const EGRESS_BYTES: usize = 160 * 1024;
/// Packets read at most before what they became is sent.
const EGRESS_READS: usize = 128;
/// How often others see new figures.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);
/// How often the kernel is asked about the paths. It learns of a shorter one from routers at once; what it was told
/// it forgets after ten minutes.
const PATH_INTERVAL: Duration = Duration::from_secs(5);

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
}

/// A worker from outside.
#[derive(Debug, Clone)]
pub struct Handle {
    wake: Arc<EventFd>,
    orders: Sender<Order>,
    report: Arc<Mutex<Report>>,
}

/// What a worker is told.
#[derive(Debug)]
enum Order {
    Configure(Config),
    Standby(bool),
    Stop,
}

impl Handle {
    /// Gives the worker another configuration.
    pub fn configure(&self, config: Config) {
        self.tell(Order::Configure(config));
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
    report: Arc<Mutex<Report>>,
    lost: Lost,
    read_buffer: Vec<u8>,
    receive_buffer: Vec<u8>,
    metas: [RecvMeta; BATCH],
    next_report: Instant,
    next_path: Instant,
}

impl Worker {
    /// A worker that has not begun.
    ///
    /// # Errors
    /// If the system has no event descriptor or no randomness left.
    pub fn new(config: Config, tun: Tun, udp: Udp) -> io::Result<(Self, Handle)> {
        let mut seed = [0; 32];
        let random = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&random, &mut seed).map_err(|_| io::Error::other("no randomness"))?;
        let now = Instant::now();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let gateway =
            Gateway::new(config, seed, Clock { instant: now, since_epoch }, tun.segments_datagrams());
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (sender, orders) = channel();
        let report = Arc::new(Mutex::new(Report::default()));
        let handle = Handle { wake: wake.clone(), orders: sender, report: report.clone() };
        let worker = Self {
            gateway,
            tun,
            udp,
            wake,
            orders,
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
            if wake && !self.take_orders() {
                return Ok(());
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
        let _ = self.wake.read();
        loop {
            match self.orders.try_recv() {
                Ok(Order::Configure(config)) => self.gateway.configure(config, Instant::now()),
                Ok(Order::Standby(standby)) => self.gateway.set_standby(standby, Instant::now()),
                Err(TryRecvError::Empty) => return true,
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return false,
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
        let deliveries = self.gateway.poll_deliveries(&mut self.receive_buffer);
        for number in 0..deliveries.deliveries() {
            let Some(delivery) = deliveries.delivery(number) else { break };
            if self.tun.write(delivery, &self.receive_buffer).is_err() {
                self.lost.tun_failed += 1;
            }
        }
        self.gateway.clear_deliveries();
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
            let Some((header, packet)) =
                self.read_buffer[..length].split_first_chunk_mut::<{ vnet::LENGTH }>()
            else {
                continue;
            };
            match Offload::read(header) {
                Ok(offload) => self.gateway.handle_packet(now, offload, packet),
                Err(unknown) => debug!(%unknown, "packet of the TUN device dropped"),
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
            self.next_path = now + PATH_INTERVAL;
            let endpoints: BTreeSet<_> = self.gateway.endpoints().collect();
            for endpoint in endpoints {
                if let Some(mtu) = path_mtu(endpoint) {
                    self.gateway.handle_path_mtu(endpoint.ip(), mtu);
                }
            }
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Runs the worker on a thread of its own; `ended` is called when it is over.
///
/// # Errors
/// If the thread cannot be made.
pub fn spawn(worker: Worker, ended: impl FnOnce(io::Result<()>) + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("liquid-worker".to_owned()).spawn(move || {
        info!("worker begins");
        let result = worker.run();
        if let Err(error) = &result {
            warn!(%error, "worker ends");
        }
        ended(result);
    })?;
    Ok(())
}
