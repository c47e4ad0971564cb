//! Traffic from one client to the other, and what of it arrives.

use crate::netns::{DEADLINE, Process, Site, pause};
use socket2::SockRef;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PORT: u16 = 7000;
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// What is not counted at the beginning: TCP finds out how much the path takes.
pub(crate) const RAMP: Duration = Duration::from_millis(500);
/// Written and read at a time.
const CHUNK: usize = 256 * 1024;
/// Of datagrams that wait for their receiver.
const BUFFER: usize = 8 << 20;

/// What TCP connections carried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) bits_per_second: f64,
    /// Processor seconds of both ends of the tunnel.
    pub(crate) cpu_per_byte: f64,
}

/// Sends as much as goes over so many connections, for that long.
pub(crate) fn transfer(from: &Site, to: &Site, streams: usize, time: Duration, ends: &[Process]) -> Transfer {
    let target = SocketAddr::new(from.sees(to, 0), PORT);
    let listener = to.client.inside(|| TcpListener::bind((ANY, PORT)).unwrap());
    let (received, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..streams {
            let mut sender = from.client.inside(|| TcpStream::connect_timeout(&target, DEADLINE).unwrap());
            let mut receiver = listener.accept().unwrap().0;
            sender.set_write_timeout(Some(DEADLINE)).unwrap();
            receiver.set_read_timeout(Some(DEADLINE)).unwrap();
            let (received, done) = (&received, &done);
            scope.spawn(move || {
                let data = vec![0x5a; CHUNK];
                while !done.load(Ordering::Relaxed) {
                    sender.write_all(&data).unwrap();
                }
            });
            scope.spawn(move || {
                let mut buffer = vec![0; CHUNK];
                while let Ok(length @ 1..) = receiver.read(&mut buffer) {
                    received.fetch_add(u64::try_from(length).unwrap(), Ordering::Relaxed);
                }
            });
        }
        pause(RAMP);
        let (before, after) = around(&received, ends, time);
        done.store(true, Ordering::Relaxed);
        let bytes = number(after.count - before.count);
        Transfer {
            bits_per_second: bytes * 8.0 / (after.at - before.at).as_secs_f64(),
            cpu_per_byte: (after.cpu - before.cpu).as_secs_f64() / bytes,
        }
    })
}

/// What had arrived at a moment, and which processor time both ends had used.
struct Moment {
    count: u64,
    cpu: Duration,
    at: Instant,
}

/// The moments before and after a time.
fn around(received: &AtomicU64, ends: &[Process], time: Duration) -> (Moment, Moment) {
    let now = || Moment {
        count: received.load(Ordering::Relaxed),
        cpu: ends.iter().map(Process::cpu).sum(),
        at: Instant::now(),
    };
    let before = now();
    pause(time);
    (before, now())
}

/// What of many datagrams arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flood {
    pub(crate) per_second: f64,
    /// Processor seconds of both ends of the tunnel.
    pub(crate) cpu_each: f64,
}

/// Sends datagrams of this length, one by one, as fast as one thread can.
pub(crate) fn flood(from: &Site, to: &Site, length: usize, time: Duration, ends: &[Process]) -> Flood {
    let target = SocketAddr::new(from.sees(to, 0), PORT);
    let receiver = to.client.inside(|| UdpSocket::bind((ANY, PORT)).unwrap());
    SockRef::from(&receiver).set_recv_buffer_size(BUFFER).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let sender = from.client.inside(|| UdpSocket::bind((ANY, 0)).unwrap());
    sender.connect(target).unwrap();
    let (received, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let data = vec![0x5a; length];
            while !done.load(Ordering::Relaxed) {
                // Where the queue is full, the next one may have a place.
                drop(sender.send(&data));
            }
        });
        scope.spawn(|| {
            let mut buffer = [0; 2000];
            while !done.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    received.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        pause(RAMP);
        let (before, after) = around(&received, ends, time);
        done.store(true, Ordering::Relaxed);
        let count = number(after.count - before.count);
        Flood {
            per_second: count / (after.at - before.at).as_secs_f64(),
            cpu_each: (after.cpu - before.cpu).as_secs_f64() / count,
        }
    })
}

/// Times of round trips, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoundTrips {
    pub(crate) median: f64,
    pub(crate) p99: f64,
}

/// Sends a datagram and waits until it comes back, over and over; one that is lost counts with the time it was waited for.
pub(crate) fn echo(from: &Site, to: &Site, time: Duration) -> RoundTrips {
    let mut times = Vec::new();
    echoing(from, to, |socket| {
        let until = Instant::now() + time;
        for number in 0_u64.. {
            let began = Instant::now();
            if began >= until {
                break;
            }
            asks(socket, number);
            times.push(began.elapsed());
        }
    });
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
    RoundTrips { median: at(50), p99: at(99) }
}

/// Whether a datagram comes back.
pub(crate) fn answers(from: &Site, to: &Site) -> bool {
    let mut answered = false;
    echoing(from, to, |socket| answered = asks(socket, 0));
    answered
}

/// Whether this datagram comes back; late ones of before are passed over.
fn asks(socket: &UdpSocket, number: u64) -> bool {
    let sent = number.to_be_bytes();
    let mut buffer = [0; 8];
    if socket.send(&sent).is_err() {
        return false;
    }
    while socket.recv(&mut buffer).is_ok() {
        if buffer == sent {
            return true;
        }
    }
    false
}

fn echoing(from: &Site, to: &Site, function: impl FnOnce(&UdpSocket)) {
    let port = PORT + 1;
    let server = to.client.inside(|| UdpSocket::bind((ANY, port)).unwrap());
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let socket = from.client.inside(|| UdpSocket::bind((ANY, 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.connect((from.sees(to, 0), port)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 8];
            while !done.load(Ordering::Relaxed) {
                if let Ok((length, sender)) = server.recv_from(&mut buffer) {
                    drop(server.send_to(&buffer[..length], sender));
                }
            }
        });
        function(&socket);
        done.store(true, Ordering::Relaxed);
    });
}

/// Exact below 2^53, which no count of a run comes near.
#[allow(clippy::cast_precision_loss, reason = "counts of a run are below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}
