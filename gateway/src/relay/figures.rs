//! What the relay does, in figures.

use liquid_runtime::relay::Refusal;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// The metrics of the relay.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    open: Gauge,
    bytes: Counter,
    refused: Family<Reason, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// A connection that is relayed; it is counted until this is dropped.
pub(super) struct Open(Gauge);

impl Figures {
    /// Registers them.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "liquid_gateway_relayed_connections",
            "Connections of the peer link that are relayed now",
            self.open.clone(),
        );
        registry.register_with_unit(
            "liquid_gateway_relayed",
            "Bytes of connections of the peer link that have ended",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "liquid_gateway_relay_refused",
            "Connections that were not relayed",
            self.refused.clone(),
        );
    }

    pub(super) fn open(&self) -> Open {
        self.open.inc();
        Open(self.open.clone())
    }

    pub(super) fn passed(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::NotAllowed => "not_allowed",
            Refusal::NoTunnel => "no_tunnel",
            Refusal::Silent => "silent",
            Refusal::NoLink => "no_link",
            Refusal::Stranger => "stranger",
            Refusal::TooMany => "too_many",
        };
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
