//! The demo: what a user would do, step by step, and what it costs.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::wait::await_condition;
use liquid_crds::Peer;
use liquid_scenarios::{Cluster, Environment, Program};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::figures::Latencies;
use crate::latency::{self, Namespaces};
use crate::memory;
use crate::report::{self, Line, Unit};
use crate::terminal;

/// The Deployment of the demo.
const HELLO: &str = include_str!("../hello.yaml");
/// Replicas it asks for.
const REPLICAS: usize = 2;
/// The namespace it is in, at home and in the provider.
const NAMESPACE: &str = "demo";
const REMOTE_NAMESPACE: &str = "demo-home";
/// A namespace that every cluster has, and that is not offloaded.
const PLAIN: &str = "default";
/// The virtual node of the provider.
const VIRTUAL_NODE: &str = "liquid-provider";
/// Longest wait for anything a user waits for.
const LIMIT: Duration = Duration::from_secs(120);
/// Pods that are measured: enough for a ninetieth percentile, and a minute on two cores.
const PODS: usize = 20;
/// The goals.
const PEERING_LIMIT_S: f64 = 3.0;
const MEMORY_LIMIT_MB: f64 = 30.0;

pub(crate) async fn run() -> anyhow::Result<()> {
    let begun = Instant::now();
    let step = |what: &str| terminal::note(&format!("{:6.1}s  {what}", begun.elapsed().as_secs_f64()));
    step("installing Liquid in both clusters, unless this version of it runs there");
    let environment = Environment::open().await?.installed().await?;
    let (home, provider) = (&environment.home, &environment.provider);

    step("peering: home borrows from the provider, by a token");
    let peering = peer(home, provider).await?;
    step("offloading namespace demo");
    offload(home).await?;
    step("deploying hello, an ordinary Deployment with node affinity for virtual nodes");
    home.apply(NAMESPACE, HELLO).await?;
    home.wait_for_pods(NAMESPACE, "app=hello", REPLICAS, LIMIT).await?;
    provider.wait_for_pods(REMOTE_NAMESPACE, "app=hello", REPLICAS, LIMIT).await?;
    step("it runs in the provider");

    show(home, &["get", "nodes"]).await?;
    show(home, &["-n", NAMESPACE, "get", "pods", "-o", "wide"]).await?;
    show(provider, &["-n", REMOTE_NAMESPACE, "get", "pods", "-o", "wide"]).await?;
    let logs = show(home, &["-n", NAMESPACE, "logs", "deployment/hello"]).await?;
    ensure!(logs.contains("serving"), "the logs are not those of the pod: {logs:?}");
    let name = show(home, &["-n", NAMESPACE, "exec", "deployment/hello", "--", "hostname"]).await?;
    ensure!(name.starts_with("hello-"), "exec did not run in the pod: {name:?}");
    let greeting = forward(&home.kubectl).await.context("port-forward")?;
    ensure!(greeting.contains("hello from hello-"), "not what the pod serves: {greeting:?}");

    step(&format!("measuring {PODS} pods, one after the other"));
    let namespaces = Namespaces { offloaded: NAMESPACE, plain: PLAIN };
    let latencies = Latencies::of(&latency::measure(home, provider, namespaces, PODS).await?)?;
    let mut lines = vec![peering];
    lines.extend(latencies.lines());
    let lab = environment.lab.as_ref().context("the demo needs a lab")?;
    for resident in memory::look(lab)? {
        let cluster = if resident.cluster == "a" { "home" } else { "provider" };
        // Exact: a process has less than 2^53 bytes.
        #[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
        let megabytes = resident.bytes as f64 / 1e6;
        let what = format!("memory of {} in {cluster}", resident.program);
        lines.push(Line::below(&what, megabytes, MEMORY_LIMIT_MB, Unit::Megabytes));
    }
    step("done");
    terminal::result(&format!("\n{}", report::table(&lines)));
    Ok(())
}

/// Peers the clusters, unless they are; the time is that from the start of the command to the Ready node.
async fn peer(home: &Cluster, provider: &Cluster) -> anyhow::Result<Line> {
    const WHAT: &str = "liquidctl peer -> virtual node Ready";
    let nodes: Api<Node> = Api::all(home.client.clone());
    let peers = Api::<Peer>::all(home.client.clone()).list(&ListParams::default()).await?;
    if !peers.items.is_empty() {
        home.wait_for_node(VIRTUAL_NODE, true, LIMIT).await?;
        return Ok(Line::plain(WHAT, "peered before".to_owned()));
    }
    let token = provider.liquidctl.run(["invite"]).await?.ok()?;
    let started = Instant::now();
    let ready = async {
        timeout(LIMIT, await_condition(nodes, VIRTUAL_NODE, is_ready)).await??;
        anyhow::Ok(started.elapsed())
    };
    let command = async { home.liquidctl.run(["peer", "out-of-band", "--token", token.trim()]).await?.ok() };
    // The command's own words are the better ones if it fails.
    let (ready, command) = tokio::join!(ready, command);
    command?;
    Ok(Line::below(WHAT, ready?.as_secs_f64(), PEERING_LIMIT_S, Unit::Seconds))
}

fn is_ready(node: Option<&Node>) -> bool {
    let status = node.and_then(|node| node.status.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn offload(home: &Cluster) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(home.client.clone());
    if namespaces.get_opt(NAMESPACE).await?.is_none() {
        home.create_namespace(NAMESPACE).await?;
    }
    home.liquidctl.run(["offload", "namespace", NAMESPACE]).await?.ok()?;
    Ok(())
}

/// Runs kubectl and shows what a user would see.
async fn show(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<String> {
    let line = format!("kubectl {}", arguments.join(" "));
    let printed = cluster.kubectl.run(arguments).await?.ok().with_context(|| line.clone())?;
    terminal::result(&format!("\n{}$ {line}\n{printed}", cluster.name));
    Ok(printed)
}

/// Fetches what the Deployment serves, through a port-forward.
async fn forward(kubectl: &Program) -> anyhow::Result<String> {
    let arguments = ["-n", NAMESPACE, "port-forward", "deployment/hello", ":8080"];
    let mut forward = kubectl.start(arguments)?;
    let mut lines = BufReader::new(forward.stdout.take().context("no output")?).lines();
    let Some(line) = timeout(LIMIT, lines.next_line()).await?? else {
        let output = timeout(LIMIT, forward.wait_with_output()).await??;
        anyhow::bail!("{}", String::from_utf8_lossy(&output.stderr).trim())
    };
    let port = local_port(&line).with_context(|| format!("no port in {line:?}"))?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.context("no answer")??;
    forward.kill().await?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(answer);
    terminal::result(&format!(
        "\nhome$ kubectl {} & curl localhost:{port}\n{line}\n{body}",
        arguments.join(" ")
    ));
    Ok(body)
}

/// Reads `Forwarding from 127.0.0.1:41234 -> 8080`.
fn local_port(line: &str) -> Option<u16> {
    let (address, _) = line.split_once(" -> ")?;
    address.rsplit(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_port_is_read_from_what_kubectl_prints() {
        assert_eq!(local_port("Forwarding from 127.0.0.1:41234 -> 8080"), Some(41234));
        assert_eq!(local_port("Forwarding from [::1]:41234 -> 8080"), Some(41234));
        assert_eq!(local_port("error: lost connection"), None);
    }
}
