//! Writing the status of a `Peer`. Borrowing, lending and the network are reported by different field managers, so none
//! overwrites another.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::{
    ConditionUpdate, ConsumeStatus, GROUP, LendStatus, NetworkStatus, Peer, VERSION, set_condition,
};
use serde_json::json;

/// Which part reports.
#[derive(Debug, Clone)]
pub(crate) enum Report {
    /// What this cluster borrows; conditions Joined and LinkUp.
    Consume(ConsumeStatus),
    /// Virtual nodes of the peer; condition VirtualNodesMade.
    VirtualNodes,
    /// What this cluster lends; condition ConsumerConnected.
    Lend(LendStatus),
    /// The network, if there is one; condition NetworkReady.
    Network(Option<NetworkStatus>),
}

impl Report {
    fn manager(&self) -> &'static str {
        match self {
            Report::Consume(_) => "liquid-controller-consume",
            Report::VirtualNodes => "liquid-controller-nodes",
            Report::Lend(_) => "liquid-controller-lend",
            Report::Network(_) => "liquid-controller-network",
        }
    }

    fn conditions(&self) -> &'static [&'static str] {
        match self {
            Report::Consume(_) => &["Joined", "LinkUp"],
            Report::VirtualNodes => &["VirtualNodesMade"],
            Report::Lend(_) => &["ConsumerConnected"],
            Report::Network(_) => &["NetworkReady"],
        }
    }
}

/// Writes one part of the status of `peer` (as it was last read), with the given conditions changed.
pub(crate) async fn report(
    client: &Client,
    peer: &Peer,
    report: &Report,
    updates: Vec<ConditionUpdate<'_>>,
) -> Result<Peer, kube::Error> {
    let known = peer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let mut conditions: Vec<Condition> =
        known.iter().filter(|c| report.conditions().contains(&c.type_.as_str())).cloned().collect();
    let now = Time(Timestamp::now());
    for update in updates {
        set_condition(&mut conditions, update, peer.metadata.generation, &now);
    }
    let status = match report {
        Report::Consume(consume) => json!({ "consume": consume, "conditions": conditions }),
        Report::Lend(lend) => json!({ "lend": lend, "conditions": conditions }),
        Report::Network(Some(network)) => json!({ "network": network, "conditions": conditions }),
        Report::VirtualNodes => json!({ "conditions": conditions }),
        Report::Network(None) => json!({ "conditions": [] }),
    };
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Peer",
        "metadata": { "name": peer.name_any(), "uid": peer.metadata.uid },
        "status": status,
    });
    let params = PatchParams::apply(report.manager()).force();
    Api::<Peer>::all(client.clone()).patch_status(&peer.name_any(), &params, &Patch::Apply(&patch)).await
}
