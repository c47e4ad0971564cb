//! Metrics of `liquid-gateway`, taken from the worker's report when they are asked for.

use liquid_gateway::drops::Drop;
use liquid_gateway::gateway::PeerStatus;
use liquid_gateway::io::worker::Handle;
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
pub(crate) struct Reports(Arc<OnceLock<Handle>>);

impl Reports {
    /// From now on, those of this worker.
    pub(crate) fn of(&self, worker: Handle) {
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

impl Collector for Reports {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(worker) = self.0.get() else { return Ok(()) };
        let report = worker.report();
        for (name, help, unit, figure) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for peer in &report.peers {
                let counter = ConstCounter::new(figure(peer));
                counter.encode(family.encode_family(&[("peer", peer.name.as_str())])?)?;
            }
        }
        let help = "Longest packet that is sent into the tunnel";
        let mut family =
            encoder.encode_descriptor("liquid_gateway_mtu", help, Some(&Unit::Bytes), MetricType::Gauge)?;
        for peer in &report.peers {
            let gauge = ConstGauge::new(i64::from(peer.mtu));
            gauge.encode(family.encode_family(&[("peer", peer.name.as_str())])?)?;
        }
        let (name, help) =
            ("liquid_gateway_handshake_age", "Time since the last handshake; absent if there was none");
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for peer in &report.peers {
            let Some(last) = peer.last_handshake else { continue };
            let gauge = ConstGauge::new(Instant::now().saturating_duration_since(last).as_secs_f64());
            gauge.encode(family.encode_family(&[("peer", peer.name.as_str())])?)?;
        }
        let (name, help) =
            ("liquid_gateway_silence", "Time since the peer was heard of last; absent if it never was");
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for peer in &report.peers {
            let Some(last) = peer.last_heard else { continue };
            let gauge = ConstGauge::new(Instant::now().saturating_duration_since(last).as_secs_f64());
            gauge.encode(family.encode_family(&[("peer", peer.name.as_str())])?)?;
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
        ] {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}
