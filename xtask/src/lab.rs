//! `cargo xtask lab`: the lab on the command line.

mod act;
mod show;
mod start;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use liquid_lab::{Lab, LabName, Progress};

use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the lab; several can run side by side.
    #[arg(long = "lab", env = "LIQUID_LAB", global = true, default_value = "lab", value_name = "NAME")]
    name: LabName,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Start clusters (the first time, Kubernetes is built: about a quarter of an hour).
    Up(start::Options),
    /// Stop the lab and remove everything it made; safe to repeat, also after a crash.
    Down,
    /// Show clusters, machines, and how they are doing.
    Status {
        /// How to show it.
        #[arg(short, long, value_enum, default_value_t = show::Format::Table)]
        output: show::Format,
    },
    /// Print shell commands that set KUBECONFIG_A (and so on) and PATH: eval "$(cargo xtask lab env)".
    Env,
    /// Show logs of the clusters' components; without a component, list them.
    Logs(show::Logs),
    /// Run kubectl as administrator of a cluster: lab kubectl a get pods -A.
    Kubectl {
        /// The cluster.
        cluster: String,
        /// Arguments for kubectl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command on a machine, in all its namespaces: lab exec a/1 -- ip route.
    Exec {
        /// CLUSTER/MACHINE: a/1 or a/a-1 is a node, a/cp the control plane; router is the router's network.
        machine: String,
        /// Command and arguments; a shell without any.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Cut a machine's power, or boot it again.
    Power {
        /// CLUSTER/MACHINE: a/1 or a/a-1 is a node, a/cp the control plane.
        machine: String,
        /// What to do.
        #[arg(value_enum)]
        state: act::Power,
    },
    /// Kill a component wherever it runs in a cluster, or start it again.
    Component {
        /// The cluster.
        cluster: String,
        /// One of those that lab status knows, for example kube-apiserver or kubelet.
        component: String,
        /// What to do.
        #[arg(value_enum)]
        state: act::ComponentState,
    },
    /// Show what crossed the wire between two clusters, cut it, or mend it.
    Link(act::LinkOptions),
    /// List the labs on this machine.
    List,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let name = arguments.name;
    let open = || Lab::open(&name);
    match arguments.command {
        LabCommand::Up(options) => start::up(&name, &options)?,
        LabCommand::Down => down(&name)?,
        LabCommand::Status { output } => show::status(&open()?, output)?,
        LabCommand::Env => output::result(&show::environment(&open()?)?),
        LabCommand::Logs(options) => show::logs(&open()?, &options)?,
        LabCommand::Kubectl { cluster, arguments } => act::kubectl(&open()?, &cluster, &arguments)?,
        LabCommand::Exec { machine, command } => act::exec(&open()?, &machine, &command)?,
        LabCommand::Power { machine, state } => act::power(&open()?, &machine, state)?,
        LabCommand::Component { cluster, component, state } => {
            act::component(&open()?, &cluster, &component, state)?
        }
        LabCommand::Link(options) => act::link(&open()?, &options)?,
        LabCommand::List => Lab::all().iter().for_each(|lab| output::result(&format!("{lab}\n"))),
    }
    Ok(ExitCode::SUCCESS)
}

fn down(name: &LabName) -> anyhow::Result<()> {
    if liquid_lab::down(name, &Progress::new())? {
        output::note(&format!("lab {name} is gone"));
    } else {
        output::note(&format!("there is no lab named {name}"));
    }
    Ok(())
}
