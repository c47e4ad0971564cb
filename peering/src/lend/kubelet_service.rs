//! `Kubelet`: logs, exec, attach and port-forward of a consumer's pods, as byte streams from and to this cluster's
//! API server, and what its pods use. What is inside the streams (SPDY, WebSocket) is passed on unread.

use super::consumers::Consumers;
use super::figures::{FigureSource, Figures};
use super::kubelet_target::{belongs_to_upgrade, figures, target};
use super::shadows::Shadows;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, Response as HttpResponse, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use liquid_link::limits::CHUNK;
use liquid_link::proto::kubelet_request::Part as RequestPart;
use liquid_link::proto::kubelet_response::Part as ResponsePart;
use liquid_link::proto::kubelet_server::Kubelet;
use liquid_link::proto::{Header, KubeletRequest, KubeletResponse, Operation, RequestHead, ResponseHead};
use liquid_reflection::{Kind, SetRef, wire};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

/// Chunks on their way to a consumer per stream: with [`CHUNK`] this pins 64 kB.
const CHUNK_QUEUE: usize = 4;
/// Time for the first message of a stream, and for the API server to answer with its headers.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The kubelet service.
pub(crate) struct KubeletService {
    pub(crate) client: Client,
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) shadows: Shadows,
    pub(crate) figures: Figures,
}

type Answer = mpsc::Sender<Result<KubeletResponse, Status>>;

#[tonic::async_trait]
impl Kubelet for KubeletService {
    type RequestStream = Pin<Box<dyn Stream<Item = Result<KubeletResponse, Status>> + Send>>;

    async fn request(
        &self,
        request: Request<Streaming<KubeletRequest>>,
    ) -> Result<Response<Self::RequestStream>, Status> {
        let consumer = self.consumers.authorize(request.extensions())?;
        let mut incoming = request.into_inner();
        let first = timeout(HEAD_TIMEOUT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the request did not begin"))??;
        let Some(RequestPart::Head(head)) = first.and_then(|first| first.part) else {
            return Err(Status::invalid_argument("the first message must be the head of the request"));
        };
        let (answer, mut answers) = mpsc::channel(CHUNK_QUEUE);
        let stream = Box::pin(futures::stream::poll_fn(move |cx| answers.poll_recv(cx)));
        let operation = Operation::try_from(head.operation).unwrap_or(Operation::Unspecified);
        if let Some(source) = figures(operation, &head.query) {
            let text = self.figures.of(source, consumer.id, &head.node).await?;
            debug!(peer = %consumer.name, operation = head.operation, bytes = text.len(), "kubelet figures");
            tokio::spawn(relay_figures(source, text, answer));
            return Ok(Response::new(stream));
        }
        let upstream = self.send(consumer.id, &head).await?;
        debug!(peer = %consumer.name, operation = head.operation, status = %upstream.status(), "kubelet request");
        tokio::spawn(relay(upstream, incoming, answer));
        Ok(Response::new(stream))
    }
}

impl KubeletService {
    /// Sends the request to the API server, if the pod is one of the consumer's.
    async fn send(
        &self,
        consumer: liquid_crds::ClusterId,
        head: &RequestHead,
    ) -> Result<HttpResponse<Body>, Status> {
        let pod = wire::key_from_wire(Kind::Pod, head.pod.clone())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let located = self.shadows.locate(consumer, SetRef::pods(&head.node), pod.clone()).await;
        let located = located.ok_or_else(|| {
            Status::not_found(format!("pod {pod} does not run in the provider (yet, or any more)"))
        })?;
        let operation = Operation::try_from(head.operation).unwrap_or(Operation::Unspecified);
        let target = target(
            operation,
            &located.namespace,
            &pod.name,
            &head.container,
            &head.query,
            &head.method,
            &head.headers,
        )
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut request = http::Request::builder()
            .method(target.method)
            .uri(target.uri)
            .body(Body::empty())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        *request.headers_mut() = target.headers;
        timeout(HEAD_TIMEOUT, self.client.send(request))
            .await
            .map_err(|_| Status::deadline_exceeded("the provider's API server did not answer in time"))?
            .map_err(|error| Status::unavailable(format!("the provider's API server failed: {error}")))
    }
}

/// Sends what was read, in chunks: they share its memory.
async fn relay_figures(source: FigureSource, mut text: Bytes, answer: Answer) {
    let content_type = Header {
        name: "content-type".to_owned(),
        value: Bytes::from_static(source.content_type().as_bytes()),
    };
    let head = ResponseHead { status: u32::from(StatusCode::OK.as_u16()), headers: vec![content_type] };
    if send(&answer, ResponsePart::Head(head)).await.is_err() {
        return;
    }
    while !text.is_empty() {
        let chunk = text.split_to(text.len().min(CHUNK));
        if send(&answer, ResponsePart::Data(chunk)).await.is_err() {
            return;
        }
    }
}

/// Passes the answer on: its head, and then either its body, or what flows both ways after an upgrade.
async fn relay(mut upstream: HttpResponse<Body>, incoming: Streaming<KubeletRequest>, answer: Answer) {
    let upgraded = upstream.status() == StatusCode::SWITCHING_PROTOCOLS;
    let head = ResponseHead {
        status: u32::from(upstream.status().as_u16()),
        headers: passed_on(upstream.headers(), upgraded),
    };
    if send(&answer, ResponsePart::Head(head)).await.is_err() {
        return;
    }
    if !upgraded {
        relay_body(upstream.into_body(), &answer).await;
        return;
    }
    match hyper::upgrade::on(&mut upstream).await {
        Ok(stream) => relay_upgraded(TokioIo::new(stream), incoming, &answer).await,
        Err(error) => {
            let status = Status::unavailable(format!("the provider's API server broke off: {error}"));
            drop(answer.send(Err(status)).await);
        }
    }
}

async fn relay_body(mut body: Body, answer: &Answer) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // The consumer has hung up: so do we, or `kubectl logs -f` would run for ever.
            () = answer.closed() => return,
        };
        match frame {
            None => return,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && send(answer, ResponsePart::Data(data)).await.is_err()
                {
                    return;
                }
            }
            Some(Err(error)) => {
                let status = Status::unavailable(format!("the provider's API server broke off: {error}"));
                drop(answer.send(Err(status)).await);
                return;
            }
        }
    }
}

/// Both directions are carried to their own ends: cutting one when the other is done would lose what a slow reader
/// has not taken yet.
async fn relay_upgraded(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send,
    mut incoming: Streaming<KubeletRequest>,
    answer: &Answer,
) {
    let (mut from_api, mut to_api) = tokio::io::split(stream);
    let up = async {
        while let Ok(Some(message)) = incoming.message().await {
            let Some(RequestPart::Data(data)) = message.part else { break };
            if to_api.write_all(&data).await.is_err() {
                return;
            }
        }
        drop(to_api.shutdown().await);
    };
    let down = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from_api.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    let data = Bytes::copy_from_slice(&buffer[..length]);
                    if send(answer, ResponsePart::Data(data)).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    // The API server's end is the end of the session: a client that still sends has nobody to send to.
    tokio::pin!(up);
    tokio::pin!(down);
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
}

async fn send(answer: &Answer, part: ResponsePart) -> Result<(), ()> {
    answer.send(Ok(KubeletResponse { part: Some(part) })).await.map_err(|_| ())
}

fn passed_on(headers: &HeaderMap, upgraded: bool) -> Vec<Header> {
    let plain = ["content-type", "content-encoding"];
    headers
        .iter()
        .filter(|(name, _)| {
            let name = name.as_str();
            if upgraded { belongs_to_upgrade(name) } else { plain.contains(&name) }
        })
        .map(|(name, value)| Header {
            name: name.as_str().to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        })
        .collect()
}
