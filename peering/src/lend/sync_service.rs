//! `Reflection`: frames of a consumer to the shadows, and back.

use super::consumers::Consumers;
use super::shadows::{Outbox, Shadows};
use liquid_link::liveness::{self, Beating};
use liquid_link::proto;
use liquid_link::proto::reflection_server::Reflection;
use liquid_reflection::ConsumerFrame;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

/// The reflection service.
pub(crate) struct SyncService {
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) shadows: Shadows,
    pub(crate) streams: AtomicU64,
    /// Cancelled when the process is to end.
    pub(crate) draining: CancellationToken,
}

#[tonic::async_trait]
impl Reflection for SyncService {
    type SyncStream = Beating<Outbox>;

    async fn sync(
        &self,
        request: Request<Streaming<proto::ConsumerFrame>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let consumer = self.consumers.authorize(request.extensions())?;
        if consumer.ending {
            return Err(Status::failed_precondition("the provider is ending this peering"));
        }
        let beat = liveness::asked(&request);
        let stream = self.streams.fetch_add(1, Ordering::Relaxed);
        let outbox = Outbox::default();
        let mut frames = request.into_inner();
        let (shadows, id, name) = (self.shadows.clone(), consumer.id, consumer.name);
        shadows.connected(id.clone(), consumer.peering, stream, outbox.clone()).await;
        info!(peer = %name, stream, "reflection stream opened");
        let answers = outbox.clone();
        let draining = self.draining.clone();
        tokio::spawn(async move {
            let end = loop {
                let message = tokio::select! {
                    message = frames.message() => message,
                    // The consumer finds the next leader, and begins with an inventory there.
                    () = draining.cancelled() => break Status::unavailable("the provider's controller is shutting down"),
                };
                let frame = match message {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break Status::ok("the consumer hung up"),
                    Err(status) => break status,
                };
                match ConsumerFrame::try_from(frame) {
                    Ok(frame) => {
                        if !shadows.frame(id.clone(), stream, frame).await {
                            break Status::aborted("a newer stream of this cluster took over");
                        }
                    }
                    Err(error) => {
                        warn!(peer = %name, %error, "frame refused");
                        break Status::invalid_argument(format!("a frame was refused: {error}"));
                    }
                }
            };
            debug!(peer = %name, stream, reason = %end.message(), "reflection stream closed");
            outbox.close(end);
            shadows.disconnected(id, stream).await;
        });
        Ok(Response::new(Beating::new(answers, beat)))
    }
}
