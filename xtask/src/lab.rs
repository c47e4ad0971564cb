//! `cargo xtask lab`: the lab on the command line.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use liquid_lab::{
    CidrPlan, ClusterName, ClusterSpec, ClusterStatus, Lab, LabName, LabSpec, LabStatus, Progress, Stack,
    Started, Usage,
};

use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the lab; several can run side by side.
    #[arg(
        long = "lab",
        env = "LIQUID_LAB",
        global = true,
        default_value = "lab",
        value_name = "NAME"
    )]
    name: LabName,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Start clusters (the first time, Kubernetes is built: about a quarter of an hour).
    Up(Up),
    /// Stop the lab and remove everything it made; safe to repeat, also after a crash.
    Down,
    /// Show clusters, machines, and how they are doing.
    Status {
        /// How to show it.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Print shell commands that set KUBECONFIG_<CLUSTER> and PATH: eval "$(cargo xtask lab env)".
    Env,
    /// Show logs of the clusters' components; without a component, list them.
    Logs {
        /// A cluster; without one, list the logs of all.
        cluster: Option<String>,
        /// A component: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, containerd, kubelet,
        /// kube-proxy, or machine.
        component: Option<String>,
        /// Keep showing what is added.
        #[arg(short, long)]
        follow: bool,
    },
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
        state: Power,
    },
    /// List the labs on this machine.
    List,
}

#[derive(Debug, Args)]
struct Up {
    /// Names of the clusters, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "a,b", value_name = "NAMES")]
    clusters: Vec<ClusterName>,
    /// Real nodes per cluster: a number for all, or CLUSTER=NUMBER, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N")]
    nodes: Vec<String>,
    /// Control planes only.
    #[arg(long, conflicts_with = "nodes")]
    no_nodes: bool,
    /// How pod and service ranges of the clusters relate: same, disjoint, or asymmetric.
    #[arg(long, default_value_t = CidrPlan::Same, value_name = "PLAN")]
    pod_cidr: CidrPlan,
    /// Pod network and kube-proxy mode, (ptp|bridge)/(nftables|iptables): for all, or CLUSTER=STACK.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "ptp/nftables",
        value_name = "STACK"
    )]
    stack: Vec<String>,
    /// Let API servers write audit logs (metadata of every request).
    #[arg(long)]
    audit: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Power {
    On,
    Off,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let name = arguments.name;
    match arguments.command {
        LabCommand::Up(options) => up(&name, &options)?,
        LabCommand::Down => down(&name)?,
        LabCommand::Status { output } => status(&Lab::open(&name)?, output)?,
        LabCommand::Env => output::result(&environment(&Lab::open(&name)?)?),
        LabCommand::Logs {
            cluster,
            component,
            follow,
        } => {
            return logs(
                &Lab::open(&name)?,
                cluster.as_deref(),
                component.as_deref(),
                follow,
            );
        }
        LabCommand::Kubectl { cluster, arguments } => {
            let mut kubectl = Lab::open(&name)?.cluster(&cluster)?.kubectl();
            // Users may separate kubectl's words from these: lab kubectl a -- get pods.
            let words = arguments
                .iter()
                .skip(usize::from(arguments.first().is_some_and(|word| word == "--")));
            return Err(kubectl.args(words).exec()).context("cannot run kubectl");
        }
        LabCommand::Exec { machine, command } => return exec(&Lab::open(&name)?, &machine, &command),
        LabCommand::Power { machine, state } => power(&Lab::open(&name)?, &machine, state)?,
        LabCommand::List => Lab::all()
            .iter()
            .for_each(|lab| output::result(&format!("{lab}\n"))),
    }
    Ok(ExitCode::SUCCESS)
}

fn up(name: &LabName, options: &Up) -> anyhow::Result<()> {
    let spec = spec(options)?;
    let progress = Progress::new();
    let own = env::current_exe().context("cannot find this program's own file")?;
    let (lab, started) = liquid_lab::up(name, &spec, &own, &progress)?;
    match &started {
        Started::New {
            nodes_ready,
            complete,
        } => {
            let nodes: usize = spec
                .clusters
                .iter()
                .map(|cluster| usize::from(cluster.nodes))
                .sum();
            let first = spec
                .clusters
                .first()
                .map(|cluster| cluster.name.to_string())
                .unwrap_or_default();
            output::note(&format!(
                "lab {name}: {} cluster(s), {nodes} node(s) Ready in {:.1} s, complete in {:.1} s\n\
                 try: cargo xtask lab status; cargo xtask lab kubectl {first} get pods -A; \
                 eval \"$(cargo xtask lab env)\"",
                lab.clusters().count(),
                nodes_ready.as_secs_f64(),
                complete.as_secs_f64()
            ));
        }
        Started::Already { restarted } if restarted.is_empty() => {
            output::note(&format!("lab {name} is running as wanted"));
        }
        Started::Already { restarted } => {
            output::note(&format!(
                "lab {name} was running; started again: {}",
                restarted.join(", ")
            ));
        }
    }
    Ok(())
}

fn down(name: &LabName) -> anyhow::Result<()> {
    if liquid_lab::down(name, &Progress::new())? {
        output::note(&format!("lab {name} is gone"));
    } else {
        output::note(&format!("there is no lab named {name}"));
    }
    Ok(())
}

/// Turns the options into a spec; per-cluster values come after those for all.
fn spec(options: &Up) -> anyhow::Result<LabSpec> {
    let clusters = options
        .clusters
        .iter()
        .map(|name| {
            let nodes = value_for(name, &options.nodes, &options.clusters)?;
            let nodes = nodes
                .parse()
                .map_err(|_| Usage(format!("--nodes: '{nodes}' is not a small number")))?;
            let stack: Stack = value_for(name, &options.stack, &options.clusters)?.parse()?;
            Ok(ClusterSpec {
                name: name.clone(),
                nodes: if options.no_nodes { 0 } else { nodes },
                stack,
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let spec = LabSpec {
        clusters,
        cidrs: options.pod_cidr,
        audit: options.audit,
    };
    spec.validate()?;
    Ok(spec)
}

fn value_for<'a>(
    cluster: &ClusterName,
    values: &'a [String],
    clusters: &[ClusterName],
) -> anyhow::Result<&'a str> {
    let mut chosen = None;
    for value in values {
        match value.split_once('=') {
            Some((name, own)) if name == cluster.as_str() => return Ok(own),
            Some((name, _)) if !clusters.iter().any(|known| known.as_str() == name) => {
                return Err(Usage(format!("'{value}': there is no cluster {name}")).into());
            }
            Some(_) => {}
            None => chosen = Some(value.as_str()),
        }
    }
    chosen.with_context(|| {
        Usage(format!(
            "no value for cluster {cluster} in '{}'",
            values.join(",")
        ))
    })
}

fn status(lab: &Lab, format: Format) -> anyhow::Result<()> {
    let status = lab.status();
    output::result(&match format {
        Format::Json => serde_json::to_string_pretty(&status)? + "\n",
        Format::Table => status_table(&status),
    });
    Ok(())
}

fn status_table(status: &LabStatus) -> String {
    let head = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut clusters = vec![head(&["CLUSTER", "READY", "SERVER", "PODS", "SERVICES", "STACK"])];
    let mut machines = vec![head(&[
        "MACHINE",
        "READY",
        "ADDRESS",
        "PID",
        "MEMORY",
        "NETWORK NAMESPACE",
        "COMPONENTS DOWN",
    ])];
    let yes = |ready: bool| if ready { "yes" } else { "no" }.to_owned();
    for cluster in &status.clusters {
        let ClusterStatus {
            name,
            server,
            ready,
            pods,
            services,
            stack,
            ..
        } = cluster;
        clusters.push(vec![
            name.clone(),
            yes(*ready),
            server.clone(),
            pods.clone(),
            services.clone(),
            stack.clone(),
        ]);
        for machine in &cluster.machines {
            let down = machine.components.iter().filter(|(_, running)| !**running);
            machines.push(vec![
                machine.name.clone(),
                machine.ready.map_or_else(|| "-".to_owned(), yes),
                machine.address.clone(),
                machine
                    .pid
                    .map_or_else(|| "off".to_owned(), |pid| pid.to_string()),
                machine
                    .memory
                    .map_or_else(|| "-".to_owned(), |bytes| format!("{} MiB", bytes >> 20)),
                machine.netns.clone(),
                down.map(|(component, _)| component.clone())
                    .collect::<Vec<_>>()
                    .join(","),
            ]);
        }
    }
    format!(
        "lab {}, Kubernetes {}, router {}\n\n{}\n{}",
        status.name,
        status.kubernetes,
        status.router_netns,
        output::table(&clusters),
        output::table(&machines)
    )
}

fn environment(lab: &Lab) -> anyhow::Result<String> {
    let mut text = format!("export LIQUID_LAB={}\n", lab.name());
    for cluster in lab.clusters() {
        let variable = cluster.name().to_uppercase();
        text.push_str(&format!(
            "export KUBECONFIG_{variable}={}\n",
            cluster.kubeconfig().display()
        ));
    }
    let kubectl = lab.program("kubectl");
    let bin = kubectl.parent().context("the lab has no programs")?;
    text.push_str(&format!("export PATH={}:$PATH\n", bin.display()));
    Ok(text)
}

fn logs(lab: &Lab, cluster: Option<&str>, component: Option<&str>, follow: bool) -> anyhow::Result<ExitCode> {
    let (Some(cluster), Some(component)) = (cluster, component) else {
        let chosen: Vec<_> = match cluster {
            Some(name) => vec![lab.cluster(name)?],
            None => lab.clusters().collect(),
        };
        for machine in chosen.iter().flat_map(|cluster| cluster.machines()) {
            for log in machine.logs()? {
                output::result(&format!("{}\n", log.display()));
            }
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut tail = Command::new("tail");
    tail.args(if follow {
        ["--lines=+1", "--follow=name"]
    } else {
        ["--lines=+1", "--quiet"]
    });
    if !follow {
        tail.args(["--verbose"]);
    }
    Err(tail.args(lab.cluster(cluster)?.logs(component)?).exec()).context("cannot run tail")
}

fn exec(lab: &Lab, machine: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let words = match command {
        [separator, rest @ ..] if separator == "--" => rest,
        all => all,
    };
    let (program, arguments) = match words {
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

fn power(lab: &Lab, machine: &str, state: Power) -> anyhow::Result<()> {
    let machine = find(lab, machine)?;
    match state {
        Power::On => machine.power_on(),
        Power::Off => machine.power_off(),
    }
}

fn find<'a>(lab: &'a Lab, machine: &str) -> anyhow::Result<liquid_lab::Node<'a>> {
    let wrong = || {
        Usage(format!(
            "'{machine}' is not CLUSTER/MACHINE, for example a/1 or a/cp"
        ))
    };
    let (cluster, machine) = machine.split_once('/').ok_or_else(wrong)?;
    lab.cluster(cluster)?.machine(machine)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        up: Up,
    }

    fn parse(line: &str) -> anyhow::Result<LabSpec> {
        spec(&Line::try_parse_from(std::iter::once("up").chain(line.split_whitespace()))?.up)
    }

    #[test]
    fn the_default_is_two_clusters_with_a_node_each() {
        let spec = parse("").unwrap();
        assert_eq!(
            spec.clusters
                .iter()
                .map(|c| (c.name.as_str(), c.nodes))
                .collect::<Vec<_>>(),
            [("a", 1), ("b", 1)]
        );
    }

    #[test]
    fn one_cluster_may_differ_from_the_others() {
        let spec = parse("--clusters a,b,c --nodes 2,b=0 --stack ptp/nftables,c=bridge/iptables").unwrap();
        assert_eq!(
            spec.clusters.iter().map(|c| c.nodes).collect::<Vec<_>>(),
            [2, 0, 2]
        );
        assert_eq!(spec.clusters[2].stack.to_string(), "bridge/iptables");
        assert_eq!(parse("--no-nodes").unwrap().clusters[1].nodes, 0);
    }

    #[test]
    fn values_that_name_no_cluster_or_mean_nothing_are_refused() {
        for line in [
            "--nodes z=1",
            "--nodes many",
            "--stack x/y",
            "--clusters a,a",
            "--nodes a=1",
            "--nodes 99",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
