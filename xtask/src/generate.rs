//! `cargo xtask gen`: files that are made from other files.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::{output, workspace};

/// The CRD manifests of the Helm chart, from the types in `crds/src`.
const CRDS: &str = "charts/liquid/crds";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Change nothing; fail if a file is out of date.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut generator =
        workspace::cargo(&["run", "--quiet", "--package", "liquid-crds", "--bin", "crdgen", "--", CRDS]);
    if arguments.check {
        generator.arg("--check");
    }
    // The generator says itself what is wrong.
    if !generator.status().context("cannot run cargo")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    output::note(&format!("{CRDS}: {}", if arguments.check { "up to date" } else { "written" }));
    Ok(ExitCode::SUCCESS)
}
