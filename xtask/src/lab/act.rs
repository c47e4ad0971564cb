//! `lab exec`, `lab power`, `lab link`, ...: acting on parts of a lab.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use clap::{Args, ValueEnum};
use liquid_lab::{Cut, Direction, Lab, Node, Opening, Usage};

use crate::output;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Power {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ComponentState {
    Start,
    Stop,
}

#[derive(Debug, Args)]
pub(super) struct LinkOptions {
    /// One cluster.
    from: String,
    /// The other.
    to: String,
    /// What to do.
    #[arg(value_enum, default_value = "show")]
    action: LinkAction,
    /// Cut only what goes to and comes from a port: tcp/6443, udp/51820; or let only that through (UDP, of the second cluster).
    #[arg(long, value_name = "PROTOCOL/PORT")]
    port: Option<String>,
    /// Cut only what goes from the first cluster to the second.
    #[arg(long)]
    one_way: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LinkAction {
    /// Bytes and packets delivered since the lab came up, and packets that a firewall has stopped.
    Show,
    /// Drop packets; cuts add up.
    Cut,
    /// Let nothing through but UDP to one port of the second cluster, and count what is stopped.
    Only,
    /// Undo all cuts.
    Restore,
}

pub(super) fn kubectl(lab: &Lab, cluster: &str, arguments: &[String]) -> anyhow::Result<()> {
    let error = lab.cluster(cluster)?.kubectl().args(without_separator(arguments)).exec();
    Err(error).context("cannot run kubectl")
}

pub(super) fn exec(lab: &Lab, machine: &str, command: &[String]) -> anyhow::Result<()> {
    let (program, arguments) = match without_separator(command) {
        [] => ("sh", &[][..]),
        [program, arguments @ ..] => (program.as_str(), arguments),
    };
    let mut command = if machine == "router" {
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", &lab.router_netns(), program]);
        ip
    } else {
        find(lab, machine)?.command(program)?
    };
    Err(command.args(arguments).exec()).context("cannot enter the machine")
}

pub(super) fn power(lab: &Lab, machine: &str, state: Power) -> anyhow::Result<()> {
    let machine = find(lab, machine)?;
    match state {
        Power::On => machine.power_on(),
        Power::Off => machine.power_off(),
    }
}

pub(super) fn component(
    lab: &Lab,
    cluster: &str,
    component: &str,
    state: ComponentState,
) -> anyhow::Result<()> {
    let cluster = lab.cluster(cluster)?;
    match state {
        ComponentState::Start => cluster.start_component(component),
        ComponentState::Stop => cluster.stop_component(component),
    }
}

pub(super) fn link(lab: &Lab, options: &LinkOptions) -> anyhow::Result<()> {
    let link = lab.link(&options.from, &options.to)?;
    let with_port = [LinkAction::Cut, LinkAction::Only].contains(&options.action);
    if (options.port.is_some() && !with_port) || (options.one_way && options.action != LinkAction::Cut) {
        return Err(Usage("--port and --one-way say what to cut".to_owned()).into());
    }
    match options.action {
        LinkAction::Cut => {
            let what = options.port.as_deref().map_or(Ok(Cut::All), port)?;
            link.cut(what, if options.one_way { Direction::Forth } else { Direction::Both })
        }
        LinkAction::Only => match options.port.as_deref().map(port).transpose()? {
            Some(Cut::Udp(port)) => link.only(Opening { at_first: false, port }),
            _ => Err(Usage("--port udp/NUMBER says what to let through".to_owned()).into()),
        },
        LinkAction::Restore => link.restore(),
        LinkAction::Show => {
            let (traffic, stopped) = (link.traffic()?, link.stopped()?);
            let row = |from: &str, to: &str, figures: [u64; 3]| {
                let names = [from, to].map(str::to_owned).into_iter();
                names.chain(figures.map(|figure| figure.to_string())).collect()
            };
            output::result(&output::table(&[
                ["FROM", "TO", "BYTES", "PACKETS", "STOPPED"].map(str::to_owned).to_vec(),
                row(&options.from, &options.to, [traffic.bytes_forth, traffic.packets_forth, stopped.0]),
                row(&options.to, &options.from, [traffic.bytes_back, traffic.packets_back, stopped.1]),
            ]));
            Ok(())
        }
    }
}

fn port(text: &str) -> Result<Cut, Usage> {
    let wrong = || Usage(format!("'{text}' is not a port: tcp/6443 or udp/51820"));
    let (protocol, number) = text.split_once('/').ok_or_else(wrong)?;
    let number = number.parse().map_err(|_| wrong())?;
    match protocol {
        "tcp" => Ok(Cut::Tcp(number)),
        "udp" => Ok(Cut::Udp(number)),
        _ => Err(wrong()),
    }
}

/// Users may separate the words of another program from those before: lab kubectl a -- get pods.
fn without_separator(words: &[String]) -> &[String] {
    match words {
        [separator, rest @ ..] if separator == "--" => rest,
        all => all,
    }
}

fn find<'a>(lab: &'a Lab, machine: &str) -> anyhow::Result<Node<'a>> {
    let wrong = || Usage(format!("'{machine}' is not CLUSTER/MACHINE, for example a/1 or a/cp"));
    let (cluster, machine) = machine.split_once('/').ok_or_else(wrong)?;
    lab.cluster(cluster)?.machine(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_names_its_protocol() {
        assert_eq!(port("udp/51820"), Ok(Cut::Udp(51820)));
        assert_eq!(port("tcp/6443"), Ok(Cut::Tcp(6443)));
        for bad in ["6443", "tcp/", "tcp/70000", "sctp/1"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
