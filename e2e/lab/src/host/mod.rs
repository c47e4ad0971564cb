//! The machine the lab runs on: what it offers, its processes, control groups and programs.

pub(crate) mod cgroup;
pub(crate) mod command;
pub(crate) mod host_check;
pub(crate) mod process;
pub(crate) mod wait;
