//! `liquid-gateway`: WireGuard to all peers, with their prefixes remapped where they overlap.

mod args;
mod metrics;
mod source;

use anyhow::{Context as _, bail};
use args::Args;
use clap::Parser as _;
use liquid_gateway::io::tun::Tun;
use liquid_gateway::io::udp::Udp;
use liquid_gateway::io::worker::{self, Worker};
use liquid_runtime::admin;
use liquid_runtime::drain::DRAIN_DEADLINE;
use liquid_runtime::health::Part;
use liquid_runtime::process::{self, Process};
use metrics::Reports;
use source::cluster::ClusterSource;
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
    let (key, peers) = match &args.config {
        Some(_) => (None, None),
        None => (Some(health.part("key", "waiting for it")), Some(health.part("peers", "reading Peers"))),
    };
    admin::serve(&args.admin, health, registry, log, &drain).await?;
    let source = tokio::select! {
        source = read(args, key, peers) => source?,
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
    info!(device = name, %listen, peers = source.config().peers.len(), "gateway forwards");

    let ended = tokio::select! {
        result = &mut over => result.unwrap_or_else(|_| Err(std::io::Error::other("the worker panicked"))),
        result = source.follow(&handle) => return result,
        () = drain.requested() => {
            handle.stop();
            over.await.unwrap_or(Ok(()))
        }
    };
    drain.finish(DRAIN_DEADLINE).await;
    ended.context("the data path ended")
}

async fn read(args: Args, key: Option<Part>, peers: Option<Part>) -> anyhow::Result<Source> {
    match (args.config, args.cluster, key, peers) {
        (Some(path), ..) => Ok(Source::File(Box::new(FileSource::load(path).await?))),
        (None, Some(cluster), Some(key), Some(peers)) => {
            Ok(Source::Cluster(Box::new(ClusterSource::load(cluster, key, peers).await?)))
        }
        _ => bail!("say where the configuration is: --config FILE, or in a cluster --pod-name NAME"),
    }
}
