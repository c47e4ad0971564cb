//! What the pods of a virtual node use, where Kubernetes looks for it.

use crate::kubelet_api::kubelet_address;
use crate::manifests::{FOREVER, deployment, drop_namespace, offloaded, pod};
use anyhow::Context as _;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{Api, ResourceExt as _};
use liquid_lab::Progress;
use liquid_scenarios::{Cluster, Environment, Look, Program};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// Kubelets measure a new container after 10 to 20 s, metrics-server needs two readings 15 s apart, and the autoscaler
/// looks every 15 s.
const MEASURED: Duration = Duration::from_secs(150);
const NODE: &str = "liquid-provider";
/// Keeps a processor as busy as the limit of its container allows.
const BUSY: &str = "while :; do :; done";

async fn of_node(home: &Cluster, path: &str) -> anyhow::Result<String> {
    let path = format!("/api/v1/nodes/{NODE}/proxy/{path}");
    home.kubectl.run(["get", "--raw", &path]).await?.ok()
}

/// Would catch: a node without its pods, figures under names of the provider, figures of pods that are not the
/// consumer's, a sum that is none.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_virtual_node_tells_what_its_pods_use() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "figures").await?;
    let probed = pod("busy", BUSY).replace(
        "      imagePullPolicy: IfNotPresent\n",
        "      imagePullPolicy: IfNotPresent\n      resources: {limits: {cpu: 100m, memory: 32Mi}}\n      \
         livenessProbe: {exec: {command: [\"true\"]}, periodSeconds: 1}\n",
    );
    home.apply("figures", &probed).await?;
    // It runs in the provider too, and is none of home's business.
    provider
        .apply(
            "default",
            &pod("private", FOREVER).replace("  nodeSelector: {liquid.mesh/type: virtual-node}\n", ""),
        )
        .await?;
    let uid = home.wait_for_pods("figures", "app=busy", 1, SOON).await?[0].uid().context("no UID")?;

    assert_eq!(of_node(home, "healthz").await?, "ok");
    for path in ["pods", "runningpods/"] {
        let list: Value = serde_json::from_str(&of_node(home, path).await?)?;
        assert_eq!(list["kind"], "PodList", "{path}");
        let items = list["items"].as_array().context("no items")?;
        assert!(items.iter().any(|item| item["metadata"]["uid"] == uid.as_str()), "{path}: {list}");
    }
    let summary = home
        .wait("processor time in the summary", MEASURED, || async {
            let summary: Value = serde_json::from_str(&of_node(home, "stats/summary").await?)?;
            let cpu = summary["node"]["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap_or(0);
            Ok(if cpu > 0 { Look::Done(summary) } else { Look::NotYet(summary.to_string()) })
        })
        .await?;
    let pods = summary["pods"].as_array().context("no pods")?;
    let busy = pods.iter().find(|pod| pod["podRef"]["uid"] == uid.as_str()).context("the pod is missing")?;
    assert_eq!((&busy["podRef"]["namespace"], &busy["podRef"]["name"]), (&"figures".into(), &"busy".into()));
    assert!(pods.iter().all(|pod| pod["podRef"]["name"] != "private"));
    assert_eq!(summary["node"]["nodeName"], NODE);
    let sum = |field: &str| pods.iter().filter_map(|pod| pod["memory"][field].as_u64()).sum::<u64>();
    assert_eq!(summary["node"]["memory"]["workingSetBytes"].as_u64(), Some(sum("workingSetBytes")));

    let resource = of_node(home, "metrics/resource").await?;
    let ours = r#"{container="main",namespace="figures",pod="busy"}"#;
    for line in [
        format!("container_cpu_usage_seconds_total{ours} "),
        format!("container_memory_working_set_bytes{ours} "),
        "node_cpu_usage_seconds_total ".to_owned(),
    ] {
        assert!(resource.lines().any(|found| found.starts_with(&line)), "{line} is not in\n{resource}");
    }
    let cadvisor = of_node(home, "metrics/cadvisor").await?;
    assert!(cadvisor.contains(r#"namespace="figures",pod="busy""#), "{cadvisor}");
    assert!(!cadvisor.contains("figures-home") && !cadvisor.contains("private"), "{cadvisor}");
    let probes = of_node(home, "metrics/probes").await?;
    assert!(probes.contains(&format!(r#"pod_uid="{uid}""#)), "{probes}");
    provider.kubectl.run(["delete", "pod", "-n", "default", "private", "--wait=false"]).await?.ok()?;
    drop_namespace(home, "figures").await
}

/// Would catch: a right to metrics that opens more than metrics, and the finer rights of newer Kubernetes not known.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn each_part_of_the_kubelet_api_needs_its_own_right() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "rights").await?;
    let node = home.wait_for_node(NODE, true, SOON).await?;
    let address = kubelet_address(node)?;
    let lab = environment.lab.as_ref().context("this needs the lab")?;
    let netns = lab.cluster("a")?.nodes().into_iter().next().context("no node")?.netns();
    for (subresource, allowed) in [
        ("metrics", vec!["metrics/resource", "metrics/cadvisor", "metrics/probes"]),
        ("stats", vec!["stats/summary"]),
        ("pods", vec!["pods", "runningpods/"]),
        ("healthz", vec!["healthz", "healthz/ping"]),
        ("proxy", vec!["pods", "runningpods/", "healthz", "healthz/ping"]),
    ] {
        let role = format!("liquid-scenario-{subresource}");
        let resource = format!("--resource=nodes/{subresource}");
        home.kubectl.run(["create", "serviceaccount", "-n", "rights", subresource]).await?.ok()?;
        home.kubectl.run(["create", "clusterrole", &role, "--verb=get", &resource]).await?.ok()?;
        let (to, account) =
            (format!("--clusterrole={role}"), format!("--serviceaccount=rights:{subresource}"));
        home.kubectl.run(["create", "clusterrolebinding", &role, &to, &account]).await?.ok()?;
        let token = home.kubectl.run(["create", "token", "-n", "rights", subresource]).await?.ok()?;
        let header = format!("Authorization: Bearer {}", token.trim());
        for path in [
            "metrics/resource",
            "metrics/cadvisor",
            "metrics/probes",
            "stats/summary",
            "pods",
            "runningpods/",
            "healthz",
            "healthz/ping",
            "containerLogs/rights/x/main",
        ] {
            let url = format!("https://{address}/{path}");
            let curl =
                ["netns", "exec", &netns, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H"];
            let code = Program::new("ip")
                .run(curl.into_iter().chain([header.as_str(), url.as_str()]))
                .await?
                .ok()?;
            let expected = match path {
                // It gets as far as the pod, which does not exist.
                "containerLogs/rights/x/main" if subresource == "proxy" => "404",
                path if allowed.contains(&path) => "200",
                _ => "403",
            };
            assert_eq!(code.trim(), expected, "{path} with nodes/{subresource}");
        }
        home.kubectl.run(["delete", "clusterrole,clusterrolebinding", &role]).await?.ok()?;
    }
    drop_namespace(home, "rights").await
}

/// Would catch: figures that metrics-server does not take, times that stand still, rates that are not true.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn kubectl_top_and_an_autoscaler_work_on_remote_pods() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    let lab = environment.lab.clone().context("this needs the lab")?;
    tokio::task::spawn_blocking(move || lab.cluster("a")?.install_metrics_server(&Progress::new())).await??;
    offloaded(home, "scaled").await?;
    let limited = "resources: {requests: {cpu: 50m, memory: 4Mi}, limits: {cpu: 100m}}";
    let web = deployment("web", 1, BUSY).replace("resources: {requests: {cpu: 1m, memory: 4Mi}}", limited);
    home.apply("scaled", &web).await?;
    let autoscale = ["autoscale", "-n", "scaled", "deployment/web", "--min=1", "--max=2", "--cpu=60%"];
    home.kubectl.run(autoscale).await?.ok()?;
    home.wait_for_pods("scaled", "app=web", 1, SOON).await?;

    let used = home
        .wait("kubectl top pod", MEASURED, || async {
            let top = home.kubectl.run(["top", "pod", "-n", "scaled", "--no-headers"]).await?.ok()?;
            let millicores =
                top.split_whitespace().nth(1).and_then(|cpu| cpu.trim_end_matches('m').parse().ok());
            Ok(millicores.filter(|m| *m > 0).map_or(Look::NotYet(top), |m: u32| Look::Done(m)))
        })
        .await?;
    // The first interval may hold the start of the container.
    assert!((20..=130).contains(&used), "{used}m of a limit of 100m");
    println!("kubectl top pod: {used}m of a limit of 100m");
    home.wait("kubectl top node", MEASURED, || async {
        let top = home.kubectl.run(["top", "node", NODE, "--no-headers"]).await?.ok()?;
        let millicores = top.split_whitespace().nth(1).and_then(|cpu| cpu.trim_end_matches('m').parse().ok());
        Ok(match millicores {
            Some(20..=1000_u32) => Look::Done(()),
            _ => Look::NotYet(top),
        })
    })
    .await?;
    let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(home.client.clone(), "scaled");
    home.wait("the autoscaler makes it two", MEASURED, || async {
        let status = autoscalers.get("web").await?.status.context("no status")?;
        Ok(if status.desired_replicas == 2 { Look::Done(()) } else { Look::NotYet(format!("{status:?}")) })
    })
    .await?;
    home.wait_for_pods("scaled", "app=web", 2, SOON).await?;
    drop_namespace(home, "scaled").await
}
