//! Each node of the provider as a virtual node of its own.

use crate::manifests::{FOREVER, drop_namespace, offloaded, pod};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::{Peer, VirtualNode, condition};
use liquid_scenarios::{Cluster, Environment, Look};
use serde_json::json;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(120);
const GHOST: &str = "liquid-provider-ghost";

async fn wait_for_made(home: &Cluster, expected: &str) -> anyhow::Result<()> {
    let peers: Api<Peer> = Api::all(home.client.clone());
    home.wait(&format!("VirtualNodesMade {expected}"), SOON, || async {
        let peer = peers.get("provider").await?;
        let conditions = peer.status.map(|status| status.conditions).unwrap_or_default();
        let reason = condition(&conditions, "VirtualNodesMade").map(|made| made.reason.clone());
        Ok(if reason.as_deref() == Some(expected) {
            Look::Done(())
        } else {
            Look::NotYet(format!("{reason:?}"))
        })
    })
    .await
}

async fn wait_for_gone(home: &Cluster, name: &str) -> anyhow::Result<()> {
    let (nodes, virtual_nodes) =
        (Api::<Node>::all(home.client.clone()), Api::<VirtualNode>::all(home.client.clone()));
    home.wait(&format!("{name} gone"), SOON, || async {
        let left = virtual_nodes.get_opt(name).await?.is_some() || nodes.get_opt(name).await?.is_some();
        Ok(if left { Look::NotYet("it is still there".to_owned()) } else { Look::Done(()) })
    })
    .await
}

/// Waits until a node is Ready, or is not for this reason.
async fn wait_for_reason(home: &Cluster, name: &str, expected: &str) -> anyhow::Result<Node> {
    let nodes: Api<Node> = Api::all(home.client.clone());
    home.wait(&format!("{name}: {expected}"), SOON, || async {
        let Some(node) = nodes.get_opt(name).await? else { return Ok(Look::NotYet("no node".to_owned())) };
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let reason = conditions.clone().find(|c| c.type_ == "Ready").and_then(|ready| ready.reason.clone());
        Ok(if reason.as_deref() == Some(expected) {
            Look::Done(node)
        } else {
            Look::NotYet(format!("{reason:?}"))
        })
    })
    .await
}

/// A node of the provider that nobody runs.
async fn set_ghost(provider: &Cluster, ready: bool) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(provider.client.clone());
    let now = Timestamp::now().to_string();
    let status = json!({ "status": {
        "capacity": { "cpu": "7", "memory": "5Gi", "pods": "10" },
        "allocatable": { "cpu": "6", "memory": "4Gi", "pods": "10" },
        "conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" }, "reason": "Ghost", "message": "out for lunch",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
        "nodeInfo": {
            "architecture": "riscv64", "operatingSystem": "linux", "kubeletVersion": "v1.35.0", "kernelVersion": "9.9",
            "containerRuntimeVersion": "ghost://1", "osImage": "Ghost", "bootID": "", "kubeProxyVersion": "", "machineID": "",
            "systemUUID": "",
        },
    }});
    nodes.patch_status("ghost", &PatchParams::default(), &Patch::Strategic(&status)).await?;
    Ok(())
}

/// Would catch: a provider whose nodes are told to anybody; virtual nodes that do not show the node behind them, whose pods
/// run elsewhere, or whose kubelet API is that of another; nodes that come without a virtual node, are not followed, or
/// whose virtual nodes stay or go too soon; a change of mode that leaves what was there before.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn each_node_of_the_provider_is_a_node_at_home() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "per-node").await?;
    let course = course(home, provider).await;
    let ghost = Api::<Node>::all(provider.client.clone()).delete("ghost", &DeleteParams::default()).await;
    home.change_peer("provider", json!({ "consume": { "virtualNodes": "PerPeer" } })).await?;
    wait_for_made(home, "PerPeer").await?;
    provider.change_peer("home", json!({ "lend": { "nodes": null } })).await?;
    course?;
    assert!(ghost.is_err(), "it was gone before");
    home.wait_for_node("liquid-provider", true, SOON).await?;
    drop_namespace(home, "per-node").await?;
    home.wait("only one virtual node is left", SOON, || async {
        let left =
            Api::<VirtualNode>::all(home.client.clone()).list(&ListParams::default()).await?.items.len();
        Ok(if left == 1 { Look::Done(()) } else { Look::NotYet(format!("{left} are left")) })
    })
    .await
}

async fn course(home: &Cluster, provider: &Cluster) -> anyhow::Result<()> {
    home.change_peer("provider", json!({ "consume": { "virtualNodes": "PerNode" } })).await?;
    wait_for_made(home, "NodesNotExposed").await?;
    home.wait_for_node("liquid-provider", true, SOON).await?;
    provider.change_peer("home", json!({ "lend": { "nodes": { "exposed": true } } })).await?;
    wait_for_made(home, "PerNode").await?;

    let real = Api::<Node>::all(provider.client.clone())
        .list(&ListParams::default().labels("!liquid.mesh/type"))
        .await?;
    let real = real.items.into_iter().next().context("no physical node")?;
    let name = format!("liquid-provider-{}", real.name_any());
    let node = home
        .wait(&format!("{name} ready"), SOON, || async {
            let there = Api::<Node>::all(home.client.clone()).get_opt(&name).await?.is_some();
            Ok(if there { Look::Done(()) } else { Look::NotYet("it does not exist".to_owned()) })
        })
        .await;
    node?;
    let node = home.wait_for_node(&name, true, SOON).await?;
    assert_eq!(node.labels().get("liquid.mesh/provider-node"), Some(&real.name_any()));
    let (shown, behind) = (node.status.context("no status")?, real.status.clone().context("no status")?);
    let (info, real_info) = (shown.node_info.context("no info")?, behind.node_info.context("no info")?);
    assert_eq!(
        (&info.kernel_version, &info.kubelet_version, &info.architecture),
        (&real_info.kernel_version, &real_info.kubelet_version, &real_info.architecture)
    );
    let cpu =
        |amounts: Option<std::collections::BTreeMap<_, _>>| amounts.and_then(|mut all| all.remove("cpu"));
    assert_eq!(cpu(shown.capacity), cpu(behind.capacity));
    let images = shown.images.unwrap_or_default();
    let names = images.iter().flat_map(|image| image.names.iter().flatten());
    assert!(names.clone().any(|name| name.contains("busybox")), "{images:?}");
    wait_for_gone(home, "liquid-provider").await?;

    // A node comes: it is a node at home, too, with its taint and its state.
    let ghost = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "ghost", "labels": { "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "z9" } },
        "spec": { "taints": [{ "key": "example.org/ghost", "effect": "NoSchedule" }] },
    });
    provider.apply("default", &ghost.to_string()).await?;
    set_ghost(provider, true).await?;
    let node = wait_for_reason(home, GHOST, "LinkUp").await?;
    assert_eq!(node.labels().get("topology.kubernetes.io/zone").map(String::as_str), Some("z9"));
    assert_eq!(node.labels().get("kubernetes.io/arch").map(String::as_str), Some("riscv64"));
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    assert!(taints.iter().any(|taint| taint.key == "example.org/ghost"), "{taints:?}");
    // Pods of its virtual node wait for that node and no other.
    let haunted = pod("haunted", FOREVER).replace(
        "nodeSelector: {liquid.mesh/type: virtual-node}",
        &format!("nodeName: {GHOST}\n  tolerations: [{{operator: Exists}}, {{key: example.org/ghost, operator: Exists}}]"),
    );
    home.apply("per-node", &haunted).await?;
    let remote: Api<Pod> = Api::namespaced(provider.client.clone(), "per-node-home");
    provider
        .wait("the pod is bound to its node", SOON, || async {
            let node = remote.get_opt("haunted").await?.and_then(|pod| pod.spec?.node_name);
            Ok(if node.as_deref() == Some("ghost") {
                Look::Done(())
            } else {
                Look::NotYet(format!("{node:?}"))
            })
        })
        .await?;
    set_ghost(provider, false).await?;
    let node = wait_for_reason(home, GHOST, "ProviderNodeNotReady").await?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    assert!(
        conditions.iter().any(|c| c.message.as_deref().is_some_and(|text| text.contains("out for lunch")))
    );

    // It goes, for good.
    Api::<Node>::all(provider.client.clone()).delete("ghost", &DeleteParams::default()).await?;
    let gone = Instant::now();

    // Meanwhile a pod runs on the real one, and its kubelet API leads to it.
    let on_it = pod("on-it", "echo here; while :; do sleep 1; done").replace(
        "nodeSelector: {liquid.mesh/type: virtual-node}",
        &format!("nodeSelector: {{liquid.mesh/provider-node: {}}}", real.name_any()),
    );
    home.apply("per-node", &on_it).await?;
    home.wait_for_pods("per-node", "app=on-it", 1, SOON).await?;
    assert_eq!(remote.get("on-it").await?.spec.and_then(|spec| spec.node_name), Some(real.name_any()));
    let log = home.kubectl.run(["logs", "-n", "per-node", "on-it"]).await?.ok()?;
    assert_eq!(log.trim(), "here");

    let kept = Api::<VirtualNode>::all(home.client.clone()).get(GHOST).await?;
    let early = gone.elapsed() < Duration::from_secs(20);
    assert!(!early || kept.metadata.deletion_timestamp.is_none(), "a node may come back");
    wait_for_gone(home, GHOST).await?;
    println!("a virtual node is gone {:.1} s after the node behind it", gone.elapsed().as_secs_f64());
    assert!(gone.elapsed() > Duration::from_secs(28));
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "per-node");
    assert!(pods.get_opt("haunted").await?.is_none());
    Ok(())
}
