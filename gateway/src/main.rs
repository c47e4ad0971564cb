//! `liquid-gateway`: WireGuard to all peers, with their prefixes remapped where they overlap.

mod args;
mod leave;
mod metrics;
mod neighbour;
mod relay;
mod source;

use anyhow::{Context as _, bail};
use args::Args;
use clap::Parser as _;
use liquid_gateway::control;
use liquid_gateway::io::tun::Tun;
use liquid_gateway::io::udp::Udp;
use liquid_gateway::io::workers::Workers;
use liquid_gateway::lanes::MAX_LANES;
use liquid_runtime::admin;
use liquid_runtime::drain::DRAIN_DEADLINE;
use liquid_runtime::process::{self, Process};
use metrics::Reports;
use relay::Figures;
use source::cluster::{ClusterSource, Parts};
use source::file::FileSource;
use source::{Device, Source};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

/// Lanes if none are asked for: one for each core, and no more than these. All of them share the addresses of the gateway,
/// so that network cards hand their packets to one core of the kernel, which keeps up with about as many.
const DEFAULT_LANES: usize = 4;
/// How often it is looked for lanes of gateways of peers.
const LEARN_INTERVAL: Duration = Duration::from_millis(250);

/// The data path has threads of its own; this one serves metrics and reads the configuration.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    process::exit_code(run(args).await)
}

async fn run(args: Args) -> anyhow::Result<()> {
    let Process { log, drain, mut registry, health } = Process::begin("liquid-gateway", &args.admin.log)?;
    let forwarding = health.part("data path", "not begun");
    let reports = Reports::default();
    registry.register_collector(Box::new(reports.clone()));
    let figures = Figures::default();
    figures.register(&mut registry);
    // Before the source is read, which may take as long as a cluster needs.
    let parts = args.cluster.as_ref().map(|_| Parts {
        key: health.part("key", "waiting for it"),
        peers: health.part("peers", "reading Peers"),
        reached: health.part("tunnels", "waiting for peers to answer"),
    });
    let fabric = args.cluster.as_ref().and_then(|cluster| cluster.fabric_admin);
    admin::serve(&args.admin, health, registry, log, &drain)?;
    let lanes = args.lanes.map_or_else(default_lanes, usize::from);
    let source = tokio::select! {
        source = read(args, parts) => source?,
        () = drain.requested() => return Ok(()),
    };

    let Device { name, mtu, listen, relay } = source.device();
    let address = relay.as_ref().map(|_| (control::ADDRESS, control::PREFIX_LENGTH));
    let tuns = Tun::open(&name, mtu, address, lanes).with_context(|| {
        format!("cannot make TUN device {name}: this needs CAP_NET_ADMIN and /dev/net/tun, and a free name")
    })?;
    let udps = Udp::bind_lanes(listen, lanes).with_context(|| format!("cannot listen on UDP {listen}"))?;
    // Each lane has room for its last word.
    let (ended, mut over) = mpsc::channel(MAX_LANES);
    let ends = tuns.into_iter().zip(udps).collect();
    let handle = Workers::start(source.config().clone(), ends, move |result| drop(ended.try_send(result)))?;
    reports.of(handle.clone());
    forwarding.ready();
    drain.spawn(drain.token().run_until_cancelled_owned(learn(handle.clone())));
    if let Some(fabric) = fabric {
        let handle = handle.clone();
        handle.standby(true);
        drain.spawn(drain.token().run_until_cancelled_owned(async move {
            neighbour::ready(fabric).await;
            handle.standby(false);
        }));
    }
    if let Some((at, directory)) = relay {
        relay::start(directory, at, figures, &drain);
    }
    info!(device = name, %listen, lanes, peers = source.config().peers.len(), "gateway forwards");

    let ended = tokio::select! {
        result = over.recv() => result.unwrap_or_else(|| Err(std::io::Error::other("the workers panicked"))),
        result = source.follow(&handle) => return result,
        () = drain.requested() => {
            leave::quiet(&handle).await;
            Ok(())
        }
    };
    handle.stop();
    while over.recv().await.is_some() {}
    drain.finish(DRAIN_DEADLINE).await;
    ended.context("the data path ended")
}

fn default_lanes() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(DEFAULT_LANES))
}

/// Makes use of lanes of gateways of peers as they become known.
async fn learn(workers: Workers) {
    let mut look = interval(LEARN_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        workers.learn();
    }
}

async fn read(args: Args, parts: Option<Parts>) -> anyhow::Result<Source> {
    match (args.config, args.cluster, parts) {
        (Some(path), ..) => Ok(Source::File(Box::new(FileSource::load(path).await?))),
        (None, Some(cluster), Some(parts)) => {
            Ok(Source::Cluster(Box::new(ClusterSource::load(cluster, parts).await?)))
        }
        _ => bail!("say where the configuration is: --config FILE, or in a cluster --pod-name NAME"),
    }
}
