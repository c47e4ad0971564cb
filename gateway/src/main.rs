//! `liquid-gateway`: WireGuard to all peers, with their prefixes remapped where they overlap.

mod args;
mod leave;
mod metrics;
mod neighbour;
mod source;

use anyhow::{Context as _, bail};
use args::Args;
use clap::Parser as _;
use liquid_gateway::io::tun::Tun;
use liquid_gateway::io::udp::Udp;
use liquid_gateway::io::worker::{self, Worker};
use liquid_runtime::admin;
use liquid_runtime::drain::DRAIN_DEADLINE;
use liquid_runtime::process::{self, Process};
use metrics::Reports;
use source::cluster::{ClusterSource, Parts};
use source::file::FileSource;
use source::{Device, Source};
use std::process::ExitCode;
use tokio::sync::oneshot;
use tracing::info;

/// The data path has a thread of its own; this one serves metrics and reads the configuration.
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
    // Before the source is read, which may take as long as a cluster needs.
    let parts = args.cluster.as_ref().map(|_| Parts {
        key: health.part("key", "waiting for it"),
        peers: health.part("peers", "reading Peers"),
        reached: health.part("tunnels", "waiting for peers to answer"),
    });
    let fabric = args.cluster.as_ref().and_then(|cluster| cluster.fabric_admin);
    admin::serve(&args.admin, health, registry, log, &drain).await?;
    let source = tokio::select! {
        source = read(args, parts) => source?,
        () = drain.requested() => return Ok(()),
    };

    let Device { name, mtu, listen } = source.device();
    let tun = Tun::open(&name, mtu).with_context(|| {
        format!("cannot make TUN device {name}: this needs CAP_NET_ADMIN and /dev/net/tun, and a free name")
    })?;
    let udp = Udp::bind(listen).with_context(|| format!("cannot listen on UDP {listen}"))?;
    let (worker, handle) = Worker::new(source.config().clone(), tun, udp)?;
    reports.of(handle.clone());
    let (ended, mut over) = oneshot::channel();
    worker::spawn(worker, |result| drop(ended.send(result)))?;
    forwarding.ready();
    if let Some(fabric) = fabric {
        let handle = handle.clone();
        handle.standby(true);
        drain.spawn(drain.token().run_until_cancelled_owned(async move {
            neighbour::ready(fabric).await;
            handle.standby(false);
        }));
    }
    info!(device = name, %listen, peers = source.config().peers.len(), "gateway forwards");

    let ended = tokio::select! {
        result = &mut over => result.unwrap_or_else(|_| Err(std::io::Error::other("the worker panicked"))),
        result = source.follow(&handle) => return result,
        () = drain.requested() => {
            leave::quiet(&handle).await;
            handle.stop();
            over.await.unwrap_or(Ok(()))
        }
    };
    drain.finish(DRAIN_DEADLINE).await;
    ended.context("the data path ended")
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
