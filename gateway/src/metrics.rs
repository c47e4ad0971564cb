//! Metrics of `liquid-gateway`, taken from the worker's report when they are asked for.

use crate::source::GUEST;
use liquid_gateway::drops::Drop;
use liquid_gateway::io::workers::Workers;
use liquid_gateway::liveness::Way;
use liquid_gateway::peer::PeerStatus;
use liquid_gateway::tunnel::TunnelStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt::Error;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Reads the report of a worker, once there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<OnceLock<Workers>>);

impl Reports {
    /// From now on, those of this worker.
    pub(crate) fn of(&self, worker: Workers) {
        self.0.get_or_init(|| worker);
    }
}

type Figure = (&'static str, &'static str, Option<Unit>, fn(&PeerStatus) -> u64);

const COUNTERS: [Figure; 5] = [
    ("liquid_gateway_sent", "Bytes sent into the tunnel, without its overhead", Some(Unit::Bytes), |peer| {
        peer.traffic.sent_bytes
    }),
    ("liquid_gateway_sent_packets", "Packets sent into the tunnel", None, |peer| peer.traffic.sent_packets),
    ("liquid_gateway_received", "Bytes that came out of the tunnel", Some(Unit::Bytes), |peer| {
        peer.traffic.received_bytes
    }),
    ("liquid_gateway_received_packets", "Packets that came out of the tunnel", None, |peer| {
        peer.traffic.received_packets
    }),
    ("liquid_gateway_handshakes", "Handshakes completed", None, |peer| peer.traffic.handshakes),
];

type TunnelFigure = (&'static str, &'static str, Option<Unit>, fn(&TunnelStatus, Instant) -> Option<f64>);

const GAUGES: [TunnelFigure; 5] = [
    ("liquid_gateway_tunnel_up", "1 if packets pass the tunnel in both directions", None, |tunnel, _| {
        Some(if tunnel.way >= Way::Standby { 1.0 } else { 0.0 })
    }),
    ("liquid_gateway_mtu", "Longest packet that is sent into the tunnel", Some(Unit::Bytes), |tunnel, _| {
        Some(f64::from(tunnel.mtu))
    }),
    (
        "liquid_gateway_round_trip",
        "Smoothed round-trip time in the tunnel; absent if the other end answers no probes",
        Some(Unit::Seconds),
        |tunnel, _| Some(tunnel.round_trip?.as_secs_f64()),
    ),
    (
        "liquid_gateway_handshake_age",
        "Time since the last handshake; absent if there was none",
        Some(Unit::Seconds),
        |tunnel, now| Some(now.saturating_duration_since(tunnel.last_handshake?).as_secs_f64()),
    ),
    (
        "liquid_gateway_silence",
        "Time since the other end was heard of last; absent if it never was",
        Some(Unit::Seconds),
        |tunnel, now| Some(now.saturating_duration_since(tunnel.last_heard?).as_secs_f64()),
    ),
];

impl Collector for Reports {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(worker) = self.0.get() else { return Ok(()) };
        let mut report = worker.report();
        // Each token would be a peer of its own.
        report.peers.retain(|peer| !peer.name.starts_with(GUEST));
        for (name, help, unit, figure) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for peer in &report.peers {
                let counter = ConstCounter::new(figure(peer));
                counter.encode(family.encode_family(&[("peer", peer.name.as_str())])?)?;
            }
        }
        let now = Instant::now();
        for (name, help, unit, figure) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for peer in &report.peers {
                for tunnel in &peer.tunnels {
                    let Some(value) = figure(tunnel, now) else { continue };
                    let labels = [("peer", peer.name.as_str()), ("tunnel", tunnel.name.as_str())];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let (name, help) = ("liquid_gateway_dropped_packets", "Packets that were not forwarded");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for reason in Drop::ALL {
            let counter = ConstCounter::new(report.drops.get(reason));
            counter.encode(family.encode_family(&[("reason", reason.label())])?)?;
        }
        let (name, help) =
            ("liquid_gateway_lost_writes", "Calls to send or write that the system did not take");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, count) in [
            ("socket_full", report.lost.socket_full),
            ("too_long", report.lost.too_long),
            ("send_failed", report.lost.send_failed),
            ("tun_failed", report.lost.tun_failed),
            ("lane_full", report.lost.lane_full),
        ] {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}
