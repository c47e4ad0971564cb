//! Virtual nodes as administrators treat nodes.

use crate::manifests::{FOREVER, deployment, drop_namespace, offloaded, pod};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::{ShadowPod, VirtualNode, VirtualNodeSpec, condition};
use liquid_scenarios::{Environment, Look, TEST_IMAGE};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(120);
const NODE: &str = "liquid-provider";

/// Would catch: a kubelet that undoes `kubectl cordon` and `kubectl taint` with its next write, and labels that stay on the
/// Node after they were taken out of the VirtualNode.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn what_administrators_write_into_the_node_stays() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    let nodes: Api<Node> = Api::all(home.client.clone());
    let virtual_nodes: Api<VirtualNode> = Api::all(home.client.clone());
    home.kubectl.run(["cordon", NODE]).await?.ok()?;
    home.kubectl.run(["taint", "node", NODE, "example.org/maintenance=yes:NoSchedule"]).await?.ok()?;

    for (value, expected) in [(json!("gold"), Some("gold")), (json!(null), None)] {
        let patch = json!({ "spec": { "labels": { "tier": value } } });
        virtual_nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        let node = home
            .wait("the Node follows the VirtualNode", SOON, || async {
                let node = nodes.get(NODE).await?;
                let tier = node.labels().get("tier").map(String::as_str);
                let followed = tier == expected;
                Ok(if followed { Look::Done(node) } else { Look::NotYet(format!("tier={tier:?}")) })
            })
            .await?;
        let spec = node.spec.context("no spec")?;
        assert_eq!(spec.unschedulable, Some(true), "still cordoned");
        let taints: Vec<String> = spec.taints.into_iter().flatten().map(|taint| taint.key).collect();
        for key in ["example.org/maintenance", "liquid.mesh/virtual-node"] {
            assert!(taints.iter().any(|taint| taint == key), "{key} is missing in {taints:?}");
        }
    }
    home.kubectl.run(["taint", "node", NODE, "example.org/maintenance-"]).await?.ok()?;
    home.kubectl.run(["uncordon", NODE]).await?.ok()?;
    home.wait_for_node(NODE, true, SOON).await?;
    Ok(())
}

/// Would catch: pods of a physical node that are sent to a provider or deleted because a VirtualNode has its name.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_virtual_node_with_the_name_of_a_real_one_touches_nothing() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "conflict").await?;
    let real = Api::<Node>::all(home.client.clone())
        .list(&ListParams::default().labels("!liquid.mesh/type"))
        .await?;
    let real = real.items.first().context("no physical node")?.name_any();
    let pod = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: local, labels: {{app: local}}}}
spec:
  nodeName: {real}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {TEST_IMAGE}, imagePullPolicy: IfNotPresent, command: [sh, -c, {FOREVER:?}]}}]
"#
    );
    home.apply("conflict", &pod).await?;
    let before = home.wait_for_pods("conflict", "app=local", 1, SOON).await?[0].uid();

    let virtual_nodes: Api<VirtualNode> = Api::all(home.client.clone());
    let spec = VirtualNodeSpec { peer: "provider".to_owned(), ..VirtualNodeSpec::default() };
    virtual_nodes.create(&PostParams::default(), &VirtualNode::new(&real, spec)).await?;
    home.wait("the conflict is named", SOON, || async {
        let node = virtual_nodes.get(&real).await?;
        let conditions = node.status.map(|status| status.conditions).unwrap_or_default();
        let reason = condition(&conditions, "Ready").map(|ready| ready.reason.clone());
        let named = reason.as_deref() == Some("NameConflict");
        Ok(if named { Look::Done(()) } else { Look::NotYet(format!("{reason:?}")) })
    })
    .await?;
    let shadows: Api<ShadowPod> = Api::namespaced(provider.client.clone(), "conflict-home");
    assert!(shadows.list(&ListParams::default()).await?.iter().all(|shadow| shadow.name_any() != "local"));

    virtual_nodes.delete(&real, &DeleteParams::default()).await?;
    home.wait("the VirtualNode goes", SOON, || async {
        let left = virtual_nodes.get_opt(&real).await?;
        Ok(if left.is_none() { Look::Done(()) } else { Look::NotYet("it is still there".to_owned()) })
    })
    .await?;
    let after: Pod = Api::namespaced(home.client.clone(), "conflict").get("local").await?;
    assert_eq!((after.uid(), after.metadata.deletion_timestamp), (before, None));
    home.wait_for_node(&real, true, SOON).await?;
    drop_namespace(home, "conflict").await
}

/// Would catch: extended resources that are not lent, or stay on the Node when there are none any more; a provider whose
/// architectures nobody sees.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn extended_resources_and_architectures_of_the_provider_are_on_the_node() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "extended").await?;
    let physical = Api::<Node>::all(provider.client.clone())
        .list(&ListParams::default().labels("!liquid.mesh/type"))
        .await?;
    let physical = physical.items.into_iter().next().context("no physical node")?;
    let advertise = |operation: &str| {
        let patch = format!(
            r#"[{{"op": "{operation}", "path": "/status/capacity/example.org~1gpu", "value": "2"}}]"#
        );
        let (kubectl, name) = (provider.kubectl.clone(), physical.name_any());
        async move {
            let patch = ["patch", "node", &name, "--subresource=status", "--type=json", "-p", &patch];
            kubectl.run(patch).await?.ok()
        }
    };
    let nodes: Api<Node> = Api::all(home.client.clone());
    let wait_for = |wanted: Option<&'static str>| {
        let nodes = nodes.clone();
        home.wait("the resource on the virtual node", SOON, move || {
            let nodes = nodes.clone();
            async move {
                let status = nodes.get(NODE).await?.status.context("no status")?;
                let found =
                    status.capacity.and_then(|mut all| all.remove("example.org/gpu")).map(|gpu| gpu.0);
                Ok(if found.as_deref() == wanted {
                    Look::Done(())
                } else {
                    Look::NotYet(format!("{found:?}"))
                })
            }
        })
    };
    advertise("add").await?;
    wait_for(Some("2")).await?;
    let needy = pod("needy", FOREVER).replace(
        "      imagePullPolicy: IfNotPresent\n",
        "      imagePullPolicy: IfNotPresent\n      resources: {limits: {example.org/gpu: 1}}\n",
    );
    home.apply("extended", &needy).await?;
    home.wait_for_pods("extended", "app=needy", 1, SOON).await?;
    drop_namespace(home, "extended").await?;
    provider.settled().await?;
    let info = physical.status.clone().and_then(|status| status.node_info);
    let physical_architecture = info.context("no info")?.architecture;
    let label = format!("arch.liquid.mesh/{physical_architecture}");
    assert_eq!(nodes.get(NODE).await?.labels().get(&label).map(String::as_str), Some("true"));
    advertise("remove").await?;
    wait_for(None).await
}

/// Would catch: a removal that takes all pods at once whatever their budgets say, and one that waits for ever.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn the_removal_of_a_virtual_node_heeds_budgets_until_its_deadline() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "drain").await?;
    let virtual_nodes: Api<VirtualNode> = Api::all(home.client.clone());
    let spec = VirtualNodeSpec {
        peer: "provider".to_owned(),
        labels: BTreeMap::from([("tier".to_owned(), "drained".to_owned())]),
        drain_timeout_seconds: Some(20),
        ..VirtualNodeSpec::default()
    };
    virtual_nodes.create(&PostParams::default(), &VirtualNode::new("drained", spec)).await?;
    home.wait("the second node", SOON, || async {
        home.wait_for_node("drained", true, SOON).await?;
        Ok(Look::Done(()))
    })
    .await?;
    // All begin on the node that is going to be removed, and may go elsewhere.
    home.kubectl.run(["cordon", "-l", "tier!=drained"]).await?.ok()?;
    let (required, any) = (
        "requiredDuringSchedulingIgnoredDuringExecution",
        "{key: liquid.mesh/type, operator: In, values: [virtual-node]}",
    );
    let anywhere = "{key: kubernetes.io/os, operator: In, values: [linux]}";
    let web = deployment("web", 2, FOREVER).replace(any, anywhere);
    assert!(web.contains(required) && web.contains(anywhere));
    home.apply("drain", &web).await?;
    home.apply("drain", &pod("pinned", FOREVER)).await?;
    for name in ["web", "pinned"] {
        let budget = format!(
            "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {{name: {name}}}\nspec: {{minAvailable: 1, selector: {{matchLabels: {{app: {name}}}}}}}\n"
        );
        home.apply("drain", &budget).await?;
    }
    let began = home.wait_for_pods("drain", "app=web", 2, SOON).await;
    let pinned = home.wait_for_pods("drain", "app=pinned", 1, SOON).await;
    home.kubectl.run(["uncordon", "-l", "tier!=drained"]).await?.ok()?;
    for pod in began?.into_iter().chain(pinned?) {
        assert_eq!(pod.spec.context("no spec")?.node_name.as_deref(), Some("drained"));
    }
    // The budget controller has seen them.
    home.wait("both budgets", SOON, || async {
        let budgets = home.kubectl.run([
            "get",
            "pdb",
            "-n",
            "drain",
            "-o",
            "jsonpath={.items[*].status.currentHealthy}",
        ]);
        let healthy = budgets.await?.ok()?;
        Ok(if healthy.split_whitespace().collect::<Vec<_>>() == ["1", "2"] {
            Look::Done(())
        } else {
            Look::NotYet(healthy)
        })
    })
    .await?;

    let removed = std::time::Instant::now();
    virtual_nodes.delete("drained", &DeleteParams::default()).await?;
    home.wait("the pods of web move, one after the other", SOON, || async {
        let pods = home.pods("drain", "app=web").await?;
        let ready = |pod: &&Pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            pod.metadata.deletion_timestamp.is_none()
                && conditions.clone().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let states =
            pods.iter().map(|pod| format!("{} {:?}", pod.name_any(), pod.status)).collect::<Vec<_>>();
        assert!(pods.iter().filter(ready).count() >= 1, "after {:?}: {states:?}", removed.elapsed());
        let elsewhere = pods.iter().filter(ready).filter(|pod| {
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| node != "drained")
        });
        let moved = elsewhere.count();
        Ok(if moved == 2 { Look::Done(()) } else { Look::NotYet(format!("{moved} have moved")) })
    })
    .await?;
    let pinned: Api<Pod> = Api::namespaced(home.client.clone(), "drain");
    if removed.elapsed() < Duration::from_secs(15) {
        assert!(pinned.get("pinned").await?.metadata.deletion_timestamp.is_none(), "its budget holds it");
        let node = virtual_nodes.get("drained").await?;
        let conditions = node.status.map(|status| status.conditions).unwrap_or_default();
        let message = condition(&conditions, "Ready").map(|c| c.message.clone()).unwrap_or_default();
        assert!(message.contains("PodDisruptionBudget"), "{message}");
    }
    home.wait("the node is gone", SOON, || async {
        let left = virtual_nodes.get_opt("drained").await?;
        Ok(if left.is_none() { Look::Done(()) } else { Look::NotYet("it is still there".to_owned()) })
    })
    .await?;
    assert!(removed.elapsed() >= Duration::from_secs(19), "after {:?}", removed.elapsed());
    assert!(pinned.get_opt("pinned").await?.is_none());
    drop_namespace(home, "drain").await
}
