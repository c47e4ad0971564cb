//! What the leading replica does: everything.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::consume::{Borrowing, follow_virtual_nodes};
use crate::info;
use crate::kubelet_certificates;
use crate::lend::book::Book;
use crate::lend::capacity;
use crate::lend::consumers::Consumers;
use crate::lend::enrollment::EnrollmentService;
use crate::lend::figures::Figures;
use crate::lend::guests;
use crate::lend::kubelet_service::KubeletService;
use crate::lend::peering_service::{Connections, PeeringService};
use crate::lend::reconcile::{Lending, report_connections};
use crate::lend::shadows::{Policy, Shadows};
use crate::lend::sync_service::SyncService;
use crate::lend::tokens;
use crate::local_volumes;
use crate::metrics::Metrics;
use crate::network::{MAX_EXTERNAL, Network};
use crate::peers;
use crate::readers;
use crate::webhook::{self, Offloadings};
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use liquid_crds::vocabulary::LEADER;
use liquid_link::limits::{MAX_MESSAGE, MAX_UNARY, SERVER_CERTIFICATE_LIFE};
use liquid_link::proto::enrollment_server::EnrollmentServer;
use liquid_link::proto::kubelet_server::KubeletServer;
use liquid_link::proto::peering_server::PeeringServer;
use liquid_link::proto::reflection_server::ReflectionServer;
use liquid_link::{server, tls};
use liquid_runtime::drain::Drain;
use liquid_runtime::health::Health;
use liquid_runtime::listen::listen;
use liquid_runtime::storage_classes;
use liquid_runtime::tls::{ReloadableCert, certified_key};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

/// How long streams of peers may take to end (somebody's exec, say): the next leader waits for it.
const LINK_DRAIN: Duration = Duration::from_secs(5);

/// Leads until the drain.
pub(crate) async fn lead(
    client: Client,
    args: Args,
    health: Health,
    metrics: Metrics,
    drain: &Drain,
) -> Result<()> {
    let peers_known = health.part("peers", "reading Peers");
    let shadows_known = health.part("shadows", "reading shadows");
    let link_listens = health.part("link", "waiting for Peers and shadows");

    let cluster = Arc::new(Cluster::load(&client, &args).await?);
    let version = client.apiserver_version().await.context("cannot reach the API server")?;
    mark(&client, &args, Some("true")).await;

    let consumers = Arc::new(Consumers::default());
    let connections = Connections::default();
    let book = Book::default();
    let policy = Policy { pod_security: args.pod_security.clone(), own_namespace: args.namespace.clone() };
    let (classes_sender, classes) = watch::channel(None);
    let (shadows, shadows_actor) = Shadows::start(
        client.clone(),
        policy,
        consumers.clone(),
        book.clone(),
        classes.clone(),
        metrics.clone(),
        shadows_known.clone(),
    );
    let (capacity_sender, capacity) = watch::channel(None);
    let (endpoints_sender, endpoints) = watch::channel(Vec::new());
    let lending = Lending {
        client: client.clone(),
        consumers: consumers.clone(),
        shadows: shadows.clone(),
        book: book.clone(),
        ending: Arc::default(),
    };
    let external = args.network.external_cidrs.len();
    ensure!(external <= MAX_EXTERNAL, "{external} external CIDRs are more than {MAX_EXTERNAL}");
    let network = Network::new(&args.network, cluster.id.clone());
    let (virtual_nodes, known_nodes) = watch::channel(None);
    let borrowing = Borrowing::new(client.clone(), cluster.clone(), network.clone(), known_nodes, metrics);
    let offloadings = Offloadings::default();

    run(drain, follow_virtual_nodes(client.clone(), virtual_nodes));
    run(drain, peers::follow(client.clone(), borrowing, lending, network.clone(), peers_known));
    run(drain, network.clone().run(client.clone(), args.namespace.clone(), args.network.clone()));
    run(drain, shadows_actor);
    let (advertised, gateways) = (args.advertise.clone(), network.own_gateways());
    run(drain, info::publish(client.clone(), cluster.clone(), advertised, gateways, endpoints_sender));
    if args.network.enabled {
        run(drain, guests::publish(client.clone(), args.namespace.clone(), network.known_peers()));
    }
    let labels = args.cluster_labels.iter().cloned().collect();
    run(drain, capacity::observe(client.clone(), labels, version.git_version, capacity_sender));
    run(drain, report_connections(client.clone(), consumers.clone(), connections.clone(), book.clone()));
    run(drain, storage_classes::observe(client.clone(), classes_sender));
    let (namespace, pod) = (args.namespace.clone(), args.pod_name.clone());
    run(drain, local_volumes::provide(client.clone(), namespace, pod, classes.clone()));
    run(drain, tokens::purge(client.clone(), args.namespace.clone()));
    run(drain, kubelet_certificates::approve(client.clone(), args.namespace.clone()));
    run(drain, offloadings.clone().follow(client.clone()));
    run(drain, readers::bind(client.clone(), args.namespace.clone()));
    let claims = webhook::Claims::new(client.clone(), classes.clone());
    run(drain, webhook::tolerate(client.clone(), offloadings.clone(), claims.clone()));
    run(drain, webhook::keep_authority(client.clone(), cluster.clone()));
    webhook::serve(cluster.clone(), args.webhook_listen, offloadings, claims, drain.clone())
        .await
        .with_context(|| format!("cannot serve the pod webhook on {}", args.webhook_listen))?;

    // Consumers are let in when it is known who they are and what runs for them.
    while health.missing().iter().any(|(part, _)| *part == "peers" || *part == "shadows") {
        tokio::select! {
            () = sleep(Duration::from_millis(20)) => {}
            () = drain.requested() => return Ok(()),
        }
    }
    let cert = Arc::new(ReloadableCert::default());
    issue(&cluster, &cert)?;
    run(drain, renew(cluster.clone(), cert.clone()));
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(cluster.ca.certificate_pem(), cert)?));
    let listener = listen(args.link_listen)
        .with_context(|| format!("cannot listen on {} for peers", args.link_listen))?;
    info!(address = %args.link_listen, "link endpoint listens");
    link_listens.ready();

    let enrollment = EnrollmentService {
        client: client.clone(),
        cluster: cluster.clone(),
        consumers: consumers.clone(),
        network: network.clone(),
    };
    let peering = PeeringService {
        client: client.clone(),
        cluster: cluster.clone(),
        consumers: consumers.clone(),
        shadows: shadows.clone(),
        capacity,
        book,
        negotiations: AtomicU64::new(0),
        classes,
        endpoints,
        connections,
        network,
        draining: drain.token(),
    };
    let sync = SyncService {
        consumers: consumers.clone(),
        shadows: shadows.clone(),
        streams: AtomicU64::new(0),
        draining: drain.token(),
    };
    let figures = Figures::new(client.clone(), shadows.clone());
    let kubelet = KubeletService { client, consumers, shadows, figures };
    let serving = server::builder(cluster.liveness)
        .add_service(EnrollmentServer::new(enrollment).max_decoding_message_size(MAX_UNARY))
        .add_service(PeeringServer::new(peering).max_decoding_message_size(MAX_UNARY))
        .add_service(ReflectionServer::new(sync).max_decoding_message_size(MAX_MESSAGE))
        .add_service(KubeletServer::new(kubelet))
        .serve_with_incoming_shutdown(
            server::accept(listener, acceptor, cluster.liveness),
            drain.token().cancelled_owned(),
        );
    tokio::select! {
        served = serving => served.context("the link endpoint failed"),
        () = async { drain.requested().await; sleep(LINK_DRAIN).await } => {
            info!("streams of peers cut off: they go on with the next leader");
            Ok(())
        }
    }
}

/// Runs `task` until the drain is requested.
fn run(drain: &Drain, task: impl Future<Output = ()> + Send + 'static) {
    let token = drain.token();
    drain.spawn(async move { token.run_until_cancelled(task).await });
}

/// Labels our pod as leader, so that the Services of the link and the webhook lead to it, or takes the label away.
pub(crate) async fn mark(client: &Client, args: &Args, value: Option<&str>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let label = json!({"metadata": {"labels": {LEADER: value}}});
    if let Err(error) = pods.patch(&args.pod_name, &PatchParams::default(), &Patch::Merge(&label)).await {
        // Outside a cluster there is no pod, and no Service that selects it.
        warn!(pod = %args.pod_name, %error, "the label of the leader was not written to our pod");
    }
}

fn issue(cluster: &Cluster, cert: &ReloadableCert) -> Result<()> {
    let own = cluster.ca.issue_link_server(&cluster.id, OffsetDateTime::now_utc())?;
    cert.set(certified_key(own.chain_pem.as_bytes(), own.key_pem.as_bytes())?);
    Ok(())
}

async fn renew(cluster: Arc<Cluster>, cert: Arc<ReloadableCert>) {
    loop {
        sleep(SERVER_CERTIFICATE_LIFE * 2 / 3).await;
        if let Err(error) = issue(&cluster, &cert) {
            warn!(%error, "certificate of the link endpoint not renewed");
        }
    }
}
