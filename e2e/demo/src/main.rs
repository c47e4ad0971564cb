//! Liquid shown and measured on the clusters of a lab: `a` is home, `b` the provider.

mod crossing;
mod figures;
mod latency;
mod memory;
mod proc;
mod reflection;
mod report;
mod statistics;
mod terminal;
mod tour;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Started by `cargo xtask demo` and `cargo xtask bench`, which prepare what it needs.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install Liquid in both clusters, peer them, run a Deployment in the other cluster, and measure.
    Tour,
    /// Measure what reflection of pods costs, on two control planes without anything of Liquid.
    Reflection(reflection::Arguments),
    /// Measure packets between pods of two clusters.
    Crossing(crossing::Arguments),
    /// Pass connections to the link endpoint on late; part of the benchmark.
    #[command(hide = true)]
    Delay(reflection::delay::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    liquid_runtime::tls::install_crypto_provider();
    let result = match Arguments::parse().command {
        Command::Tour => tour::run().await,
        Command::Reflection(arguments) => reflection::run(&arguments).await,
        Command::Crossing(arguments) => crossing::run(&arguments).await,
        Command::Delay(arguments) => reflection::delay::run(&arguments).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
