//! `cargo xtask demo`: from a fresh machine to a Deployment that runs in another cluster.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use liquid_lab::LabName;

use crate::child::{self, Interrupt};
use crate::temporary_lab::TemporaryLab;
use crate::{output, workspace};

/// No step may take longer: the slowest builds Kubernetes, which took 15 minutes on two cores.
const LIMIT: Duration = Duration::from_secs(45 * 60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Begin with new clusters, and take everything down at the end; the exit code says whether all worked. Goals that
    /// are missed are shown, and do not count: a machine that does other things too is slower.
    #[arg(long)]
    once: bool,
    /// Name of the lab.
    #[arg(long = "lab", default_value = "demo", value_name = "NAME")]
    lab: LabName,
    /// Cargo profile of the image: dev builds faster, release runs faster.
    #[arg(long, default_value = "release", value_name = "PROFILE")]
    profile: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let lab = if arguments.once { Some(TemporaryLab::new(&arguments.lab)?) } else { None };
    let shown = show(arguments, &interrupt);
    let removed = lab.map_or(Ok(()), TemporaryLab::down);
    if interrupt.is_set() {
        output::note("interrupted");
        return removed.map(|()| interrupt.exit_code());
    }
    shown?;
    removed?;
    if !arguments.once {
        output::note(&what_next(&arguments.lab));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(arguments: &Arguments, interrupt: &Interrupt) -> anyhow::Result<()> {
    let name = arguments.lab.as_str();
    // First, for it checks what the machine lacks, and installs what it can.
    output::note("== two Kubernetes clusters");
    let mut up = workspace::xtask(&["lab", "up", "--lab", name]);
    child::run(&mut up, interrupt, LIMIT)?.success("lab up")?;
    output::note("== the image of Liquid");
    let image = image(&arguments.lab, &arguments.profile, interrupt)?;
    output::note("== liquidctl");
    build(interrupt)?;
    output::note("== the demo");
    let mut tour = program(&arguments.lab);
    tour.arg("tour").env("LIQUID_IMAGE", image);
    child::run(&mut tour, interrupt, LIMIT)?.success("the demo")
}

/// Builds the image in a lab; returns what it is called.
pub(crate) fn image(lab: &LabName, profile: &str, interrupt: &Interrupt) -> anyhow::Result<String> {
    let mut command = workspace::xtask(&["image", "--lab", lab.as_str(), "--profile", profile]);
    let mut last = None;
    child::run_with_output(&mut command, interrupt, LIMIT, &mut |line| {
        output::note(&line);
        last = Some(line);
    })?
    .success("building the image")?;
    last.context("cargo xtask image does not say what the image is called")
}

/// Builds what the demo runs on this machine.
fn build(interrupt: &Interrupt) -> anyhow::Result<()> {
    // The whole workspace, as in `cargo xtask test`: with another choice of packages, cargo chooses other features of what
    // they depend on, and compiles it again.
    let mut build = workspace::cargo(&["build", "--workspace", "--bin", "liquidctl", "--bin", "liquid-demo"]);
    child::run(&mut build, interrupt, LIMIT)?.success("building liquidctl")
}

/// The program that shows and measures, for a lab.
fn program(lab: &LabName) -> Command {
    let mut command = Command::new(workspace::built("liquid-demo"));
    command.env("LIQUID_LAB", lab.as_str()).env("LIQUIDCTL", workspace::built("liquidctl"));
    command
}

fn what_next(lab: &LabName) -> String {
    let liquidctl = workspace::built("liquidctl");
    let liquidctl = liquidctl.display();
    format!(
        "\nThe clusters keep running. What to try next:\n  \
         eval \"$(cargo xtask lab env --lab {lab})\"\n  \
         kubectl --kubeconfig $KUBECONFIG_A -n demo scale deployment hello --replicas 5\n  \
         kubectl --kubeconfig $KUBECONFIG_A -n demo get pods -o wide\n  \
         kubectl --kubeconfig $KUBECONFIG_B -n demo-home get pods -o wide\n  \
         KUBECONFIG=$KUBECONFIG_A {liquidctl} status\n  \
         cargo xtask lab link a b cut --lab {lab}       # the pods run on; mend it: restore\n  \
         KUBECONFIG=$KUBECONFIG_A {liquidctl} unpeer provider\n  \
         cargo xtask lab down --lab {lab}               # takes everything down"
    )
}
