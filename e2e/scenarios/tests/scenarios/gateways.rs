//! Gateways that fail, are replaced, and move, while traffic flows.

use crate::network::seen;
use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use liquid_crds::{Peer, condition};
use liquid_scenarios::{Cluster, Environment, Flow, Inside, Look, PACE, TEST_IMAGE};
use std::env;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "gateways";
const LIQUID: &str = "liquid-system";
const GATEWAYS: &str = "app.kubernetes.io/component=gateway";
/// How often each gateway is killed.
const KILLS: &str = "LIQUID_GATEWAY_KILLS";
/// Time in which whatever a kill does to a flow has happened.
const AFTERMATH: Duration = Duration::from_secs(3);

/// A pod to send from and to, as it is in its cluster and as the other sees it.
struct End {
    inside: Inside,
    seen: IpAddr,
}

impl End {
    /// A pod in `cluster`, as `other` sees it; on `node`, if one is named.
    async fn of(cluster: &Cluster, other: &Cluster, node: Option<&str>) -> anyhow::Result<Self> {
        cluster.delete_namespace(NAMESPACE).await?;
        cluster.create_namespace(NAMESPACE).await?;
        let node = node.map(|node| format!("  nodeName: {node}\n")).unwrap_or_default();
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {}, labels: {{app: end}}}}\nspec:\n{node}  \
             terminationGracePeriodSeconds: 1\n  containers:\n    - {{name: main, image: {TEST_IMAGE}, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}}\n",
            cluster.name
        );
        cluster.apply(NAMESPACE, &manifest).await?;
        let pod = cluster.wait_for_pods(NAMESPACE, "app=end", 1, SOON).await?.remove(0);
        let inside = Inside::of(&pod)?;
        let prefixes = other.wait_for_network(&cluster.name, SOON).await?;
        Ok(Self {
            seen: seen(&prefixes, inside.address)
                .with_context(|| format!("{} is in none of {prefixes:?}", inside.address))?,
            inside,
        })
    }
}

/// Flows both ways: of datagrams with ports of their own, so that they are spread, and connections.
struct Load {
    /// Within one pod: what it shows, a busy machine has done.
    noise: Flow,
    /// From home to the provider, and back.
    datagrams: [Vec<Flow>; 2],
    connections: [Vec<Flow>; 2],
}

impl Load {
    fn between(home: &End, provider: &End) -> anyhow::Result<Self> {
        let ways = [(home, provider), (provider, home)];
        let datagrams = ways.map(|(from, to)| {
            (7001..7005).map(|port| Flow::datagrams(&from.inside, &to.inside, to.seen, port)).collect()
        });
        let connections = ways.map(|(from, to)| {
            (7001..7003).map(|port| Flow::connection(&from.inside, &to.inside, to.seen, port)).collect()
        });
        let both = |[out, back]: [anyhow::Result<Vec<Flow>>; 2]| anyhow::Ok([out?, back?]);
        let noise = Flow::datagrams(&home.inside, &home.inside, home.inside.address, 7000)?;
        Ok(Self { noise, datagrams: both(datagrams)?, connections: both(connections)? })
    }

    /// Longest gaps since then: of datagrams and of connections, by direction.
    fn gaps(&self, since: Instant) -> [[Duration; 2]; 2] {
        let longest =
            |flows: &Vec<Flow>| flows.iter().map(|flow| flow.gap_since(since)).max().unwrap_or_default();
        [self.datagrams.each_ref().map(longest), self.connections.each_ref().map(longest)]
    }

    /// Nothing stood still for longer than it may, apart from what the machine did: datagrams for a second, connections
    /// for two, for they have to send again before they notice.
    fn assert_gaps(&self, since: Instant, after: &str) {
        let noise = self.noise.gap_since(since);
        let [datagrams, connections] = self.gaps(since);
        let all = datagrams.map(|gap| (gap, 1)).into_iter().chain(connections.map(|gap| (gap, 2)));
        for (gap, limit) in all {
            let limit = Duration::from_secs(limit) + noise;
            assert!(gap < limit, "{gap:.0?} after {after} (noise {noise:.0?}):\n{}", self.described(since));
        }
        self.assert_connections_live();
    }

    /// Longest gaps since then, for people.
    fn summary(&self, since: Instant) -> String {
        let [datagrams, connections] = self.gaps(since);
        format!(
            "gaps out and back {datagrams:.0?}, of connections {connections:.0?}, noise {:.0?}",
            self.noise.gap_since(since)
        )
    }

    /// What happened to each flow since then.
    fn described(&self, since: Instant) -> String {
        let flows = self.datagrams.iter().chain(&self.connections).flatten();
        let lines = flows.map(|flow| {
            let (after, gap) = flow.gap(since);
            format!("  {}: {gap:.0?} without anything, {after:.0?} after\n", flow.name)
        });
        lines.collect()
    }

    fn lost(&self) -> u64 {
        self.datagrams.iter().flatten().map(Flow::lost).sum()
    }

    /// No connection has ended or lost a byte.
    fn assert_connections_live(&self) {
        for flow in self.connections.iter().flatten() {
            assert_eq!(flow.broken(), None);
            assert!(flow.is_whole(), "{}: bytes lost or out of order", flow.name);
        }
    }

    /// And all of them still move.
    async fn assert_all_move(&self) -> anyhow::Result<()> {
        let flows = || self.datagrams.iter().chain(&self.connections).flatten();
        let before: Vec<usize> = flows().map(Flow::arrived).collect();
        tokio::time::sleep(Duration::from_secs(2)).await;
        for (flow, before) in flows().zip(before) {
            assert!(flow.arrived() > before + 50, "{} stands still", flow.name);
        }
        Ok(())
    }
}

/// Waits until `cluster` says that all ways to `peer` are up, of so many gateways here and there.
async fn all_ways_up(cluster: &Cluster, peer: &str, ways: usize) -> anyhow::Result<()> {
    let peers: Api<Peer> = Api::all(cluster.client.clone());
    let wanted = format!("{ways} of {ways} ways");
    cluster
        .wait(&format!("{wanted} to {peer}"), SOON, || async {
            let status = peers.get(peer).await?.status.unwrap_or_default();
            let said = condition(&status.conditions, "NetworkReady").cloned();
            Ok(match said {
                Some(said) if said.reason == "Connected" && said.message.contains(&wanted) => Look::Done(()),
                said => Look::NotYet(said.map_or("nothing said".to_owned(), |said| said.message)),
            })
        })
        .await
}

async fn settled(home: &Cluster, provider: &Cluster) -> anyhow::Result<()> {
    all_ways_up(home, "provider", 4).await?;
    all_ways_up(provider, "home", 4).await
}

async fn gateways(cluster: &Cluster) -> anyhow::Result<Vec<Pod>> {
    cluster.wait_for_pods(LIQUID, GATEWAYS, 2, SOON).await
}

/// Waits until a pod of this name is another one than `before`, and Ready.
async fn replaced(cluster: &Cluster, before: &Pod) -> anyhow::Result<Pod> {
    let name = before.name_any();
    cluster
        .wait(&format!("another {name}"), SOON, || async {
            let now = gateways(cluster).await?.into_iter().find(|pod| pod.name_any() == name);
            Ok(match now {
                Some(pod) if pod.uid() != before.uid() => Look::Done(pod),
                _ => Look::NotYet("still the same".to_owned()),
            })
        })
        .await
}

fn shown(gaps: &mut [Duration]) -> String {
    gaps.sort_unstable();
    let at = |percent: usize| gaps.get((gaps.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    let (median, last) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
    format!(
        "p50 {:.0} ms, p99 {:.0} ms of {}",
        median.as_secs_f64() * 1e3,
        last.as_secs_f64() * 1e3,
        gaps.len()
    )
}

/// Would catch: flows that stay with a gateway that is gone, on the nodes of its cluster or in the gateways of the peer;
/// connections that do not survive that; and a replacement of all gateways that anybody notices.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn a_gateway_may_be_killed_and_all_be_replaced_while_traffic_flows() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    environment.lab.as_ref().context("this needs the lab")?;
    let (home, provider) = (&environment.home, &environment.provider);
    let (here, there) = (End::of(home, provider, None).await?, End::of(provider, home, None).await?);
    settled(home, provider).await?;
    let load = Load::between(&here, &there)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.assert_all_move().await?;

    let rounds: usize = env::var(KILLS).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut gaps: [[Vec<Duration>; 2]; 2] = Default::default();
    for round in 0..rounds {
        for (side, cluster) in [home, provider].into_iter().enumerate() {
            for victim in gateways(cluster).await? {
                let killed = Instant::now();
                Inside::of(&victim)?.kill("liquid-gateway")?;
                tokio::time::sleep(AFTERMATH).await;
                for (kind, by_direction) in load.gaps(killed).into_iter().enumerate() {
                    for (direction, gap) in by_direction.into_iter().enumerate() {
                        // A gateway that no flow of this direction went through says nothing.
                        if gap > Duration::from_millis(100) {
                            gaps[kind][direction].push(gap);
                        }
                    }
                }
                load.assert_gaps(killed, &format!("the end of {} of {}", victim.name_any(), cluster.name));
                // Kubernetes waits longer before each restart of a container, and not before that of a pod.
                if round + 1 < rounds {
                    let name = victim.name_any();
                    let delete = ["delete", "pod", "-n", LIQUID, &name, "--grace-period=1", "--wait=false"];
                    cluster.kubectl.run(delete).await?.ok()?;
                    replaced(cluster, &victim).await?;
                }
                settled(home, provider).await?;
            }
            println!("kills of gateways of {}: {}", cluster.name, (side + 1) * (round + 1));
        }
    }
    for (kind, name) in ["UDP", "TCP"].into_iter().enumerate() {
        for (direction, way) in ["home to provider", "provider to home"].into_iter().enumerate() {
            println!("gap of {name}, {way}, after kill -9: {}", shown(&mut gaps[kind][direction]));
        }
    }

    let before = (load.lost(), Instant::now());
    for cluster in [home, provider] {
        let restart = ["rollout", "restart", "-n", LIQUID, "statefulset/liquid-gateway"];
        cluster.kubectl.run(restart).await?.ok()?;
        let status = ["rollout", "status", "-n", LIQUID, "statefulset/liquid-gateway", "--timeout=120s"];
        cluster.kubectl.run(status).await?.ok()?;
        load.assert_connections_live();
    }
    settled(home, provider).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.assert_connections_live();
    let [datagrams, connections] = load.gaps(before.1);
    let longest = |gaps: [Duration; 2]| gaps.into_iter().max().unwrap_or_default().as_secs_f64() * 1e3;
    let (lost, sent) = (load.lost() - before.0, before.1.elapsed().as_millis() / PACE.as_millis() * 8);
    println!(
        "gateways of both replaced in {:.0} s: {lost} of {sent} datagrams lost, longest gap {:.0} ms, of connections {:.0} ms, noise {:.0} ms",
        before.1.elapsed().as_secs_f64(),
        longest(datagrams),
        longest(connections),
        load.noise.gap_since(before.1).as_secs_f64() * 1e3,
    );
    // One in a thousand, and what a busy machine may lose without our help: it lets processes wait, and their queues run over.
    let noise = load.noise.gap_since(before.1).as_millis() / PACE.as_millis() * 8;
    let tolerated = sent / 1000 + noise;
    assert!(u128::from(lost) <= tolerated, "{lost} of {sent} datagrams lost:\n{}", load.described(before.1));
    load.assert_all_move().await?;
    drop(load);
    for cluster in [home, provider] {
        cluster.delete_namespace(NAMESPACE).await?;
    }
    Ok(())
}

/// Would catch: nodes that stay with a gateway whose machine is gone, a gateway that is not found at another place, and nodes
/// that reach no gateway but their own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn a_gateway_may_lose_its_node_and_move_to_another() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let nodes = environment.lab.as_ref().context("this needs the lab")?.cluster("b")?;
    let nodes = nodes.nodes();
    let [stays, dies] = &nodes[..] else {
        anyhow::bail!("this needs a provider of two nodes: lab up --nodes 1,b=2")
    };
    let there = End::of(provider, home, Some(stays.name())).await?;
    let here = End::of(home, provider, None).await?;
    settled(home, provider).await?;
    // One gateway on each: they prefer to be apart, but a node may not have been there when they were made.
    spread(provider).await?;
    settled(home, provider).await?;
    let load = Load::between(&here, &there)?;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let off = Instant::now();
    dies.power_off()?;
    tokio::time::sleep(AFTERMATH).await;
    println!("a gateway's node loses power: {}", load.summary(off));
    load.assert_gaps(off, "a node lost its power");
    let on = Instant::now();
    dies.power_on()?;
    settled(home, provider).await?;
    println!("all ways are up again {:.1} s after its return", on.elapsed().as_secs_f64());
    load.assert_gaps(on, "the return of a node");

    let moved = gateways(provider).await?.into_iter().find(|pod| node_of(pod) == dies.name());
    let moved = moved.context("no gateway where there was one")?;
    provider.kubectl.run(["cordon", dies.name()]).await?.ok()?;
    let (begun, lost) = (Instant::now(), load.lost());
    provider.kubectl.run(["delete", "pod", "-n", LIQUID, &moved.name_any(), "--wait=false"]).await?.ok()?;
    let elsewhere = replaced(provider, &moved).await?;
    assert_eq!(node_of(&elsewhere), stays.name());
    settled(home, provider).await?;
    println!(
        "a gateway moved to another node in {:.1} s: {} datagrams lost, {}",
        begun.elapsed().as_secs_f64(),
        load.lost() - lost,
        load.summary(begun)
    );
    load.assert_gaps(begun, "a gateway moved");
    load.assert_all_move().await?;
    drop(load);
    provider.kubectl.run(["uncordon", dies.name()]).await?.ok()?;
    spread(provider).await?;
    for cluster in [home, provider] {
        cluster.delete_namespace(NAMESPACE).await?;
    }
    Ok(())
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Sees to it that no two gateways are on one node.
async fn spread(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = gateways(cluster).await?;
    if node_of(&pods[0]) == node_of(&pods[1]) {
        cluster
            .kubectl
            .run(["delete", "pod", "-n", LIQUID, &pods[1].name_any(), "--wait=false"])
            .await?
            .ok()?;
        replaced(cluster, &pods[1]).await?;
    }
    Ok(())
}
