//! Many pods at once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::time::sleep;

use super::audit::{self, Requests};
use super::pods::{Sightings, Step, create, delete, names};
use super::process::Usage;
use super::stage::{DIRECT, NODE, OFFLOADED, REMOTE, Stage};

/// What was written last is on its way still when the last pod is Running.
const SETTLE: Duration = Duration::from_secs(3);
/// From then on a process rests: allocators give back what they do not need within seconds.
const REST: Duration = Duration::from_secs(10);
/// Longest wait for a step of all pods, per pod, and at least.
const LIMIT_PER_POD: Duration = Duration::from_millis(100);
const LIMIT_LEAST: Duration = Duration::from_secs(120);

/// How many, and how they are created.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Size {
    /// Pods.
    pub(crate) pods: usize,
    /// Requests at one time.
    pub(crate) clients: usize,
}

/// What a burst took.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Burst {
    #[serde(flatten)]
    pub(crate) size: Size,
    /// The same pods created directly in the provider, in seconds from the first request.
    pub(crate) direct: Direct,
    /// Seconds until all exist in the provider.
    pub(crate) exist_s: f64,
    /// Seconds until all are Running at home.
    pub(crate) running_s: f64,
    /// Seconds from the first request to delete one until none is left in the provider, and at home.
    pub(crate) remote_gone_s: f64,
    pub(crate) home_gone_s: f64,
    /// Of creating, until all are Running at home.
    pub(crate) creating: Cost,
    /// Of deleting.
    pub(crate) deleting: Cost,
    /// Memory of Liquid's processes with these pods, at rest, and their peaks since before the burst.
    pub(crate) memory: BTreeMap<String, Usage>,
}

/// The floor.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Direct {
    pub(crate) exist_s: f64,
    pub(crate) running_s: f64,
    pub(crate) gone_s: f64,
    /// Processor seconds of the provider's API server for creating them.
    pub(crate) api_server_cpu_s: f64,
}

/// What a part of a burst costs.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cost {
    /// Processor seconds of each of Liquid's processes.
    pub(crate) cpu_s: BTreeMap<String, f64>,
    /// Processor seconds of the API servers.
    pub(crate) api_servers_cpu_s: BTreeMap<String, f64>,
    /// Bytes on the link.
    pub(crate) link_bytes: u64,
    /// Liquid's requests to each API server.
    pub(crate) requests: BTreeMap<String, Requests>,
}

impl Cost {
    pub(crate) fn cpu(&self) -> f64 {
        self.cpu_s.values().sum()
    }

    /// Requests to an API server.
    pub(crate) fn requests_to(&self, side: &str) -> u64 {
        self.requests.get(side).map(audit::total).unwrap_or_default()
    }
}

/// Counters at one moment.
pub(crate) struct Meter {
    cpu: BTreeMap<String, f64>,
    api_servers: BTreeMap<String, f64>,
    bytes: u64,
}

impl Meter {
    /// Begins to count.
    pub(crate) fn start(stage: &mut Stage<'_>) -> anyhow::Result<Self> {
        count_requests(stage)?;
        Self::read(stage)
    }

    fn read(stage: &Stage<'_>) -> anyhow::Result<Self> {
        let cpu = usages(stage)?.into_iter().map(|(name, usage)| (name, usage.cpu_s)).collect();
        let api_server = |(name, side): (&str, &super::stage::Side<'_>)| {
            anyhow::Ok((name.to_owned(), side.api_server()?.cpu_s))
        };
        let api_servers = stage.sides().into_iter().map(api_server).collect::<anyhow::Result<_>>()?;
        Ok(Self { cpu, api_servers, bytes: stage.bytes()? })
    }

    /// What was counted since the start. No process may have been started anew in between.
    pub(crate) fn stop(&self, stage: &mut Stage<'_>) -> anyhow::Result<Cost> {
        let now = Self::read(stage)?;
        let less = |now: BTreeMap<String, f64>, before: &BTreeMap<String, f64>| {
            let less = |(name, value): (String, f64)| {
                let before = before.get(&name).copied().unwrap_or_default();
                (name, value - before)
            };
            now.into_iter().map(less).collect()
        };
        let requests = requests(stage)?;
        Ok(Cost {
            cpu_s: less(now.cpu, &self.cpu),
            api_servers_cpu_s: less(now.api_servers, &self.api_servers),
            link_bytes: now.bytes - self.bytes,
            requests,
        })
    }
}

/// Counts requests from now on.
pub(crate) fn count_requests(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.home.audit.skip()?;
    stage.provider.audit.skip()
}

/// Liquid's requests since then, by side.
pub(crate) fn requests(stage: &mut Stage<'_>) -> anyhow::Result<BTreeMap<String, Requests>> {
    let home = ("home".to_owned(), audit::own(&stage.home.audit.count()?));
    let provider = ("provider".to_owned(), audit::own(&stage.provider.audit.count()?));
    Ok(BTreeMap::from([home, provider]))
}

/// What the kernel counts of Liquid's processes, by side and program.
pub(crate) fn usages(stage: &Stage<'_>) -> anyhow::Result<BTreeMap<String, Usage>> {
    let all = stage.sides().into_iter().flat_map(|(side, of)| of.processes().map(|process| (side, process)));
    all.map(|(side, process)| Ok((format!("{side} {}", process.program), process.usage()?))).collect()
}

/// Creates pods directly in the provider, and deletes them.
pub(crate) async fn direct(stage: &Stage<'_>, size: Size) -> anyhow::Result<Direct> {
    let client = &stage.provider.cluster.client;
    let seen = Sightings::start(client, DIRECT).await?;
    let (names, limit) = (names("direct", size.pods), limit(size.pods));
    let cpu = stage.provider.api_server()?.cpu_s;
    let begun = create(client, DIRECT, None, &names, size.clients).await?;
    let exist = seen.all(size.pods, Step::Exists, limit).await? - begun;
    let running = seen.all(size.pods, Step::Running, limit).await? - begun;
    let api_server_cpu_s = stage.provider.api_server()?.cpu_s - cpu;
    let begun = delete(client, DIRECT, &names, size.clients).await?;
    let gone = seen.all(size.pods, Step::Gone, limit).await? - begun;
    Ok(Direct {
        exist_s: exist.as_secs_f64(),
        running_s: running.as_secs_f64(),
        gone_s: gone.as_secs_f64(),
        api_server_cpu_s,
    })
}

/// Creates pods at home, does `meanwhile` while they are there, and deletes them.
pub(crate) async fn measure<'a>(
    stage: &mut Stage<'a>,
    size: Size,
    meanwhile: impl AsyncFnOnce(&mut Stage<'a>) -> anyhow::Result<()>,
) -> anyhow::Result<Burst> {
    let direct = direct(stage, size).await.context("created directly")?;
    sleep(SETTLE).await;

    let (home, provider) = (stage.home.cluster.client.clone(), stage.provider.cluster.client.clone());
    let at_home = Sightings::start(&home, OFFLOADED).await?;
    let remote = Sightings::start(&provider, REMOTE).await?;
    let (names, limit) = (names("web", size.pods), limit(size.pods));
    for (_, side) in stage.sides() {
        side.processes().into_iter().try_for_each(super::process::Process::reset_peak)?;
    }
    let meter = Meter::start(stage)?;
    let begun = create(&home, OFFLOADED, Some(NODE), &names, size.clients).await?;
    let exist = remote.all(size.pods, Step::Exists, limit).await.context("in the provider")? - begun;
    let running = at_home.all(size.pods, Step::Running, limit).await.context("at home")? - begun;
    sleep(SETTLE).await;
    let creating = meter.stop(stage)?;
    sleep(REST).await;
    let memory = usages(stage)?;

    meanwhile(stage).await?;

    let meter = Meter::start(stage)?;
    let begun = delete(&home, OFFLOADED, &names, size.clients).await?;
    let remote_gone = remote.all(size.pods, Step::Gone, limit).await.context("in the provider")? - begun;
    let home_gone = at_home.all(size.pods, Step::Gone, limit).await.context("at home")? - begun;
    sleep(SETTLE).await;
    let deleting = meter.stop(stage)?;
    Ok(Burst {
        size,
        direct,
        exist_s: exist.as_secs_f64(),
        running_s: running.as_secs_f64(),
        remote_gone_s: remote_gone.as_secs_f64(),
        home_gone_s: home_gone.as_secs_f64(),
        creating,
        deleting,
        memory,
    })
}

fn limit(pods: usize) -> Duration {
    let pods = u32::try_from(pods).unwrap_or(u32::MAX);
    LIMIT_PER_POD.saturating_mul(pods).max(LIMIT_LEAST)
}
