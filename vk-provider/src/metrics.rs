//! Metrics of `liquid-kubelet`.

use crate::api_server::Meter;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The metrics, to be shared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    objects: Family<PeerLabel, Gauge>,
    unsettled: Family<PeerLabel, Gauge>,
    relayed: Gauge,
    not_relayed: Family<ReasonLabel, Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "liquid_mirrored_objects",
            "Objects that shall exist in the provider",
            metrics.objects.clone(),
        );
        registry.register(
            "liquid_mirrored_objects_unsettled",
            "Of these, objects the provider has not been told of or has not answered for",
            metrics.unsettled.clone(),
        );
        registry.register(
            "liquid_api_server_connections",
            "Connections of pods in providers to this cluster's API server",
            metrics.relayed.clone(),
        );
        registry.register(
            "liquid_api_server_connections_refused",
            "Such connections that were not relayed: from strangers, too many (full, one_source), or the API server does not answer",
            metrics.not_relayed.clone(),
        );
        metrics
    }

    pub(crate) fn mirrored(&self, peer: &str, objects: usize, unsettled: usize) {
        let labels = PeerLabel { peer: peer.to_owned() };
        self.objects.get_or_create(&labels).set(i64::try_from(objects).unwrap_or(i64::MAX));
        self.unsettled.get_or_create(&labels).set(i64::try_from(unsettled).unwrap_or(i64::MAX));
    }

    pub(crate) fn forget(&self, peer: &str) {
        let labels = PeerLabel { peer: peer.to_owned() };
        self.objects.remove(&labels);
        self.unsettled.remove(&labels);
    }
}

impl Meter for Metrics {
    fn connections(&self, change: i64) {
        self.relayed.inc_by(change);
    }

    fn refused(&self, why: &'static str) {
        self.not_relayed.get_or_create(&ReasonLabel { reason: why }).inc();
    }
}
