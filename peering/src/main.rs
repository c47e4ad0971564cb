//! `liquid-controller`: identity of the cluster, peers, and the provider half of reflection.

mod args;
mod cluster;
mod consume;
mod finalizers;
mod info;
mod kubelet_certificates;
mod leading;
mod lend;
mod local_volumes;
mod metrics;
mod network;
mod peers;
mod readers;
mod status;
mod webhook;

use args::Args;
use clap::Parser as _;
use liquid_runtime::admin;
use liquid_runtime::drain::DRAIN_DEADLINE;
use liquid_runtime::leader::Candidate;
use liquid_runtime::process::{self, Process};
use std::process::ExitCode;

/// Two workers: one may be busy with JSON while the other moves bytes.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    process::exit_code(run(args).await)
}

async fn run(args: Args) -> anyhow::Result<()> {
    let Process { log, drain, mut registry, health } = Process::begin("liquid-controller", &args.admin.log)?;
    let metrics = metrics::Metrics::register(&mut registry);
    admin::serve(&args.admin, health.clone(), registry, log, &drain)?;
    let client = kube::Client::try_default().await?;

    // An earlier process in this pod may have led.
    leading::mark(&client, &args, None).await;
    let candidate = Candidate::new(client.clone(), &args.namespace, "liquid-controller", &args.pod_name);
    let mut leadership = tokio::select! {
        leadership = candidate.acquire() => leadership,
        () = drain.requested() => return Ok(()),
    };
    let ended = tokio::select! {
        lost = leadership.keep() => Err(anyhow::Error::from(lost)),
        ended = leading::lead(client, args, health, metrics, &drain) => ended,
    };
    drain.finish(DRAIN_DEADLINE).await;
    // Somebody else may lead already if the lease was lost; giving back only touches what is still ours.
    leadership.release().await;
    ended
}
