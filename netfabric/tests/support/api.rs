//! An API server that knows lists, watches and Events, and nothing else.

use super::netns::Namespace;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const PODS: &str = "/api/v1/namespaces/liquid-system/pods";
pub(crate) const ALL_PODS: &str = "/api/v1/pods";
pub(crate) const NAMESPACES: &str = "/api/v1/namespaces";
pub(crate) const PEERS: &str = "/apis/liquid.mesh/v1alpha1/peers";
pub(crate) const DAEMON_SETS: &str = "/apis/apps/v1/namespaces/liquid-system/daemonsets";

/// The objects of a cluster, to be shared by servers in several namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    /// Version, path, and what a watch tells.
    log: Vec<(u64, String, Value)>,
    events: Vec<Value>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self { inner: Arc::default(), changed: watch::channel(0).0 }
    }

    /// Creates or replaces an object.
    pub(crate) fn set(&self, path: &str, name: &str, mut object: Value) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let version = inner.version;
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (path.to_owned(), name.to_owned());
        let kind = if inner.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        inner.objects.insert(key, object.clone());
        inner.log.push((version, path.to_owned(), json!({"type": kind, "object": object})));
        self.changed.send_replace(version);
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, path: &str, name: &str) {
        let mut inner = self.inner.lock().unwrap();
        let mut object = inner.objects.remove(&(path.to_owned(), name.to_owned())).unwrap();
        inner.version += 1;
        let version = inner.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        inner.log.push((version, path.to_owned(), json!({"type": "DELETED", "object": object})));
        self.changed.send_replace(version);
    }

    /// Events that were written.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.inner.lock().unwrap().events.clone()
    }

    /// Serves the cluster on loopback of a namespace, until the value is dropped; `directory` gets a kubeconfig.
    pub(crate) fn serve(&self, namespace: &Namespace, directory: &Path) -> Server {
        let (ready, address) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let router = Router::new().fallback(answer).with_state(self.clone());
        let path = format!("/run/netns/{}", namespace.name);
        let thread = std::thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                // Watches never end by themselves.
                tokio::select! {
                    served = axum::serve(listener, router).into_future() => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let address: SocketAddr = address.recv().unwrap();
        let kubeconfig = directory.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Server { kubeconfig, stop: Some(stop), thread: Some(thread) }
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) kubeconfig: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().map(std::thread::JoinHandle::join));
    }
}

async fn answer(
    State(cluster): State<Cluster>,
    Query(query): Query<HashMap<String, String>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    if method == Method::POST && path.ends_with("/events") {
        let event: Value = serde_json::from_slice(&body).unwrap();
        cluster.inner.lock().unwrap().events.push(event.clone());
        return axum::Json(event).into_response();
    }
    if method != Method::GET
        || ![NODES, PODS, ALL_PODS, NAMESPACES, PEERS, DAEMON_SETS].contains(&path.as_str())
    {
        return StatusCode::NOT_FOUND.into_response();
    }
    let field = query.get("fieldSelector").and_then(|field| field.split_once('='));
    let field = field.map(|(field, value)| (format!("/{}", field.replace('.', "/")), value.to_owned()));
    if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        let from = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        return watched(cluster, path, field, from);
    }
    let inner = cluster.inner.lock().unwrap();
    let items: Vec<_> = inner
        .objects
        .iter()
        .filter(|(key, object)| key.0 == path && selects(field.as_ref(), object))
        .map(|(_, object)| object.clone())
        .collect();
    axum::Json(json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": inner.version.to_string()}, "items": items
    }))
    .into_response()
}

/// Whether an object has this value at this place.
fn selects(field: Option<&(String, String)>, object: &Value) -> bool {
    field.is_none_or(|(place, value)| object.pointer(place).and_then(Value::as_str) == Some(value))
}

fn watched(cluster: Cluster, path: String, field: Option<(String, String)>, from: u64) -> Response {
    let changed = cluster.changed.subscribe();
    let lines = stream::unfold((cluster, changed, from), move |(cluster, mut changed, from)| {
        let (path, field) = (path.clone(), field.clone());
        async move {
            loop {
                changed.borrow_and_update();
                let (version, text) = {
                    let inner = cluster.inner.lock().unwrap();
                    let of_interest = |(version, of, event): &&(u64, String, Value)| {
                        *version > from && *of == path && selects(field.as_ref(), &event["object"])
                    };
                    let new = inner.log.iter().filter(of_interest);
                    (inner.version, new.map(|(_, _, event)| format!("{event}\n")).collect::<String>())
                };
                if !text.is_empty() {
                    return Some((Ok::<_, Infallible>(text), (cluster, changed, version)));
                }
                changed.changed().await.ok()?;
            }
        }
    });
    Body::from_stream(lines).into_response()
}
