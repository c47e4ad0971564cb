//! The HTTPS end of the pod webhook, and its certificate.
//!
//! Where a toleration is all a pod needs, it fails open: if it cannot be reached pods are let in unchanged, and get their
//! toleration later. Where pods must be bound to certain nodes, it fails closed, for that cannot be made up for.

use super::claims::Claims;
use super::placement::place;
use crate::cluster::Cluster;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::{NamespaceOffloading, NamespaceOffloadingSpec, PodPlacement};
use liquid_runtime::drain::Drain;
use liquid_runtime::listen::listen;
use liquid_runtime::tls::{ReloadableCert, certified_key, server_config};
use liquid_runtime::watch::{Change, changes};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

/// Configuration made by the chart; the authority of its certificate is filled in here.
const CONFIGURATION: &str = "liquid-pods";
/// Life of the certificate, which is kept in memory only.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at one time: API servers keep a few open each.
const MAX_CONNECTIONS: usize = 256;
/// Pause after a failed request or accept.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// What is known of offloaded namespaces, by name; nothing before all of them were read once.
#[derive(Debug, Clone)]
pub(crate) struct Offloadings {
    known: watch::Sender<Option<Specs>>,
}

type Specs = BTreeMap<String, NamespaceOffloadingSpec>;

impl Default for Offloadings {
    fn default() -> Self {
        Self { known: watch::channel(None).0 }
    }
}

impl Offloadings {
    /// Follows all `NamespaceOffloading`s.
    pub(crate) async fn follow(self, client: Client) {
        let mut news = changes(Api::<NamespaceOffloading>::all(client), watcher::Config::default()).boxed();
        let mut all = Specs::new();
        let mut listed = false;
        while let Some(change) = news.next().await {
            match change {
                Change::Applied(offloading) if offloading.metadata.deletion_timestamp.is_none() => {
                    all.insert(offloading.namespace().unwrap_or_default(), offloading.spec);
                }
                Change::Applied(offloading) | Change::Deleted(offloading) => {
                    all.remove(&offloading.namespace().unwrap_or_default());
                }
                Change::Listed(seen) => {
                    all.retain(|name, _| seen.iter().any(|(namespace, _)| namespace == name));
                    listed = true;
                }
            }
            self.known.send_if_modified(|known| {
                let changed = listed && known.as_ref() != Some(&all);
                if changed {
                    *known = Some(all.clone());
                }
                changed
            });
        }
    }

    /// News of changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Specs>> {
        self.known.subscribe()
    }

    /// What is known of a namespace.
    pub(super) fn get(&self, namespace: &str) -> Option<NamespaceOffloadingSpec> {
        self.known.borrow().as_ref()?.get(namespace).cloned()
    }

    fn are_known(&self) -> bool {
        self.known.borrow().is_some()
    }
}

/// Serves the webhook until the drain.
pub(crate) async fn serve(
    cluster: Arc<Cluster>,
    address: SocketAddr,
    offloadings: Offloadings,
    claims: Claims,
    drain: Drain,
) -> anyhow::Result<()> {
    let service = format!("liquid-webhook.{}.svc", cluster.namespace);
    let cert = Arc::new(ReloadableCert::default());
    issue(&cluster, &service, &cert)?;
    let listener = listen(address)?;
    let acceptor = TlsAcceptor::from(Arc::new(server_config(cert.clone())?));
    let router = Router::new().route("/pods", post(review)).with_state((offloadings, claims));
    info!(%address, "pod webhook listens");
    drain.spawn(accept(listener, acceptor, router, drain.clone()));
    let renewing = drain.clone();
    drain.spawn(async move {
        loop {
            tokio::select! {
                () = sleep(CERTIFICATE_LIFE * 2 / 3) => {}
                () = renewing.requested() => return,
            }
            if let Err(error) = issue(&cluster, &service, &cert) {
                warn!(%error, "webhook certificate not renewed");
            }
        }
    });
    Ok(())
}

/// Keeps the authority of our certificate in the webhook's configuration, also after somebody applied it anew.
pub(crate) async fn keep_authority(client: Client, cluster: Arc<Cluster>) {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
    let only = watcher::Config::default().fields(&format!("metadata.name={CONFIGURATION}"));
    let mut news = changes(api.clone(), only).boxed();
    let authority = STANDARD.encode(cluster.ca.certificate_pem());
    while let Some(change) = news.next().await {
        let Change::Applied(mut configuration) = change else { continue };
        while let Some(patch) = authority_patch(&configuration, &authority) {
            match api.patch(CONFIGURATION, &PatchParams::default(), &Patch::Json::<()>(patch)).await {
                Ok(written) => {
                    info!("authority written into the webhook configuration");
                    configuration = written;
                }
                Err(error) => {
                    warn!(%error, "authority not written into the webhook configuration; trying again");
                    sleep(RETRY_PAUSE).await;
                    match api.get_opt(CONFIGURATION).await {
                        Ok(Some(now)) => configuration = now,
                        Ok(None) => break,
                        Err(error) => warn!(%error, "webhook configuration not read"),
                    }
                }
            }
        }
    }
}

/// The patch that makes the API server trust our certificate; `None` if it does.
fn authority_patch(
    configuration: &MutatingWebhookConfiguration,
    authority: &str,
) -> Option<json_patch::Patch> {
    let current = serde_json::to_value(configuration).ok()?;
    let mut wanted = current.clone();
    for webhook in wanted["webhooks"].as_array_mut()? {
        webhook["clientConfig"]["caBundle"] = Value::String(authority.to_owned());
    }
    (wanted != current).then(|| json_patch::diff(&current, &wanted))
}

fn issue(cluster: &Cluster, service: &str, cert: &ReloadableCert) -> anyhow::Result<()> {
    let names = [service.to_owned()];
    let own = cluster.ca.issue_server(&names, CERTIFICATE_LIFE, OffsetDateTime::now_utc())?;
    cert.set(certified_key(own.chain_pem.as_bytes(), own.key_pem.as_bytes())?);
    Ok(())
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, router: Router, drain: Drain) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.requested() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a webhook connection");
                sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
            let mut server = auto::Builder::new(TokioExecutor::new());
            // A caller that sends no request within 30 s is cut off.
            server.http1().timer(TokioTimer::new());
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                debug!(%error, "webhook connection ended");
            }
            drop(slot);
        });
    }
}

async fn review(
    State((offloadings, claims)): State<(Offloadings, Claims)>,
    Json(review): Json<Value>,
) -> Result<Json<Value>, StatusCode> {
    if !offloadings.are_known() {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let request = &review["request"];
    let namespace = request["namespace"].as_str().unwrap_or_default();
    let mut response = json!({ "uid": request["uid"], "allowed": true });
    if let Some(offloading) = offloadings.get(namespace) {
        let mut pod = request["object"].clone();
        // Where pods must go to virtual nodes they go, and are told there what is missing.
        let may_stay = offloading.pod_placement == PodPlacement::LocalAndRemote;
        let stays = may_stay && claims.stays(namespace, &pod).await;
        if !stays && place(&mut pod, &offloading) {
            let patch = json_patch::diff(&request["object"], &pod);
            let patch = serde_json::to_vec(&patch).unwrap_or_default();
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(patch));
        }
    }
    Ok(Json(json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })))
}
