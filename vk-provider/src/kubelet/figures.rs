//! What the pods of a virtual node use, and from that what the node does. Pure.
//!
//! The provider's word is checked line by line: it may tell of the pods that are bound to this node, and of no others,
//! or it could make autoscalers at home believe anything of any workload.

use crate::mirror::HomePods;
use k8s_openapi::jiff::Timestamp;
use liquid_reflection::Uid;
use liquid_runtime::exposition::Sample;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

const POD_CPU: &str = "pod_cpu_usage_seconds_total";
const POD_MEMORY: &str = "pod_memory_working_set_bytes";
const POD_SWAP: &str = "pod_swap_usage_bytes";

/// Processor time of all pods that have ever been on the node, in nanoseconds: unlike the sum over those of now, it
/// never shrinks, which is what makes rates of it true.
#[derive(Debug, Default)]
pub(super) struct Meter {
    total: u64,
    /// By UID: what was read last, and when (milliseconds).
    last: HashMap<Uid, (u64, i64)>,
}

impl Meter {
    /// Learns a reading. One that is not newer says nothing; one that is newer and smaller comes from a pod that was
    /// made anew, and begins at nothing.
    fn learn(&mut self, pod: &Uid, nanoseconds: u64, at: i64) {
        let (before, since) = self.last.get(pod).copied().unwrap_or((0, i64::MIN));
        if at <= since {
            return;
        }
        let more = if nanoseconds >= before { nanoseconds - before } else { nanoseconds };
        self.total = self.total.saturating_add(more);
        self.last.insert(pod.clone(), (nanoseconds, at));
    }

    /// Forgets pods that are not on the node any more.
    pub(super) fn keep(&mut self, pods: &HomePods) {
        let known: std::collections::HashSet<&Uid> = pods.values().flat_map(HashMap::values).collect();
        self.last.retain(|uid, _| known.contains(uid));
    }
}

/// Sums over the pods of a reading.
#[derive(Debug, Default, PartialEq)]
struct Sums {
    usage_nano_cores: u64,
    working_set: u64,
    usage: u64,
    rss: u64,
    page_faults: u64,
    major_page_faults: u64,
    swap: u64,
    /// When the newest figure was measured, in milliseconds.
    newest: Option<i64>,
}

impl Sums {
    fn seen(&mut self, at: i64) {
        self.newest = self.newest.max(Some(at));
    }
}

fn uid<'a>(pods: &'a HomePods, namespace: &str, name: &str) -> Option<&'a Uid> {
    pods.get(namespace)?.get(name)
}

/// Metrics in the Prometheus text format on their way through.
#[derive(Debug)]
pub(super) struct Metrics {
    pods: Arc<HomePods>,
    sums: Sums,
}

impl Metrics {
    /// Those of the pods of this node.
    pub(super) fn new(pods: Arc<HomePods>) -> Self {
        Self { pods, sums: Sums::default() }
    }

    /// Whether a line is to be passed on.
    pub(super) fn line(&mut self, line: &str, meter: &mut Meter) -> bool {
        if line.starts_with("# ") {
            return true;
        }
        let Some(sample) = Sample::parse(line) else { return false };
        let (Some(namespace), Some(pod)) = (sample.label("namespace"), sample.label("pod")) else {
            return false;
        };
        let Some(uid) = uid(&self.pods, namespace, pod) else { return false };
        let mut words = sample.rest.split_ascii_whitespace();
        let Some(value) = words.next().and_then(|value| value.parse::<f64>().ok()) else { return false };
        if let Some(at) = words.next().and_then(|at| at.parse().ok()) {
            match sample.name {
                POD_CPU => meter.learn(uid, whole(value * 1e9), at),
                POD_MEMORY => self.sums.working_set = self.sums.working_set.saturating_add(whole(value)),
                POD_SWAP => self.sums.swap = self.sums.swap.saturating_add(whole(value)),
                _ => return true,
            }
            self.sums.seen(at);
        }
        true
    }

    /// The metrics of the node itself, when all lines have been passed on. `now` in milliseconds is for a node without
    /// pods.
    pub(super) fn node(&self, meter: &Meter, now: i64) -> String {
        let at = self.sums.newest.unwrap_or(now);
        #[allow(clippy::cast_precision_loss, reason = "a nanosecond in 100 days is none too many")]
        let seconds = meter.total as f64 / 1e9;
        let mut text = String::new();
        for (name, help, kind, value) in [
            (
                "node_cpu_usage_seconds_total",
                "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
                "counter",
                format!("{seconds} {at}"),
            ),
            (
                "node_memory_working_set_bytes",
                "[STABLE] Current working set of the node in bytes",
                "gauge",
                format!("{} {at}", self.sums.working_set),
            ),
            (
                "node_swap_usage_bytes",
                "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
                "gauge",
                format!("{} {at}", self.sums.swap),
            ),
            (
                "resource_scrape_error",
                "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
                "gauge",
                "0".to_owned(),
            ),
        ] {
            // Writing to a string does not fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        text
    }
}

/// A float of a metric as a whole number; what is none counts as nothing.
fn whole(value: f64) -> u64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, and NaN is 0"
    )]
    let whole = value.round() as u64;
    whole
}

/// Statistics of pods on their way through.
#[derive(Debug)]
pub(super) struct Summary {
    pods: Arc<HomePods>,
    sums: Sums,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodRef,
    cpu: Option<Cpu>,
    memory: Option<Memory>,
    swap: Option<Swap>,
}

#[derive(Deserialize)]
struct PodRef {
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Option<Timestamp>,
    #[serde(default)]
    usage_nano_cores: u64,
    usage_core_nano_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Memory {
    working_set_bytes: u64,
    usage_bytes: u64,
    rss_bytes: u64,
    page_faults: u64,
    major_page_faults: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Swap {
    #[serde(default)]
    swap_usage_bytes: u64,
}

impl Summary {
    /// That of the pods of this node.
    pub(super) fn new(pods: Arc<HomePods>) -> Self {
        Self { pods, sums: Sums::default() }
    }

    /// Whether a line, which is one pod, is to be passed on.
    pub(super) fn line(&mut self, line: &str, meter: &mut Meter) -> bool {
        let Ok(stats) = serde_json::from_str::<PodStats>(line) else { return false };
        let PodRef { namespace, name, uid: claimed } = stats.pod_ref;
        let Some(uid) = uid(&self.pods, &namespace, &name).filter(|uid| uid.as_str() == claimed) else {
            return false;
        };
        let sums = &mut self.sums;
        if let Some(cpu) = stats.cpu {
            sums.usage_nano_cores = sums.usage_nano_cores.saturating_add(cpu.usage_nano_cores);
            if let Some(at) = cpu.time.map(Timestamp::as_millisecond) {
                sums.seen(at);
                if let Some(nanoseconds) = cpu.usage_core_nano_seconds {
                    meter.learn(uid, nanoseconds, at);
                }
            }
        }
        let memory = stats.memory.unwrap_or_default();
        for (sum, more) in [
            (&mut sums.working_set, memory.working_set_bytes),
            (&mut sums.usage, memory.usage_bytes),
            (&mut sums.rss, memory.rss_bytes),
            (&mut sums.page_faults, memory.page_faults),
            (&mut sums.major_page_faults, memory.major_page_faults),
            (&mut sums.swap, stats.swap.map_or(0, |swap| swap.swap_usage_bytes)),
        ] {
            *sum = sum.saturating_add(more);
        }
        true
    }

    /// The statistics of the node itself, when all pods have been passed on.
    pub(super) fn node(&self, name: &str, since: Timestamp, meter: &Meter, now: Timestamp) -> Value {
        let newest = self.sums.newest.and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or(now);
        let time = second(newest);
        json!({
            "nodeName": name,
            "startTime": second(since),
            "cpu": {
                "time": time,
                "usageNanoCores": self.sums.usage_nano_cores,
                "usageCoreNanoSeconds": meter.total,
            },
            "memory": {
                "time": time,
                "workingSetBytes": self.sums.working_set,
                "usageBytes": self.sums.usage,
                "rssBytes": self.sums.rss,
                "pageFaults": self.sums.page_faults,
                "majorPageFaults": self.sums.major_page_faults,
            },
            "swap": { "time": time, "swapUsageBytes": self.sums.swap },
        })
    }
}

/// Times of Kubernetes are whole seconds.
fn second(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(names: &[&str]) -> Arc<HomePods> {
        let shop = names.iter().map(|name| (Arc::from(*name), Uid::from(format!("u-{name}").as_str())));
        Arc::new(HashMap::from([(Arc::from("shop"), shop.collect())]))
    }

    #[test]
    fn processor_time_only_grows_whatever_comes_and_goes() {
        let mut meter = Meter::default();
        let (a, b) = (Uid::from("a"), Uid::from("b"));
        meter.learn(&a, 100, 1);
        meter.learn(&b, 50, 1);
        meter.learn(&a, 130, 2);
        assert_eq!(meter.total, 180);
        meter.learn(&a, 120, 2);
        assert_eq!(meter.total, 180, "an older reading says nothing");
        meter.learn(&a, 10, 3);
        assert_eq!(meter.total, 190, "its pod was made anew");
        meter.keep(&HashMap::from([(Arc::from("shop"), HashMap::from([(Arc::from("x"), b.clone())]))]));
        assert_eq!((meter.total, meter.last.len()), (190, 1));
        meter.learn(&b, u64::MAX, 4);
        assert_eq!(meter.total, u64::MAX);
    }

    #[test]
    fn metrics_of_pods_that_are_not_here_are_left_out() {
        let mut meter = Meter::default();
        let mut metrics = Metrics::new(pods(&["a", "b"]));
        let mut pass = |line: &str| metrics.line(line, &mut meter);
        assert!(pass("# TYPE pod_cpu_usage_seconds_total counter"));
        assert!(pass(r#"pod_cpu_usage_seconds_total{namespace="shop",pod="a"} 1.5 1000"#));
        assert!(pass(r#"pod_cpu_usage_seconds_total{namespace="shop",pod="b"} 2.5e-1 3000"#));
        assert!(pass(r#"pod_memory_working_set_bytes{namespace="shop",pod="a"} 1.048576e+06 2000"#));
        assert!(pass(r#"container_start_time_seconds{container="c",namespace="shop",pod="a"} 1.7e+09"#));
        for foreign in [
            r#"pod_cpu_usage_seconds_total{namespace="kube-system",pod="a"} 9 9000"#,
            r#"pod_cpu_usage_seconds_total{namespace="shop",pod="c"} 9 9000"#,
            "node_cpu_usage_seconds_total 9 9000",
            r#"pod_cpu_usage_seconds_total{namespace="shop",pod="a"} much"#,
            "",
        ] {
            assert!(!pass(foreign), "{foreign}");
        }
        let node = metrics.node(&meter, 7);
        for line in ["node_cpu_usage_seconds_total 1.75 3000", "node_memory_working_set_bytes 1048576 3000"] {
            assert!(node.lines().any(|found| found == line), "{line} is not in\n{node}");
        }
        let idle = Metrics::new(pods(&[])).node(&Meter::default(), 7);
        assert!(idle.contains("\nnode_cpu_usage_seconds_total 0 7\n"), "{idle}");
    }

    #[test]
    fn the_node_uses_what_its_pods_use() {
        let mut meter = Meter::default();
        let mut summary = Summary::new(pods(&["a", "b"]));
        let pod = |namespace: &str, name: &str, uid: &str| {
            json!({
                "podRef": {"namespace": namespace, "name": name, "uid": uid},
                "cpu": {"time": "2026-01-01T00:00:05Z", "usageNanoCores": 7, "usageCoreNanoSeconds": 100, "psi": {}},
                "memory": {"workingSetBytes": 10, "rssBytes": 3},
            })
            .to_string()
        };
        assert!(summary.line(&pod("shop", "a", "u-a"), &mut meter));
        assert!(summary.line(&pod("shop", "b", "u-b"), &mut meter));
        for foreign in [
            pod("shop", "a", "u-of-another"),
            pod("kube-system", "a", "u-a"),
            r#"{"podRef": {"namespace": "shop", "name": "a", "uid": "u-a"}}, {}"#.to_owned(),
            "{}".to_owned(),
        ] {
            assert!(!summary.line(&foreign, &mut meter), "{foreign}");
        }
        let at = |second| Timestamp::from_second(second).unwrap();
        let node = summary.node("liquid-milan", at(0), &meter, at(9));
        assert_eq!(
            node["cpu"],
            json!({"time": "2026-01-01T00:00:05Z", "usageNanoCores": 14, "usageCoreNanoSeconds": 200})
        );
        assert_eq!(
            (&node["memory"]["workingSetBytes"], &node["memory"]["rssBytes"]),
            (&json!(20), &json!(6))
        );
        assert_eq!(
            Summary::new(pods(&[])).node("n", at(0), &meter, at(9))["cpu"]["time"],
            "1970-01-01T00:00:09Z"
        );
    }
}
