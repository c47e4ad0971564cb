//! A cluster of a running lab.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::anyhow;
use serde_json::Value;

use super::{Lab, Node};
use crate::Usage;
use crate::build::cache::Cache;
use crate::build::images::OnDemand;
use crate::build::toolchain::Toolchain;
use crate::cluster::api_client::{ApiClient, has_condition};
use crate::cluster::fake_nodes::{self, FakeNodes};
use crate::cluster::{addons, control_plane};
use crate::host::{command, wait};
use crate::network::topology::{self, Port};
use crate::plan::address::ClusterPlan;
use crate::plan::layout::lan_bridge;
use crate::progress::Progress;

/// metrics-server is ready when it has read every kubelet once: after one interval of 15 s.
const METRICS_LIMIT: Duration = Duration::from_secs(120);
/// A pod from an image that is there starts within seconds.
const POLICIES_LIMIT: Duration = Duration::from_secs(60);
/// Fake nodes are Ready half a second after they were made.
const FAKE_NODES_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// A cluster of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    lab: &'a Lab,
    plan: &'a ClusterPlan,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(lab: &'a Lab, plan: &'a ClusterPlan) -> Self {
        Self { lab, plan }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.plan.name.as_str()
    }

    /// Its addresses and ranges.
    #[must_use]
    pub fn addresses(&self) -> &'a ClusterPlan {
        self.plan
    }

    /// The administrator's kubeconfig; it works on the host and on every machine of the lab.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.lab.layout.kubeconfig(&self.plan.name)
    }

    /// The URL of its API server.
    #[must_use]
    pub fn server(&self) -> String {
        control_plane::server(self.plan)
    }

    /// A small synchronous client with the administrator's rights.
    ///
    /// # Errors
    /// If the kubeconfig is damaged.
    pub fn api(&self) -> anyhow::Result<ApiClient> {
        control_plane::admin(&self.lab.layout, self.plan)
    }

    /// Installs metrics-server, unless it is there, and waits until it serves its API. The first time on a machine it is
    /// built, which takes about as long as Kubernetes' client libraries take to compile: two to five minutes.
    ///
    /// # Errors
    /// If it cannot be built, or does not come up.
    pub fn install_metrics_server(&self, progress: &Progress) -> anyhow::Result<()> {
        let cache = Cache::open()?;
        let program = Toolchain::on_demand("metrics-server", &cache, progress)?;
        self.import(OnDemand::MetricsServer, &program, &cache, progress)?;
        let api = self.api()?;
        for object in addons::metrics_server() {
            api.apply(&object)?;
        }
        let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
        wait::until("the metrics API", METRICS_LIMIT, POLL, || {
            Ok(has_condition(&api.get(service)?, "Available").then_some(()))
        })
    }

    /// Puts an image with kubectl into all nodes.
    ///
    /// # Errors
    /// If a node does not take it.
    pub fn install_kubectl_image(&self, progress: &Progress) -> anyhow::Result<()> {
        let program = self.lab.program("kubectl");
        self.import(OnDemand::Kubectl, &program.canonicalize()?, &Cache::open()?, progress)
    }

    /// Has the NetworkPolicies of the cluster enforced on its nodes. The first time on a machine the enforcer is built, which
    /// takes about as long as Kubernetes' client libraries take to compile.
    ///
    /// # Errors
    /// If it cannot be built, or does not come up.
    pub fn enforce_network_policies(&self, progress: &Progress) -> anyhow::Result<()> {
        let cache = Cache::open()?;
        let program = Toolchain::on_demand("network-policies", &cache, progress)?;
        self.import(OnDemand::NetworkPolicies, &program, &cache, progress)?;
        let api = self.api()?;
        for object in addons::network_policies() {
            api.apply(&object)?;
        }
        let set = format!("/apis/apps/v1{}", addons::NETWORK_POLICIES_PATH);
        wait::until("the enforcer of NetworkPolicies", POLICIES_LIMIT, POLL, || {
            let set = api.get(&set)?;
            let (ready, wanted) = (&set["status"]["numberReady"], &set["status"]["desiredNumberScheduled"]);
            Ok((ready.as_u64() > Some(0) && ready == wanted).then_some(()))
        })?;
        // The enforcer asks for packets with an nftables expression that some kernels do not have.
        self.queue_packets(&["-C", "POSTROUTING"]).or_else(|_| self.queue_packets(&["-A", "POSTROUTING"]))
    }

    /// Ends what [`enforce_network_policies`](Self::enforce_network_policies) began.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn stop_enforcing_network_policies(&self) -> anyhow::Result<()> {
        self.queue_packets(&["-D", "POSTROUTING"])?;
        let mut delete = self.kubectl();
        delete.args([
            "delete",
            "daemonset",
            "-n",
            "kube-system",
            addons::NETWORK_POLICIES,
            "--ignore-not-found",
        ]);
        command::finish(&mut delete, None).map(drop)
    }

    /// Adds or removes the rule that hands first packets from and to pods to the enforcer, behind destination NAT and before
    /// source NAT; what a node itself sends to its pods (probes) is not its business. Without an enforcer, all pass.
    fn queue_packets(&self, place: &[&str]) -> anyhow::Result<()> {
        let first = ["-m", "conntrack", "--ctstate", "NEW", "-m", "addrtype", "!", "--src-type", "LOCAL"];
        let queue = ["-j", "NFQUEUE", "--queue-num", "100", "--queue-bypass"];
        for node in self.nodes().iter().filter(|node| node.is_running()) {
            let table = ["iptables", "-w", "-t", "mangle"];
            let words: Vec<&str> = [&table[..], place, &first[..], &queue[..]].concat();
            node.exec(&words)?;
        }
        Ok(())
    }

    fn import(
        &self,
        image: OnDemand,
        program: &Path,
        cache: &Cache,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let archive = image.write(program, cache, progress)?;
        self.nodes().iter().filter(|node| node.is_running()).try_for_each(|node| node.import_image(&archive))
    }

    /// Adds nodes without machines behind them: they are Ready, and what is bound to them is Running as soon as it is, and
    /// gone as soon as it is deleted. They last as long as what is returned. The program behind them (kwok) is built the
    /// first time on a machine, which takes about three minutes.
    ///
    /// # Errors
    /// If it cannot be built, or the nodes do not become Ready.
    pub fn fake_nodes(&self, count: u8, progress: &Progress) -> anyhow::Result<FakeNodes> {
        let cache = Cache::open()?;
        let program = Toolchain::on_demand("kwok", &cache, progress)?;
        let config = self.lab.layout.root().join(format!("{}.kwok.yaml", self.name()));
        fake_nodes::write_config(&config)?;
        let machine = self.control_plane();
        let address = machine.address();
        let mut command = machine.network_command(&program);
        command.args(fake_nodes::arguments(&self.kubeconfig(), &config, address));
        let mut fake = FakeNodes::start(command, &config.with_extension("log"))?;
        let api = self.api()?;
        let nodes: Vec<_> = (0..count).map(|number| fake_nodes::node(number, address)).collect();
        for node in &nodes {
            api.apply(node)?;
        }
        wait::until("fake nodes that are Ready", FAKE_NODES_LIMIT, POLL, || {
            fake.check()?;
            let ready = |node: &Value| -> anyhow::Result<bool> {
                let name = node["metadata"]["name"].as_str().unwrap_or_default();
                Ok(has_condition(&api.get(&format!("/api/v1/nodes/{name}"))?, "Ready"))
            };
            Ok(nodes
                .iter()
                .map(ready)
                .collect::<anyhow::Result<Vec<_>>>()?
                .iter()
                .all(|it| *it)
                .then_some(()))
        })?;
        Ok(fake)
    }

    /// A `kubectl` command for this cluster, to be given arguments.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.lab.program("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// The API server's audit log, if the lab was started with one.
    #[must_use]
    pub fn audit_log(&self) -> Option<PathBuf> {
        self.lab.state.spec.audit.then(|| self.control_plane().host_path(control_plane::AUDIT_LOG))
    }

    /// The bridge in the router's namespace that is its LAN.
    #[must_use]
    pub fn lan_bridge(&self) -> String {
        lan_bridge(&self.plan.name)
    }

    /// The machine that runs etcd, API server, controller manager and scheduler.
    #[must_use]
    pub fn control_plane(&self) -> Node<'a> {
        self.node_at(topology::control_plane(self.plan))
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node<'a>> {
        self.machines().into_iter().skip(1).collect()
    }

    /// The control plane and the nodes.
    #[must_use]
    pub fn machines(&self) -> Vec<Node<'a>> {
        topology::ports(self.plan).into_iter().map(|port| self.node_at(port)).collect()
    }

    /// The machine with this name; `cp` is short for the control plane, a number for the node with that number.
    ///
    /// # Errors
    /// [`Usage`] if there is none.
    pub fn machine(&self, name: &str) -> anyhow::Result<Node<'a>> {
        let long = format!("{}-{name}", self.name());
        let mut machines = self.machines();
        let found = machines.iter().position(|machine| machine.name() == name || machine.name() == long);
        found.map(|index| machines.swap_remove(index)).ok_or_else(|| {
            let names: Vec<_> = machines.iter().map(|machine| machine.name().to_owned()).collect();
            anyhow!(Usage(format!(
                "cluster {} has no machine {name}; it has {}",
                self.name(),
                names.join(", ")
            )))
        })
    }

    /// Kills a component (SIGKILL) wherever it runs in the cluster and keeps it down: one of etcd, kube-apiserver,
    /// kube-controller-manager, kube-scheduler, containerd, kubelet, kube-proxy.
    ///
    /// # Errors
    /// If there is no such component, or a machine does not answer.
    pub fn stop_component(&self, component: &str) -> anyhow::Result<()> {
        self.with_component(component, |machine| machine.stop_component(component))
    }

    /// Starts a component that was stopped.
    ///
    /// # Errors
    /// If there is no such component, or a machine does not answer.
    pub fn start_component(&self, component: &str) -> anyhow::Result<()> {
        self.with_component(component, |machine| machine.start_component(component))
    }

    /// The machines a component runs on, and its log on each.
    ///
    /// # Errors
    /// [`Usage`] if no machine has such a component.
    pub fn logs(&self, component: &str) -> anyhow::Result<Vec<PathBuf>> {
        let logs: Vec<PathBuf> = self
            .machines()
            .iter()
            .flat_map(|machine| machine.logs().unwrap_or_default())
            .filter(|log| log.file_stem().is_some_and(|stem| stem == component))
            .collect();
        if logs.is_empty() {
            return Err(anyhow!(Usage(format!("cluster {} has no log of {component}", self.name()))));
        }
        Ok(logs)
    }

    fn with_component(
        &self,
        component: &str,
        act: impl Fn(&Node<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut done = false;
        for machine in self.machines().iter().filter(|machine| machine.is_running()) {
            if machine.components()?.iter().any(|(name, _)| name == component) {
                act(machine)?;
                done = true;
            }
        }
        if done {
            Ok(())
        } else {
            Err(anyhow!(Usage(format!("cluster {} runs no {component}", self.name()))))
        }
    }

    fn node_at(&self, port: Port<'a>) -> Node<'a> {
        Node::new(self.lab, port)
    }
}
