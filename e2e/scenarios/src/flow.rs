//! Traffic between pods that shows when it stops: numbers, sent every 10 ms, and when each arrived.

use crate::inside::Inside;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two numbers.
pub const PACE: Duration = Duration::from_millis(10);
/// How long a read waits before it looks whether to go on.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long a connection may stand still before it counts as lost.
const STUCK: Duration = Duration::from_secs(30);

/// A flow from one pod to another, until it is dropped.
pub struct Flow {
    /// What it is called in reports.
    pub name: String,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

/// Any address of the family of this one.
fn any(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    sent: AtomicU64,
    arrived: Mutex<Vec<(u64, Instant)>>,
    broken: Mutex<Option<String>>,
}

impl State {
    fn arrived(&self, number: u64) {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).push((number, Instant::now()));
    }

    fn breaks(&self, why: String) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

impl Flow {
    /// Datagrams from one pod to another, which it sees at `target`.
    ///
    /// # Errors
    /// If the sockets cannot be made.
    pub fn datagrams(from: &Inside, to: &Inside, target: IpAddr, port: u16) -> anyhow::Result<Self> {
        let receiver = to.network(|| UdpSocket::bind((any(target), port)))??;
        let sender = from.network(|| UdpSocket::bind((any(target), 0)))??;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let target = SocketAddr::from((target, port));
        let mut flow = Self::new(format!("UDP {} to {}", from.name, to.name));
        flow.spawn(move |state| {
            let mut buffer = [0; 8];
            while state.goes_on() {
                if let Ok(8) = receiver.recv(&mut buffer) {
                    state.arrived(u64::from_be_bytes(buffer));
                }
            }
        });
        flow.pace(move |number| {
            // Without a way there is none for it, and that is what is measured.
            drop(sender.send_to(&number.to_be_bytes(), target));
            Ok(())
        });
        Ok(flow)
    }

    /// One connection from one pod to another, which it sees at `target`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn connection(from: &Inside, to: &Inside, target: IpAddr, port: u16) -> anyhow::Result<Self> {
        let listener = to.network(|| TcpListener::bind((any(target), port)))??;
        let target = SocketAddr::from((target, port));
        let mut sender = from.network(|| TcpStream::connect_timeout(&target, Duration::from_secs(10)))??;
        let (mut receiver, _) = listener.accept()?;
        sender.set_nodelay(true)?;
        sender.set_write_timeout(Some(STUCK))?;
        receiver.set_read_timeout(Some(STUCK))?;
        let mut flow = Self::new(format!("TCP {} to {}", from.name, to.name));
        flow.spawn(move |state| {
            let mut buffer = [0; 8];
            while state.goes_on() {
                match receiver.read_exact(&mut buffer) {
                    Ok(()) => state.arrived(u64::from_be_bytes(buffer)),
                    Err(error) if state.goes_on() => return state.breaks(format!("receiving: {error}")),
                    Err(_) => return,
                }
            }
        });
        flow.pace(move |number| sender.write_all(&number.to_be_bytes()));
        Ok(flow)
    }

    fn new(name: String) -> Self {
        Self { name, state: Arc::default(), threads: Vec::new() }
    }

    fn spawn(&mut self, work: impl FnOnce(&State) + Send + 'static) {
        let state = self.state.clone();
        self.threads.push(std::thread::spawn(move || work(&state)));
    }

    fn pace(&mut self, mut send: impl FnMut(u64) -> std::io::Result<()> + Send + 'static) {
        self.spawn(move |state| {
            let begun = Instant::now();
            let mut number = 0;
            while state.goes_on() {
                if let Err(error) = send(number) {
                    return state.breaks(format!("sending: {error}"));
                }
                number += 1;
                state.sent.store(number, Ordering::Relaxed);
                // By the clock, so that a thread that was held up sends what is missing.
                let next = PACE * u32::try_from(number).unwrap_or(u32::MAX);
                std::thread::park_timeout(next.saturating_sub(begun.elapsed()));
            }
        });
    }

    /// How many numbers have arrived.
    #[must_use]
    pub fn arrived(&self) -> usize {
        self.state.arrived.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The longest time without a number since `since`, until now.
    #[must_use]
    pub fn gap_since(&self, since: Instant) -> Duration {
        self.gap(since).1
    }

    /// The longest time without a number since `since`, and how long after `since` it began.
    #[must_use]
    pub fn gap(&self, since: Instant) -> (Duration, Duration) {
        let arrived = self.state.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let first = arrived.partition_point(|(_, at)| *at < since).saturating_sub(1);
        let times = arrived[first..].iter().map(|(_, at)| *at).chain([Instant::now()]);
        let times: Vec<Instant> = times.collect();
        let gaps = times.windows(2).map(|pair| (pair[1] - pair[0], pair[0].saturating_duration_since(since)));
        gaps.max().map_or((Duration::ZERO, Duration::MAX), |(gap, after)| (after, gap))
    }

    /// Numbers sent so far that have not arrived; those of the last half second may be under way.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let under_way = u64::try_from(Duration::from_millis(500).as_millis() / PACE.as_millis()).unwrap_or(0);
        let settled = self.state.sent.load(Ordering::Relaxed).saturating_sub(under_way);
        let arrived = self.state.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let there = arrived.iter().filter(|(number, _)| *number < settled).count();
        settled.saturating_sub(u64::try_from(there).unwrap_or(u64::MAX))
    }

    /// Why it is no flow any more, if so: a connection has ended, or numbers came out of order.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        let broken = self.state.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        broken.map(|why| format!("{}: {why}", self.name))
    }

    /// Whether every number up to the last came, once and in order.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let arrived = self.state.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.iter().zip(0..).all(|((number, _), expected)| *number == expected)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}
