//! Starting the clusters of a lab: machines, then what must be there before the nodes are, then the nodes.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use super::in_parallel;
use crate::build::image_store;
use crate::cluster::api_client::{ApiClient, has_condition};
use crate::cluster::pki::ClusterPki;
use crate::cluster::{addons, container_runtime, control_plane, node};
use crate::host::wait;
use crate::machine::{Machine, tail};
use crate::network::{link, topology};
use crate::plan::address::{AddressPlan, ClusterPlan, NodePlan};
use crate::plan::layout::Layout;
use crate::progress::Progress;

/// An API server is ready 4 s after its start on an idle machine; builds may be running beside it.
const API_LIMIT: Duration = Duration::from_secs(120);
/// A kubelet that registered is Ready within seconds.
const NODES_LIMIT: Duration = Duration::from_secs(120);
/// Add-ons are two small pods with local images.
const ADDONS_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// A component that ended so often by itself will not do better: there is a second between two starts.
const FAILURES_MAX: u32 = 5;

/// Everything the start of the clusters needs.
pub(super) struct Start<'a> {
    pub(super) layout: &'a Layout,
    pub(super) plan: &'a AddressPlan,
    pub(super) audit: bool,
    pub(super) shared: &'a [PathBuf],
    pub(super) store: &'a Path,
    pub(super) init: &'a Path,
    pub(super) progress: &'a Progress,
    pub(super) begun: Instant,
}

impl Start<'_> {
    /// Starts all clusters at once; returns the time until the last node was Ready.
    pub(super) fn everything(&self) -> anyhow::Result<Duration> {
        topology::create_router(self.layout, self.plan)?;
        let names: Vec<_> = self.plan.clusters.iter().map(|cluster| &cluster.name).collect();
        link::create(self.layout, &names)?;
        let results = in_parallel(&self.plan.clusters, |cluster| {
            self.cluster(cluster).with_context(|| format!("cluster {}", cluster.name))
        })?;
        Ok(results.into_iter().max().unwrap_or_default())
    }

    fn cluster(&self, plan: &ClusterPlan) -> anyhow::Result<Duration> {
        let pki = ClusterPki::new(plan.name.as_str())?;
        for port in topology::ports(plan) {
            topology::attach(self.layout, &port)?;
        }
        let control_plane = control_plane::configure(self.layout, plan, &pki, self.audit, self.shared)?;
        control_plane.power_on(self.init, &[]).context("control plane")?;
        let nodes: Vec<(&NodePlan, Machine)> = plan
            .nodes
            .iter()
            .map(|node| Ok((node, node::configure(self.layout, plan, node, &pki, self.shared)?)))
            .collect::<anyhow::Result<_>>()?;
        thread::scope(|scope| {
            let preparing =
                scope.spawn(|| in_parallel(&nodes, |(node, machine)| self.prepare(node, machine)));
            let api = self.register(plan, &control_plane)?;
            preparing.join().map_err(|_| anyhow!("preparing the nodes panicked"))??;
            self.start_nodes(plan, &api, &nodes)
        })
    }

    /// Gives a node its images and boots it up to its container runtime.
    fn prepare(&self, node: &NodePlan, machine: &Machine) -> anyhow::Result<()> {
        image_store::fill(self.store, &machine.host_path(container_runtime::ROOT))?;
        machine.power_on(self.init, &node::HELD_AT_FIRST).with_context(|| format!("node {}", node.name))
    }

    /// Waits for the API server and creates what must be there before the nodes are.
    fn register(&self, plan: &ClusterPlan, control_plane: &Machine) -> anyhow::Result<ApiClient> {
        let api = control_plane::admin(self.layout, plan)?;
        wait::until("a ready API server", API_LIMIT, POLL, || {
            check_alive(control_plane)?;
            Ok(api.is_ready().then_some(()))
        })
        .map_err(|error| blame(control_plane, &error))?;
        self.progress.note(&format!("cluster {}: API server ready", plan.name));
        for node in &plan.nodes {
            api.apply(&node::object(node))?;
        }
        if !plan.nodes.is_empty() {
            for object in addons::objects(plan) {
                api.apply(&object)?;
            }
        }
        Ok(api)
    }

    fn start_nodes(
        &self,
        plan: &ClusterPlan,
        api: &ApiClient,
        nodes: &[(&NodePlan, Machine)],
    ) -> anyhow::Result<Duration> {
        for (_, machine) in nodes {
            node::HELD_AT_FIRST.iter().try_for_each(|unit| machine.start_unit(unit))?;
        }
        for (node, machine) in nodes {
            let path = format!("/api/v1/nodes/{}", node.name);
            wait::until(&format!("node {} Ready", node.name), NODES_LIMIT, POLL, || {
                check_alive(machine)?;
                Ok(has_condition(&api.get(&path)?, "Ready").then_some(()))
            })
            .map_err(|error| blame(machine, &error))?;
        }
        let ready = self.begun.elapsed();
        if !nodes.is_empty() {
            self.progress.note(&format!("cluster {}: {} node(s) Ready", plan.name, nodes.len()));
            for (namespace, name) in addons::DEPLOYMENTS {
                let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
                wait::until(&format!("deployment {namespace}/{name} available"), ADDONS_LIMIT, POLL, || {
                    Ok(has_condition(&api.get(&path)?, "Available").then_some(()))
                })
                .with_context(|| format!("see: lab kubectl {} -n {namespace} describe pods", plan.name))?;
            }
            self.progress.note(&format!("cluster {}: DNS and storage available", plan.name));
        }
        Ok(ready)
    }
}

/// Fails when waiting longer makes no sense.
fn check_alive(machine: &Machine) -> anyhow::Result<()> {
    if !machine.is_running() {
        bail!("the machine ended");
    }
    // A supervisor under load may not answer in time; that it lives is what counts here.
    let units = machine.units().unwrap_or_default();
    if let Some(unit) = units.iter().find(|unit| unit.failures >= FAILURES_MAX) {
        bail!("{} does not keep running", unit.name);
    }
    Ok(())
}

/// Adds the units of a machine that do not do well to an error, with the ends of their logs.
fn blame(machine: &Machine, error: &anyhow::Error) -> anyhow::Error {
    let units = machine.units().unwrap_or_default();
    let mut text = format!("{error:#}");
    let mut add = |name: &str, what: &str| {
        let log = machine.log(name);
        text.push_str(&format!("\n{name} {what}; the end of {}:\n{}", log.display(), tail(&log)));
    };
    if units.is_empty() {
        add("machine", "does not answer");
    }
    let failed = units.iter().any(|unit| unit.failures > 0);
    for unit in &units {
        if unit.failures > 0 {
            add(&unit.name, &format!("ended {} time(s)", unit.failures));
        } else if !failed && unit.running {
            // None of them ended: any of those that run may be the one that does not do what is waited for.
            add(&unit.name, "is running");
        }
    }
    anyhow!(text)
}
