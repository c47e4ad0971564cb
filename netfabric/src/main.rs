//! `liquid-fabric`: the overlay between the nodes of a cluster and its gateways.

mod args;

use anyhow::Context as _;
use args::{Args, Role, SharedArgs};
use clap::Parser as _;
use k8s_openapi::api::core::v1::ObjectReference;
use liquid_fabric::cluster::{Events, Knowledge, Watched, follow};
use liquid_fabric::kernel::{Kernel, Monitor, forward_ipv6};
use liquid_fabric::metrics::{Metrics, Probes};
use liquid_fabric::probe::task::{self, Aim, Measured};
use liquid_fabric::reconcile::{self, Reconciler, bring};
use liquid_fabric::state::Desired;
use liquid_fabric::topology::{Place, Settings};
use liquid_runtime::drain::DRAIN_DEADLINE;
use liquid_runtime::process::{self, Process};
use liquid_runtime::{admin, telemetry};
use std::collections::BTreeSet;
use std::process::ExitCode;
use tokio::sync::watch;
use tracing::{info, warn};

/// One thread: the kernel answers at once, and there is little to do.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    process::exit_code(run(args).await)
}

async fn run(args: Args) -> anyhow::Result<()> {
    match args.role {
        Role::Node(node) => {
            // As the kubelet refers to its Node, so that `kubectl describe node` shows the event.
            let about = ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.node_name.clone()),
                uid: Some(node.node_name.clone()),
                ..ObjectReference::default()
            };
            work(Place::Node(node.node_name), Some(node.daemon_set), about, node.shared).await
        }
        Role::Gateway(gateway) => {
            let about = ObjectReference {
                kind: Some("Pod".to_owned()),
                name: Some(gateway.pod_name),
                namespace: Some(gateway.shared.namespace.clone()),
                ..ObjectReference::default()
            };
            work(Place::Gateway(gateway.pod_ips), None, about, gateway.shared).await
        }
        Role::ForwardIpv6(args) => {
            telemetry::init(&args.log)?;
            if forward_ipv6().context("cannot turn on forwarding of IPv6: is this container privileged?")? {
                info!("IPv6 is forwarded");
            } else {
                warn!("there is no IPv6 on this node: peers are not reached by it");
            }
            Ok(())
        }
        Role::Cleanup { overlay, log } => {
            telemetry::init(&log.log)?;
            cleanup(&overlay.into())
        }
    }
}

async fn work(
    place: Place,
    daemon_set: Option<String>,
    about: ObjectReference,
    args: SharedArgs,
) -> anyhow::Result<()> {
    let Process { log, drain, mut registry, health } = Process::begin("liquid-fabric", &args.admin.log)?;
    let settings = Settings::from(args.overlay);
    let kernel = Kernel::open(&settings)?;
    let monitor = Monitor::open(&settings)?;

    let metrics = Metrics::register(&mut registry);
    let measured = Measured::default();
    registry.register_collector(Box::new(Probes(measured.clone())));
    let ready = health.part("overlay", "reading Peers, Nodes and gateway pods");
    admin::serve(&args.admin, health, registry, log, &drain)?;

    let client = kube::Client::try_default().await?;
    let (sender, known) = watch::channel(Knowledge::default());
    let watched = Watched { namespace: args.namespace, place: place.clone(), daemon_set };
    let events = Events::about(client.clone(), about);
    let (aim, aims) = watch::channel(Aim::default());
    let serving = aims.clone();
    let in_gateway = matches!(place, Place::Gateway(_));
    let (dead_sender, dead) = watch::channel(BTreeSet::new());
    let (heard_sender, heard) = watch::channel(BTreeSet::new());
    match &place {
        Place::Node(_) => drain.spawn(task::probe(aims, settings.probe_port, dead_sender, measured)),
        Place::Gateway(_) => drain.spawn(task::answer(aims, settings.probe_port, heard_sender)),
    };
    let probes = reconcile::Probes { aim, dead, heard };
    let reconciler = Reconciler::new(kernel, place, settings, metrics, events, ready, probes);
    let ended = tokio::select! {
        () = follow(client, watched, sender) => Ok(()),
        ended = reconciler.run(monitor, known) => ended,
        () = async {
            drain.requested().await;
            if in_gateway {
                outlive_tunnel(serving).await;
            }
        } => Ok(()),
    };
    drain.finish(DRAIN_DEADLINE).await;
    Ok(ended?)
}

/// Beside a gateway that is told to end as well, and still forwards: nodes are answered, and routes kept, as long as it
/// does.
async fn outlive_tunnel(mut aim: watch::Receiver<Aim>) {
    let gone = aim.wait_for(|aim| !aim.serves);
    if tokio::time::timeout(DRAIN_DEADLINE, gone).await.is_err() {
        warn!("the tunnel device is still there; ending before it");
    }
}

fn cleanup(settings: &Settings) -> anyhow::Result<()> {
    let mut kernel = Kernel::open(settings)?;
    let outcome = bring(&mut kernel, &Desired::default(), &Metrics::default())?;
    match outcome.failure {
        Some(failure) => Err(failure.into()),
        None => {
            info!(changes = ?outcome.changes, "nothing of the overlay is left here");
            Ok(())
        }
    }
}
