//! What reflection of pods costs: time, processor, memory, requests, bytes.

mod audit;
mod burst;
pub(crate) mod delay;
mod figures;
mod latency;
mod pods;
mod process;
mod rest;
mod stage;

use std::env;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use liquid_lab::{Lab, LabName};
use tokio::time::sleep;

use self::burst::{Burst, Size};
use self::delay::Delay;
use self::figures::{Found, Setting};
use self::rest::{Idle, Partition, Restart};
use self::stage::{LIMIT, Stage};
use crate::terminal;

/// The round trip of the second series of latencies.
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// After peering, until memory is at rest.
const SETTLE: Duration = Duration::from_secs(10);
/// Requests at one time for bursts.
const CLIENTS: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Directory with liquid-controller and liquid-kubelet
    #[arg(long)]
    programs: PathBuf,
    /// Fewer and smaller measurements
    #[arg(long)]
    quick: bool,
    #[arg(long, value_enum)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// How much is measured.
struct Extent {
    /// Pods one at a time, and with a round-trip time.
    pods: usize,
    pods_far: usize,
    /// Bursts of the size at which everything else is measured too.
    main: usize,
    rounds: usize,
    /// Larger bursts.
    larger: &'static [usize],
    idle: Duration,
    restarts: usize,
    partitions: usize,
}

const FULL: Extent = Extent {
    pods: 200,
    pods_far: 100,
    main: 500,
    rounds: 3,
    larger: &[2_000, 10_000],
    idle: Duration::from_secs(180),
    restarts: 5,
    partitions: 5,
};
const QUICK: Extent = Extent {
    pods: 40,
    pods_far: 20,
    main: 500,
    rounds: 1,
    larger: &[],
    idle: Duration::from_secs(40),
    restarts: 1,
    partitions: 1,
};

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let name: LabName = env::var("LIQUID_LAB").context("LIQUID_LAB names the lab")?.parse()?;
    let liquidctl = PathBuf::from(env::var_os("LIQUIDCTL").context("LIQUIDCTL is the program")?);
    let lab = Lab::open(&name)?;
    let extent = if arguments.quick { QUICK } else { FULL };
    let mut stage = Stage::set(&lab, &arguments.programs, &liquidctl).await?;
    let logs = stage.logs.display().to_string();
    let found =
        measure(&mut stage, &extent).await.with_context(|| format!("logs of Liquid are in {logs}"))?;
    terminal::result(&match arguments.output {
        Format::Json => serde_json::to_string_pretty(&found)? + "\n",
        Format::Table => found.table(),
    });
    Ok(())
}

async fn measure(stage: &mut Stage<'_>, extent: &Extent) -> anyhow::Result<Found> {
    let begun = Instant::now();
    let step = |what: &str| terminal::note(&format!("{:6.1}s  {what}", begun.elapsed().as_secs_f64()));
    step("peering");
    let peering = stage.peer().await?;
    sleep(SETTLE).await;
    let empty = burst::usages(stage)?;
    step("more virtual nodes");
    let another_node = rest::more_nodes(stage).await?;
    step(&format!("{} pods, one at a time", extent.pods));
    let near = latency::measure(stage, extent.pods).await?;

    let mut bursts: Vec<Burst> = Vec::new();
    let (mut idle, mut restart, mut partition) = (None, None, None);
    let one = Size { pods: extent.main, clients: 1 };
    step(&format!("{} pods, created by one client", one.pods));
    bursts.push(burst::measure(stage, one, async |_| Ok(())).await?);
    for round in 1..=extent.rounds {
        let size = Size { pods: extent.main, clients: CLIENTS };
        step(&format!(
            "{} pods, created by {CLIENTS} clients, round {round} of {}",
            size.pods, extent.rounds
        ));
        let last = round == extent.rounds;
        let meanwhile = async |stage: &mut Stage<'_>| {
            if last {
                step(&format!("nothing, for {} s", extent.idle.as_secs()));
                idle = Some(Idle::measure(stage, extent.idle).await?);
                step("restarts of liquid-kubelet");
                restart = Some(Restart::measure(stage, extent.restarts).await?);
                step("partitions");
                partition = Some(Partition::measure(stage, extent.partitions).await?);
            }
            Ok(())
        };
        bursts.push(burst::measure(stage, size, meanwhile).await?);
    }
    for pods in extent.larger {
        step(&format!("{pods} pods, created by {CLIENTS} clients"));
        let size = Size { pods: *pods, clients: CLIENTS };
        bursts.push(burst::measure(stage, size, async |_| Ok(())).await?);
    }

    step(&format!("{} pods, one at a time, {} ms of round trip", extent.pods_far, ROUND_TRIP.as_millis()));
    let far = far(stage, extent.pods_far).await?;
    step("done");
    Ok(Found {
        setting: Setting::of(stage.lab),
        peering: peering.into(),
        empty,
        another_node_bytes: another_node,
        near,
        far,
        bursts,
        idle: idle.context("rest was not measured")?,
        restart: restart.context("restarts were not measured")?,
        partition: partition.context("partitions were not measured")?,
    })
}

async fn far(stage: &mut Stage<'_>, count: usize) -> anyhow::Result<latency::Latencies> {
    let delay = Delay::start(stage.provider.machine.clone(), ROUND_TRIP, &stage.logs.join("delay.log"))?;
    let home = &mut stage.home;
    for process in [&mut home.kubelet, &mut home.controller] {
        process.kill();
        process.again()?;
    }
    // The node counts as Ready for a while after a restart: the first pods, which are not counted, wait for the link.
    sleep(SETTLE).await;
    stage.node_ready(true, LIMIT).await?;
    let far = latency::measure(stage, count).await;
    drop(delay);
    far
}
