//! Frames on their way to one consumer. The actor never waits for a link: what a slow or dead consumer does not
//! take is bounded here, and when the bound is reached its stream ends and it starts over with an inventory.

use futures::Stream;
use liquid_link::proto::ProviderFrame;
use prost::Message as _;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use tonic::Status;

/// Bytes that may wait for one consumer: the statuses of some 10,000 pods at once.
const MAX_WAITING: usize = 32 << 20;

/// Both ends of the queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    frames: VecDeque<ProviderFrame>,
    waiting: usize,
    closed: Option<Status>,
    reader: Option<Waker>,
}

impl Outbox {
    /// Queues a frame; returns whether the stream is still open.
    pub(crate) fn push(&self, frame: ProviderFrame) -> bool {
        let mut shared = self.lock();
        if shared.closed.is_some() {
            return false;
        }
        let size = frame.encoded_len();
        if shared.waiting + size > MAX_WAITING {
            drop(shared);
            self.close(Status::resource_exhausted(
                "the consumer does not take what it asked for; start over",
            ));
            return false;
        }
        shared.waiting += size;
        shared.frames.push_back(frame);
        if let Some(reader) = shared.reader.take() {
            reader.wake();
        }
        true
    }

    /// Ends the stream, dropping what waits.
    pub(crate) fn close(&self, why: Status) {
        let mut shared = self.lock();
        shared.frames.clear();
        shared.waiting = 0;
        shared.closed.get_or_insert(why);
        if let Some(reader) = shared.reader.take() {
            reader.wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream for Outbox {
    type Item = Result<ProviderFrame, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = self.lock();
        if let Some(frame) = shared.frames.pop_front() {
            shared.waiting -= frame.encoded_len();
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(why) = &shared.closed {
            // The last item of the stream, then its end.
            return Poll::Ready(if why.code() == tonic::Code::Ok {
                None
            } else {
                let why = why.clone();
                shared.closed = Some(Status::ok(""));
                Some(Err(why))
            });
        }
        shared.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use liquid_link::proto::provider_frame::Frame;
    use liquid_link::proto::{Ref, Status as StatusFrame};

    fn frame(size: usize) -> ProviderFrame {
        let body = vec![0; size].into();
        ProviderFrame { frame: Some(Frame::Status(StatusFrame { body, ..StatusFrame::default() })) }
    }

    #[tokio::test]
    async fn frames_come_out_in_order_and_the_reason_of_the_end_last() {
        let mut outbox = Outbox::default();
        let gone = ProviderFrame { frame: Some(Frame::Gone(Ref::default())) };
        assert!(outbox.push(frame(1)) && outbox.push(gone.clone()));
        assert_eq!(outbox.next().await.unwrap().unwrap(), frame(1));
        assert_eq!(outbox.next().await.unwrap().unwrap(), gone);
        outbox.close(Status::aborted("newer stream"));
        assert_eq!(outbox.next().await.unwrap().unwrap_err().message(), "newer stream");
        assert!(outbox.next().await.is_none());
    }

    #[tokio::test]
    async fn a_consumer_that_takes_nothing_is_cut_off() {
        let mut outbox = Outbox::default();
        let big = MAX_WAITING / 4;
        let taken = (0..10).take_while(|_| outbox.push(frame(big))).count();
        assert_eq!(taken, 3);
        assert!(outbox.next().await.unwrap().is_err());
    }
}
