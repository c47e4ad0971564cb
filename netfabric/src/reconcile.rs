//! Keeps the kernel as the cluster says: at each change of either, and once a second in any case.

use crate::access::peer_of;
use crate::cluster::{Denied, Events, Knowledge};
use crate::diff::{Step, diff};
use crate::kernel::{Kernel, KernelError, Monitor};
use crate::metrics::Metrics;
use crate::plan::{Plan, Problem, plan};
use crate::probe::task::Aim;
use crate::state::{Desired, over_overlay};
use crate::topology::{Place, Settings, Topology, like};
use liquid_runtime::health::Part;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

/// Time between two looks when nobody tells of a change. Some things are not told of: settings of devices, MTUs of paths.
/// A look is about a dozen system calls.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Changes come in bursts: our own, and those of whoever removes a device with all that is on it.
const BURST: Duration = Duration::from_millis(20);
/// Steps may have effects of their own, so that it takes another look; more than this is a fight with somebody.
const ROUNDS: u32 = 3;

/// Packets of a peer that were dropped are told about this often at most.
const DENIED_INTERVAL: Duration = Duration::from_secs(30);

/// How long a gateway that begins waits for the probes of all nodes before it is ready: they hear of it from the API
/// server, and a node that is away does not at all.
const AWARENESS_DEADLINE: Duration = Duration::from_secs(5);

/// What it takes to keep the kernel as it should be.
#[derive(Debug)]
pub struct Reconciler {
    /// The kernel.
    pub kernel: Kernel,
    /// Where.
    pub place: Place,
    /// What is configured.
    pub settings: Settings,
    /// Figures.
    pub metrics: Metrics,
    /// Where problems are told.
    pub events: Events,
    /// Ready once the kernel is as it should be.
    pub ready: Part,
    /// What it has to do with probes.
    pub probes: Probes,
    /// What was said last, so that it is said once.
    said: Said,
    /// Until when nodes have time to hear of this gateway; none once they had.
    awaited: Option<Awaited>,
}

/// What is told to the probes, and heard of them.
#[derive(Debug)]
pub struct Probes {
    /// Where they go, or are answered.
    pub aim: watch::Sender<Aim>,
    /// On nodes: gateways that do not answer.
    pub dead: watch::Receiver<BTreeSet<IpAddr>>,
    /// In gateways: nodes that have probed this one.
    pub heard: watch::Receiver<BTreeSet<IpAddr>>,
}

/// Nodes let nothing in from a gateway that they do not know yet.
#[derive(Debug, Clone, Copy)]
enum Awaited {
    /// As soon as the overlay is there.
    Soon,
    /// Until then.
    Until(Instant),
}

#[derive(Debug, Default)]
struct Said {
    problems: BTreeSet<Problem>,
    failure: Option<String>,
    topology: Topology,
    /// By peer: packets that were dropped and not told of yet, and when that was done last.
    denied: BTreeMap<String, (u64, Option<Instant>)>,
}

impl Reconciler {
    /// All parts together.
    #[must_use]
    pub fn new(
        kernel: Kernel,
        place: Place,
        settings: Settings,
        metrics: Metrics,
        events: Events,
        ready: Part,
        probes: Probes,
    ) -> Self {
        let awaited = matches!(place, Place::Gateway(_)).then_some(Awaited::Soon);
        Self { kernel, place, settings, metrics, events, ready, probes, said: Said::default(), awaited }
    }

    /// Works until a socket fails or nobody watches the cluster any more. What is in place stays there: an upgrade must
    /// not interrupt anybody.
    ///
    /// # Errors
    /// If changes of the kernel cannot be heard of any more.
    pub async fn run(
        mut self,
        mut monitor: Monitor,
        mut known: watch::Receiver<Knowledge>,
    ) -> io::Result<()> {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let bursting = tokio::select! {
                changed = known.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    false
                }
                changed = monitor.changed() => {
                    changed?;
                    true
                }
                // Of these two, one is of nodes and the other of gateways: its sender is gone, and its branch with it.
                Ok(()) = self.probes.dead.changed() => false,
                Ok(()) = self.probes.heard.changed() => false,
                _ = look.tick() => false,
            };
            if bursting {
                sleep(BURST).await;
            }
            let knowledge = known.borrow_and_update().clone();
            match knowledge {
                Knowledge::Incomplete => {}
                Knowledge::Complete(topology) => self.turn(&topology),
                Knowledge::Uninstalled => self.turn(&Topology::default()),
            }
        }
    }

    /// One look and what it takes.
    fn turn(&mut self, topology: &Topology) {
        let result = self.reconcile(topology);
        let (changes, failure) = match result {
            Ok(outcome) => (outcome.changes, outcome.failure),
            Err(error) => (BTreeMap::new(), Some(error)),
        };
        if !changes.is_empty() {
            let pieces: Vec<_> = changes.iter().map(|(piece, count)| format!("{piece} {count}")).collect();
            let repaired = self.said.topology == *topology;
            info!(changes = pieces.join(", "), repaired, "overlay changed");
        }
        self.said.topology = topology.clone();
        self.count_dropped(topology);
        let failure = failure.map(|error| error.to_string());
        self.metrics.checked(failure.is_none());
        match &failure {
            Some(failure) => {
                self.metrics.failed();
                self.ready.not_ready(failure);
                if self.said.failure.as_ref() != Some(failure) {
                    warn!(failure, "the overlay is not as it should be; trying again");
                }
            }
            None => {
                match self.unaware_nodes(topology) {
                    0 => self.ready.ready(),
                    some => self.ready.not_ready(&format!("{some} nodes do not know this gateway yet")),
                }
                if self.said.failure.is_some() {
                    info!("the overlay is as it should be again");
                }
            }
        }
        self.said.failure = failure;
    }

    /// Packets that were dropped, for metrics; those of peers also for people.
    fn count_dropped(&mut self, topology: &Topology) {
        for (chain, packets) in self.kernel.take_dropped() {
            self.metrics.dropped(&chain, packets);
            if let Some(peer) = peer_of(&chain) {
                self.said.denied.entry(peer.to_owned()).or_default().0 += packets;
            }
        }
        let now = Instant::now();
        self.said.denied.retain(|peer, _| topology.peers.contains_key(peer));
        for (peer, (packets, told)) in &mut self.said.denied {
            let due = told.is_none_or(|told| now.duration_since(told) >= DENIED_INTERVAL);
            if *packets > 0 && due {
                let uid = topology.peers.get(peer).and_then(|peer| peer.uid.clone());
                self.events.tell_denied(Denied { peer: peer.clone(), uid });
                (*packets, *told) = (0, Some(now));
            }
        }
    }

    /// How many nodes still have time to hear of this gateway, and have not.
    fn unaware_nodes(&mut self, topology: &Topology) -> usize {
        let now = Instant::now();
        let until = match self.awaited {
            None => return 0,
            Some(Awaited::Soon) => now + AWARENESS_DEADLINE,
            Some(Awaited::Until(until)) => until,
        };
        // Without an overlay there is nothing that nodes could know.
        let remotes = match topology.ends(&self.place) {
            Some(ends) if self.kernel.overlay_index().is_some() => ends.remotes,
            _ => BTreeSet::new(),
        };
        let heard = self.probes.heard.borrow_and_update();
        let unaware = remotes.iter().filter(|node| !heard.contains(&over_overlay(**node))).count();
        self.awaited = (unaware > 0 && now < until).then_some(Awaited::Until(until));
        if self.awaited.is_some() { unaware } else { 0 }
    }

    fn reconcile(&mut self, topology: &Topology) -> Result<Outcome, KernelError> {
        let ends = topology.ends(&self.place);
        let mut host = self.kernel.host(ends.as_ref())?;
        host.dead.clone_from(&self.probes.dead.borrow_and_update());
        let Plan { desired, problems } = plan(topology, &self.place, &self.settings, &host);
        self.metrics.cluster(topology);
        self.metrics.mtu(desired.link.as_ref().map(|link| link.mtu), host.path_mtu);
        self.say(problems);
        let outcome = bring(&mut self.kernel, &desired, &self.metrics);
        self.aim(topology, ends.map(|ends| ends.local), host.tunnel);
        outcome
    }

    /// Tells the probes where to go.
    fn aim(&self, topology: &Topology, local: Option<IpAddr>, serves: bool) {
        let mut aim = Aim { local, serves, ..Aim::default() };
        aim.device = self.kernel.overlay_index().map(|index| (self.settings.overlay.clone(), index));
        for (name, gateway) in &topology.gateways {
            let address = local.and_then(|local| like(&gateway.addresses, local));
            aim.gateways.extend(address.map(|address| (address, name.clone())));
        }
        self.probes.aim.send_if_modified(|before| {
            let modified = *before != aim;
            if modified {
                *before = aim;
            }
            modified
        });
    }

    fn say(&mut self, problems: BTreeSet<Problem>) {
        self.metrics.problems(problems.iter());
        for problem in problems.difference(&self.said.problems) {
            warn!(reason = problem.reason(), "{problem}");
            self.events.tell(problem);
        }
        for problem in self.said.problems.difference(&problems) {
            info!(reason = problem.reason(), "no longer: {problem}");
        }
        self.said.problems = problems;
    }
}

/// What a look has led to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Changes made, by kind of piece.
    pub changes: BTreeMap<&'static str, u64>,
    /// The first thing that failed.
    pub failure: Option<KernelError>,
}

/// Brings the kernel to what is desired.
///
/// # Errors
/// If its state cannot be read.
pub fn bring(kernel: &mut Kernel, desired: &Desired, metrics: &Metrics) -> Result<Outcome, KernelError> {
    let mut outcome = Outcome::default();
    for _ in 0..ROUNDS {
        let steps = diff(desired, &kernel.observe()?);
        if steps.is_empty() {
            return Ok(outcome);
        }
        for step in &steps {
            match kernel.take(step) {
                Ok(()) => {
                    *outcome.changes.entry(step.piece()).or_default() += 1;
                    metrics.changed(step.piece());
                }
                // Nothing may get in before the filter is up.
                Err(error) if matches!(step, Step::SetFilter(_)) => {
                    outcome.failure = Some(error);
                    return Ok(outcome);
                }
                // The others may still be possible: one route that is refused must not cut off the rest.
                Err(error) => drop(outcome.failure.get_or_insert(error)),
            }
        }
        if outcome.failure.is_some() {
            return Ok(outcome);
        }
    }
    let left = diff(desired, &kernel.observe()?);
    if let Some(step) = left.first() {
        outcome.failure = Some(KernelError::Contested(format!("{step:?}")));
    }
    Ok(outcome)
}
