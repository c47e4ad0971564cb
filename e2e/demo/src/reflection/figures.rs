//! What a run has found, beside the goals and the figures of the reference (Liqo 1.2.0, measured on the same kind of lab).

use std::collections::BTreeMap;
use std::thread;

use liquid_lab::Lab;
use serde::Serialize;

use super::burst::Burst;
use super::latency::Latencies;
use super::process::Usage;
use super::rest::{Idle, Partition, Restart};
use super::stage::Peering;
use crate::report::{self, Line, Unit};
use crate::statistics::Summary;

const KUBELET: &str = "home liquid-kubelet";
const MEBIBYTE: f64 = 1024.0 * 1024.0;
/// The size of burst at which goals are set.
const MAIN: usize = 500;
/// The size at which memory per pod is looked at.
const LARGEST: usize = 10_000;

/// Where it was measured.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Setting {
    kubernetes: String,
    cores: usize,
}

impl Setting {
    pub(crate) fn of(lab: &Lab) -> Self {
        let cores = thread::available_parallelism().map(usize::from).unwrap_or_default();
        Self { kubernetes: lab.kubernetes().to_owned(), cores }
    }
}

/// What peering took.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeeringFigures {
    ready_s: f64,
    link_bytes: u64,
}

impl From<Peering> for PeeringFigures {
    fn from(peering: Peering) -> Self {
        Self { ready_s: peering.took.as_secs_f64(), link_bytes: peering.bytes }
    }
}

/// Everything a run has found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Found {
    pub(crate) setting: Setting,
    pub(crate) peering: PeeringFigures,
    /// Liquid's processes, peered, without pods.
    pub(crate) empty: BTreeMap<String, Usage>,
    /// Memory of liquid-kubelet for each virtual node that is added.
    pub(crate) another_node_bytes: f64,
    /// Latencies of single pods.
    pub(crate) near: Latencies,
    /// The same with a round-trip time of 50 ms.
    pub(crate) far: Latencies,
    pub(crate) bursts: Vec<Burst>,
    pub(crate) idle: Idle,
    pub(crate) restart: Restart,
    pub(crate) partition: Partition,
}

impl Found {
    /// The figures as people read them.
    pub(crate) fn table(&self) -> String {
        let mut lines = self.peering();
        lines.extend(latency(&self.near, 0.0, ["58 / 93 ms", "63 / 143 ms", "39 / 66 ms"]));
        lines.extend(latency(&self.far, 50.0, ["69 / 85 ms", "156 / 198 ms", "-"]));
        lines.extend(self.main());
        let main = self.bursts.iter().filter(|burst| burst.size.pods == MAIN);
        for (number, burst) in main.enumerate() {
            lines.extend(ratio(burst, number == 0));
        }
        for burst in self.bursts.iter().filter(|burst| burst.size.pods > MAIN) {
            lines.extend(ratio(burst, true));
            lines.extend(self.large(burst));
        }
        lines.extend(self.rest());
        let Setting { kubernetes, cores } = &self.setting;
        format!("Kubernetes {kubernetes}, {cores} cores\n\n{}", report::table(&lines))
    }

    fn peering(&self) -> Vec<Line> {
        let memory =
            |name: &str| self.empty.get(name).map(|usage| mebibytes(usage.resident)).unwrap_or_default();
        let side = |side: &str| -> f64 {
            self.empty
                .iter()
                .filter(|(name, _)| name.starts_with(side))
                .map(|(_, u)| mebibytes(u.resident))
                .sum()
        };
        vec![
            Line::plain("peering: until the virtual node is Ready", Unit::Seconds.show(self.peering.ready_s))
                .reference("3.7-4.0 s"),
            Line::plain("  bytes on the link until then", kilobytes(self.peering.link_bytes))
                .reference("57-59 kB"),
            Line::below("memory of liquid-kubelet, no pods", memory(KUBELET), 12.0, Unit::Mebibytes)
                .reference("57 MiB"),
            Line::plain("  all processes at home", Unit::Mebibytes.show(side("home"))).reference("230 MiB"),
            Line::plain("  all processes in the provider", Unit::Mebibytes.show(side("provider")))
                .reference("200 MiB"),
            Line::below(
                "  of another virtual node",
                self.another_node_bytes / MEBIBYTE,
                1.0,
                Unit::Mebibytes,
            )
            .reference("57 MiB"),
        ]
    }

    /// A burst of the main size, by several clients: the one with the median processor time.
    fn main(&self) -> Vec<Line> {
        let mut bursts: Vec<&Burst> =
            self.bursts.iter().filter(|burst| burst.size.pods == MAIN && burst.size.clients > 1).collect();
        bursts.sort_by(|a, b| a.creating.cpu().total_cmp(&b.creating.cpu()));
        let Some(burst) = bursts.get(bursts.len() / 2) else { return Vec::new() };
        let per_pod = |count: u64| number(count) / number(burst.size.pods);
        let mut lines = vec![
            Line::below(
                "500 pods: processor, all processes of Liquid",
                burst.creating.cpu(),
                3.0,
                Unit::Seconds,
            )
            .reference("16 s"),
        ];
        lines.extend(
            burst
                .creating
                .cpu_s
                .iter()
                .map(|(name, cpu)| Line::plain(&format!("  {name}"), Unit::Seconds.show(*cpu))),
        );
        for (side, reference) in [("home", "14.5"), ("provider", "15.9")] {
            let count = per_pod(burst.creating.requests_to(side));
            lines.push(
                Line::below(
                    &format!("  requests per pod to the API server, {side}"),
                    count,
                    3.0,
                    Unit::Number,
                )
                .reference(reference),
            );
        }
        for (side, cpu) in &burst.creating.api_servers_cpu_s {
            let reference = if side == "home" { "18 s" } else { "39 s" };
            lines.push(
                Line::plain(&format!("  processor of the API server, {side}"), Unit::Seconds.show(*cpu))
                    .reference(reference),
            );
        }
        lines.push(
            Line::plain(
                "  the same pods created directly",
                Unit::Seconds.show(burst.direct.api_server_cpu_s),
            )
            .reference("6 s"),
        );
        let bytes = per_pod(burst.creating.link_bytes) / 1e3;
        lines
            .push(Line::below("  bytes on the link per pod", bytes, 6.0, Unit::Kilobytes).reference("84 kB"));
        lines.push(Line::plain(
            "  deleting: bytes per pod, processor",
            format!("{:.1} kB, {:.2} s", per_pod(burst.deleting.link_bytes) / 1e3, burst.deleting.cpu()),
        ));
        for side in ["home", "provider"] {
            let count = per_pod(burst.deleting.requests_to(side));
            lines.push(Line::plain(
                &format!("  deleting: requests per pod, {side}"),
                Unit::Number.show(count),
            ));
        }
        lines.push(memory(burst, 20.0).reference("126 MiB"));
        lines
    }

    fn large(&self, burst: &Burst) -> Vec<Line> {
        let mut lines = vec![Line::plain(
            "  processor, all processes of Liquid",
            Unit::Seconds.show(burst.creating.cpu()),
        )];
        if burst.size.pods < LARGEST {
            lines.push(memory_without_goal(burst));
            return lines;
        }
        lines.push(memory(burst, 80.0).reference("~500 MiB"));
        for name in [KUBELET, "provider liquid-controller"] {
            let (Some(now), Some(empty)) = (burst.memory.get(name), self.empty.get(name)) else { continue };
            let grown = number(now.resident) - number(empty.resident);
            let each = grown / number(burst.size.pods) / 1e3;
            lines.push(
                Line::below(&format!("  memory per pod, {name}"), each, 4.0, Unit::Kilobytes)
                    .reference("46 kB"),
            );
        }
        lines
    }

    fn rest(&self) -> Vec<Line> {
        let idle = &self.idle;
        let kilobytes_per_hour = idle.per_hour(number(idle.cost.link_bytes)) / 1e3;
        let cpu = idle.cost.cpu_s.get(KUBELET).copied().unwrap_or_default();
        let requests = idle.per_hour(number(idle.cost.requests_to("home"))) / 60.0;
        let seconds = |of: &Summary| {
            (
                of.median_ms / 1e3,
                format!("{:.2} ({:.2} - {:.2}) s", of.median_ms / 1e3, of.min_ms / 1e3, of.max_ms / 1e3),
            )
        };
        let timed = |what: &str, of: &Summary, goal: f64| {
            let (median, shown) = seconds(of);
            Line::plain(what, shown).within(median, goal, Unit::Seconds)
        };
        let Restart { blind, link_bytes, writes, .. } = &self.restart;
        let Partition { seen, healed, caught_up } = &self.partition;
        vec![
            Line::below(
                "500 pods at rest: bytes on the link per hour",
                kilobytes_per_hour,
                100.0,
                Unit::Kilobytes,
            )
            .reference("370 kB"),
            Line::plain(
                "  processor of liquid-kubelet",
                format!("{:.2} millicores", cpu / idle.seconds * 1e3),
            )
            .reference("2.5 millicores"),
            Line::plain("  requests of Liquid at home", format!("{requests:.0} per minute"))
                .reference("39 per minute"),
            timed("restart of liquid-kubelet: blind", blind, 2.0).reference("21 s"),
            Line::below("  bytes on the link", number(*link_bytes) / 1e3, 150.0, Unit::Kilobytes)
                .reference("12,000 kB"),
            Line::below("  writes", number(*writes), 1.0, Unit::Number).reference("1267"),
            timed("partition: node not Ready after, median (min - max)", seen, 12.0).reference("69 s"),
            timed("  node Ready after the repair", healed, 3.0).reference("63 s"),
            Line::plain("  pod made in between exists after the repair", seconds(caught_up).1),
        ]
    }
}

fn latency(found: &Latencies, round_trip: f64, references: [&str; 3]) -> Vec<Line> {
    let Latencies { floor, exists, running, deleting } = found;
    let show = |of: &Summary| format!("{:.1} / {:.1} / {:.1} ms", of.median_ms, of.p95_ms, of.p99_ms);
    let far = if round_trip > 0.0 { format!(", round trip {round_trip} ms") } else { String::new() };
    let [first, second, third] = references;
    let mut lines = vec![
        Line::plain(&format!("created at home -> exists remotely{far}, median / p95 / p99"), show(exists))
            .reference(first),
        Line::plain("  created directly in the provider (the floor)", show(floor)).reference("7 ms"),
    ];
    let over = exists.median_ms - floor.median_ms - round_trip / 2.0;
    let what = if round_trip > 0.0 {
        "  over the floor and half a round trip, median"
    } else {
        "  over the floor, median"
    };
    lines.push(Line::below(what, over, 10.0, Unit::Milliseconds).reference("51 ms"));
    lines.push(
        Line::plain("Running remotely -> Running at home", show(running))
            .within(running.median_ms, 10.0 + round_trip / 2.0, Unit::Milliseconds)
            .reference(second),
    );
    lines.push(Line::plain("deleted at home -> deleting remotely", show(deleting)).reference(third));
    lines
}

/// Times of a burst against the floor.
fn ratio(burst: &Burst, reference: bool) -> Vec<Line> {
    let Burst { size, direct, exist_s, running_s, remote_gone_s, home_gone_s, .. } = burst;
    let clients =
        if size.clients == 1 { "one client".to_owned() } else { format!("{} clients", size.clients) };
    let what = format!("{} pods by {clients}: until all exist remotely / directly", size.pods);
    let ratio = exist_s / direct.exist_s;
    let mut exist = Line::plain(&what, format!("{exist_s:.1} / {:.1} s = {ratio:.2}", direct.exist_s));
    if size.pods == MAIN {
        exist = exist.within(ratio, 1.2, Unit::Number);
    }
    let mut lines = vec![
        exist,
        Line::plain(
            "  until all are Running at home / directly",
            format!("{running_s:.1} / {:.1} s", direct.running_s),
        ),
        Line::plain(
            "  deleted: none left at home / remotely / directly",
            format!("{home_gone_s:.1} / {remote_gone_s:.1} / {:.1} s", direct.gone_s),
        ),
    ];
    if size.pods == MAIN && reference {
        let references = ["39 s = 6.7", "52 s", "5 / 25 s"];
        lines = lines.into_iter().zip(references).map(|(line, figure)| line.reference(figure)).collect();
    }
    lines
}

fn memory(burst: &Burst, goal: f64) -> Line {
    let resident = burst.memory.get(KUBELET).map(|usage| mebibytes(usage.resident)).unwrap_or_default();
    memory_without_goal(burst).within(resident, goal, Unit::Mebibytes)
}

/// Memory of liquid-kubelet at rest and its peak; beside it that of the provider's liquid-controller.
fn memory_without_goal(burst: &Burst) -> Line {
    let show = |name: &str| {
        let usage = burst.memory.get(name).copied().unwrap_or_default();
        format!("{:.1} ({:.1})", mebibytes(usage.resident), mebibytes(usage.peak))
    };
    let what = "  memory (peak) of liquid-kubelet; of the provider's liquid-controller";
    Line::plain(what, format!("{}; {} MiB", show(KUBELET), show("provider liquid-controller")))
}

fn kilobytes(bytes: u64) -> String {
    Unit::Kilobytes.show(number(bytes) / 1e3)
}

fn mebibytes(bytes: u64) -> f64 {
    number(bytes) / MEBIBYTE
}

/// Exact below 2^53, which no count of a run comes near.
#[allow(clippy::cast_precision_loss, reason = "counts of a run are below 2^53")]
fn number(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or_default() as f64
}
