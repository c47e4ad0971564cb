//! The one entry point for people who build, try and test Liquid.

mod bench;
mod child;
mod demo;
mod dependencies;
mod fuzz;
mod generate;
mod image;
mod lab;
mod output;
mod temporary_lab;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, try and test Liquid.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Two clusters with Liquid in both, a Deployment of one that runs in the other, and what that takes.
    Demo(demo::Arguments),
    /// Measure what Liquid costs, beside the floor, in a lab of its own.
    Bench(bench::Arguments),
    /// Real Kubernetes clusters on this machine: start, look into, stop.
    Lab(lab::Arguments),
    /// Build the image of this source tree, import it into a running lab, and print its reference.
    Image(image::Arguments),
    /// Feed arbitrary input, guided by coverage, to what reads bytes from outside.
    Fuzz(fuzz::Arguments),
    /// Run everything a change has to pass; as root, on real clusters too. Ends with a summary.
    Test(test::Arguments),
    /// Write the files that are generated: CRD manifests.
    Gen(generate::Arguments),
    /// Check that every dependency has a licence Liquid may include, and that there is one crypto provider.
    Dependencies,
    /// Part of a lab's machine; started by the lab itself.
    #[command(hide = true, name = liquid_lab::machine::INIT_ARGUMENT)]
    Machine {
        /// Stage, directory and units to hold.
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Lab(arguments) => lab::run(arguments),
        Command::Image(arguments) => image::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Gen(arguments) => generate::run(&arguments),
        Command::Dependencies => dependencies::run(),
        Command::Machine { arguments } => return liquid_lab::machine::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::from(if error.is::<liquid_lab::Usage>() { 2 } else { 1 })
        }
    }
}
