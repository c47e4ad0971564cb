//! What a virtual node says of itself: its pods, as the API server has them, and what they use, as the provider measures
//! it. Nothing is held: what comes is checked, counted and passed on piece by piece.

use super::figures::{Meter, Metrics, Summary};
use super::proxy::{open, refused};
use super::server::text;
use crate::mirror::{HomePods, Link, Mirror};
use crate::request::within;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};
use liquid_link::proto::kubelet_request::Part as RequestPart;
use liquid_link::proto::kubelet_response::Part as ResponsePart;
use liquid_link::proto::{KubeletRequest, KubeletResponse, Operation, RequestHead};
use liquid_runtime::exposition::CONTENT_TYPE;
use serde_json::{Value, json};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

/// Time for the provider to read its kubelets.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest line of the provider: the statistics of a pod with a hundred containers take about 200 kB.
const MAX_LINE: usize = 1 << 20;
/// Pieces on their way to who asks, of up to [`PIECE`] bytes each.
const PIECES: usize = 4;
/// Lines are gathered up to this length.
const PIECE: usize = 16 << 10;
/// Pods per page of a list: bounds what is held of it.
const PAGE: u32 = 100;

type Pieces = mpsc::Sender<Result<Bytes, io::Error>>;

/// Tells of one virtual node.
#[derive(Clone)]
pub(super) struct Observer {
    node: String,
    client: Client,
    link: watch::Receiver<Link>,
    /// A connection that somebody keeps open to a node that is gone does not keep the link to its provider.
    mirror: Weak<Mirror>,
    since: Timestamp,
    meter: Arc<Mutex<Meter>>,
}

impl Observer {
    /// Tells of `node`, whose pods are those that `mirror` knows.
    pub(super) fn new(node: String, client: Client, mirror: &Arc<Mirror>) -> Self {
        let link = mirror.link.clone();
        let mirror = Arc::downgrade(mirror);
        Self { node, client, link, mirror, since: Timestamp::now(), meter: Arc::default() }
    }

    /// `/pods`: what is bound to the node, as the API server has it.
    pub(super) async fn pods(&self) -> Response<Body> {
        let uri = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}&resourceVersion=0", self.node);
        let request = match Request::get(uri).body(kube::client::Body::empty()) {
            Ok(request) => request,
            Err(error) => return failed(&error),
        };
        match within(self.client.send(request)).await {
            Ok(listed) if listed.status().is_success() => {
                answer("application/json", Body::new(listed.into_body().map_err(io::Error::other)))
            }
            Ok(listed) => failed(&format!("the API server answers {}", listed.status())),
            Err(error) => failed(&error),
        }
    }

    /// `/runningpods/`: what has a running container there, by name, UID and containers.
    pub(super) async fn running_pods(&self) -> Response<Body> {
        if let Err(why) = self.channel() {
            return text(StatusCode::SERVICE_UNAVAILABLE, &why);
        }
        let api: Api<Pod> = Api::all(self.client.clone());
        let mut params = ListParams::default().fields(&format!("spec.nodeName={}", self.node)).limit(PAGE);
        let mut items = Vec::new();
        loop {
            let page = match within(api.list(&params)).await {
                Ok(page) => page,
                Err(error) => return failed(&error),
            };
            items.extend(page.items.into_iter().filter_map(running));
            match page.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => params = params.continue_token(&next),
                None => break,
            }
        }
        let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items });
        answer("application/json", Body::from(list.to_string()))
    }

    /// `/stats/summary`.
    pub(super) async fn summary(&self, query: &str) -> Response<Body> {
        let lines = match self.ask(Operation::Stats, query).await {
            Ok(lines) => lines,
            Err(response) => return response,
        };
        let (pieces, body) = pipe();
        let this = self.clone();
        tokio::spawn(async move {
            let summary = Summary::new(this.known_pods().await);
            this.pass_summary(lines, summary, pieces).await;
        });
        answer("application/json", body)
    }

    async fn pass_summary(&self, mut lines: Lines, mut summary: Summary, pieces: Pieces) {
        let mut piece = String::from(r#"{"pods":["#);
        let mut first = true;
        loop {
            match lines.next().await {
                Ok(Some(line)) => {
                    if !summary.line(&line, &mut self.meter()) {
                        continue;
                    }
                    if !first {
                        piece.push(',');
                    }
                    first = false;
                    piece.push_str(line.trim());
                }
                Ok(None) => break,
                Err(error) => return drop(pieces.send(Err(error)).await),
            }
            if piece.len() >= PIECE && pieces.send(Ok(std::mem::take(&mut piece).into())).await.is_err() {
                return;
            }
        }
        let node = summary.node(&self.node, self.since, &self.meter(), Timestamp::now());
        piece.push_str(&format!("],\"node\":{node}}}"));
        drop(pieces.send(Ok(piece.into())).await);
    }

    /// `/metrics/...`; with [`Operation::Resource`] the node's own are added.
    pub(super) async fn metrics(&self, operation: Operation) -> Response<Body> {
        let lines = match self.ask(operation, "").await {
            Ok(lines) => lines,
            Err(response) => return response,
        };
        let (pieces, body) = pipe();
        let this = self.clone();
        tokio::spawn(async move {
            let metrics = Metrics::new(this.known_pods().await);
            this.pass_metrics(lines, metrics, operation == Operation::Resource, pieces).await;
        });
        answer(CONTENT_TYPE, body)
    }

    async fn pass_metrics(&self, mut lines: Lines, mut metrics: Metrics, with_node: bool, pieces: Pieces) {
        let mut piece = String::new();
        loop {
            match lines.next().await {
                Ok(Some(line)) => {
                    if metrics.line(&line, &mut self.meter()) {
                        piece.push_str(&line);
                        piece.push('\n');
                    }
                }
                Ok(None) => break,
                Err(error) => return drop(pieces.send(Err(error)).await),
            }
            if piece.len() >= PIECE && pieces.send(Ok(std::mem::take(&mut piece).into())).await.is_err() {
                return;
            }
        }
        if with_node {
            piece.push_str(&metrics.node(&self.meter(), Timestamp::now().as_millisecond()));
        }
        drop(pieces.send(Ok(piece.into())).await);
    }

    /// The pods of the node; what the meter knows of others is forgotten.
    async fn known_pods(&self) -> Arc<HomePods> {
        let pods = match self.mirror.upgrade() {
            Some(mirror) => mirror.pods(self.node.clone()).await,
            None => HomePods::new(),
        };
        self.meter().keep(&pods);
        Arc::new(pods)
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to the provider, or why there is none.
    fn channel(&self) -> Result<Channel, String> {
        match &*self.link.borrow() {
            Link::Up(channel) => Ok(channel.clone()),
            Link::Down(why) | Link::Lost { why, .. } => {
                Err(format!("the provider of {} is not connected: {why}\n", self.node))
            }
        }
    }

    async fn ask(&self, operation: Operation, query: &str) -> Result<Lines, Response<Body>> {
        let channel = self.channel().map_err(|why| text(StatusCode::SERVICE_UNAVAILABLE, &why))?;
        let head = RequestHead {
            operation: operation.into(),
            query: query.to_owned(),
            method: "GET".to_owned(),
            node: self.node.clone(),
            ..RequestHead::default()
        };
        let head = KubeletRequest { part: Some(RequestPart::Head(head)) };
        let opened = timeout(HEAD_TIMEOUT, open(channel, futures::stream::iter([head]))).await;
        match opened {
            Err(_) => Err(text(StatusCode::GATEWAY_TIMEOUT, "the provider did not answer in time\n")),
            Ok(Err(status)) => Err(refused(&status)),
            Ok(Ok((_, incoming))) => Ok(Lines { incoming, buffer: BytesMut::new(), ended: false }),
        }
    }
}

/// The lines of an answer of the provider.
struct Lines {
    incoming: Streaming<KubeletResponse>,
    buffer: BytesMut,
    ended: bool,
}

impl Lines {
    async fn next(&mut self) -> io::Result<Option<String>> {
        let mut searched = 0;
        loop {
            let end = self.buffer[searched..].iter().position(|byte| *byte == b'\n');
            let line = match end {
                Some(end) => {
                    let line = self.buffer.split_to(searched + end + 1);
                    line[..line.len() - 1].to_vec()
                }
                None if self.ended && self.buffer.is_empty() => return Ok(None),
                None if self.ended => std::mem::take(&mut self.buffer).to_vec(),
                None if self.buffer.len() > MAX_LINE => {
                    return Err(io::Error::other("a line of the provider is too long"));
                }
                None => {
                    searched = self.buffer.len();
                    self.read().await?;
                    continue;
                }
            };
            return String::from_utf8(line).map(Some).map_err(io::Error::other);
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        match self.incoming.message().await.map_err(io::Error::other)? {
            Some(KubeletResponse { part: Some(ResponsePart::Data(data)) }) => {
                self.buffer.extend_from_slice(&data)
            }
            Some(_) => {}
            None => self.ended = true,
        }
        Ok(())
    }
}

fn pipe() -> (Pieces, Body) {
    let (pieces, mut queue) = mpsc::channel(PIECES);
    (pieces, Body::from_stream(futures::stream::poll_fn(move |cx| queue.poll_recv(cx))))
}

/// What the runtime would know of a pod, if one of its containers runs.
fn running(pod: Pod) -> Option<Value> {
    let status = pod.status?;
    let runs =
        [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses]
            .into_iter()
            .flatten()
            .flatten()
            .any(|container| container.state.is_some_and(|state| state.running.is_some()));
    let ObjectMeta { name, namespace, uid, .. } = pod.metadata;
    let PodSpec { containers, .. } = pod.spec?;
    let containers: Vec<Value> = containers
        .into_iter()
        .map(|container| json!({ "name": container.name, "image": container.image, "resources": {} }))
        .collect();
    runs.then(|| {
        json!({
            "metadata": { "name": name, "namespace": namespace, "uid": uid },
            "spec": { "containers": containers },
            "status": {},
        })
    })
}

fn answer(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn failed(error: &dyn std::fmt::Display) -> Response<Body> {
    text(StatusCode::INTERNAL_SERVER_ERROR, &format!("the pods cannot be read: {error}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_runs_while_one_of_its_containers_does() {
        let pod = |state: Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "web-0", "namespace": "shop", "uid": "u"},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
                "status": {"containerStatuses": [
                    {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state},
                ]},
            }))
            .unwrap()
        };
        let shown = running(pod(json!({"running": {}}))).unwrap();
        assert_eq!(shown["metadata"], json!({"name": "web-0", "namespace": "shop", "uid": "u"}));
        assert_eq!(shown["spec"]["containers"][0]["name"], "c");
        assert!(running(pod(json!({"waiting": {}}))).is_none());
        assert!(running(Pod::default()).is_none());
    }
}
