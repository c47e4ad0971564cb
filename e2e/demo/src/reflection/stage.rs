//! Two control planes with Liquid beside them, peered.
//!
//! There are no nodes a pod could run on, so Liquid's processes are started by the benchmark: the programs of the image, in
//! the network of the machine their cluster's control plane is on, with the rights and Services of the chart and tokens of
//! its service accounts. Their pods are there too, on a fake node: Services find them by that, and the approval of serving
//! certificates. What a home pod becomes runs on fake nodes of the provider.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::PostParams;
use liquid_crds::vocabulary::CLUSTER_INFO;
use liquid_lab::{FakeNodes, Lab, Progress, Traffic};
use liquid_scenarios::{Cluster, Look, Program, wait};
use serde_json::{Value, json};

use super::audit::Audit;
use super::process::{self, Process, Usage};

/// Namespace Liquid runs in.
const NAMESPACE: &str = "liquid-system";
/// Port of the link endpoint.
pub(crate) const LINK_PORT: u16 = 7443;
/// The virtual node at home.
pub(crate) const NODE: &str = "liquid-provider";
/// Offloaded namespace at home, and what it is called in the provider.
pub(crate) const OFFLOADED: &str = "bench";
pub(crate) const REMOTE: &str = "bench-home";
/// Namespace of the provider in which the same pods are created directly.
pub(crate) const DIRECT: &str = "direct";
/// Fake nodes of the provider: 16,000 pods.
const FAKE_NODES: u8 = 4;
/// Liquid's own pods need one.
const OWN_NODES: u8 = 1;
/// Longest wait for anything that takes a second or two.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Programs of Liquid that take part.
const CONTROLLER: &str = "liquid-controller";
const KUBELET: &str = "liquid-kubelet";

/// One of the two clusters.
pub(crate) struct Side<'a> {
    /// As its administrator sees it.
    pub(crate) cluster: Cluster,
    pub(crate) machine: liquid_lab::Node<'a>,
    pub(crate) controller: Process,
    pub(crate) kubelet: Process,
    pub(crate) audit: Audit,
    api_server: PathBuf,
    _fake: FakeNodes,
}

/// Both, peered.
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) home: Side<'a>,
    pub(crate) provider: Side<'a>,
    /// Where logs of the processes are.
    pub(crate) logs: PathBuf,
}

/// What peering took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peering {
    /// From the start of `liquidctl peer` to the Ready node.
    pub(crate) took: Duration,
    /// Bytes on the link until then.
    pub(crate) bytes: u64,
}

impl<'a> Stage<'a> {
    /// Starts everything but the peering.
    pub(crate) async fn set(lab: &'a Lab, programs: &Path, liquidctl: &Path) -> anyhow::Result<Self> {
        let logs = lab.layout().root().join("liquid");
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let side = |name, called, fakes| Side::set(lab, name, called, fakes, programs, liquidctl, &logs);
        let home = side("a", "home", OWN_NODES).await?;
        let provider = side("b", "provider", FAKE_NODES).await?;
        provider.cluster.create_namespace(DIRECT).await?;
        Ok(Self { lab, home, provider, logs })
    }

    /// Lets home borrow from the provider, and offloads a namespace.
    pub(crate) async fn peer(&self) -> anyhow::Result<Peering> {
        let (home, provider) = (&self.home.cluster, &self.provider.cluster);
        let token = provider.liquidctl.run(["invite"]).await?.ok()?;
        let (begun, before) = (Instant::now(), self.bytes()?);
        home.liquidctl.run(["peer", "out-of-band", "--token", token.trim()]).await?.ok()?;
        let peering = Peering { took: begun.elapsed(), bytes: self.bytes()? - before };
        home.create_namespace(OFFLOADED).await?;
        home.liquidctl.run(["offload", "namespace", OFFLOADED]).await?.ok()?;
        Ok(peering)
    }

    /// Bytes that have crossed the link so far, both ways, from the IP header on.
    pub(crate) fn bytes(&self) -> anyhow::Result<u64> {
        let Traffic { bytes_forth, bytes_back, .. } = self.lab.link("a", "b")?.traffic()?;
        Ok(bytes_forth + bytes_back)
    }

    /// Both sides with what tables call them.
    pub(crate) fn sides(&self) -> [(&'static str, &Side<'a>); 2] {
        [("home", &self.home), ("provider", &self.provider)]
    }

    /// Waits until the virtual node is Ready, or is not; returns when it was seen so.
    pub(crate) async fn node_ready(&self, ready: bool, limit: Duration) -> anyhow::Result<Instant> {
        self.home.cluster.wait_for_node(NODE, ready, limit).await?;
        Ok(Instant::now())
    }
}

impl<'a> Side<'a> {
    async fn set(
        lab: &'a Lab,
        name: &str,
        called: &str,
        fakes: u8,
        programs: &Path,
        liquidctl: &Path,
        logs: &Path,
    ) -> anyhow::Result<Self> {
        let of_lab = lab.cluster(name)?;
        let machine = of_lab.control_plane();
        let fake = of_lab.fake_nodes(fakes, &Progress::new())?;
        let kubectl = Program::new(lab.program("kubectl"));
        let liquidctl = Program::new(liquidctl).env("HELM", lab.program("helm"));
        let cluster = Cluster::connect(called, of_lab.kubeconfig(), kubectl, liquidctl).await?;
        install(&cluster).await?;
        let init = machine.pid().with_context(|| format!("machine {} is off", machine.name()))?;
        let start = async |program, port| start(&cluster, &machine, program, programs, logs, port).await;
        let controller = start(CONTROLLER, 9090).await?;
        published(&cluster).await?;
        let kubelet = start(KUBELET, 9190).await?;
        let log = of_lab.audit_log().context("the lab has no audit logs: lab up --audit")?;
        Ok(Self {
            audit: Audit::new(&log)?,
            api_server: process::of_machine(init, "kube-apiserver")?,
            _fake: fake,
            cluster,
            machine,
            controller,
            kubelet,
        })
    }

    /// Liquid's processes.
    pub(crate) fn processes(&self) -> [&Process; 2] {
        [&self.controller, &self.kubelet]
    }

    /// What the kernel counts of the API server.
    pub(crate) fn api_server(&self) -> anyhow::Result<Usage> {
        process::usage(&self.api_server)
    }
}

/// Everything of the chart but what only nodes can run.
async fn install(cluster: &Cluster) -> anyhow::Result<()> {
    let arguments = [
        "install",
        "--print-manifests",
        "--cluster-name",
        &cluster.name,
        "--image",
        "lab.local/none:1",
        "--link-service",
        "cluster-ip",
        "--set",
        "network.enabled=false",
    ];
    let manifests = cluster.liquidctl.run(arguments).await?.ok()?;
    cluster.create_namespace(NAMESPACE).await?;
    // Some of it is in other namespaces.
    let manifests = without_deployments(&manifests);
    cluster.kubectl.run_with_input(["apply", "-f", "-"], manifests.as_bytes()).await?.ok()?;
    Ok(())
}

fn without_deployments(manifests: &str) -> String {
    let documents = manifests.split("\n---\n");
    let kept = documents.filter(|document| !document.lines().any(|line| line == "kind: Deployment"));
    kept.collect::<Vec<_>>().join("\n---\n")
}

/// Starts a process of Liquid, with a pod that stands for it.
async fn start(
    cluster: &Cluster,
    machine: &liquid_lab::Node<'_>,
    program: &'static str,
    programs: &Path,
    logs: &Path,
    port: u16,
) -> anyhow::Result<Process> {
    let component = program.trim_start_matches("liquid-");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": program,
            "labels": { "app.kubernetes.io/name": "liquid", "app.kubernetes.io/component": component },
        },
        "spec": {
            "nodeName": "fake-0",
            "hostNetwork": true,
            "containers": [{
                "name": component,
                "image": "lab.local/none:1",
                "ports": [
                    { "name": "link", "containerPort": LINK_PORT },
                    { "name": "webhook", "containerPort": 8443 },
                ],
            }],
        },
    }))?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    pods.create(&PostParams::default(), &pod).await?;
    wait(&format!("pod {program} has its address"), LIMIT, || async {
        let address = pods.get(program).await?.status.and_then(|status| status.pod_ip);
        let found = address.as_deref() == Some(&machine.address().to_string());
        Ok(if found { Look::Done(()) } else { Look::NotYet(address.unwrap_or_default()) })
    })
    .await?;

    let arguments = ["create", "token", "-n", NAMESPACE, program, "--duration", "24h"];
    let token = cluster.kubectl.run(arguments).await?.ok()?;
    let admin: Value = serde_json::from_slice(&fs::read(&cluster.kubeconfig)?)?;
    let own = logs.join(format!("{}-{program}.kubeconfig", cluster.name));
    fs::write(&own, kubeconfig(admin, token.trim()).to_string())?;
    let authority = logs.join(format!("{}-ca.crt", cluster.name));
    let ca = ["config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"];
    let ca = cluster.kubectl.run(ca).await?.ok()?;
    fs::write(&authority, base64(ca.trim()).context("the kubeconfig holds no CA")?)?;

    let address = machine.address().to_string();
    let mut command = machine.network_command(programs.join(program));
    command
        .env("KUBECONFIG", &own)
        .env("LIQUID_POD_NAME", program)
        .env("LIQUID_NAMESPACE", NAMESPACE)
        .env("LIQUID_CLUSTER_NAME", &cluster.name)
        .env("LIQUID_ADVERTISE", format!("{address}:{LINK_PORT}"))
        .env("LIQUID_POD_IP", &address)
        .env("LIQUID_KUBELET_CLIENT_CA", &authority)
        .env("LIQUID_ADMIN_LISTEN", format!("0.0.0.0:{port}"))
        .env("LIQUID_CONTROL_LISTEN", format!("127.0.0.1:{}", port + 1));
    Process::start(program, command, &logs.join(format!("{}-{program}.log", cluster.name)))
}

/// The administrator's kubeconfig for another user.
fn kubeconfig(mut admin: Value, token: &str) -> Value {
    for user in admin["users"].as_array_mut().into_iter().flatten() {
        user["user"] = json!({ "token": token });
    }
    admin
}

fn base64(text: &str) -> Option<Vec<u8>> {
    // A Kubernetes type that is base64 in JSON: no other decoder is needed for one file.
    serde_json::from_value::<k8s_openapi::ByteString>(json!(text)).ok().map(|bytes| bytes.0)
}

async fn published(cluster: &Cluster) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    cluster
        .wait("liquid-controller leads", LIMIT, || async {
            let data = maps.get_opt(CLUSTER_INFO).await?.and_then(|map| map.data).unwrap_or_default();
            let reachable = data.get("endpoints").is_some_and(|endpoints| !endpoints.is_empty());
            Ok(if reachable { Look::Done(()) } else { Look::NotYet("nothing published".to_owned()) })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deployments_are_left_out_of_the_chart() {
        let manifests = "---\nkind: Service\n---\nkind: Deployment\nspec:\n  x: 1\n---\nkind: Role\n";
        let left = without_deployments(manifests);
        assert!(left.contains("kind: Service") && left.contains("kind: Role") && !left.contains("x: 1"));
    }

    #[test]
    fn a_process_has_no_rights_but_its_own() {
        let admin = json!({"clusters": [1], "users": [{"name": "u", "user": {"client-key-data": "k"}}]});
        let own = kubeconfig(admin, "t");
        assert_eq!(own["users"][0]["user"], json!({"token": "t"}));
        assert_eq!(own["clusters"], json!([1]));
    }
}
