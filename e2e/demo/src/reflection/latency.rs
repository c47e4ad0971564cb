//! Pods one at a time.

use std::time::Duration;

use serde::Serialize;

use super::pods::{Sightings, Step, create, delete};
use super::stage::{DIRECT, LIMIT, NODE, OFFLOADED, REMOTE, Stage};
use crate::statistics::Summary;

/// Pods that are not counted: the first open connections, and fill caches of the API servers.
const WARM_UP: usize = 3;

/// How long each step of a pod takes.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Latencies {
    /// The floor: from the request to create a pod in the provider until a watch there shows it.
    pub(crate) floor: Summary,
    /// From the request to create a pod at home until a watch of the provider shows its twin.
    pub(crate) exists: Summary,
    /// From the watch of the provider that shows it Running to the watch at home that does.
    pub(crate) running: Summary,
    /// From the request to delete it at home until a watch of the provider shows that it is being deleted.
    pub(crate) deleting: Summary,
}

/// Creates and deletes `count` pods, one after the other, and as many directly in the provider in between.
pub(crate) async fn measure(stage: &Stage<'_>, count: usize) -> anyhow::Result<Latencies> {
    let (home, provider) = (&stage.home.cluster.client, &stage.provider.cluster.client);
    let at_home = Sightings::start(home, OFFLOADED).await?;
    let remote = Sightings::start(provider, REMOTE).await?;
    let direct = Sightings::start(provider, DIRECT).await?;
    let mut series: [Vec<Duration>; 4] = Default::default();
    for number in 0..count + WARM_UP {
        let name = format!("one-{number}");
        let only = std::slice::from_ref(&name);

        let sent = create(provider, DIRECT, None, only, 1).await?;
        let floor = direct.when(&name, Step::Exists, LIMIT).await? - sent;
        delete(provider, DIRECT, only, 1).await?;
        direct.when(&name, Step::Gone, LIMIT).await?;

        let sent = create(home, OFFLOADED, Some(NODE), only, 1).await?;
        let exists = remote.when(&name, Step::Exists, LIMIT).await? - sent;
        let there = remote.when(&name, Step::Running, LIMIT).await?;
        let running = at_home.when(&name, Step::Running, LIMIT).await? - there;

        let sent = delete(home, OFFLOADED, only, 1).await?;
        let deleting = remote.when(&name, Step::Deleting, LIMIT).await? - sent;
        at_home.when(&name, Step::Gone, LIMIT).await?;

        if number >= WARM_UP {
            for (series, took) in series.iter_mut().zip([floor, exists, running, deleting]) {
                series.push(took);
            }
        }
    }
    let [floor, exists, running, deleting] = series;
    Ok(Latencies {
        floor: Summary::require(floor)?,
        exists: Summary::require(exists)?,
        running: Summary::require(running)?,
        deleting: Summary::require(deleting)?,
    })
}
