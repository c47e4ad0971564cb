//! Metrics of `liquid-controller`.

use crate::lend::shadows::Summary;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Shadow {
    peer: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// The metrics, to be shared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    shadow_objects: Family<Shadow, Gauge>,
    failed_steps: Family<Reason, Counter>,
    link_up: Family<PeerLabel, Gauge>,
}

impl Metrics {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "liquid_shadow_objects",
            "Objects that exist here for a consumer",
            metrics.shadow_objects.clone(),
        );
        registry.register(
            "liquid_shadow_steps_failed",
            "Requests of the API server for consumers that failed, by reason",
            metrics.failed_steps.clone(),
        );
        registry.register(
            "liquid_peer_link_up",
            "Whether the link over which this cluster borrows from the peer is up",
            metrics.link_up.clone(),
        );
        metrics
    }

    pub(crate) fn shadows(&self, peer: &str, summary: Summary) {
        let set = |kind: &'static str, count: usize| {
            let labels = Shadow { peer: peer.to_owned(), kind };
            self.shadow_objects.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("pod", summary.pods);
        set("namespace", summary.namespaces);
        set("companion", summary.companions);
        set("claim", summary.claims);
    }

    pub(crate) fn steps_failed(&self, reason: &str) {
        self.failed_steps.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    pub(crate) fn link_up(&self, peer: &str, up: bool) {
        self.link_up.get_or_create(&PeerLabel { peer: peer.to_owned() }).set(i64::from(up));
    }

    pub(crate) fn forget_peer(&self, peer: &str) {
        self.link_up.remove(&PeerLabel { peer: peer.to_owned() });
        for kind in ["pod", "namespace", "companion", "claim"] {
            self.shadow_objects.remove(&Shadow { peer: peer.to_owned(), kind });
        }
    }
}
