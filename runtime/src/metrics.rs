//! The Prometheus registry of a process, with figures of the process itself.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::fs;

/// Kernel clock ticks per second in `/proc/<pid>/stat`; fixed at 100 on every Linux architecture Liquid runs on.
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

/// Makes the registry of a process: build information and figures of the process, ready for more.
pub fn registry(process: &'static str) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new([("version", crate::VERSION), ("process", process)]);
    registry.register("liquid_build", "Version and role of this process", build);
    registry.register_collector(Box::new(ProcessCollector));
    registry
}

/// Figures of this process under the names Prometheus client libraries agree on.
#[derive(Debug)]
struct ProcessCollector;

struct ProcessFigures {
    cpu_seconds: f64,
    resident_bytes: i64,
    threads: i64,
    open_fds: i64,
}

impl ProcessFigures {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let open_fds = i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?;
        Self::parse(&stat, &status, open_fds)
    }

    fn parse(stat: &str, status: &str, open_fds: i64) -> Option<Self> {
        // proc(5): the command (field 2) may hold spaces, so count from its closing parenthesis: utime and
        // stime are fields 14 and 15, the 12th and 13th after it.
        let after_command = stat.rsplit_once(')')?.1;
        let mut fields = after_command.split_whitespace().skip(11);
        let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<i64>().ok()
        };
        Some(Self {
            cpu_seconds: ticks / CLOCK_TICKS_PER_SECOND,
            resident_bytes: field("VmRSS:")? * 1024,
            threads: field("Threads:")?,
            open_fds,
        })
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(figures) = ProcessFigures::read() else { return Ok(()) };
        let cpu = ConstCounter::new(figures.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu",
            "User and system CPU time spent",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)?;
        for (name, help, unit, value) in [
            ("process_resident_memory", "Resident memory", Some(&Unit::Bytes), figures.resident_bytes),
            ("process_threads", "Threads", None, figures.threads),
            ("process_open_fds", "Open file descriptors", None, figures.open_fds),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_figures_survive_a_command_with_spaces_and_parentheses() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1 1 1";
        let status = "Name:\tx\nVmRSS:\t   2048 kB\nThreads:\t4\n";
        let figures = ProcessFigures::parse(stat, status, 9).unwrap();
        assert!((figures.cpu_seconds - 3.0).abs() < 1e-9);
        assert_eq!((figures.resident_bytes, figures.threads, figures.open_fds), (2 << 20, 4, 9));
    }

    #[test]
    fn the_registry_reports_this_process() {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry("test")).unwrap();
        for name in ["liquid_build_info{", "process_cpu_seconds_total ", "process_resident_memory_bytes "] {
            assert!(text.contains(name), "{name} missing in\n{text}");
        }
    }
}
