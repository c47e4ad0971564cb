//! Leaving without losing a packet: peers are told to send elsewhere, and what still comes is forwarded until it ebbs away.

use liquid_gateway::io::workers::Workers;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tracing::info;

/// Time for peers to hear of it, and for the nodes of this cluster to hear from the API server that the pod ends.
const LEAST: Duration = Duration::from_secs(2);
/// Without a packet for so long, nobody sends any more.
const QUIET: Duration = Duration::from_secs(1);
/// Whoever still sends has no other way, and waiting longer does not give it one. Below the 30 s a pod has to end.
const LONGEST: Duration = Duration::from_secs(8);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

/// Waits until nothing passes any more.
pub(crate) async fn quiet(handle: &Workers) {
    handle.standby(true);
    let begun = Instant::now();
    let (mut passed, mut since) = (packets(handle), begun);
    info!("peers are told to send elsewhere");
    while begun.elapsed() < LONGEST && (begun.elapsed() < LEAST || since.elapsed() < QUIET) {
        sleep(LOOK).await;
        let now = packets(handle);
        if now != passed {
            (passed, since) = (now, Instant::now());
        }
    }
    info!(still_used = since.elapsed() < QUIET, "leaving");
}

/// Packets that have passed in either direction.
fn packets(handle: &Workers) -> u64 {
    let report = handle.report();
    report.peers.iter().map(|peer| peer.traffic.sent_packets + peer.traffic.received_packets).sum()
}
