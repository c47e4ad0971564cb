//! What scenarios are written with: two clusters, things to do to them, and waits that say what was missing.
//!
//! The clusters are those of the lab named by `LIQUID_LAB` (`a` is home, `b` the provider), or two of your own:
//! `LIQUID_HOME_KUBECONFIG` and `LIQUID_PROVIDER_KUBECONFIG`. `LIQUID_IMAGE` is the image to install, `LIQUIDCTL`,
//! `KUBECTL` and `HELM` the programs (by default those on the path).

mod cluster;
mod environment;
mod flow;
mod inside;
mod program;
mod snapshot;
mod wait;

pub use cluster::Cluster;
pub use environment::{Environment, TEST_IMAGE, image, lab, programs};
pub use flow::{Flow, PACE};
pub use inside::Inside;
pub use program::{Output, Program};
pub use snapshot::Snapshot;
pub use wait::{Look, wait};
