//! Order statistics of durations. Pure.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

/// What a series of measurements looks like, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    /// How many measurements.
    pub(crate) count: usize,
    /// Half of them are below.
    pub(crate) median_ms: f64,
    /// Nineteen of twenty are below.
    pub(crate) p95_ms: f64,
    /// Ninety-nine of a hundred are below.
    pub(crate) p99_ms: f64,
    /// The quickest.
    pub(crate) min_ms: f64,
    /// The slowest.
    pub(crate) max_ms: f64,
}

impl Summary {
    /// Summarises a series; `None` if it is empty.
    pub(crate) fn of(series: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut sorted: Vec<f64> = series.into_iter().map(|one| one.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            count: sorted.len(),
            median_ms: (at(&sorted, sorted.len().checked_sub(1)? / 2)? + at(&sorted, sorted.len() / 2)?)
                / 2.0,
            p95_ms: percentile(&sorted, 95)?,
            p99_ms: percentile(&sorted, 99)?,
            min_ms: at(&sorted, 0)?,
            max_ms: at(&sorted, sorted.len().checked_sub(1)?)?,
        })
    }

    /// Summarises a series that is not empty.
    ///
    /// # Errors
    /// If it is.
    pub(crate) fn require(series: impl IntoIterator<Item = Duration>) -> anyhow::Result<Self> {
        Self::of(series).context("nothing was measured")
    }
}

/// The nearest rank: a value that was measured.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    at(sorted, (sorted.len() * percent).div_ceil(100).checked_sub(1)?)
}

fn at(sorted: &[f64], index: usize) -> Option<f64> {
    sorted.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: impl IntoIterator<Item = u64>) -> Option<Summary> {
        Summary::of(milliseconds.into_iter().map(Duration::from_millis))
    }

    #[test]
    fn the_order_of_the_series_does_not_matter() {
        let summary = of([9, 1, 5]).unwrap();
        assert_eq!((summary.median_ms, summary.min_ms, summary.max_ms), (5.0, 1.0, 9.0));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(of([1, 2, 4, 100]).unwrap().median_ms, 3.0);
    }

    #[test]
    fn a_twentieth_lies_above_the_ninety_fifth_percentile() {
        let summary = of(1..=200).unwrap();
        assert_eq!((summary.p95_ms, summary.p99_ms), (190.0, 198.0));
        assert_eq!(of([7]).unwrap().p95_ms, 7.0);
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(of([]), None);
    }
}
