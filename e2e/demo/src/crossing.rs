//! Packets between pods of two clusters, beside those between two nodes of one.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use liquid_load::{Results, Transfer, Way, echo, echo_beside, flood, pause, processor_time, transfer};
use liquid_scenarios::{Cluster, Environment, Inside, TEST_IMAGE};

use crate::reflection::Format;
use crate::terminal;

const NAMESPACE: &str = "crossing";
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(120);
const GATEWAYS: &str = "app.kubernetes.io/component=gateway";
const FABRICS: &str = "app.kubernetes.io/component=fabric";
const SYSTEM: &str = "liquid-system";
/// How long nothing is sent.
const IDLE: Duration = Duration::from_secs(20);
/// What is compared, and under which circumstances.
const SUBJECTS: [&str; 2] = ["to the other cluster", "to the next node"];
const PODS: &str = "Pod to pod";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    #[arg(long, value_enum)]
    output: Format,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (rounds, each) =
        if arguments.quick { (3, Duration::from_millis(1200)) } else { (7, Duration::from_secs(4)) };
    terminal::note("installing Liquid in both clusters, and peering them");
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    home.wait_for_network(&provider.name, LIMIT).await?;
    let ends = Ends::start(home, provider).await?;
    let (gateways, fabrics) =
        (processes(home, provider, GATEWAYS).await?, processes(home, provider, FABRICS).await?);
    let results = tokio::task::block_in_place(|| {
        let mut results = Results::new(&SUBJECTS);
        terminal::note(&format!("nothing, for {} s", IDLE.as_secs()));
        let before = [gateways.cpu(), fabrics.cpu()];
        pause(IDLE);
        for (what, pods, before) in [
            ("processor of a gateway, millicores", &gateways, before[0]),
            ("processor of a liquid-fabric, millicores", &fabrics, before[1]),
        ] {
            let used = (pods.cpu() - before).as_secs_f64() / IDLE.as_secs_f64() * 1e3;
            results.note(["Idle", SUBJECTS[0], what], 0, used / f64::from(pods.count));
        }
        for round in 0..rounds {
            for at in 0..SUBJECTS.len() {
                let at = (at + round) % SUBJECTS.len();
                terminal::note(&format!("round {} of {rounds}: {}", round + 1, SUBJECTS[at]));
                let mut note = |what, value| results.note([PODS, SUBJECTS[at], what], round, value);
                measure(&ends.ways[at], each, &|| gateways.cpu(), at == 0, &mut note);
            }
        }
        results
    });
    home.delete_namespace(NAMESPACE).await?;
    terminal::result(&match arguments.output {
        Format::Json => serde_json::to_string_pretty(&results.series())? + "\n",
        Format::Table => results.table(),
    });
    Ok(())
}

/// Processes of pods in both clusters.
struct Processes {
    /// Of the pods.
    count: u32,
    /// In `/proc`.
    directories: Vec<PathBuf>,
}

async fn processes(home: &Cluster, provider: &Cluster, selector: &str) -> anyhow::Result<Processes> {
    let mut found = Processes { count: 0, directories: Vec::new() };
    for cluster in [home, provider] {
        for pod in cluster.pods(SYSTEM, selector).await? {
            found.count += 1;
            found.directories.extend(Inside::of(&pod)?.processes());
        }
    }
    Ok(found)
}

impl Processes {
    fn cpu(&self) -> Duration {
        self.directories.iter().filter_map(|directory| processor_time(directory)).sum()
    }
}

fn measure(
    way: &Way,
    each: Duration,
    cpu: &(dyn Fn() -> Duration + Sync),
    across: bool,
    note: &mut dyn FnMut(&'static str, f64),
) {
    for (streams, what, processor) in [
        (1, "TCP, 1 stream, Gbit/s", "  processor of gateways, s/GB"),
        (8, "TCP, 8 streams, Gbit/s", "  processor of gateways, 8 streams, s/GB"),
    ] {
        let Transfer { bits_per_second, cpu_per_byte } = transfer(way, streams, each, cpu);
        note(what, bits_per_second / 1e9);
        // There are none on the way to the next node.
        if across {
            note(processor, cpu_per_byte * 1e9);
        }
    }
    note("UDP of 64 bytes, thousand/s", flood(way, 64, each, cpu).per_second / 1e3);
    let idle = echo(way, each);
    note("round trip, idle, median, us", idle.median);
    note("round trip, idle, p99, us", idle.p99);
    note("round trip beside 4 TCP streams, median, us", echo_beside(4, way, each).median);
}

/// Three pods of home: one that sends, to one in the provider and one on another node of home.
struct Ends {
    /// In the order of [`SUBJECTS`].
    ways: [Way; 2],
}

impl Ends {
    async fn start(home: &Cluster, provider: &Cluster) -> anyhow::Result<Self> {
        let workers = Api::<Node>::all(home.client.clone())
            .list(&ListParams::default().labels("!liquid.mesh/type,!node-role.kubernetes.io/control-plane"))
            .await?;
        let workers: Vec<String> = workers.iter().map(|node| node.name_any()).collect();
        let [first, second, ..] = workers.as_slice() else {
            anyhow::bail!("home has less than two worker nodes")
        };
        home.delete_namespace(NAMESPACE).await?;
        home.create_namespace(NAMESPACE).await?;
        home.liquidctl.run(["offload", "namespace", NAMESPACE]).await?.ok()?;
        for (name, node) in [("sender", first.as_str()), ("far", "liquid-provider"), ("near", second)] {
            home.apply(NAMESPACE, &pod(name, node)).await?;
        }
        let there = format!("{NAMESPACE}-{}", home.name);
        let found = async |cluster: &Cluster, namespace: &str, name: &str| {
            let pod = cluster.wait_for_pods(namespace, &format!("end={name}"), 1, LIMIT).await?.remove(0);
            let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref());
            let address: IpAddr = address.context("a pod without an address")?.parse()?;
            anyhow::Ok((pod, address))
        };
        let from = Inside::of(&found(home, NAMESPACE, "sender").await?.0)?.namespace()?;
        let (near, at_near) = found(home, NAMESPACE, "near").await?;
        // Where home sees it, and where its processes are.
        let (_, at_far) = found(home, NAMESPACE, "far").await?;
        let (far, _) = found(provider, &there, "far").await?;
        let way = |to: &Pod, target| {
            anyhow::Ok(Way { from: from.clone(), to: Inside::of(to)?.namespace()?, target })
        };
        Ok(Self { ways: [way(&far, at_far)?, way(&near, at_near)?] })
    }
}

/// A pod that only has a network.
fn pod(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{end: {name}}}}}\nspec:\n  \
         nodeName: {node}\n  tolerations: [{{operator: Exists}}]\n  terminationGracePeriodSeconds: 1\n  containers:\n    \
         - {{name: main, image: {TEST_IMAGE}, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}}\n"
    )
}
