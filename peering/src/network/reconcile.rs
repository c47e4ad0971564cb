//! Brings together what is known of this cluster and what was heard of the peers, in the status of the `Peer`s.

use super::direct::{is_behind, is_reached};
use super::wanted::{Given, Wanted, Word, is_written, stale, wanted};
use super::{CONDITION, Network, name};
use crate::status::{Report, report};
use ipnet::IpNet;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use liquid_crds::{ClusterId, GROUP, Peer, VERSION, condition as find_condition};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

/// Pause after a status could not be written.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// How long endpoints in other peers stay listed while not everybody has taken what is new about a peer's prefixes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a peer is reached before pods of others there are reached directly: endpoints do not change with each packet lost.
const STEADY: Duration = Duration::from_secs(10);

/// Keeps the status of all `Peer`s as it should be.
pub(super) async fn reconcile(client: Client, network: Network, pool: Vec<IpNet>) {
    let mut peers = network.peers.subscribe();
    let mut own = network.own.subscribe();
    let mut heard = network.heard.subscribe();
    let mut invited = network.invited.subscribe();
    let mut shared = network.shared.subscribe();
    // Since when others have not taken what is new about a peer.
    let mut waiting: BTreeMap<String, Instant> = BTreeMap::new();
    // Since when a peer has not taken what is new here.
    let mut behind: BTreeMap<String, Instant> = BTreeMap::new();
    // Since when gateways reach a peer.
    let mut reached: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let now = Instant::now();
        let (known, ours) = (peers.borrow_and_update().clone(), own.borrow_and_update().clone());
        let told = heard.borrow_and_update().clone();
        let tokens = invited.borrow_and_update().clone();
        let in_common = shared.borrow_and_update().clone();
        let mut failed = false;
        if let (Some(known), Some(ours)) = (&known, &ours) {
            let word = |peer: &Peer| {
                let id = peer.spec.cluster_id.parse::<ClusterId>().ok();
                Word {
                    heard: id.as_ref().and_then(|id| told.get(id)),
                    invited: id.as_ref().and_then(|id| tokens.get(id)),
                }
            };
            for (peer, gateway) in known.values().flat_map(|peer| stale(peer, ours)) {
                match forget(&client, peer, gateway).await {
                    Ok(()) => {
                        info!(peer = %name(peer), gateway, "gateway is gone; its tunnels are not shown any more")
                    }
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(error) => {
                        warn!(peer = %name(peer), gateway, %error, "tunnels not taken away; trying again");
                        failed = true;
                    }
                }
            }
            behind = since(now, &behind, known.values().filter(|peer| is_behind(ours, word(peer).heard)));
            reached = since(now, &reached, known.values().filter(|peer| is_reached(peer, ours)));
            let given = Given {
                me: &network.me,
                pool: &pool,
                shared: in_common.as_ref(),
                impatient: lasting(now, &waiting, PATIENCE),
                behind: lasting(now, &behind, PATIENCE),
                steady: lasting(now, &reached, STEADY),
            };
            let all = wanted(known, ours, word, &given);
            waiting =
                since(now, &waiting, all.iter().filter(|(_, wanted)| wanted.waits).map(|(peer, _)| *peer));
            for (peer, wanted) in all {
                if is_written(peer, &wanted) {
                    continue;
                }
                match write(&client, peer, wanted).await {
                    Ok(()) => {}
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(error) => {
                        warn!(peer = %name(peer), %error, "status of the network not written; trying again");
                        failed = true;
                    }
                }
            }
        }
        let ends = waiting.values().chain(behind.values()).map(|since| *since + PATIENCE);
        let ends = ends.chain(reached.values().map(|since| *since + STEADY));
        let next = ends.filter(|end| *end > now).min();
        tokio::select! {
            changed = peers.changed() => if changed.is_err() { return },
            changed = own.changed() => if changed.is_err() { return },
            changed = heard.changed() => if changed.is_err() { return },
            changed = invited.changed() => if changed.is_err() { return },
            changed = shared.changed() => if changed.is_err() { return },
            () = sleep(RETRY_PAUSE), if failed => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

/// Since when something holds of these peers, now that it does.
fn since<'a>(
    now: Instant,
    known: &BTreeMap<String, Instant>,
    peers: impl Iterator<Item = &'a Peer>,
) -> BTreeMap<String, Instant> {
    let began = |name: String| {
        let since = known.get(&name).copied().unwrap_or(now);
        (name, since)
    };
    peers.map(name).map(began).collect()
}

/// Of whom it has held for this long.
fn lasting(now: Instant, since: &BTreeMap<String, Instant>, duration: Duration) -> BTreeSet<String> {
    let long = since.iter().filter(|(_, since)| now.duration_since(**since) >= duration);
    long.map(|(name, _)| name.clone()).collect()
}

/// Takes away what a gateway said of its tunnels to a peer: in its name, for nobody else owns it.
async fn forget(client: &Client, peer: &Peer, gateway: &str) -> Result<(), kube::Error> {
    let nothing = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Peer",
        "metadata": { "name": name(peer), "uid": peer.metadata.uid },
        "status": {},
    });
    let api = Api::<Peer>::all(client.clone());
    api.patch_status(&name(peer), &PatchParams::apply(gateway).force(), &Patch::Apply(&nothing)).await?;
    Ok(())
}

/// Without a network, takes away what an earlier installation has written of one.
pub(super) async fn clear(client: Client, mut peers: watch::Receiver<Option<BTreeMap<String, Peer>>>) {
    loop {
        let known = peers.borrow_and_update().clone().unwrap_or_default();
        let stale = known.values().filter(|peer| {
            peer.status.as_ref().is_some_and(|status| {
                status.network.is_some() || find_condition(&status.conditions, CONDITION).is_some()
            })
        });
        let mut failed = false;
        for peer in stale {
            // The gateways' part goes too: they are no more.
            let network = json!({ "metadata": { "uid": peer.metadata.uid }, "status": { "network": null } });
            let api = Api::<Peer>::all(client.clone());
            let removed =
                api.patch_status(&name(peer), &PatchParams::default(), &Patch::Merge(&network)).await;
            let cleared = match removed {
                Ok(peer) => report(&client, &peer, &Report::Network(None), Vec::new()).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = cleared {
                warn!(peer = %name(peer), %error, "status of the network not taken away; trying again");
                failed = true;
            }
        }
        tokio::select! {
            changed = peers.changed() => if changed.is_err() { return },
            () = sleep(RETRY_PAUSE), if failed => {}
        }
    }
}

async fn write(client: &Client, peer: &Peer, wanted: Wanted) -> Result<(), kube::Error> {
    let Wanted { network, condition, .. } = wanted;
    if let (Some(network), Some(condition)) = (&network, &condition) {
        info!(peer = %name(peer), reason = condition.reason, pods = ?network.pod_cidrs, "network");
    }
    report(client, peer, &Report::Network(network), condition.into_iter().collect()).await?;
    Ok(())
}
