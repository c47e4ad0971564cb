//! Pods that are changed while they run.

use crate::manifests::{FOREVER, drop_namespace, offloaded, pod};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use liquid_scenarios::{Environment, Look, TEST_IMAGE};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Would catch: ephemeral containers that stay at home, that end what runs, or that nobody can talk to.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn kubectl_debug_reaches_a_remote_pod() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "debug").await?;
    home.apply("debug", &pod("web", FOREVER)).await?;
    home.wait_for_pods("debug", "app=web", 1, SOON).await?;
    let before = provider.wait_for_pods("debug-home", "app=web", 1, SOON).await?[0].uid();
    let image = format!("--image={TEST_IMAGE}");
    let debug =
        ["debug", "-n", "debug", "web", &image, "-c", "probe", "--image-pull-policy=IfNotPresent", "-q"];
    let script = ["--", "sh", "-c", "echo from the debugger; exec sleep 600"];
    home.kubectl.run(debug.into_iter().chain(script)).await?.ok()?;
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "debug");
    home.wait("the ephemeral container runs", SOON, || async {
        let status = pods.get("web").await?.status.context("no status")?;
        let debuggers = status.ephemeral_container_statuses.clone().unwrap_or_default();
        let runs = debuggers.iter().any(|c| c.state.as_ref().is_some_and(|state| state.running.is_some()));
        Ok(if runs { Look::Done(()) } else { Look::NotYet(format!("{debuggers:?} {:?}", status.message)) })
    })
    .await?;
    let logs = home.kubectl.run(["logs", "-n", "debug", "web", "-c", "probe"]).await?.ok()?;
    assert_eq!(logs, "from the debugger\n");
    let exec = ["exec", "-n", "debug", "web", "-c", "probe", "--", "hostname"];
    assert_eq!(home.kubectl.run(exec).await?.ok()?, "web\n");
    let after = provider.wait_for_pods("debug-home", "app=web", 1, SOON).await?;
    assert_eq!(before, after[0].uid(), "the same pod");
    let restarts = after[0].status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    assert_eq!(restarts.map(|c| c.restart_count).sum::<i32>(), 0);
    drop_namespace(home, "debug").await
}

/// Would catch: a resize that only home knows of, that ends the container, or whose progress stays after it is over.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_remote_pod_is_resized_in_place() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "resize").await?;
    let sized = pod("web", FOREVER).replace(
        "      imagePullPolicy: IfNotPresent\n",
        "      imagePullPolicy: IfNotPresent\n      resources: {requests: {cpu: 10m}, limits: {cpu: 50m}}\n",
    );
    home.apply("resize", &sized).await?;
    home.wait_for_pods("resize", "app=web", 1, SOON).await?;
    let resize = |cpu: &str| {
        let resources = format!(r#"{{"requests": {{"cpu": "{cpu}"}}, "limits": {{"cpu": "{cpu}"}}}}"#);
        let patch =
            format!(r#"{{"spec": {{"containers": [{{"name": "main", "resources": {resources}}}]}}}}"#);
        let kubectl = home.kubectl.clone();
        async move {
            kubectl
                .run(["patch", "pod", "-n", "resize", "web", "--subresource", "resize", "-p", &patch])
                .await?
                .ok()
        }
    };
    resize("70m").await?;
    for (cluster, namespace) in [(provider, "resize-home"), (home, "resize")] {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let what = format!("the container has 70m in {namespace}");
        let pod = cluster
            .wait(&what, SOON, || async {
                let pod = pods.get("web").await?;
                let status = pod.status.clone().context("no status")?;
                let main = status.container_statuses.iter().flatten().next().context("no container")?;
                let actual = main.resources.as_ref().and_then(|r| r.limits.as_ref()?.get("cpu"));
                let over = !status.conditions.iter().flatten().any(|c| c.type_.starts_with("PodResize"));
                let resized = actual.is_some_and(|cpu| cpu.0 == "70m") && over;
                Ok(if resized {
                    Look::Done(pod)
                } else {
                    Look::NotYet(format!("{actual:?} {:?}", status.message))
                })
            })
            .await?;
        let main = pod.status.context("no status")?.container_statuses.context("no containers")?.remove(0);
        assert_eq!(main.restart_count, 0);
        assert_eq!(
            main.allocated_resources.and_then(|mut r| r.remove("cpu")).map(|cpu| cpu.0).as_deref(),
            Some("70m")
        );
    }
    // More than any node has, and less than all of them: the provider's kubelet says so, and the user at home hears it.
    let physical = Api::<Node>::all(provider.client.clone())
        .list(&ListParams::default().labels("!liquid.mesh/type"))
        .await?;
    let cpu = physical.items.first().and_then(|node| node.status.as_ref()?.capacity.as_ref()?.get("cpu"));
    let cores: u32 = cpu.context("no node with a capacity")?.0.parse()?;
    if physical.items.len() > 1 {
        resize(&format!("{}m", cores * 1500)).await?;
        let pods: Api<Pod> = Api::namespaced(home.client.clone(), "resize");
        home.wait("the resize is not possible", SOON, || async {
            let conditions =
                pods.get("web").await?.status.and_then(|status| status.conditions).unwrap_or_default();
            let pending = conditions.iter().find(|c| c.type_ == "PodResizePending");
            Ok(match pending.and_then(|c| c.reason.as_deref()) {
                Some("Infeasible") => Look::Done(()),
                _ => Look::NotYet(format!("{conditions:?}")),
            })
        })
        .await?;
    }
    // More than the virtual node is offered: the provider does not take it over, and says so.
    resize("100000").await?;
    let events: Api<Event> = Api::namespaced(home.client.clone(), "resize");
    home.wait("the resize is refused", SOON, || async {
        let events = events.list(&ListParams::default().fields("reason=QuotaExceeded")).await?.items;
        let told = events
            .iter()
            .filter_map(|event| event.message.as_ref())
            .any(|message| message.contains("cpu=100000"));
        Ok(if told { Look::Done(()) } else { Look::NotYet(format!("{events:?}")) })
    })
    .await?;
    drop_namespace(home, "resize").await
}
