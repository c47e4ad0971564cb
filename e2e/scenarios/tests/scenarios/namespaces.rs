//! Where pods of offloaded namespaces run, and what a change of that does.

use crate::manifests::{FOREVER, drop_namespace, offloaded, pod};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::quantity::parse;
use liquid_crds::{NamespaceOffloading, condition};
use liquid_scenarios::{Cluster, Environment, Look, TEST_IMAGE};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(120);

async fn change(home: &Cluster, namespace: &str, spec: Value) -> anyhow::Result<()> {
    let api: Api<NamespaceOffloading> = Api::namespaced(home.client.clone(), namespace);
    api.patch("offloading", &PatchParams::default(), &Patch::Merge(&json!({ "spec": spec }))).await?;
    Ok(())
}

/// Waits until the label of the namespace says that pods are bound, or are not: by it the webhook is called.
async fn wait_for_label(home: &Cluster, namespace: &str, expected: &str) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(home.client.clone());
    home.wait(&format!("label of {namespace}: {expected}"), SOON, || async {
        let label = api.get(namespace).await?.labels().get("liquid.mesh/offloading").cloned();
        Ok(if label.as_deref() == Some(expected) {
            Look::Done(())
        } else {
            Look::NotYet(format!("{label:?}"))
        })
    })
    .await
}

async fn node_of(home: &Cluster, namespace: &str, name: &str) -> anyhow::Result<Option<String>> {
    let pod: Pod = Api::namespaced(home.client.clone(), namespace).get(name).await?;
    Ok(pod.spec.and_then(|spec| spec.node_name))
}

/// Waits until the scheduler has said that the pod fits nowhere.
async fn wait_for_unschedulable(home: &Cluster, namespace: &str, name: &str) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), namespace);
    home.wait(&format!("{name} fits nowhere"), SOON, || async {
        let status = pods.get(name).await?.status.unwrap_or_default();
        let scheduled = status.conditions.into_iter().flatten().find(|c| c.type_ == "PodScheduled");
        let reason = scheduled.and_then(|c| c.reason);
        Ok(if reason.as_deref() == Some("Unschedulable") {
            Look::Done(())
        } else {
            Look::NotYet(format!("{reason:?}"))
        })
    })
    .await
}

/// An ordinary pod that says nothing of nodes.
fn plain(name: &str) -> String {
    pod(name, FOREVER).replace("  nodeSelector: {liquid.mesh/type: virtual-node}\n", "")
}

/// Would catch: a changed placement or selector that moves or ends pods there are, or that new ones do not follow; a
/// namespace that is taken from a provider while pods are there, that stays for ever, or does not come back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_changed_placement_holds_for_new_pods() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "changing").await?;
    home.apply("changing", &pod("early", FOREVER)).await?;
    let early = home.wait_for_pods("changing", "app=early", 1, SOON).await?[0].uid();

    change(home, "changing", json!({ "podPlacement": "Local" })).await?;
    wait_for_label(home, "changing", "enabled").await?;
    home.apply("changing", &pod("local", FOREVER)).await?;
    wait_for_unschedulable(home, "changing", "local").await?;
    change(home, "changing", json!({ "podPlacement": "Remote" })).await?;
    wait_for_label(home, "changing", "binding").await?;
    home.apply("changing", &plain("remote")).await?;
    home.wait_for_pods("changing", "app=remote", 1, SOON).await?;
    assert_eq!(node_of(home, "changing", "remote").await?.as_deref(), Some("liquid-provider"));
    // One that still waits for a node may go there, too.
    home.wait_for_pods("changing", "app=local", 1, SOON).await?;
    assert_eq!(home.wait_for_pods("changing", "app=early", 1, SOON).await?[0].uid(), early);

    // No virtual node is selected any more: what runs goes on, and nothing new gets there.
    change(home, "changing", json!({ "virtualNodeSelector": { "matchLabels": { "region": "nowhere" } } }))
        .await?;
    let offloadings: Api<NamespaceOffloading> = Api::namespaced(home.client.clone(), "changing");
    home.wait("the namespace is to be given up", SOON, || async {
        let status = offloadings.get("offloading").await?.status.unwrap_or_default();
        let generation = condition(&status.conditions, "Ready").and_then(|ready| ready.observed_generation);
        let current = offloadings.get("offloading").await?.metadata.generation;
        Ok(if generation == current { Look::Done(()) } else { Look::NotYet(format!("{generation:?}")) })
    })
    .await?;
    home.apply("changing", &plain("nowhere")).await?;
    wait_for_unschedulable(home, "changing", "nowhere").await?;
    assert_eq!(home.wait_for_pods("changing", "app=early", 1, SOON).await?[0].uid(), early);
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "changing");
    let there: Api<Namespace> = Api::all(provider.client.clone());
    assert!(there.get_opt("changing-home").await?.is_some(), "pods are there");
    for name in ["early", "local", "remote"] {
        pods.delete(name, &DeleteParams::default()).await?;
    }
    provider
        .wait("the namespace goes with its last pod", SOON, || async {
            let left = there.get_opt("changing-home").await?.is_some();
            Ok(if left { Look::NotYet("it is still there".to_owned()) } else { Look::Done(()) })
        })
        .await?;

    change(home, "changing", json!({ "virtualNodeSelector": null, "podPlacement": "LocalAndRemote" }))
        .await?;
    wait_for_label(home, "changing", "enabled").await?;
    home.apply("changing", &pod("late", FOREVER)).await?;
    home.wait_for_pods("changing", "app=late", 1, SOON).await?;
    drop_namespace(home, "changing").await
}

/// Would catch: a namespace under another name in the provider than was asked for.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_namespace_has_the_name_in_the_provider_that_was_asked_for() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let cases: [(&str, &[&str], &str); 2] = [
        ("same-there", &["--remote-name-strategy", "same-name"], "same-there"),
        ("other-there", &["--remote-name", "chosen-there"], "chosen-there"),
    ];
    for (name, options, remote) in cases {
        home.delete_namespace(name).await?;
        home.create_namespace(name).await?;
        let arguments = [&["offload", "namespace", name][..], options].concat();
        home.liquidctl.run(arguments).await?.ok()?;
        home.apply(name, &pod("web", FOREVER)).await?;
        home.wait_for_pods(name, "app=web", 1, SOON).await?;
        provider.wait_for_pods(remote, "app=web", 1, SOON).await?;
        let renamed = home.liquidctl.run(["offload", "namespace", name, "--remote-name", "renamed"]).await?;
        assert_ne!(renamed.code, 0, "a namespace cannot be renamed while it is offloaded");
    }
    for (name, _, _) in cases {
        drop_namespace(home, name).await?;
    }
    Ok(())
}

/// Would catch: a namespace whose pods stay Pending although there is room in the provider, and one that goes there before
/// home is full.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn what_does_not_fit_at_home_overflows() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "burst").await?;
    let nodes: Api<Node> = Api::all(home.client.clone());
    let physical = nodes.list(&ListParams::default().labels("!liquid.mesh/type")).await?.items;
    let [physical] = physical.as_slice() else { anyhow::bail!("this needs one physical node at home") };
    let memory = |node: &Node| {
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        allocatable.and_then(|all| parse(all.get("memory")?).ok()).context("no memory")
    };
    let on_it = ListParams::default().fields(&format!("spec.nodeName={}", physical.name_any()));
    let used: i128 = Api::<Pod>::all(home.client.clone())
        .list(&on_it)
        .await?
        .iter()
        .flat_map(|pod| pod.spec.iter().flat_map(|spec| &spec.containers))
        .filter_map(|container| parse(container.resources.as_ref()?.requests.as_ref()?.get("memory")?).ok())
        .sum();
    let free = (memory(physical)? - used) / 1000;
    // Two of them fit, three do not. Nothing of it is used.
    let each = free * 2 / 5;
    let manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "burst" },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": "burst" } },
            "template": {
                "metadata": { "labels": { "app": "burst" } },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
                        "weight": 100,
                        "preference": { "matchExpressions": [
                            { "key": "liquid.mesh/type", "operator": "NotIn", "values": ["virtual-node"] },
                        ]},
                    }]}},
                    "containers": [{
                        "name": "main", "image": TEST_IMAGE, "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c", FOREVER],
                        "resources": { "requests": { "memory": each.to_string(), "cpu": "1m" } },
                    }],
                },
            },
        },
    });
    home.apply("burst", &manifest.to_string()).await?;
    let pods = home.wait_for_pods("burst", "app=burst", 3, SOON).await?;
    let remote = pods.iter().filter(|pod| {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("liquid-provider")
    });
    assert_eq!(remote.count(), 1, "two fit at home");
    drop_namespace(home, "burst").await
}
