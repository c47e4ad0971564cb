//! `cargo xtask bench`: the latency of pods on virtual nodes.

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, value_parser};
use liquid_lab::{Lab, LabName};

use crate::child::{self, Interrupt};
use crate::{demo, output};

/// A hundred rounds of a hundred pods, each of which takes a second or two.
const LIMIT: Duration = Duration::from_secs(6 * 3600);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The lab; Liquid must be installed in it, and cluster a must borrow from b (`cargo xtask demo` does that).
    #[arg(long = "lab", env = "LIQUID_LAB", default_value = "lab", value_name = "NAME")]
    lab: LabName,
    /// Pods per round, created one after the other.
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u16).range(1..=100), value_name = "N")]
    pods: u16,
    /// Rounds; all pods of a round are deleted before the next.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u16).range(1..=100), value_name = "N")]
    rounds: u16,
    /// How to show the result.
    #[arg(short, long, default_value = "table", value_parser = PossibleValuesParser::new(["table", "json"]))]
    output: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    // Before anything is built.
    Lab::open(&arguments.lab)?;
    let interrupt = Interrupt::watch()?;
    demo::build(&interrupt)?;
    let mut bench = demo::program(&arguments.lab);
    bench.args(["bench", "--pods", &arguments.pods.to_string(), "--rounds", &arguments.rounds.to_string()]);
    bench.args(["--output", &arguments.output]);
    let ended = child::run(&mut bench, &interrupt, LIMIT)?;
    if interrupt.is_set() {
        output::note("interrupted");
        return Ok(interrupt.exit_code());
    }
    ended.success("the benchmark").map(|()| ExitCode::SUCCESS)
}
