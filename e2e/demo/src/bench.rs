//! The latency of pods, over several rounds, on clusters that are peered.

use std::env;

use anyhow::Context;
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use liquid_lab::{Lab, LabName};
use liquid_scenarios::{Cluster, Program};
use serde::Serialize;

use crate::figures::Latencies;
use crate::latency::{self, Namespaces};
use crate::report::{self, Line};
use crate::terminal;

/// The namespace pods are created in.
const NAMESPACE: &str = "liquid-bench";
/// A namespace that every cluster has, and that is not offloaded.
const PLAIN: &str = "default";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    pods: usize,
    #[arg(long)]
    rounds: usize,
    #[arg(long, value_enum)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// What a run found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    lab: String,
    kubernetes: String,
    /// Every round on its own.
    rounds: Vec<Latencies>,
    /// All rounds together.
    all: Latencies,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let name: LabName = env::var("LIQUID_LAB").context("LIQUID_LAB names the lab")?.parse()?;
    let lab = Lab::open(&name)?;
    let home = connect(&lab, "a", "home").await?;
    let provider = connect(&lab, "b", "provider").await?;
    require_virtual_node(&home, &name).await?;

    home.delete_namespace(NAMESPACE).await?;
    home.create_namespace(NAMESPACE).await?;
    let measured = measure(&home, &provider, arguments).await;
    // Also after a failure.
    let removed = home.delete_namespace(NAMESPACE).await;
    let (rounds, all) = measured?;
    removed?;
    let found = Found { lab: name.to_string(), kubernetes: lab.kubernetes().to_owned(), rounds, all };
    terminal::result(&match arguments.output {
        Format::Json => serde_json::to_string_pretty(&found)? + "\n",
        Format::Table => table(&found),
    });
    Ok(())
}

async fn measure(
    home: &Cluster,
    provider: &Cluster,
    arguments: &Arguments,
) -> anyhow::Result<(Vec<Latencies>, Latencies)> {
    home.liquidctl.run(["offload", "namespace", NAMESPACE]).await?.ok()?;
    let namespaces = Namespaces { offloaded: NAMESPACE, plain: PLAIN };
    let (mut rounds, mut samples) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        terminal::note(&format!("round {round} of {}: {} pods", arguments.rounds, arguments.pods));
        let measured = latency::measure(home, provider, namespaces, arguments.pods).await?;
        rounds.push(Latencies::of(&measured)?);
        samples.extend(measured);
    }
    Ok((rounds, Latencies::of(&samples)?))
}

async fn connect(lab: &Lab, cluster: &str, called: &str) -> anyhow::Result<Cluster> {
    let kubectl = Program::new(lab.program("kubectl"));
    let liquidctl = Program::new(env::var_os("LIQUIDCTL").unwrap_or_else(|| "liquidctl".into()));
    Cluster::connect(called, lab.cluster(cluster)?.kubeconfig(), kubectl, liquidctl).await
}

async fn require_virtual_node(home: &Cluster, lab: &LabName) -> anyhow::Result<()> {
    let virtual_nodes = ListParams::default().labels("liquid.mesh/type=virtual-node");
    let nodes = Api::<Node>::all(home.client.clone()).list(&virtual_nodes).await?;
    nodes.items.first().with_context(|| {
        format!("cluster a of lab {lab} has no virtual node: install Liquid and peer it with b first")
    })?;
    Ok(())
}

fn table(found: &Found) -> String {
    let mut lines = found.all.lines();
    for (number, round) in found.rounds.iter().enumerate() {
        let twin = round.twin;
        lines.push(Line::plain(
            &format!("round {}: pod in the provider, median (min - max)", number + 1),
            format!("{:.1} ({:.1} - {:.1}) ms", twin.median_ms, twin.min_ms, twin.max_ms),
        ));
    }
    report::table(&lines)
}
