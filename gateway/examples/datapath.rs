//! Compares `liquid-gateway` with plain routing, wireguard-go and boringtun-cli in one run, one after the other in every
//! round, the order turning: client - gateway - internet - gateway - client in network namespaces on this machine.
//!
//! `cargo build --release -p liquid-gateway && cargo run --release -p liquid-gateway --example datapath` as root, with
//! `iperf3`, and `ethtool` for `--segmented`. CPU is given as seconds of both tunnel processes per 10^9 bytes of goodput.

#![allow(clippy::unwrap_used, reason = "a measurement that fails has no result")]
#![allow(clippy::print_stdout, reason = "the result")]

#[path = "../tests/support/netns.rs"]
mod netns;

use clap::Parser;
use netns::{Other, Prefixes, Process, World, eventually, pause};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest packet inside every tunnel.
const MTU: u16 = 1420;
/// Packets of the latency measurement.
const ECHOES: usize = 2000;
/// Payload of small datagrams.
const SMALL: usize = 64;

#[derive(Debug, Parser)]
struct Args {
    /// Rounds; medians are taken over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Three rounds of three seconds.
    #[arg(long)]
    quick: bool,
    /// Switches the segmentation offload of the sender's link off, so that packets of real size cross the wire.
    #[arg(long)]
    segmented: bool,
    /// Measures only these: plain, wireguard-go, boringtun-cli, liquid.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Measures only these: tcp1, tcp1-reverse, tcp8, udp64, rtt.
    #[arg(long, value_delimiter = ',')]
    measure: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Path {
    Plain,
    WireguardGo,
    BoringtunCli,
    Liquid,
}

impl Path {
    const ALL: [Self; 4] = [Self::Plain, Self::WireguardGo, Self::BoringtunCli, Self::Liquid];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::WireguardGo => "wireguard-go",
            Self::BoringtunCli => "boringtun-cli",
            Self::Liquid => "liquid",
        }
    }
}

/// A path that is set up.
struct Stage {
    world: World,
    processes: Vec<Process>,
}

impl Stage {
    /// Ours translates both sites' addresses, which are the same; the others cannot.
    fn new(path: Path, segmented: bool) -> Self {
        let prefixes = if path == Path::Liquid { Prefixes::Overlapping } else { Prefixes::Disjoint };
        let world = World::new(prefixes);
        let other = |implementation| {
            let a = world.a.start_other(&world.b, implementation, MTU);
            vec![a, world.b.start_other(&world.a, implementation, MTU)]
        };
        let processes = match path {
            Path::Plain => {
                route_plainly(&world);
                Vec::new()
            }
            Path::WireguardGo => other(Other::WireguardGo),
            Path::BoringtunCli => other(Other::BoringtunCli),
            Path::Liquid => vec![world.a.start_gateway(&world.b, 0), world.b.start_gateway(&world.a, 0)],
        };
        for site in [&world.a, &world.b] {
            site.client.ip(&format!("link set eth0 mtu {MTU}"));
            site.gateway.ip(&format!("link set in mtu {MTU}"));
            if segmented {
                let mut off = site.gateway.command("ethtool");
                assert!(off.args(["-K", "out", "tx-udp-segmentation", "off"]).status().unwrap().success());
            }
        }
        let stage = Self { world, processes };
        stage.wait();
        stage
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(self.world.a.sees(&self.world.b, 0), 5201)
    }

    /// Until an echo comes back.
    fn wait(&self) {
        drop(self.echoes(1));
    }

    fn cpu(&self) -> Duration {
        self.processes.iter().map(Process::cpu).sum()
    }

    /// Runs iperf3 between the clients; returns its report and the CPU time of the tunnels meanwhile.
    fn iperf(&self, arguments: &[&str], seconds: u64) -> (Value, Duration) {
        let mut server = self.world.b.client.command("iperf3");
        let mut server =
            server.args(["-s", "-1"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let report = eventually("iperf3", || {
            let before = self.cpu();
            let mut client: Command = self.world.a.client.command("iperf3");
            client
                .args(["-J", "-c", &self.target().ip().to_string(), "-t", &seconds.to_string()])
                .args(arguments);
            let output = client.output().unwrap();
            let report: Value = serde_json::from_slice(&output.stdout).ok()?;
            report.get("end")?.get("sum_received").or(report["end"].get("sum"))?;
            Some((report, self.cpu() - before))
        });
        drop(server.kill());
        drop(server.wait());
        report
    }

    /// Sends small datagrams as fast as one thread can, one call each; returns how many per second arrived, and the
    /// CPU time of the tunnels for each in microseconds.
    fn flood(&self, time: Duration) -> (f64, f64) {
        let to = SocketAddr::new(self.target().ip(), 7000);
        let server = self.world.b.client.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000)).unwrap());
        let socket = self.world.a.client.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        nix::sys::socket::setsockopt(&server, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20)).unwrap();
        socket.connect(to).unwrap();
        let before = self.cpu();
        let began = Instant::now();
        let arrived: u64 = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut buffer = [0; 2 * SMALL];
                let mut arrived = 0;
                while began.elapsed() < time {
                    arrived += u64::from(server.recv(&mut buffer).is_ok());
                }
                arrived
            });
            scope.spawn(|| {
                while began.elapsed() < time {
                    drop(socket.send(&[7; SMALL]));
                }
            });
            receiver.join().unwrap()
        });
        let arrived = arrived as f64;
        (arrived / time.as_secs_f64(), (self.cpu() - before).as_secs_f64() * 1e6 / arrived)
    }

    /// Times of echoes, sorted.
    fn echoes(&self, count: usize) -> Vec<Duration> {
        let to = SocketAddr::new(self.target().ip(), 7000);
        let server = self.world.b.client.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000)).unwrap());
        let socket = self.world.a.client.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        for socket in [&server, &socket] {
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 64];
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok((length, from)) = server.recv_from(&mut buffer) {
                        drop(server.send_to(&buffer[..length], from));
                    }
                }
            });
            let mut times: Vec<_> = (0..count)
                .map(|_| {
                    eventually("echo", || {
                        let began = Instant::now();
                        socket.send_to(&[7; 64], to).ok()?;
                        socket.recv_from(&mut [0; 64]).ok().map(|_| began.elapsed())
                    })
                })
                .collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            times.sort();
            times
        })
    }
}

fn route_plainly(world: &World) {
    for site in [&world.a, &world.b] {
        world.internet.ip(&format!("route add {} via {}", site.real[0], site.outer[0]));
    }
}

/// All figures, by measurement and path.
type Figures = BTreeMap<(&'static str, &'static str), Vec<f64>>;

fn measure(path: Path, args: &Args, seconds: u64, figures: &mut Figures) {
    let stage = Stage::new(path, args.segmented);
    let mut note = |what, value| figures.entry((what, path.name())).or_default().push(value);
    let wanted = |what: &str| args.measure.is_empty() || args.measure.iter().any(|name| name == what);
    for (what, cost, arguments) in [
        ("tcp1", "tcp1 s/GB", &["-P1"][..]),
        ("tcp1-reverse", "tcp1-reverse s/GB", &["-P1", "-R"]),
        ("tcp8", "tcp8 s/GB", &["-P8"]),
    ] {
        if wanted(what) {
            let (report, cpu) = stage.iperf(arguments, seconds);
            let end = &report["end"]["sum_received"];
            note(what, end["bits_per_second"].as_f64().unwrap() / 1e9);
            note(cost, cpu.as_secs_f64() / (end["bytes"].as_f64().unwrap() / 1e9));
        }
    }
    if wanted("udp64") {
        let (rate, cpu) = stage.flood(Duration::from_secs(seconds));
        note("udp64", rate / 1000.0);
        note("udp64 us/packet", cpu);
    }
    if wanted("rtt") {
        let times = stage.echoes(ECHOES);
        note("rtt p50", times[times.len() / 2].as_secs_f64() * 1e6);
        note("rtt p99", times[times.len() * 99 / 100].as_secs_f64() * 1e6);
    }
    for site in [&stage.world.a, &stage.world.b] {
        let wrong = site.client.checksum_errors();
        assert_eq!(wrong, 0, "{} delivered packets with wrong checksums", path.name());
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() {
    let args = Args::parse();
    let (rounds, seconds) = if args.quick { (3, 3) } else { (args.rounds, args.seconds) };
    let paths: Vec<_> = Path::ALL
        .into_iter()
        .filter(|path| args.only.is_empty() || args.only.iter().any(|name| name == path.name()))
        .collect();
    let mut figures = Figures::new();
    for round in 0..rounds {
        let mut order = paths.clone();
        order.rotate_left(round % paths.len());
        for path in order {
            measure(path, &args, seconds, &mut figures);
            pause(Duration::from_millis(200));
        }
    }
    println!(
        "medians of {rounds} rounds of {seconds} s (lowest - highest){}",
        if args.segmented { ", segmented wire" } else { "" }
    );
    println!(
        "TCP in Gbit/s, udp64 in thousand packets/s, rtt in us, s/GB = CPU seconds of both tunnels per 10^9 bytes"
    );
    let measurements: Vec<&str> = {
        let mut seen: Vec<_> = figures.keys().map(|(what, _)| *what).collect();
        seen.dedup();
        seen
    };
    for what in &measurements {
        let mut line = format!("{what:<18}");
        for path in &paths {
            let Some(values) = figures.get(&(*what, path.name())) else { continue };
            let (low, high) =
                values.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
            line += &format!("  {} {:.2} ({low:.2} - {high:.2})", path.name(), median(values));
        }
        println!("{line}");
    }
    // Of each round by itself, so that a machine that is busier at times counts for both.
    for against in ["wireguard-go", "boringtun-cli", "plain"] {
        for what in &measurements {
            let (Some(ours), Some(theirs)) =
                (figures.get(&(*what, "liquid")), figures.get(&(*what, against)))
            else {
                continue;
            };
            let ratios: Vec<_> =
                ours.iter().zip(theirs).filter(|(_, theirs)| **theirs > 0.0).map(|(o, t)| o / t).collect();
            if !ratios.is_empty() {
                println!("{what} vs {against} {:.2}x", median(&ratios));
            }
        }
    }
}
