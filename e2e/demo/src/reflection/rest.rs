//! What there is besides creating and deleting pods: rest, restarts, partitions, more virtual nodes. All with pods there
//! but the last.

use std::time::{Duration, Instant};

use anyhow::Context;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use liquid_crds::{VirtualNode, VirtualNodeSpec};
use liquid_lab::{Cut, Direction};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::audit;
use super::burst::{self, Cost, Meter};
use super::pods::{Sightings, Step, create, delete};
use super::stage::{LIMIT, NODE, OFFLOADED, REMOTE, Stage};
use crate::statistics::Summary;

/// A process that was killed has its watches, its link and its inventories again after this time, by far.
const RESTART: Duration = Duration::from_secs(12);
/// How much longer a partition lasts than until it is seen.
const PARTITION: Duration = Duration::from_secs(7);
/// Longest wait for a partition to be seen, and for its end.
const PARTITION_LIMIT: Duration = Duration::from_secs(180);
/// Kinds whose objects have to do with pods that are reflected.
const REFLECTED: [&str; 5] = ["pods", "shadowpods", "events", "configmaps", "secrets"];
/// Virtual nodes that are added.
const MORE_NODES: u32 = 4;
/// Until a new node has all it needs and memory is at rest.
const NODE_SETTLE: Duration = Duration::from_secs(10);

/// Nothing happens.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Idle {
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) cost: Cost,
}

impl Idle {
    pub(crate) async fn measure(stage: &mut Stage<'_>, how_long: Duration) -> anyhow::Result<Self> {
        let meter = Meter::start(stage)?;
        let begun = Instant::now();
        sleep(how_long).await;
        Ok(Self { seconds: begun.elapsed().as_secs_f64(), cost: meter.stop(stage)? })
    }

    /// Of something that was counted.
    pub(crate) fn per_hour(&self, counted: f64) -> f64 {
        counted * 3600.0 / self.seconds
    }
}

/// liquid-kubelet is killed, and starts again.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Restart {
    /// From its start until a pod created in between exists in the provider; includes what that takes at any time.
    pub(crate) blind: Summary,
    /// Bytes on the link from the kill until everything is as before.
    pub(crate) link_bytes: u64,
    /// Writes of objects that have to do with pods, in both clusters.
    pub(crate) writes: u64,
    #[serde(flatten)]
    pub(crate) cost: Cost,
}

impl Restart {
    pub(crate) async fn measure(stage: &mut Stage<'_>, rounds: usize) -> anyhow::Result<Self> {
        // Without anything new first: what is counted is what nothing new costs.
        stage.home.kubelet.kill();
        let before = stage.bytes()?;
        burst::count_requests(stage)?;
        stage.home.kubelet.again()?;
        sleep(RESTART).await;
        let link_bytes = stage.bytes()? - before;
        let requests = burst::requests(stage)?;
        let writes = requests.values().map(|of| audit::writes(of, &REFLECTED)).sum();
        let cost = Cost { link_bytes, requests, ..Cost::default() };

        let (home, provider) = (stage.home.cluster.client.clone(), &stage.provider.cluster.client);
        let remote = Sightings::start(provider, REMOTE).await?;
        let at_home = Sightings::start(&home, OFFLOADED).await?;
        let mut blind = Vec::new();
        for round in 0..rounds {
            let name = format!("restart-{round}");
            let only = std::slice::from_ref(&name);
            stage.home.kubelet.kill();
            create(&home, OFFLOADED, Some(NODE), only, 1).await?;
            let begun = Instant::now();
            stage.home.kubelet.again()?;
            blind.push(remote.when(&name, Step::Exists, LIMIT).await.context("after a restart")? - begun);
            sleep(RESTART).await;
            delete(&home, OFFLOADED, only, 1).await?;
            at_home.when(&name, Step::Gone, LIMIT).await?;
        }
        Ok(Self { blind: Summary::require(blind)?, link_bytes, writes, cost })
    }
}

/// Nothing gets from one cluster to the other, for a while.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Partition {
    /// From the cut until the node is not Ready.
    pub(crate) seen: Summary,
    /// From the repair until the node is Ready.
    pub(crate) healed: Summary,
    /// From the repair until a pod created in between exists in the provider.
    pub(crate) caught_up: Summary,
}

impl Partition {
    pub(crate) async fn measure(stage: &Stage<'_>, rounds: usize) -> anyhow::Result<Self> {
        let home = &stage.home.cluster.client;
        let remote = Sightings::start(&stage.provider.cluster.client, REMOTE).await?;
        let at_home = Sightings::start(home, OFFLOADED).await?;
        let link = stage.lab.link("a", "b")?;
        let (mut seen, mut healed, mut caught_up) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let name = format!("partition-{round}");
            let only = std::slice::from_ref(&name);
            stage.node_ready(true, LIMIT).await?;
            let cut = Instant::now();
            link.cut(Cut::All, Direction::Both)?;
            let lost = stage.node_ready(false, PARTITION_LIMIT).await;
            // Rounds begin at different times of whatever happens at intervals.
            let extra = Duration::from_millis(700) * u32::try_from(round)?;
            let created = create(home, OFFLOADED, Some(NODE), only, 1).await;
            sleep(PARTITION + extra).await;
            let repaired = Instant::now();
            link.restore()?;
            seen.push(lost? - cut);
            created?;
            let (ready, exists) = tokio::join!(
                stage.node_ready(true, PARTITION_LIMIT),
                remote.when(&name, Step::Exists, PARTITION_LIMIT)
            );
            healed.push(ready? - repaired);
            caught_up.push(exists? - repaired);
            delete(home, OFFLOADED, only, 1).await?;
            at_home.when(&name, Step::Gone, LIMIT).await?;
        }
        Ok(Self {
            seen: Summary::require(seen)?,
            healed: Summary::require(healed)?,
            caught_up: Summary::require(caught_up)?,
        })
    }
}

/// Bytes by which the resident memory of liquid-kubelet grows with each virtual node that is added.
pub(crate) async fn more_nodes(stage: &Stage<'_>) -> anyhow::Result<f64> {
    let nodes: Api<VirtualNode> = Api::all(stage.home.cluster.client.clone());
    let before = stage.home.kubelet.usage()?.resident;
    let names: Vec<String> = (0..MORE_NODES).map(|number| format!("{NODE}-{number}")).collect();
    for name in &names {
        let spec =
            VirtualNodeSpec { peer: stage.provider.cluster.name.clone(), ..VirtualNodeSpec::default() };
        nodes.create(&PostParams::default(), &VirtualNode::new(name, spec)).await?;
    }
    for name in &names {
        stage.home.cluster.wait_for_node(name, true, LIMIT).await?;
    }
    sleep(NODE_SETTLE).await;
    let after = stage.home.kubelet.usage()?.resident;
    for name in &names {
        nodes.delete(name, &DeleteParams::default()).await?;
    }
    let gone = async {
        while nodes.list(&Default::default()).await?.iter().any(|node| node.name_any() != NODE) {
            sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    timeout(LIMIT, gone).await.context("virtual nodes are not removed")??;
    // Exact: a process has less than 2^53 bytes.
    #[allow(clippy::cast_precision_loss, reason = "bytes of a process")]
    let grown = (after as f64 - before as f64) / f64::from(MORE_NODES);
    Ok(grown)
}
