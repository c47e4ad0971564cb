//! `liquid-gateway`: WireGuard to all peers, with their prefixes remapped where they overlap.

mod args;
mod metrics;

use anyhow::Context as _;
use args::Args;
use clap::Parser as _;
use liquid_gateway::config::File;
use liquid_gateway::gateway::Config;
use liquid_gateway::io::tun::Tun;
use liquid_gateway::io::udp::Udp;
use liquid_gateway::io::worker::{self, Handle, Worker};
use liquid_runtime::drain::{DRAIN_DEADLINE, Drain};
use liquid_runtime::health::Health;
use liquid_runtime::{admin, metrics as process_metrics, telemetry};
use metrics::Reports;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

/// How often the names of endpoints are resolved again: a peer that moved calls by itself, unless it cannot.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a name server may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The data path has a thread of its own; this one serves metrics and reads the configuration.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let log = telemetry::init(&args.admin.log)?;
    let drain = Drain::default();
    drain.on_signals()?;
    let file = File::load(&args.config)?;
    let mut resolved = HashMap::new();
    let config = resolve(&file, &mut resolved).await?;
    let tun = Tun::open(&file.device, file.mtu).with_context(|| {
        format!(
            "cannot make TUN device {}: this needs CAP_NET_ADMIN and /dev/net/tun, and a free name",
            file.device
        )
    })?;
    let udp = Udp::bind(file.listen).with_context(|| format!("cannot listen on UDP {}", file.listen))?;
    let (worker, handle) = Worker::new(config.clone(), tun, udp)?;

    let mut registry = process_metrics::registry("liquid-gateway");
    registry.register_collector(Box::new(Reports(handle.clone())));
    let health = Health::default();
    let forwarding = health.part("data path", "not begun");
    admin::serve(&args.admin, health, registry, log, &drain).await?;
    let (ended, mut over) = oneshot::channel();
    worker::spawn(worker, |result| drop(ended.send(result)))?;
    forwarding.ready();
    info!(device = file.device, listen = %file.listen, peers = file.peers.len(), "gateway forwards");

    let ended = tokio::select! {
        result = &mut over => result.unwrap_or_else(|_| Err(std::io::Error::other("the worker panicked"))),
        result = follow(&args.config, file, config, resolved, &handle) => return result,
        () = drain.requested() => {
            handle.stop();
            over.await.unwrap_or(Ok(()))
        }
    };
    drain.finish(DRAIN_DEADLINE).await;
    ended.context("the data path ended")
}

/// Gives the worker what changes: the file on SIGHUP, and the addresses behind names now and then.
async fn follow(
    path: &Path,
    mut file: File,
    mut config: Config,
    mut resolved: Resolved,
    handle: &Handle,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interval = tokio::time::interval(RESOLVE_INTERVAL);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            _ = hangup.recv() => match File::load(path) {
                Ok(loaded) => file = loaded,
                Err(error) => {
                    warn!(%error, "the configuration stays as it is");
                    continue;
                }
            },
        }
        match resolve(&file, &mut resolved).await {
            Ok(changed) if changed != config => {
                info!(peers = changed.peers.len(), "configuration changed");
                config = changed.clone();
                handle.configure(changed);
            }
            Ok(_) => {}
            Err(error) => warn!(error = format!("{error:#}"), "the configuration stays as it is"),
        }
    }
}

/// The address behind each endpoint.
type Resolved = HashMap<String, SocketAddr>;

/// The configuration with every endpoint resolved that can be. An address that is still among those of its name is
/// kept: name servers turn their order, and a peer does not move because of that.
async fn resolve(file: &File, resolved: &mut Resolved) -> anyhow::Result<Config> {
    for endpoint in file.endpoints() {
        match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(endpoint)).await {
            Ok(Ok(addresses)) => {
                let addresses: Vec<_> = addresses.collect();
                let kept = resolved.get(endpoint).filter(|known| addresses.contains(known));
                if let (None, Some(first)) = (kept, addresses.first()) {
                    resolved.insert(endpoint.to_owned(), *first);
                }
            }
            Ok(Err(error)) => warn!(endpoint, %error, "endpoint cannot be resolved now"),
            Err(_) => warn!(endpoint, "the name server does not answer"),
        }
    }
    Ok(file.config(resolved)?)
}
