//! The data path beside others: client, gateway, internet, gateway, client, each in a network namespace of its own.
//!
//! `cargo xtask bench datapath` runs it: needs root, `ip` and `/dev/net/tun`; wireguard-go and boringtun-cli are built when they are
//! not in `target/gateway-tools/bin`. Subjects take turns within a round, and each round begins with another one; a ratio
//! is the median of the ratios within rounds, so that what the machine does besides falls out of it.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where it cannot measure")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark says what it measured")]

#[path = "datapath/load.rs"]
mod load;
#[path = "../tests/support/netns.rs"]
mod netns;
#[path = "datapath/report.rs"]
mod report;

use clap::{Parser, ValueEnum};
use load::{Transfer, echo, flood, transfer};
use netns::{Other, Prefixes, Process, Site, World, eventually};
use report::Results;
use serde::Serialize;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Subject {
    /// Packets are routed as they are.
    Plain,
    /// With overlapping prefixes: NAT is on.
    Liquid,
    WireguardGo,
    BoringtunCli,
}

impl Subject {
    const ALL: [Self; 4] = [Self::Plain, Self::Liquid, Self::WireguardGo, Self::BoringtunCli];

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Wire {
    /// Packets that a sender puts together cross it whole, as within a machine.
    Whole,
    /// It takes packets of 1500 bytes only, as between machines.
    Segmented,
}

/// How long each thing is measured.
#[derive(Debug, Clone, Copy)]
struct Extent {
    rounds: usize,
    each: Duration,
}

const FULL: Extent = Extent { rounds: 5, each: Duration::from_secs(4) };
const QUICK: Extent = Extent { rounds: 3, each: Duration::from_millis(1200) };

fn main() {
    let arguments = Arguments::parse();
    let extent = if arguments.quick { QUICK } else { FULL };
    let wanted = |subject: &Subject| arguments.only.is_empty() || arguments.only.contains(subject);
    let subjects: Vec<Subject> = Subject::ALL.into_iter().filter(wanted).collect();
    let mut results = Results::default();
    for round in 0..extent.rounds {
        for wire in [Wire::Whole, Wire::Segmented] {
            for at in 0..subjects.len() {
                let subject = subjects[(at + round) % subjects.len()];
                eprintln!("round {} of {}, {wire:?} wire: {}", round + 1, extent.rounds, subject.name());
                measure(subject, wire, extent.each, round, &mut results);
            }
        }
    }
    match arguments.output {
        Format::Table => println!("{}", results.table()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&results.series()).unwrap()),
    }
}

fn measure(subject: Subject, wire: Wire, each: Duration, round: usize, results: &mut Results) {
    let stage = Stage::set(subject, wire);
    let (a, b) = (&stage.world.a, &stage.world.b);
    let mut note = |what: &'static str, value: f64| results.note(subject, wire, what, round, value);
    let mut stream = |what: [&'static str; 2], from: &Site, to: &Site, streams| {
        let Transfer { bits_per_second, cpu_per_byte } = transfer(from, to, streams, each, &stage.ends);
        note(what[0], bits_per_second / 1e9);
        if subject != Subject::Plain {
            note(what[1], cpu_per_byte * 1e9);
        }
    };
    stream(["TCP, 1 stream, Gbit/s", "  processor, s/GB"], a, b, 1);
    if wire == Wire::Segmented {
        return;
    }
    stream(["TCP, 1 stream back, Gbit/s", "  processor back, s/GB"], b, a, 1);
    stream(["TCP, 8 streams, Gbit/s", "  processor of 8 streams, s/GB"], a, b, 8);
    let flooded = flood(a, b, 64, each, &stage.ends);
    note("UDP of 64 bytes, thousand/s", flooded.per_second / 1e3);
    if subject != Subject::Plain {
        note("  processor, us each", flooded.cpu_each * 1e6);
    }
    let idle = echo(a, b, each);
    note("round trip, idle, median, us", idle.median);
    note("round trip, idle, p99, us", idle.p99);
    let loaded = std::thread::scope(|scope| {
        let load = scope.spawn(|| transfer(a, b, 4, each + load::RAMP, &stage.ends));
        netns::pause(load::RAMP);
        let echoed = echo(a, b, each);
        load.join().unwrap();
        echoed
    });
    note("round trip beside 4 TCP streams, median, us", loaded.median);
    note("round trip beside 4 TCP streams, p99, us", loaded.p99);
    for site in [a, b] {
        let wrong = site.client.checksum_errors();
        assert_eq!(wrong, 0, "{}: packets arrived with a wrong checksum", subject.name());
    }
}

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
                    world.internet.ip(&format!("route add {} via {}", site.real[0], site.outer[0]));
                }
                Vec::new()
            }
            Subject::Liquid => vec![a.start_gateway(b, 0), b.start_gateway(a, 0)],
            Subject::WireguardGo => other(Other::WireguardGo),
            Subject::BoringtunCli => other(Other::BoringtunCli),
        };
        eventually(&format!("{} connects", subject.name()), || load::answers(a, b).then_some(()));
        Self { world, ends }
    }
}
