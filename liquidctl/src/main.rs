//! `liquidctl`: install Liquid, peer clusters, offload namespaces, and see how all that is.

mod cluster;
mod commands;
mod failure;
mod helm;
mod output;
mod rollout;
mod volumes;
mod wait;

use clap::{CommandFactory as _, Parser, Subcommand};
use cluster::ClusterArgs;
use failure::Failure;
use std::process::ExitCode;

/// Use several Kubernetes clusters as one
#[derive(Debug, Parser)]
#[command(name = "liquidctl", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install Liquid in a cluster, or change an installation
    Install(commands::install::Arguments),
    /// Remove Liquid from a cluster
    Uninstall(commands::uninstall::Arguments),
    /// Make a join token: whoever has it may borrow from this cluster, once
    Invite(commands::invite::Arguments),
    /// Tell a provider that has to call where to: print the gateways of this cluster for `liquidctl invite --introduction`
    Introduce(commands::introduce::Arguments),
    /// Borrow from another cluster
    #[command(subcommand)]
    Peer(commands::peer::Command),
    /// Approve what a provider offers for a virtual node
    Accept(commands::accept::Arguments),
    /// End a peering, and remove everything that came of it
    Unpeer(commands::unpeer::Arguments),
    /// Let pods run in other clusters
    #[command(subcommand)]
    Offload(commands::offload::Command),
    /// Take back what was offloaded
    #[command(subcommand)]
    Unoffload(commands::unoffload::Command),
    /// Show peers, virtual nodes and offloaded namespaces
    Status(commands::status::Arguments),
    /// Print the completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    liquid_runtime::tls::install_crypto_provider();
    let cli = Cli::parse();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { cluster, command } = cli;
    match command {
        Command::Install(arguments) => commands::install::run(&cluster, arguments).await,
        Command::Uninstall(arguments) => commands::uninstall::run(&cluster, arguments).await,
        Command::Invite(arguments) => commands::invite::run(&cluster, arguments).await,
        Command::Introduce(arguments) => commands::introduce::run(&cluster, arguments).await,
        Command::Peer(command) => commands::peer::run(&cluster, command).await,
        Command::Accept(arguments) => commands::accept::run(&cluster, arguments).await,
        Command::Unpeer(arguments) => commands::unpeer::run(&cluster, arguments).await,
        Command::Offload(command) => commands::offload::run(&cluster, command).await,
        Command::Unoffload(command) => commands::unoffload::run(&cluster, command).await,
        Command::Status(arguments) => commands::status::run(&cluster, arguments).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "liquidctl", &mut std::io::stdout());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
