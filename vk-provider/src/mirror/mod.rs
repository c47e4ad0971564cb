//! What shall exist in one provider, and how far it is: the shell around [`liquid_reflection::Consumer`].
//!
//! [`actor`] owns the state machine; [`link`] keeps the connection to the provider, [`home`] writes to the API server of
//! home, one object at a time in order, [`companions`] knows what pods need beside
//! them, and [`warnings`] shows what is said of them there.

mod actor;
mod claims;
mod companions;
mod home;
mod link;
mod warnings;

pub(crate) use actor::{Common, HomePods, Mirror, RemoteState, WantedNamespace};
pub(crate) use link::{Dialing, Link, Provider};
