//! What consumers ask for and are offered. Pure: [`request`] says what is asked, [`machine`] what a node has, [`share`]
//! who gets how much, [`offer`] what is offered.

mod machine;
mod offer;
mod request;
mod share;

pub(crate) use machine::{Images, Machine};
pub(crate) use offer::{Capacity, limits};
pub(crate) use request::{Declined, SliceRequest, selector_from_wire};
