//! The data path beside others: client, gateway, internet, gateway, client, each in a network namespace of its own.
//!
//! `cargo xtask bench datapath` runs it: needs root, `ip` and `/dev/net/tun`; wireguard-go and boringtun-cli are built when they are
//! not in `target/gateway-tools/bin`. Subjects take turns within a round, and each round begins with another one; a ratio
//! is the median of the ratios within rounds, so that what the machine does besides falls out of it.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where it cannot measure")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark says what it measured")]

#[path = "../tests/support/netns.rs"]
mod netns;

use clap::{Parser, ValueEnum};
use liquid_load::{Results, Transfer, Way, answers, echo, echo_beside, flood, steps, transfer};
use netns::{End, Other, Prefixes, Process, Site, World, eventually};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Longest packet within tunnels, and from and to clients: what is left of 1500 bytes by WireGuard over IPv6.
const MTU: u16 = 1420;

/// Measures the data path beside others.
#[derive(Debug, Parser)]
struct Arguments {
    /// Three short rounds: some minutes
    #[arg(long)]
    quick: bool,
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Subject>,
    /// How to show the result
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// What `cargo bench` passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Packets are routed as they are.
    Plain,
    /// With overlapping prefixes: NAT is on.
    Liquid,
    WireguardGo,
    BoringtunCli,
}

impl Subject {
    /// Liquid is compared with the others.
    const ALL: [Self; 4] = [Self::Liquid, Self::WireguardGo, Self::BoringtunCli, Self::Plain];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain routing",
            Self::Liquid => "liquid-gateway",
            Self::WireguardGo => "wireguard-go",
            Self::BoringtunCli => "boringtun-cli",
        }
    }
}

/// What is between the gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// Packets that a sender puts together cross it whole, as within a machine.
    Whole,
    /// It takes packets of 1500 bytes only, as between machines.
    Segmented,
}

impl Wire {
    fn name(self) -> &'static str {
        match self {
            Self::Whole => "Whole wire",
            Self::Segmented => "Segmented wire",
        }
    }
}

/// New keys are agreed on after 120 seconds.
const REKEYING: Duration = Duration::from_secs(124);
/// What a rekeying costs is looked for in steps of this.
const STEP: Duration = Duration::from_millis(100);

/// How long each thing is measured.
#[derive(Debug, Clone, Copy)]
struct Extent {
    rounds: usize,
    each: Duration,
    /// Whether a connection is followed through a rekeying, once.
    rekeying: bool,
}

const FULL: Extent = Extent { rounds: 5, each: Duration::from_secs(4), rekeying: true };
const QUICK: Extent = Extent { rounds: 3, each: Duration::from_millis(1200), rekeying: false };

fn main() {
    let arguments = Arguments::parse();
    let extent = if arguments.quick { QUICK } else { FULL };
    let wanted = |subject: &Subject| arguments.only.is_empty() || arguments.only.contains(subject);
    let subjects: Vec<Subject> = Subject::ALL.into_iter().filter(wanted).collect();
    let mut results = Results::new(&Subject::ALL.map(Subject::name));
    for round in 0..extent.rounds {
        for wire in [Wire::Whole, Wire::Segmented] {
            for at in 0..subjects.len() {
                let subject = subjects[(at + round) % subjects.len()];
                eprintln!("round {} of {}, {}: {}", round + 1, extent.rounds, wire.name(), subject.name());
                measure(subject, wire, extent.each, round, &mut results);
            }
        }
    }
    for subject in subjects.iter().filter(|_| extent.rekeying) {
        eprintln!("through a rekeying: {}", subject.name());
        rekey(*subject, &mut results);
    }
    if let Format::Table = arguments.output {
        println!("{}", results.table());
    }
    let scaling = wanted(&Subject::Liquid).then(|| scaling(extent));
    match (arguments.output, &scaling) {
        (Format::Table, Some(scaling)) => println!("{}", scaling.table()),
        (Format::Table, None) => {}
        (Format::Json, _) => {
            let all: Vec<_> =
                results.series().into_iter().chain(scaling.iter().flat_map(Results::series)).collect();
            println!("{}", serde_json::to_string_pretty(&all).unwrap());
        }
    }
}

/// Two lanes beside one.
fn scaling(extent: Extent) -> Results {
    let mut results = Results::new(&LANES.map(|(name, _)| name));
    for round in 0..extent.rounds {
        for (at, circumstances) in [HELD, FREE].into_iter().enumerate() {
            for number in 0..LANES.len() {
                let (name, lanes) = LANES[(number + round + at) % LANES.len()];
                eprintln!("round {} of {}, {circumstances}: {name}", round + 1, extent.rounds);
                scale(circumstances, (name, lanes), extent.each, round, &mut results);
            }
        }
    }
    results
}

/// Bandwidth and cost with so many lanes.
fn scale(
    circumstances: &'static str,
    (name, lanes): (&'static str, usize),
    each: Duration,
    round: usize,
    results: &mut Results,
) {
    let stage = Stage::with_lanes(lanes);
    if circumstances == HELD {
        stage.ends.iter().flat_map(threads).for_each(|thread| hold(&thread));
    }
    let cpu = &|| stage.cpu();
    let mut note = |what, value| results.note([circumstances, name, what], round, value);
    let all = transfer(&stage.way(0), STREAMS, each, cpu);
    note("TCP, 16 streams, Gbit/s", all.bits_per_second / 1e9);
    note("  processor, s/GB", all.cpu_per_byte * 1e9);
}

/// The threads of a gateway that move packets, as the kernel shows them.
fn threads(gateway: &Process) -> Vec<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let threads = threads.map(|thread| thread.unwrap().path());
    threads.filter(|thread| fs::read_to_string(thread.join("comm")).unwrap().starts_with("lane-")).collect()
}

/// Gives a thread 0.5 ms of processor every 2.5 ms and no more, so that it is the thread that bounds what it carries, and not what
/// else wants a core of this machine.
fn hold(thread: &std::path::Path) {
    let (runtime, period) = ("500000", "2500000");
    let mut command = Command::new("chrt");
    command.args(["--deadline", "--sched-runtime", runtime, "--sched-deadline", period]);
    command.args(["--sched-period", period, "--pid", "0"]).arg(thread.file_name().unwrap());
    assert!(command.status().unwrap().success(), "cannot hold {}", thread.display());
}

/// A connection that lasts longer than keys do.
fn rekey(subject: Subject, results: &mut Results) {
    let stage = Stage::set(subject, Wire::Whole);
    let mut steps = steps(&stage.way(0), STEP, REKEYING);
    // Keys are as old as the connection of the stage, which was made a moment before.
    let mut around = steps.split_off(steps.len() - steps.len() / 12);
    let mut before = steps.split_off(steps.len() - around.len());
    for steps in [&mut around, &mut before] {
        steps.sort_unstable_by(f64::total_cmp);
    }
    let mut note = |what, value| results.note([Wire::Whole.name(), subject.name(), what], 0, value / 1e9);
    note("TCP around a rekeying, median 0.1 s, Gbit/s", around[around.len() / 2]);
    note("TCP around a rekeying, slowest 0.1 s, Gbit/s", around[0]);
    note("TCP 10 s before, slowest 0.1 s, Gbit/s", before[0]);
}

fn measure(subject: Subject, wire: Wire, each: Duration, round: usize, results: &mut Results) {
    let stage = Stage::set(subject, wire);
    let (way, cpu) = (&stage.way(0), &|| stage.cpu());
    let mut note =
        |what: &'static str, value: f64| results.note([wire.name(), subject.name(), what], round, value);
    let mut stream = |what: [&'static str; 2], way: &Way, streams| {
        let Transfer { bits_per_second, cpu_per_byte } = transfer(way, streams, each, cpu);
        note(what[0], bits_per_second / 1e9);
        if subject != Subject::Plain {
            note(what[1], cpu_per_byte * 1e9);
        }
    };
    stream(["TCP, 1 stream, Gbit/s", "  processor, s/GB"], way, 1);
    if wire == Wire::Segmented {
        return;
    }
    stream(["TCP, 1 stream back, Gbit/s", "  processor back, s/GB"], &stage.back(), 1);
    stream(["TCP, 8 streams, Gbit/s", "  processor of 8 streams, s/GB"], way, 8);
    stream(["TCP over IPv6, 1 stream, Gbit/s", "  processor of IPv6, s/GB"], &stage.way(1), 1);
    let flooded = flood(way, 64, each, cpu);
    note("UDP of 64 bytes, thousand/s", flooded.per_second / 1e3);
    if subject != Subject::Plain {
        note("  processor, us each", flooded.cpu_each * 1e6);
    }
    let idle = echo(way, each);
    note("round trip, idle, median, us", idle.median);
    note("round trip, idle, p99, us", idle.p99);
    let loaded = echo_beside(4, way, each);
    note("round trip beside 4 TCP streams, median, us", loaded.median);
    note("round trip beside 4 TCP streams, p99, us", loaded.p99);
    for site in [&stage.world.a, &stage.world.b] {
        let wrong = site.client.checksum_errors();
        assert_eq!(wrong, 0, "{}: packets arrived with a wrong checksum", subject.name());
    }
}

/// What is compared for lanes.
const LANES: [(&str, usize); 2] = [("2 lanes", 2), ("1 lane", 1)];
const HELD: &str = "Each lane held to a fifth of a core";
const FREE: &str = "Lanes not held";
/// Enough for each lane to have some of them.
const STREAMS: usize = 16;

/// Two sites that reach each other.
struct Stage {
    world: World,
    /// Both ends of the tunnel.
    ends: Vec<Process>,
}

impl Stage {
    fn set(subject: Subject, wire: Wire) -> Self {
        let overlap = if subject == Subject::Liquid { Prefixes::Overlapping } else { Prefixes::Disjoint };
        let world = World::new(overlap);
        let (a, b) = (&world.a, &world.b);
        for site in [a, b] {
            site.client.ip(&format!("link set eth0 mtu {MTU}"));
            if wire == Wire::Segmented {
                site.gateway.ip("link set dev out gso_max_segs 1");
            }
        }
        let other = |implementation| {
            [(a, b), (b, a)].map(|(here, there)| here.start_other(there, implementation, MTU)).into()
        };
        let ends = match subject {
            Subject::Plain => {
                for site in [a, b] {
                    for family in [0, 1] {
                        let (prefix, via) = (site.real[family], site.outer[family]);
                        world.internet.ip(&format!("route add {prefix} via {via}"));
                    }
                }
                Vec::new()
            }
            Subject::Liquid => vec![a.start_gateway(b, 0), b.start_gateway(a, 0)],
            Subject::WireguardGo => other(Other::WireguardGo),
            Subject::BoringtunCli => other(Other::BoringtunCli),
        };
        let stage = Self { world, ends };
        for family in [0, 1] {
            let answers = || answers(&stage.way(family)).then_some(());
            eventually(&format!("{} connects", subject.name()), answers);
        }
        stage
    }

    /// Gateways with so many lanes, all of which are in use.
    fn with_lanes(lanes: usize) -> Self {
        let world = World::new(Prefixes::Overlapping);
        let (a, b) = (&world.a, &world.b);
        let ends = [(a, b), (b, a)].map(|(here, there)| {
            here.client.ip(&format!("link set eth0 mtu {MTU}"));
            let end = End { probes: true, ..there.end(0) };
            here.start_with(there, &[end], &["--lanes", &lanes.to_string()])
        });
        let stage = Self { world, ends: ends.into() };
        eventually("gateways connect", || answers(&stage.way(0)).then_some(()));
        eventually("all lanes carry something", || {
            let threads: Vec<PathBuf> = stage.ends.iter().flat_map(threads).collect();
            let used = || threads.iter().map(|thread| liquid_load::processor_time(thread).unwrap());
            let before: Vec<_> = used().collect();
            let cpu = &|| stage.cpu();
            let _ = transfer(&stage.way(0), STREAMS, Duration::from_millis(500), cpu);
            let idle = Duration::from_millis(20);
            used().zip(before).all(|(after, before)| after - before > idle).then_some(())
        });
        stage
    }

    /// From A to B; 0: IPv4, 1: IPv6.
    fn way(&self, family: usize) -> Way {
        way(&self.world.a, &self.world.b, family)
    }

    fn back(&self) -> Way {
        way(&self.world.b, &self.world.a, 0)
    }

    /// Processor time of both ends.
    fn cpu(&self) -> Duration {
        self.ends.iter().map(Process::cpu).sum()
    }
}

fn way(from: &Site, to: &Site, family: usize) -> Way {
    let [namespace_from, namespace_to] = [from, to].map(|site| site.client.path());
    Way { from: namespace_from, to: namespace_to, target: from.sees(to, family) }
}
