//! `cargo xtask bench`: what Liquid costs, measured beside the floor, in a lab of its own.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use liquid_lab::{LabName, ProductImage};

use crate::child::{self, Interrupt};
use crate::temporary_lab::TemporaryLab;
use crate::{demo, output, workspace};

/// The profile of everything that takes part, the benchmark itself included: it shares the machine with what it measures.
const PROFILE: &str = "release";
/// Nothing that works takes longer.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Pods that go to another cluster: time, processor, memory, API requests and bytes on the link, on two control planes
    /// with fake nodes. docs/benchmarks.md says how, and what was measured last.
    Reflection(InLab),
    /// Packets between two sites: bandwidth, processor, small packets and round trips through the gateways, in turn with plain
    /// routing, wireguard-go and boringtun-cli, in network namespaces.
    Datapath(Extent),
    /// The same between pods of two clusters of a lab, through everything that is between them, in turn with two nodes of one cluster.
    Crossing(InLab),
}

#[derive(Debug, Args)]
struct InLab {
    /// Name of the lab; one of that name is taken down before and after.
    #[arg(long = "lab", env = "LIQUID_LAB", default_value = "bench", value_name = "NAME")]
    lab: LabName,
    #[command(flatten)]
    extent: Extent,
}

/// How much is measured, and how it is shown.
#[derive(Debug, Args)]
struct Extent {
    /// Fewer and smaller measurements: some minutes.
    #[arg(long)]
    quick: bool,
    /// How to show the result.
    #[arg(short, long, default_value = "table", value_parser = PossibleValuesParser::new(["table", "json"]))]
    output: String,
}

impl Extent {
    /// As arguments of the program that measures.
    fn arguments(&self) -> impl Iterator<Item = &str> {
        ["--output", &self.output].into_iter().chain(self.quick.then_some("--quick"))
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let measured = match &arguments.subject {
        Subject::Reflection(arguments) => reflection(arguments, &interrupt),
        Subject::Datapath(extent) => datapath(extent, &interrupt),
        Subject::Crossing(arguments) => crossing(arguments, &interrupt),
    };
    if interrupt.is_set() {
        output::note("interrupted");
        return Ok(interrupt.exit_code());
    }
    measured.map(|()| ExitCode::SUCCESS)
}

fn datapath(extent: &Extent, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut bench = workspace::cargo(&["bench", "--package", "liquid-gateway", "--bench", "datapath", "--"]);
    bench.args(extent.arguments());
    child::run(&mut bench, interrupt, LIMIT)?.success("the benchmark")
}

fn reflection(arguments: &InLab, interrupt: &Interrupt) -> anyhow::Result<()> {
    // Built before the lab is up: compilers would be measured too.
    let programs = ProductImage::programs(PROFILE)?;
    let programs =
        programs.first().and_then(|program| program.parent()).context("the image holds no programs")?;
    in_lab(arguments, interrupt, &["--no-nodes", "--audit"], |bench| {
        bench.arg("reflection").arg("--programs").arg(programs);
        Ok(())
    })
}

fn crossing(arguments: &InLab, interrupt: &Interrupt) -> anyhow::Result<()> {
    in_lab(arguments, interrupt, &["--nodes", "2"], |bench| {
        bench.arg("crossing").env("LIQUID_IMAGE", demo::image(&arguments.lab, PROFILE, interrupt)?);
        Ok(())
    })
}

/// Measures in a lab of its own; `prepare` says what, once that is up.
fn in_lab(
    arguments: &InLab,
    interrupt: &Interrupt,
    kind: &[&str],
    prepare: impl FnOnce(&mut Command) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut build = workspace::cargo(&["build", "--profile", PROFILE]);
    build.args(["--package", "liquid-demo", "--package", "liquidctl"]);
    child::run(&mut build, interrupt, LIMIT)?.success("building the benchmark")?;

    let name = arguments.lab.as_str();
    let lab = TemporaryLab::new(&arguments.lab)?;
    let mut up = workspace::xtask(&["lab", "up", "--lab", name]);
    child::run(up.args(kind), interrupt, LIMIT)?.success("lab up")?;
    let mut bench = Command::new(released("liquid-demo")?);
    bench.env("LIQUID_LAB", name).env("LIQUIDCTL", released("liquidctl")?);
    prepare(&mut bench)?;
    bench.args(arguments.extent.arguments());
    let measured = child::run(&mut bench, interrupt, LIMIT)?.success("the benchmark");
    // Also after a failure.
    let removed = lab.down();
    measured.and(removed)
}

/// A program of the workspace, built with [`PROFILE`].
fn released(name: &str) -> anyhow::Result<PathBuf> {
    let own = workspace::built(name);
    let target =
        own.parent().and_then(|profile| profile.parent()).context("where is the target directory?")?;
    Ok(target.join(PROFILE).join(name))
}
