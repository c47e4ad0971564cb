//! Traffic from one client to the other, and what of it arrives.

use socket2::SockRef;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PORT: u16 = 7000;
/// What is not counted at the beginning: TCP finds out how much the path takes.
const RAMP: Duration = Duration::from_millis(500);
/// How long anything may take to come about.
const DEADLINE: Duration = Duration::from_secs(20);
/// Clock ticks per second in `/proc/PID/stat`: fixed by the kernel's interface on every architecture Liquid runs on.
const TICKS: u64 = 100;
/// Written and read at a time.
const CHUNK: usize = 256 * 1024;
/// Of datagrams that wait for their receiver.
const BUFFER: usize = 8 << 20;

/// From one client to the other.
#[derive(Debug, Clone)]
pub struct Way {
    /// Network namespace of the one that sends.
    pub from: PathBuf,
    /// Of the one that receives.
    pub to: PathBuf,
    /// Where the sender sees the receiver.
    pub target: IpAddr,
}

impl Way {
    fn target(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.target, port)
    }

    fn any(&self, port: u16) -> SocketAddr {
        let any = match self.target {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        SocketAddr::new(any, port)
    }

    fn connection(&self, listener: &TcpListener) -> [TcpStream; 2] {
        let target = self.target(PORT);
        let sender = inside(&self.from, || TcpStream::connect_timeout(&target, DEADLINE).unwrap());
        let receiver = listener.accept().unwrap().0;
        sender.set_write_timeout(Some(DEADLINE)).unwrap();
        receiver.set_read_timeout(Some(DEADLINE)).unwrap();
        [sender, receiver]
    }
}

/// Runs a function on a thread in a network namespace; sockets made there stay there.
pub fn inside<T: Send>(namespace: &Path, function: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            nix::sched::setns(File::open(namespace).unwrap(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            function()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Processor time that the process with this directory in `/proc` has used, user and system; none if it has ended.
pub fn processor_time(directory: &Path) -> Option<Duration> {
    cpu(&fs::read_to_string(directory.join("stat")).ok()?)
}

/// Fields 14 and 15, user and system time. The program's name (field 2) may hold spaces and parentheses: the fields count
/// from the last.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_millis((user + system) * 1000 / TICKS))
}

/// Does nothing for a time.
#[allow(clippy::disallowed_methods, reason = "polls something that does not tell, or measures for a time")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// What TCP connections carried.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    pub bits_per_second: f64,
    /// Processor seconds of those in between.
    pub cpu_per_byte: f64,
}

/// Sends as much as goes over so many connections, for that long. `cpu` says what those in between have used.
pub fn transfer(way: &Way, streams: usize, time: Duration, cpu: &(dyn Fn() -> Duration + Sync)) -> Transfer {
    streaming(way, streams, |received| {
        let (before, after) = around(received, cpu, time);
        let bytes = number(after.count - before.count);
        Transfer {
            bits_per_second: bytes * 8.0 / (after.at - before.at).as_secs_f64(),
            cpu_per_byte: (after.cpu - before.cpu).as_secs_f64() / bytes,
        }
    })
}

/// What a TCP connection carries within each of many steps of time, in bits per second.
pub fn steps(way: &Way, step: Duration, time: Duration) -> Vec<f64> {
    streaming(way, 1, |received| {
        let mut steps = Vec::new();
        let began = Instant::now();
        let (mut count, mut at) = (received.load(Ordering::Relaxed), began);
        while began.elapsed() < time {
            pause(step);
            let now = (received.load(Ordering::Relaxed), Instant::now());
            steps.push(number(now.0 - count) * 8.0 / (now.1 - at).as_secs_f64());
            (count, at) = now;
        }
        steps
    })
}

/// Sends as much as goes over so many connections, while something is measured: it is told what has arrived.
fn streaming<T>(way: &Way, streams: usize, measure: impl FnOnce(&AtomicU64) -> T) -> T {
    let listener = inside(&way.to, || TcpListener::bind(way.any(PORT)).unwrap());
    let (received, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..streams {
            let [mut sender, mut receiver] = way.connection(&listener);
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
        let measured = measure(&received);
        done.store(true, Ordering::Relaxed);
        measured
    })
}

/// What had arrived at a moment, and which processor time those in between had used.
struct Moment {
    count: u64,
    cpu: Duration,
    at: Instant,
}

/// The moments before and after a time.
fn around(received: &AtomicU64, cpu: &(dyn Fn() -> Duration + Sync), time: Duration) -> (Moment, Moment) {
    let now = || Moment { count: received.load(Ordering::Relaxed), cpu: cpu(), at: Instant::now() };
    let before = now();
    pause(time);
    (before, now())
}

/// What of many datagrams arrived.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    pub per_second: f64,
    /// Processor seconds of those in between.
    pub cpu_each: f64,
}

/// Sends datagrams of this length, one by one, as fast as one thread can.
pub fn flood(way: &Way, length: usize, time: Duration, cpu: &(dyn Fn() -> Duration + Sync)) -> Flood {
    let receiver = inside(&way.to, || UdpSocket::bind(way.any(PORT)).unwrap());
    SockRef::from(&receiver).set_recv_buffer_size(BUFFER).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let sender = inside(&way.from, || UdpSocket::bind(way.any(0)).unwrap());
    sender.connect(way.target(PORT)).unwrap();
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
        let (before, after) = around(&received, cpu, time);
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
pub struct RoundTrips {
    pub median: f64,
    pub p99: f64,
}

/// Sends a datagram and waits until it comes back, over and over; one that is lost counts with the time it was waited for.
pub fn echo(way: &Way, time: Duration) -> RoundTrips {
    let mut times = Vec::new();
    echoing(way, |socket| {
        let until = Instant::now() + time;
        for number in 0_u64.. {
            let began = Instant::now();
            if began >= until {
                break;
            }
            // A path that does not exist is not a quick one.
            asks(socket, number).unwrap();
            times.push(began.elapsed());
        }
    });
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
    RoundTrips { median: at(50), p99: at(99) }
}

/// As [`echo`], beside so many TCP connections that carry what they can.
pub fn echo_beside(streams: usize, way: &Way, time: Duration) -> RoundTrips {
    std::thread::scope(|scope| {
        scope.spawn(|| transfer(way, streams, time + RAMP, &|| Duration::ZERO));
        pause(RAMP);
        echo(way, time)
    })
}

/// Whether a datagram comes back.
pub fn answers(way: &Way) -> bool {
    let mut answered = false;
    echoing(way, |socket| answered = asks(socket, 0).unwrap_or(false));
    answered
}

/// Whether this datagram comes back in time; late ones of before are passed over.
fn asks(socket: &UdpSocket, number: u64) -> io::Result<bool> {
    let sent = number.to_be_bytes();
    let mut buffer = [0; 8];
    socket.send(&sent)?;
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) if buffer == sent => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}

fn echoing(way: &Way, function: impl FnOnce(&UdpSocket)) {
    let port = PORT + 1;
    let server = inside(&way.to, || UdpSocket::bind(way.any(port)).unwrap());
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let socket = inside(&way.from, || UdpSocket::bind(way.any(0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.connect(way.target(port)).unwrap();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_that_of_user_and_system() {
        let stat = "42 (a) S 1 (b)) R 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1 0 7";
        assert_eq!(cpu(stat), Some(Duration::from_millis(1750)));
        assert_eq!(cpu("42"), None);
    }
}
