//! What a series of pods shows. Pure.

use std::time::Duration;

use serde::Serialize;

use crate::latency::Sample;
use crate::report::{Line, Unit};
use crate::statistics::Summary;

/// The goal: how much longer than a local write the way to the provider may take, at the median.
const OVERHEAD_LIMIT_MS: f64 = 50.0;

/// Latencies of a series of pods.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Latencies {
    /// A create request at home that nothing follows from: the floor.
    pub(crate) local_write: Summary,
    /// From the create request until home's scheduler has bound the pod.
    pub(crate) bound: Summary,
    /// From the create request until the twin exists in the provider.
    pub(crate) twin: Summary,
    /// From the create request until the pod is Ready at home.
    pub(crate) ready: Summary,
    /// The median of the twin less that of the floor, in milliseconds.
    pub(crate) overhead_ms: f64,
}

impl Latencies {
    /// Summarises a series, which may not be empty.
    pub(crate) fn of(samples: &[Sample]) -> anyhow::Result<Self> {
        let summary = |of: fn(&Sample) -> Duration| Summary::require(samples.iter().map(of));
        let (local_write, twin) = (summary(|sample| sample.local)?, summary(|sample| sample.twin)?);
        Ok(Self {
            local_write,
            bound: summary(|sample| sample.bound)?,
            twin,
            ready: summary(|sample| sample.ready)?,
            overhead_ms: twin.median_ms - local_write.median_ms,
        })
    }

    /// The figures and the goal.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let show = |summary: Summary| {
            format!("{:.1} / {}", summary.median_ms, Unit::Milliseconds.show(summary.p95_ms))
        };
        let count = self.twin.count;
        vec![
            Line::plain(
                &format!("pod at home -> pod in the provider, median / p95 of {count}"),
                show(self.twin),
            ),
            Line::plain("  of which until home's scheduler has bound it", show(self.bound)),
            Line::plain("  a local write of the same pod", show(self.local_write)),
            Line::below(
                "  more than a local write, median",
                self.overhead_ms,
                OVERHEAD_LIMIT_MS,
                Unit::Milliseconds,
            ),
            Line::plain("pod at home -> Ready at home, median / p95", show(self.ready)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_taken_off_the_way_to_the_provider() {
        let ms = Duration::from_millis;
        let sample = |twin| Sample { local: ms(5), bound: ms(10), twin: ms(twin), ready: ms(900) };
        let latencies = Latencies::of(&[sample(30), sample(40), sample(20)]).unwrap();
        assert_eq!(latencies.overhead_ms, 25.0);
        assert!(crate::report::table(&latencies.lines()).contains("25.0 ms  < 50 ms  yes"));
        assert!(Latencies::of(&[]).is_err());
    }
}
