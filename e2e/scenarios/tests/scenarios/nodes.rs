//! Virtual nodes as administrators treat nodes.

use crate::manifests::{FOREVER, drop_namespace, offloaded};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::{ShadowPod, VirtualNode, VirtualNodeSpec, condition};
use liquid_scenarios::{Environment, Look, TEST_IMAGE};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
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
    let spec = VirtualNodeSpec { peer: "provider".to_owned(), labels: BTreeMap::new(), taints: Vec::new() };
    virtual_nodes.create(&PostParams::default(), &VirtualNode::new(&real, spec)).await?;
    home.wait("the conflict is named", SOON, || async {
        let node = virtual_nodes.get(&real).await?;
        let conditions = node.status.map(|status| status.conditions).unwrap_or_default();
        let reason = condition(&conditions, "Ready").map(|ready| ready.reason.clone());
        let named = reason.as_deref() == Some("NameConflict");
        Ok(if named { Look::Done(()) } else { Look::NotYet(format!("{reason:?}")) })
    })
    .await?;
    let shadows: Api<ShadowPod> = Api::all(provider.client.clone());
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
