//! The slices of all consumers as they stand: written by whoever negotiates, read by those who hold consumers to it.

use super::slices::SliceRequest;
use liquid_crds::quantity::{Amounts, amounts, quantities};
use liquid_crds::{ClusterId, LentSlice, Price, SliceState};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// A slice: what one virtual node of a consumer asks for and is offered.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Slice {
    pub(crate) request: SliceRequest,
    /// What is offered; nothing if it is declined.
    pub(crate) offered: Amounts,
    pub(crate) price: Option<Price>,
    pub(crate) state: SliceState,
    /// Why it is declined.
    pub(crate) message: String,
}

impl Slice {
    /// What the pods of the virtual node may request together: nothing, before the offer is accepted.
    pub(crate) fn limits(&self) -> Amounts {
        let mut limits = match self.state {
            SliceState::Accepted => self.offered.clone(),
            SliceState::Offered | SliceState::Refused => Amounts::new(),
        };
        limits.entry("pods".to_owned()).or_insert(0);
        limits
    }

    /// As it is recorded.
    pub(crate) fn record(&self, name: &str) -> LentSlice {
        LentSlice {
            name: name.to_owned(),
            requested: quantities(&self.request.resources),
            node_selector: self.request.placement.node_selector.clone(),
            node: self.request.placement.node.clone(),
            offered: quantities(&self.offered),
            price: self.price.clone(),
            state: self.state,
            message: self.message.clone(),
        }
    }

    fn from_record(slice: &LentSlice) -> Self {
        Self {
            request: SliceRequest::from_record(slice),
            offered: amounts(&slice.offered),
            price: slice.price.clone(),
            state: slice.state,
            message: slice.message.clone(),
        }
    }
}

/// The slices of one consumer, by the names of its virtual nodes.
pub(crate) type Slices = BTreeMap<Arc<str>, Slice>;

#[derive(Debug, Clone, PartialEq)]
struct Page {
    /// UID of the `Peer` under which it was negotiated.
    peering: String,
    /// The negotiation that writes it; an earlier one writes no more.
    negotiation: u64,
    slices: Arc<Slices>,
}

/// The slices of all consumers that negotiate. Those that do not are in no page: they see all that is lent, and the limits
/// of their `Peer` alone bound them.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    pages: watch::Sender<BTreeMap<ClusterId, Page>>,
}

impl Default for Book {
    fn default() -> Self {
        Self { pages: watch::Sender::new(BTreeMap::new()) }
    }
}

impl Book {
    /// Learns what was recorded of a consumer before this process began. What has been negotiated since stays.
    pub(crate) fn recall(&self, id: &ClusterId, peering: &str, recorded: Option<&[LentSlice]>) {
        let Some(recorded) = recorded else { return };
        self.pages.send_if_modified(|pages| {
            if pages.get(id).is_some_and(|page| page.peering == peering) {
                return false;
            }
            let slices =
                recorded.iter().map(|slice| (Arc::from(slice.name.as_str()), Slice::from_record(slice)));
            let page =
                Page { peering: peering.to_owned(), negotiation: 0, slices: Arc::new(slices.collect()) };
            pages.insert(id.clone(), page);
            true
        });
    }

    /// The negotiation `negotiation` (a number above those before it) has come to this. Returns whether it is still the one
    /// that counts.
    pub(crate) fn write(&self, id: &ClusterId, peering: &str, negotiation: u64, slices: Slices) -> bool {
        let mut current = true;
        self.pages.send_if_modified(|pages| {
            if pages.get(id).is_some_and(|page| page.peering == peering && page.negotiation > negotiation) {
                current = false;
                return false;
            }
            let page = Page { peering: peering.to_owned(), negotiation, slices: Arc::new(slices) };
            let changed = pages.get(id).is_none_or(|known| known.slices != page.slices);
            pages.insert(id.clone(), page);
            changed
        });
        current
    }

    /// The consumer is gone.
    pub(crate) fn forget(&self, id: &ClusterId) {
        self.pages.send_if_modified(|pages| pages.remove(id).is_some());
    }

    /// The slices of a consumer, if it negotiates.
    pub(crate) fn slices(&self, id: &ClusterId, peering: &str) -> Option<Arc<Slices>> {
        let pages = self.pages.borrow();
        pages.get(id).filter(|page| page.peering == peering).map(|page| page.slices.clone())
    }

    /// Tells of changes.
    pub(crate) fn changes(&self) -> watch::Receiver<impl Sized + use<>> {
        self.pages.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ClusterId {
        "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap()
    }

    fn slices(cpu: i128, state: SliceState) -> Slices {
        let offered = Amounts::from([("cpu".to_owned(), cpu), ("pods".to_owned(), 9000)]);
        Slices::from([(Arc::from("liquid-milan"), Slice { offered, state, ..Slice::default() })])
    }

    #[test]
    fn pods_are_taken_only_under_an_accepted_offer() {
        let closed = Amounts::from([("pods".to_owned(), 0)]);
        for state in [SliceState::Offered, SliceState::Refused] {
            assert_eq!(slices(2000, state)["liquid-milan"].limits(), closed);
        }
        assert_eq!(slices(2000, SliceState::Accepted)["liquid-milan"].limits()["cpu"], 2000);
        assert_eq!(
            Slice { state: SliceState::Accepted, ..Slice::default() }.limits(),
            closed,
            "no node is left"
        );
    }

    #[test]
    fn what_was_recorded_counts_until_something_is_negotiated() {
        let book = Book::default();
        let recorded: Vec<LentSlice> =
            slices(1000, SliceState::Accepted).iter().map(|(name, slice)| slice.record(name)).collect();
        book.recall(&id(), "p", Some(&recorded));
        assert_eq!(*book.slices(&id(), "p").unwrap(), slices(1000, SliceState::Accepted));
        assert!(book.write(&id(), "p", 7, slices(2000, SliceState::Accepted)));
        book.recall(&id(), "p", Some(&recorded));
        assert_eq!(*book.slices(&id(), "p").unwrap(), slices(2000, SliceState::Accepted));
        assert!(!book.write(&id(), "p", 6, slices(1, SliceState::Accepted)), "an earlier stream is over");
        assert_eq!(*book.slices(&id(), "p").unwrap(), slices(2000, SliceState::Accepted));
        assert!(book.slices(&id(), "another peering").is_none());
        assert!(book.write(&id(), "another peering", 1, Slices::new()));
    }
}
