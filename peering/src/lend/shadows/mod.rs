//! What consumers want to exist here, kept so: the shell around [`liquid_reflection::Provider`].
//!
//! [`actor`] owns the state machines of all consumers and is the only one to touch them; [`watches`] tells it what
//! the API server has, [`steps`] carries out what it decides, [`objects`], [`companions`], [`claims`], [`ingress`] and
//! [`walls`] say what shadows look like, and [`outbox`] takes its frames to the peer link. [`roster`] tells others which
//! pod here is whose.

mod actor;
mod claims;
mod companions;
mod events;
mod ingress;
mod objects;
mod outbox;
mod roster;
mod steps;
mod walls;
mod watches;

pub(crate) use actor::{Shadows, Summary};
pub(crate) use outbox::Outbox;
pub(crate) use roster::{Placed, Roster};
pub(crate) use steps::Policy;
