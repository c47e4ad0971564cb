//! Starting a lab.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::stat::{Mode, umask};

use crate::Usage;
use crate::build::cache::{Cache, remove_all};
use crate::build::toolchain::{KUBE_PROGRAMS, Toolchain};
use crate::build::{image_store, images};
use crate::cluster::api_client::{ApiClient, has_condition};
use crate::cluster::pki::ClusterPki;
use crate::cluster::{addons, container_runtime, control_plane, node};
use crate::host::{host_check, wait};
use crate::lab::down;
use crate::lab::state::{Lock, Phase, State, free_slot};
use crate::lab::{Lab, in_parallel};
use crate::machine::{Machine, create_directory, tail};
use crate::network::{link, topology};
use crate::plan::address::{AddressPlan, ClusterPlan, NodePlan};
use crate::plan::layout::{INIT, Layout};
use crate::plan::spec::{LabName, LabSpec};
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

/// What [`up`] did.
#[derive(Debug)]
pub enum Started {
    /// It started a lab: time until all nodes were Ready, and until DNS and storage were available too.
    New {
        /// From the first process to the last node that became Ready.
        nodes_ready: Duration,
        /// From the first process to the end.
        complete: Duration,
    },
    /// The lab was running already; these machines were found dead and started again.
    Already {
        /// Machines that were started again.
        restarted: Vec<String>,
    },
}

/// Everything the start of one cluster needs.
struct Start<'a> {
    layout: &'a Layout,
    plan: &'a AddressPlan,
    audit: bool,
    shared: &'a [PathBuf],
    store: &'a Path,
    init: &'a Path,
    progress: &'a Progress,
    begun: Instant,
}

/// Starts a lab, or finds it running as wanted.
///
/// `init` is a program that calls [`crate::machine::run`] when its first argument is
/// [`crate::machine::INIT_ARGUMENT`]; machines run a copy of it.
///
/// # Errors
/// [`Usage`] if the spec cannot be, or if a lab of this name runs with another one. Otherwise says which component
/// failed, with the end of its log; what was started stays for inspection until `down`, or the next `up`.
pub fn up(
    name: &LabName,
    spec: &LabSpec,
    init: &Path,
    progress: &Progress,
) -> anyhow::Result<(Lab, Started)> {
    spec.validate()?;
    let layout = Layout::new(name);
    host_check::check(spec, progress)?;
    host_check::warn(spec.clusters.iter().map(|cluster| u32::from(cluster.nodes)).sum(), progress);
    // Machines have users other than root, whose programs must be able to read what is made here.
    umask(Mode::from_bits_truncate(0o022));
    let lock = Lock::lab(name, progress)?;
    match State::load(&layout)? {
        Some(state) if state.phase == Phase::Running && !state.is_of_another_boot()? => {
            let differences = state.spec.differences(spec);
            if !differences.is_empty() {
                bail!(Usage(format!(
                    "lab {name} is running with another layout:\n  {}\nstop it first (lab down), or choose another \
                     name (--lab)",
                    differences.join("\n  ")
                )));
            }
            let lab = Lab::open(name)?;
            let restarted = lab.restart_dead()?;
            return Ok((lab, Started::Already { restarted }));
        }
        Some(_) => {
            progress.note("removing what an interrupted start left");
            down::remove(&layout)?;
        }
        None => down::remove(&layout)?,
    }
    let cache = Cache::open()?;
    let toolchain = Toolchain::prepare(&cache, progress)?;
    let archives = images::prepare(&cache, &toolchain, progress)?;
    let store = image_store::prepare(&cache, &toolchain, &archives, progress)?;

    let slots = Lock::slots(progress)?;
    create_directory(layout.root())?;
    // Below are the keys of every cluster.
    fs::set_permissions(layout.root(), fs::Permissions::from_mode(0o700))?;
    let mut state = State::starting(free_slot()?, spec, toolchain.kubernetes())?;
    state.save(&layout)?;
    slots.remove();

    let begun = Instant::now();
    let plan = AddressPlan::new(spec, state.slot);
    link_programs(&layout, &toolchain, init)?;
    let shared = [cache.root().to_owned(), layout.bin()];
    let start = Start {
        layout: &layout,
        plan: &plan,
        audit: spec.audit,
        shared: &shared,
        store: &store,
        init: &layout.bin().join(INIT),
        progress,
        begun,
    };
    let nodes_ready = start.everything().map_err(|error| {
        anyhow!(
            "lab {name} did not come up: {error:#}\nit stays as it is (cargo xtask lab logs --lab {name}) until: \
             cargo xtask lab down --lab {name}"
        )
    })?;
    state.phase = Phase::Running;
    state.save(&layout)?;
    drop(lock);
    Ok((Lab::open(name)?, Started::New { nodes_ready, complete: begun.elapsed() }))
}

/// Collects the programs of the lab in one directory: links into the cache, and a copy of the init program, which
/// may be built anew while the lab runs.
fn link_programs(layout: &Layout, toolchain: &Toolchain, init: &Path) -> anyhow::Result<()> {
    let bin = layout.bin();
    remove_all(&bin)?;
    create_directory(&bin)?;
    let link = |target: &Path, name: &str| {
        symlink(target, bin.join(name)).with_context(|| format!("cannot link {name} into {}", bin.display()))
    };
    for binary in toolchain.binaries()? {
        link(&binary, &binary.file_name().unwrap_or_default().to_string_lossy())?;
    }
    for program in KUBE_PROGRAMS {
        link(&toolchain.binary("kube")?, program)?;
    }
    fs::copy(init, bin.join(INIT)).with_context(|| format!("cannot copy {}", init.display()))?;
    Ok(())
}

impl Start<'_> {
    /// Starts all clusters at once; returns the time until the last node was Ready.
    fn everything(&self) -> anyhow::Result<Duration> {
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
