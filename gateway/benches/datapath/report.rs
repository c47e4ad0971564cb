//! Medians, spread, and ratios.

use crate::{Subject, Wire};
use serde::Serialize;
use std::collections::BTreeMap;

/// What was measured: a value for each round.
#[derive(Debug, Default)]
pub(crate) struct Results {
    series: BTreeMap<(Wire, Subject, &'static str), Vec<f64>>,
    /// In the order in which they were first measured.
    whats: Vec<(Wire, &'static str)>,
}

/// A series as programs read it.
#[derive(Debug, Serialize)]
pub(crate) struct Series<'a> {
    wire: Wire,
    subject: Subject,
    what: &'a str,
    values: &'a [f64],
}

impl Results {
    pub(crate) fn note(
        &mut self,
        subject: Subject,
        wire: Wire,
        what: &'static str,
        round: usize,
        value: f64,
    ) {
        let series = self.series.entry((wire, subject, what)).or_default();
        assert_eq!(series.len(), round, "each round measures everything once");
        series.push(value);
        if !self.whats.contains(&(wire, what)) {
            self.whats.push((wire, what));
        }
    }

    pub(crate) fn series(&self) -> Vec<Series<'_>> {
        self.series
            .iter()
            .map(|((wire, subject, what), values)| Series {
                wire: *wire,
                subject: *subject,
                what: what.trim(),
                values,
            })
            .collect()
    }

    /// Medians with the least and the most, then ratios to the others.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for wire in [Wire::Whole, Wire::Segmented] {
            text.push_str(&format!("\n{:<46}", format!("{wire:?} wire: median (least - most)")));
            text.extend(Subject::ALL.map(|subject| format!("{:>26}", subject.name())));
            text.push('\n');
            for (_, what) in self.whats.iter().filter(|(of, _)| *of == wire) {
                text.push_str(&format!("{what:<46}"));
                text.extend(Subject::ALL.map(|subject| format!("{:>26}", self.cell(wire, subject, what))));
                text.push('\n');
            }
        }
        text.push_str("\nRatios to others, medians of the ratios within rounds\n");
        for other in [Subject::WireguardGo, Subject::BoringtunCli, Subject::Plain] {
            for (wire, what) in &self.whats {
                let Some(ratio) = self.ratio(*wire, what, other) else { continue };
                let wire = if *wire == Wire::Segmented { "segmented wire, " } else { "" };
                let what = what.trim();
                text.push_str(&format!("{wire}{what}: {ratio:.2} x {}\n", other.name()));
            }
        }
        text
    }

    fn cell(&self, wire: Wire, subject: Subject, what: &'static str) -> String {
        let Some(values) = self.series.get(&(wire, subject, what)) else { return "-".to_owned() };
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
        let show = |value: f64| if most < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        format!("{} ({} - {})", show(median(&sorted)), show(least), show(most))
    }

    fn ratio(&self, wire: Wire, what: &'static str, other: Subject) -> Option<f64> {
        let ours = self.series.get(&(wire, Subject::Liquid, what))?;
        let theirs = self.series.get(&(wire, other, what))?;
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        Some(median(&ratios))
    }
}

fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[half - 1] + sorted[half]) / 2.0 } else { sorted[half] }
}
