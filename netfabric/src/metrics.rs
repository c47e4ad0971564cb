//! Metrics of `liquid-fabric`.

use crate::access::peer_of;
use crate::plan::Problem;
use crate::probe::Figures;
use crate::probe::task::Measured;
use crate::topology::{GatewayState, Topology};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use std::fmt::Error;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Piece {
    piece: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPeer {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// The metrics, to be shared.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    in_place: Gauge,
    changes: Family<Piece, Counter>,
    failures: Counter,
    problems: Family<Reason, Gauge>,
    gateways: Family<State, Gauge>,
    nodes: Gauge,
    prefixes: Gauge,
    overlay_mtu: Gauge,
    path_mtu: Gauge,
    dropped: Counter,
    denied: Family<OfPeer, Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "liquid_fabric_in_place",
            "1 if the kernel has all that the overlay needs, as last checked",
            metrics.in_place.clone(),
        );
        registry.register(
            "liquid_fabric_changes",
            "Changes made to the kernel's state, repairs included",
            metrics.changes.clone(),
        );
        registry.register(
            "liquid_fabric_failures",
            "Changes or readings that failed",
            metrics.failures.clone(),
        );
        registry.register(
            "liquid_fabric_problem",
            "Problems of a kind that keep traffic from flowing; 0 if there are none",
            metrics.problems.clone(),
        );
        registry.register("liquid_fabric_gateways", "Gateways known, by state", metrics.gateways.clone());
        registry.register(
            "liquid_fabric_nodes",
            "Nodes known; on a node only its own",
            metrics.nodes.clone(),
        );
        registry.register("liquid_fabric_peer_prefixes", "Prefixes of peers", metrics.prefixes.clone());
        registry.register_with_unit(
            "liquid_fabric_overlay_mtu",
            "Longest packet in the overlay; 0 without one",
            Unit::Bytes,
            metrics.overlay_mtu.clone(),
        );
        registry.register_with_unit(
            "liquid_fabric_path_mtu",
            "Longest packet below the overlay; 0 if not known",
            Unit::Bytes,
            metrics.path_mtu.clone(),
        );
        registry.register(
            "liquid_fabric_dropped_packets",
            "Packets from outside the overlay, or for other things than pods, that its packet filter has dropped",
            metrics.dropped.clone(),
        );
        registry.register(
            "liquid_fabric_denied_packets",
            "Packets from a peer for what it may not reach (spec.network.access) that were dropped on this node",
            metrics.denied.clone(),
        );
        for reason in Problem::REASONS {
            metrics.problems.get_or_create(&Reason { reason }).set(0);
        }
        metrics
    }

    pub(crate) fn cluster(&self, topology: &Topology) {
        for (state, name) in [
            (GatewayState::Ready, "ready"),
            (GatewayState::Doubtful, "not_ready"),
            (GatewayState::Leaving, "leaving"),
        ] {
            let found = topology.gateways.values().filter(|gateway| gateway.state == state).count();
            self.gateways.get_or_create(&State { state: name }).set(count(found));
        }
        self.nodes.set(count(topology.nodes.len()));
        self.prefixes.set(count(topology.peers.values().map(|peer| peer.prefixes.len()).sum()));
    }

    pub(crate) fn problems<'a>(&self, problems: impl Iterator<Item = &'a Problem> + Clone) {
        for reason in Problem::REASONS {
            let found = problems.clone().filter(|problem| problem.reason() == reason).count();
            self.problems.get_or_create(&Reason { reason }).set(count(found));
        }
    }

    pub(crate) fn mtu(&self, overlay: Option<u32>, path: Option<u32>) {
        self.overlay_mtu.set(i64::from(overlay.unwrap_or(0)));
        self.path_mtu.set(i64::from(path.unwrap_or(0)));
    }

    pub(crate) fn changed(&self, piece: &'static str) {
        self.changes.get_or_create(&Piece { piece }).inc();
    }

    pub(crate) fn failed(&self) {
        self.failures.inc();
    }

    pub(crate) fn checked(&self, in_place: bool) {
        self.in_place.set(i64::from(in_place));
    }

    /// So many packets were dropped by a chain of the packet filter.
    pub(crate) fn dropped(&self, chain: &str, packets: u64) {
        match peer_of(chain) {
            Some(peer) => self.denied.get_or_create(&OfPeer { peer: peer.to_owned() }).inc_by(packets),
            None => self.dropped.inc_by(packets),
        };
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Figures of the probes, taken when they are asked for.
#[derive(Debug)]
pub struct Probes(pub Measured);

type Figure = (&'static str, &'static str, Option<Unit>, fn(&Figures, bool) -> Option<f64>);

type Count = (&'static str, &'static str, fn(&Figures) -> u64);

const GAUGES: [Figure; 3] = [
    ("liquid_fabric_gateway_alive", "1 if the gateway answers probes of this node", None, |_, alive| {
        Some(f64::from(u8::from(alive)))
    }),
    (
        "liquid_fabric_round_trip",
        "Smoothed time of a probe to the gateway and back",
        Some(Unit::Seconds),
        |figures, _| figures.round_trip,
    ),
    (
        "liquid_fabric_jitter",
        "Smoothed difference of successive round-trip times",
        Some(Unit::Seconds),
        |figures, _| figures.round_trip.map(|_| figures.jitter),
    ),
];

impl Collector for Probes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let measured = self.0.get();
        for (name, help, unit, figure) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for (gateway, (figures, alive)) in &measured {
                let Some(value) = figure(figures, *alive) else { continue };
                ConstGauge::new(value).encode(family.encode_family(&[("gateway", gateway.as_str())])?)?;
            }
        }
        let counters: [Count; 2] = [
            ("liquid_fabric_probes_sent", "Probes sent to the gateway", |figures| figures.sent),
            ("liquid_fabric_probes_lost", "Probes that were not answered within a second", |figures| {
                figures.lost
            }),
        ];
        for (name, help, figure) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (gateway, (figures, _)) in &measured {
                let counter = ConstCounter::new(figure(figures));
                counter.encode(family.encode_family(&[("gateway", gateway.as_str())])?)?;
            }
        }
        Ok(())
    }
}
