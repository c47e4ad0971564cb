//! `Peering.Negotiate`: what a consumer's virtual nodes ask for, and what each of them is offered.

use super::book::Book;
use super::consumers::{Consumer, Consumers};
use super::desk::Desk;
use super::slices::Capacity;
use futures::StreamExt as _;
use liquid_link::proto::{Ask, Bid};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info};

/// Requests taken in before they are answered together: one changes the offers of all others.
const BATCH: usize = 256;

/// What negotiations need.
pub(crate) struct Negotiation {
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) capacity: watch::Receiver<Option<Arc<Capacity>>>,
    pub(crate) book: Book,
    /// Number of this negotiation, above those of all before it.
    pub(crate) number: u64,
    /// Cancelled when the process is to end.
    pub(crate) draining: CancellationToken,
}

impl Negotiation {
    /// Answers `asks` until the consumer hangs up, or its peering ends.
    pub(crate) async fn run(
        mut self,
        consumer: Consumer,
        asks: Streaming<Ask>,
        bids: mpsc::Sender<Result<Bid, Status>>,
    ) {
        let mut asks = asks.ready_chunks(BATCH);
        let mut known = self.consumers.subscribe();
        let mut desk = Desk::default();
        info!(peer = %consumer.name, "negotiation begins");
        loop {
            let lend = known.borrow_and_update().get(&consumer.id).cloned();
            let lend = lend.filter(|known| known.peering == consumer.peering && !known.ending);
            let Some(Consumer { lend, .. }) = lend else { return };
            let capacity = self.capacity.borrow_and_update().clone();
            // Until it is known what there is, the consumer goes by what it was told before.
            if let Some(capacity) = capacity.filter(|_| desk.is_complete()) {
                let (answers, slices) = desk.answers(&capacity, &lend);
                // Who is held to an offer has been told of it, or is about to be.
                if !self.book.write(&consumer.id, &consumer.peering, self.number, slices) {
                    debug!(peer = %consumer.name, "a newer negotiation took over");
                    return;
                }
                for answer in answers.into_iter().chain(desk.nodes(&capacity, &lend)) {
                    if bids.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                more = asks.next() => {
                    let Some(more) = more else { return };
                    for ask in more {
                        let Ok(Ask { ask: Some(ask) }) = ask else { return };
                        if let Some(refused) = desk.learn(ask)
                            && bids.send(Ok(refused)).await.is_err() {
                            return;
                        }
                    }
                }
                changed = known.changed() => if changed.is_err() { return },
                changed = self.capacity.changed() => if changed.is_err() { return },
                () = bids.closed() => return,
                () = self.draining.cancelled() => {
                    // The consumer finds the next leader, and begins anew there.
                    let status = Status::unavailable("the provider's controller is shutting down");
                    return drop(bids.send(Err(status)).await);
                }
            }
        }
    }
}
