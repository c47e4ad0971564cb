//! Reflection of objects between clusters.
//!
//! The consumer states, per [`SetRef`], which objects it wants to exist in the provider (the xDS delta idea:
//! keyed desired sets); the provider stores them and reports back. Both halves are pure state machines:
//! [`Consumer`] and [`Provider`] do no IO and know no clock but the one they are given. The shells around them
//! watch the API servers, move [`frame`]s over the peer link, and carry out the actions asked for.
//!
//! What holds whatever gets lost, repeated, late or restarted (checked by `tests/simulation.rs`):
//! - nothing in the provider is removed without a positive statement of the consumer: a delete, or a *complete*
//!   inventory that does not name it;
//! - an object at home is finished off only when the provider said that nothing of it exists any more;
//! - when everything has calmed down, the provider holds exactly what the consumer wants.

pub mod addresses;
pub mod claim;
pub mod companion;
pub mod consumer;
pub mod digest;
pub mod frame;
pub mod key;
pub mod policy;
pub mod provider;
pub mod warning;
pub mod wire;

pub use addresses::Prefixes;
pub use consumer::Consumer;
pub use frame::{ConsumerFrame, ProviderFrame};
pub use key::{Key, Kind, Role, SetRef, Uid};
pub use provider::Provider;
