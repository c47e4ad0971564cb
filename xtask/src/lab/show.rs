//! `lab status`, `lab env`, `lab logs`: looking at a lab.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use clap::{Args, ValueEnum};
use liquid_lab::{ClusterStatus, Lab, LabStatus};

use crate::output;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// A cluster; without one, list the logs of all.
    cluster: Option<String>,
    /// A component: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, containerd, kubelet, kube-proxy, or
    /// machine.
    component: Option<String>,
    /// Keep showing what is added.
    #[arg(short, long)]
    follow: bool,
}

pub(super) fn status(lab: &Lab, format: Format) -> anyhow::Result<()> {
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
    let mut machines =
        vec![head(&["MACHINE", "READY", "ADDRESS", "PID", "MEMORY", "NETWORK NAMESPACE", "COMPONENTS DOWN"])];
    let yes = |ready: bool| if ready { "yes" } else { "no" }.to_owned();
    for cluster in &status.clusters {
        let ClusterStatus { name, server, ready, pods, services, stack, .. } = cluster;
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
                machine.pid.map_or_else(|| "off".to_owned(), |pid| pid.to_string()),
                machine.memory.map_or_else(|| "-".to_owned(), |bytes| format!("{} MiB", bytes >> 20)),
                machine.netns.clone(),
                down.map(|(component, _)| component.clone()).collect::<Vec<_>>().join(","),
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

pub(super) fn environment(lab: &Lab) -> anyhow::Result<String> {
    let mut text = format!("export LIQUID_LAB={}\n", lab.name());
    for cluster in lab.clusters() {
        let variable = cluster.name().to_uppercase();
        text.push_str(&format!("export KUBECONFIG_{variable}={}\n", cluster.kubeconfig().display()));
    }
    let kubectl = lab.program("kubectl");
    let bin = kubectl.parent().context("the lab has no programs")?;
    text.push_str(&format!("export PATH={}:$PATH\n", bin.display()));
    Ok(text)
}

pub(super) fn logs(lab: &Lab, options: &Logs) -> anyhow::Result<()> {
    let (Some(cluster), Some(component)) = (&options.cluster, &options.component) else {
        let chosen: Vec<_> = match &options.cluster {
            Some(name) => vec![lab.cluster(name)?],
            None => lab.clusters().collect(),
        };
        for machine in chosen.iter().flat_map(|cluster| cluster.machines()) {
            for log in machine.logs()? {
                output::result(&format!("{}\n", log.display()));
            }
        }
        return Ok(());
    };
    let logs = lab.cluster(cluster)?.logs(component)?;
    let mut tail = Command::new("tail");
    tail.args(["--lines=+1", "--verbose"]);
    if options.follow {
        tail.arg("--follow=name");
    }
    Err(tail.args(logs).exec()).context("cannot run tail")
}
