//! Virtual nodes that ask for a part of what a provider lends.

use crate::manifests::{FOREVER, bound, drop_namespace, offloaded, pod};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::quantity::{Milli, parse};
use liquid_crds::{Peer, ShadowPod, SliceState, VirtualNode, VirtualNodeSpec, condition};
use liquid_scenarios::{Cluster, Environment, Look};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(120);
/// Offers follow what they depend on within a second or two; a try of its own may be a minute away.
const AT_ONCE: Duration = Duration::from_secs(30);
const WHOLE: &str = "liquid-provider";

fn virtual_nodes(home: &Cluster) -> Api<VirtualNode> {
    Api::all(home.client.clone())
}

async fn make(home: &Cluster, name: &str, spec: VirtualNodeSpec) -> anyhow::Result<()> {
    let spec = VirtualNodeSpec { peer: "provider".to_owned(), drain_timeout_seconds: Some(0), ..spec };
    virtual_nodes(home).create(&PostParams::default(), &VirtualNode::new(name, spec)).await?;
    Ok(())
}

fn asking(of: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    of.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
}

async fn allocatable(home: &Cluster, node: &str, resource: &str) -> anyhow::Result<Option<Milli>> {
    let node = Api::<Node>::all(home.client.clone()).get_opt(node).await?;
    let amount = node.and_then(|node| node.status?.allocatable?.remove(resource));
    Ok(amount.map(|amount| parse(&amount)).transpose()?)
}

/// Waits until the CPU of a node is what it is to be.
async fn wait_for_cpu(
    home: &Cluster,
    node: &str,
    what: &str,
    expected: impl Fn(Milli) -> bool,
) -> anyhow::Result<Milli> {
    home.wait(&format!("CPU of {node} {what}"), AT_ONCE, || async {
        let cpu = allocatable(home, node, "cpu").await?;
        Ok(match cpu {
            Some(cpu) if expected(cpu) => Look::Done(cpu),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await
}

/// Waits until the offer for a virtual node is accepted, or not for this reason.
async fn wait_for_offer(home: &Cluster, node: &str, expected: &str) -> anyhow::Result<VirtualNode> {
    home.wait(&format!("offer for {node}: {expected}"), AT_ONCE, || async {
        let found = virtual_nodes(home).get(node).await?;
        let conditions = found.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        let reason = condition(&conditions, "OfferAccepted").map(|c| c.reason.clone());
        Ok(if reason.as_deref() == Some(expected) {
            Look::Done(found)
        } else {
            Look::NotYet(format!("{reason:?}"))
        })
    })
    .await
}

/// Waits until a pod has this phase or reason; returns what is said about it.
async fn wait_for_pod(home: &Cluster, name: &str, expected: &str) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "slices");
    home.wait(&format!("{name} {expected}"), AT_ONCE, || async {
        let status = pods.get(name).await?.status.unwrap_or_default();
        let so = [&status.phase, &status.reason].into_iter().flatten().any(|is| is == expected);
        let message = status.message.unwrap_or_default();
        Ok(if so { Look::Done(message) } else { Look::NotYet(format!("{:?} {message}", status.phase)) })
    })
    .await
}

async fn unschedulable(home: &Cluster, node: &str, expected: bool) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(home.client.clone());
    home.wait(&format!("{node} unschedulable: {expected}"), AT_ONCE, || async {
        let found = nodes.get(node).await?.spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        Ok(if found == expected { Look::Done(()) } else { Look::NotYet(found.to_string()) })
    })
    .await
}

/// Would catch: offers that promise the same amount to two virtual nodes, that nobody enforces, or that a node does not
/// follow; nodes made of offers that nobody has accepted, at whatever price; selectors that do not hold, and those that
/// reach nodes the provider keeps for others.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn virtual_nodes_get_what_they_ask_for_and_accept() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "slices").await?;
    let course = course(home, provider).await;
    // Others need the whole, at no price.
    for name in ["small", "pool", "asks"] {
        match virtual_nodes(home).delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            deleted => drop(deleted?),
        }
    }
    provider
        .change_peer("home", json!({ "lend": { "price": null, "nodes": null, "overcommitPercent": null } }))
        .await?;
    home.change_peer("provider", json!({ "consume": { "acceptance": null } })).await?;
    provider.kubectl.run(["label", "nodes", "--all", "example.org/pool-"]).await?.ok()?;
    course?;
    drop_namespace(home, "slices").await?;
    home.wait("the virtual nodes are gone", SOON, || async {
        let left = virtual_nodes(home).list(&ListParams::default()).await?.items.len();
        Ok(if left == 1 { Look::Done(()) } else { Look::NotYet(format!("{left} are left")) })
    })
    .await?;
    home.wait_for_node(WHOLE, true, SOON).await?;
    Ok(())
}

async fn course(home: &Cluster, provider: &Cluster) -> anyhow::Result<()> {
    amounts(home, provider).await?;
    prices(home, provider).await?;
    selectors(home, provider).await
}

async fn amounts(home: &Cluster, provider: &Cluster) -> anyhow::Result<()> {
    let whole = allocatable(home, WHOLE, "cpu").await?.context("no CPU")?;
    let resources = asking(&[("cpu", "200m"), ("memory", "64Mi")]);
    make(home, "small", VirtualNodeSpec { resources, ..VirtualNodeSpec::default() }).await?;
    wait_for_offer(home, "small", "Accepted").await?;
    wait_for_cpu(home, "small", "as asked", |cpu| cpu == 200).await?;
    assert_eq!(allocatable(home, "small", "memory").await?, Some(64 * (1000 << 20)));
    wait_for_cpu(home, WHOLE, "without that", |cpu| cpu <= whole - 200).await?;
    let lent: Peer = Api::all(provider.client.clone()).get("home").await?;
    let slices = lent.status.and_then(|status| status.lend?.slices).context("no slices")?;
    let small = slices.iter().find(|slice| slice.name == "small").context("the request did not arrive")?;
    assert_eq!((small.state, small.requested["cpu"].0.as_str()), (SliceState::Accepted, "200m"));

    // The provider holds it to that, whatever the limits of the peer are.
    home.apply("slices", &bound("first", FOREVER, "small", "150m")).await?;
    wait_for_pod(home, "first", "Running").await?;
    home.apply("slices", &bound("second", FOREVER, "small", "100m")).await?;
    let message = wait_for_pod(home, "second", "QuotaExceeded").await?;
    for part in ["requested cpu=100m", "used cpu=150m", "offered cpu=200m"] {
        assert!(message.contains(part), "{part} is not in {message:?}");
    }
    let more = json!({ "spec": { "resources": { "cpu": "250m" } } });
    virtual_nodes(home).patch("small", &PatchParams::default(), &Patch::Merge(&more)).await?;
    wait_for_pod(home, "second", "Running").await?;
    wait_for_cpu(home, "small", "as asked", |cpu| cpu == 250).await?;

    // The provider may promise the same twice if it says so.
    provider.change_peer("home", json!({ "lend": { "overcommitPercent": 200 } })).await?;
    wait_for_cpu(home, WHOLE, "whole again", |cpu| cpu > whole - 200).await?;
    Ok(())
}

async fn prices(home: &Cluster, provider: &Cluster) -> anyhow::Result<()> {
    let price = json!({ "currency": "EUR", "perHour": { "cpu": "0.4" } });
    provider.change_peer("home", json!({ "lend": { "price": price } })).await?;
    wait_for_offer(home, "small", "ApprovalNeeded").await?;
    unschedulable(home, "small", true).await?;
    wait_for_pod(home, "first", "Running").await?;
    home.apply("slices", &bound("third", FOREVER, "small", "0")).await?;
    wait_for_pod(home, "third", "OfferNotAccepted").await?;
    let shown = home.liquidctl.run(["status"]).await?.ok()?;
    assert!(shown.contains("0.10 EUR/h") && shown.contains("ApprovalNeeded"), "{shown}");
    home.liquidctl.run(["accept", "small"]).await?.ok()?;
    unschedulable(home, "small", false).await?;
    wait_for_pod(home, "third", "Running").await?;
    wait_for_offer(home, WHOLE, "ApprovalNeeded").await?;
    let most = |cpu: &str| json!({ "maximumPrice": { "currency": "EUR", "perHour": { "cpu": cpu } } });
    home.change_peer("provider", json!({ "consume": { "acceptance": most("0.3") } })).await?;
    wait_for_offer(home, WHOLE, "TooExpensive").await?;
    home.change_peer("provider", json!({ "consume": { "acceptance": most("0.4") } })).await?;
    wait_for_offer(home, WHOLE, "Accepted").await?;

    // By hand: no node without approval.
    let manual = json!({ "approval": "Manual", "maximumPrice": null });
    home.change_peer("provider", json!({ "consume": { "acceptance": manual } })).await?;
    provider.change_peer("home", json!({ "lend": { "price": null } })).await?;
    make(
        home,
        "asks",
        VirtualNodeSpec { resources: asking(&[("cpu", "10m")]), ..VirtualNodeSpec::default() },
    )
    .await?;
    wait_for_offer(home, "asks", "ApprovalNeeded").await?;
    home.wait("it says so", AT_ONCE, || async {
        let status = virtual_nodes(home).get("asks").await?.status.unwrap_or_default();
        let reason = condition(&status.conditions, "Ready").map(|ready| ready.reason.clone());
        Ok(if reason.as_deref() == Some("OfferNotAccepted") {
            Look::Done(())
        } else {
            Look::NotYet(format!("{reason:?}"))
        })
    })
    .await?;
    assert!(Api::<Node>::all(home.client.clone()).get_opt("asks").await?.is_none(), "nobody has approved it");
    home.liquidctl.run(["accept", "asks"]).await?.ok()?;
    home.wait("the node", SOON, || async {
        let there = Api::<Node>::all(home.client.clone()).get_opt("asks").await?.is_some();
        Ok(if there { Look::Done(()) } else { Look::NotYet("it is not there".to_owned()) })
    })
    .await?;
    home.change_peer("provider", json!({ "consume": { "acceptance": null } })).await?;
    wait_for_offer(home, WHOLE, "Accepted").await?;
    Ok(())
}

async fn selectors(home: &Cluster, provider: &Cluster) -> anyhow::Result<()> {
    let node_selector = BTreeMap::from([("example.org/pool".to_owned(), "fast".to_owned())]);
    make(home, "pool", VirtualNodeSpec { node_selector, ..VirtualNodeSpec::default() }).await?;
    let refused = wait_for_offer(home, "pool", "LabelNotSelectable").await?;
    assert!(refused.status.and_then(|status| status.offer).is_none());
    provider.change_peer("home", json!({ "lend": { "nodes": { "labels": ["example.org/pool"] } } })).await?;
    wait_for_offer(home, "pool", "NoSuchNode").await?;
    assert!(Api::<Node>::all(home.client.clone()).get_opt("pool").await?.is_none());
    provider
        .kubectl
        .run(["label", "nodes", "-l", "!liquid.mesh/type", "example.org/pool=fast"])
        .await?
        .ok()?;
    let node = home
        .wait("the node of the pool", SOON, || async {
            let node = Api::<Node>::all(home.client.clone()).get_opt("pool").await?;
            Ok(node.map_or_else(|| Look::NotYet("it is not there".to_owned()), Look::Done))
        })
        .await?;
    // The scheduler at home chooses by the label that the nodes there have, which the node of the whole peer has, too.
    home.wait("the label", AT_ONCE, || async {
        let node = Api::<Node>::all(home.client.clone()).get(&node.name_any()).await?;
        let label = node.labels().get("example.org/pool").cloned();
        Ok(if label.as_deref() == Some("fast") { Look::Done(()) } else { Look::NotYet(format!("{label:?}")) })
    })
    .await?;
    let selected = pod("selected", FOREVER).replace(
        "nodeSelector: {liquid.mesh/type: virtual-node}",
        "nodeSelector: {example.org/pool: fast, kubernetes.io/hostname: pool}",
    );
    home.apply("slices", &selected).await?;
    wait_for_pod(home, "selected", "Running").await?;
    let shadows: Api<ShadowPod> = Api::namespaced(provider.client.clone(), "slices-home");
    assert_eq!(shadows.get("selected").await?.spec.placement.node_selector["example.org/pool"], "fast");
    let remote: Pod = Api::namespaced(provider.client.clone(), "slices-home").get("selected").await?;
    let affinity = serde_json::to_value(remote.spec.and_then(|spec| spec.affinity))?.to_string();
    assert!(affinity.contains("example.org/pool"), "{affinity}");
    Ok(())
}
