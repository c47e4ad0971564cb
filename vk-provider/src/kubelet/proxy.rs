//! Passes a kubelet request to the provider and its answer back, whatever flows after an upgrade unread.

use super::server::text;
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use liquid_link::limits::CHUNK;
use liquid_link::proto::kubelet_client::KubeletClient;
use liquid_link::proto::kubelet_request::Part as RequestPart;
use liquid_link::proto::kubelet_response::Part as ResponsePart;
use liquid_link::proto::{self, Header, KubeletRequest, KubeletResponse, Operation, RequestHead};
use liquid_link::upgrade::UPGRADE_HEADERS;
use liquid_reflection::Key;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::debug;

/// Chunks on their way to the provider per stream.
const CHUNK_QUEUE: usize = 4;
/// Time for the provider to answer with its headers; it grants its API server 30 s.
const HEAD_TIMEOUT: Duration = Duration::from_secs(40);

/// What is asked of which container.
pub(super) struct Call {
    pub(super) operation: Operation,
    pub(super) node: String,
    pub(super) pod: Key,
    pub(super) container: String,
}

/// Answers `request` with what the provider says.
pub(super) async fn forward(channel: Channel, call: Call, mut request: Request<Incoming>) -> Response<Body> {
    let headers = request.headers().iter().filter(|(name, _)| UPGRADE_HEADERS.contains(&name.as_str()));
    let head = RequestHead {
        operation: call.operation.into(),
        pod: Some(proto::Key { namespace: call.pod.namespace.to_string(), name: call.pod.name.to_string() }),
        container: call.container,
        query: request.uri().query().unwrap_or_default().to_owned(),
        method: request.method().to_string(),
        headers: headers
            .map(|(name, value)| Header {
                name: name.as_str().to_owned(),
                value: Bytes::copy_from_slice(value.as_bytes()),
            })
            .collect(),
        node: call.node,
    };
    let (outgoing, mut queue) = mpsc::channel(CHUNK_QUEUE);
    // The queue is empty: there is room for the head.
    drop(outgoing.try_send(KubeletRequest { part: Some(RequestPart::Head(head)) }));
    let outgoing_stream = futures::stream::poll_fn(move |cx| queue.poll_recv(cx));
    let answer = timeout(HEAD_TIMEOUT, open(channel, outgoing_stream)).await;
    let (head, incoming) = match answer {
        Err(_) => return text(StatusCode::GATEWAY_TIMEOUT, "the provider did not answer in time\n"),
        Ok(Err(status)) => return refused(&status),
        Ok(Ok(answer)) => answer,
    };
    let status = u16::try_from(head.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = if status == StatusCode::SWITCHING_PROTOCOLS {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(relay(upgrade, outgoing, incoming));
        Response::new(Body::empty())
    } else {
        Response::new(body(outgoing, incoming))
    };
    *response.status_mut() = status;
    for Header { name, value } in head.headers {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value))
        {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// Begins a request; returns the head of the answer and what follows it.
pub(super) async fn open(
    channel: Channel,
    outgoing: impl futures::Stream<Item = KubeletRequest> + Send + 'static,
) -> Result<(proto::ResponseHead, Streaming<KubeletResponse>), Status> {
    let mut incoming = KubeletClient::new(channel).request(outgoing).await?.into_inner();
    match incoming.message().await?.and_then(|message| message.part) {
        Some(ResponsePart::Head(head)) => Ok((head, incoming)),
        Some(ResponsePart::Data(_)) | None => Err(Status::internal("the provider's answer has no head")),
    }
}

/// The body of a plain answer. The request stays open as long as the answer does: when the reader goes away both are
/// dropped, and the provider stops.
fn body(outgoing: mpsc::Sender<KubeletRequest>, incoming: Streaming<KubeletResponse>) -> Body {
    let frames = incoming.filter_map(move |message| {
        let _open = &outgoing;
        let frame = match message {
            Ok(KubeletResponse { part: Some(ResponsePart::Data(data)) }) => Some(Ok(Frame::data(data))),
            Ok(_) => None,
            Err(status) => Some(Err(status)),
        };
        std::future::ready(frame)
    });
    Body::new(http_body_util::StreamBody::new(frames).boxed_unsync())
}

/// Carries both directions to their own ends.
async fn relay(
    upgrade: OnUpgrade,
    outgoing: mpsc::Sender<KubeletRequest>,
    mut incoming: Streaming<KubeletResponse>,
) {
    let stream = match upgrade.await {
        Ok(stream) => TokioIo::new(stream),
        Err(error) => return debug!(%error, "the client did not upgrade"),
    };
    let (mut from_client, mut to_client) = tokio::io::split(stream);
    let up = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from_client.read(&mut buffer).await {
                // Dropping the sender tells the provider that no more comes, while its answer still flows.
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    let data = Bytes::copy_from_slice(&buffer[..length]);
                    let message = KubeletRequest { part: Some(RequestPart::Data(data)) };
                    if outgoing.send(message).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    let down = async {
        while let Ok(Some(message)) = incoming.message().await {
            let Some(ResponsePart::Data(data)) = message.part else { continue };
            if to_client.write_all(&data).await.is_err() {
                return;
            }
        }
        drop(to_client.shutdown().await);
    };
    tokio::pin!(up);
    tokio::pin!(down);
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
}

pub(super) fn refused(status: &Status) -> Response<Body> {
    let code = match status.code() {
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::PermissionDenied | Code::Unauthenticated => StatusCode::FORBIDDEN,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    text(code, &format!("{}\n", status.message()))
}
