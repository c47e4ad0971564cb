//! `liquid-kubelet`: virtual nodes, the consumer half of reflection, and their kubelet API.

mod api_server;
mod args;
mod kubelet;
mod metrics;
mod mirror;
mod neighbours;
mod node;
mod offloading;
mod request;
mod status;
mod supervisor;
mod translate;
mod volumes;

use anyhow::Context as _;
use args::Args;
use clap::Parser as _;
use kubelet::ClientCa;
use liquid_link::liveness::Liveness;
use liquid_runtime::admin;
use liquid_runtime::drain::DRAIN_DEADLINE;
use liquid_runtime::leader::Candidate;
use liquid_runtime::process::{self, Process};
use std::process::ExitCode;
use std::time::Duration;
use supervisor::{Settings, supervise};

/// Two workers: one may be busy with JSON while the other moves bytes.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    process::exit_code(run(args).await)
}

async fn run(args: Args) -> anyhow::Result<()> {
    let Process { log, drain, mut registry, health } = Process::begin("liquid-kubelet", &args.admin.log)?;
    let metrics = metrics::Metrics::register(&mut registry);
    admin::serve(&args.admin, health.clone(), registry, log, &drain)?;
    let mut config = kube::Config::infer().await?;
    let api_server = api_server::server_of(&config).context("the URL of the API server has no host")?;
    let client = kube::Client::try_from(config.clone())?;
    config.default_retry = false;
    let once = kube::Client::try_from(config)?;

    let candidate = Candidate::new(client.clone(), &args.namespace, "liquid-kubelet", &args.pod_name);
    let mut leadership = tokio::select! {
        leadership = candidate.acquire() => leadership,
        () = drain.requested() => return Ok(()),
    };
    let client_ca = ClientCa::new(&kubelet::client_ca(&client, &args.kubelet_client_ca).await?)?;
    // A replica that stands by is ready for that; what the one that works has to do first counts from here.
    let known = health.part("objects", "reading Peers, VirtualNodes and NamespaceOffloadings");
    let settings = Settings {
        once,
        namespace: args.namespace,
        pod_name: args.pod_name,
        address: args.pod_ip,
        first_port: args.kubelet_port,
        client_ca,
        liveness: Liveness::within(Duration::from_secs(args.link_timeout)),
        api_server,
    };
    let ended = tokio::select! {
        lost = leadership.keep() => Err(anyhow::Error::from(lost)),
        () = supervise(client, settings, metrics, known) => Ok(()),
        () = drain.requested() => Ok(()),
    };
    drain.finish(DRAIN_DEADLINE).await;
    leadership.release().await;
    ended
}
