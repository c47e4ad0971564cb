//! Medians, spread, and ratios.

use serde::Serialize;
use std::collections::BTreeMap;

/// What was measured: a value for each round.
#[derive(Debug)]
pub struct Results {
    /// What is compared: the first of them with the others.
    subjects: Vec<&'static str>,
    /// By circumstances, subject, and what.
    series: BTreeMap<(&'static str, &'static str, &'static str), Vec<f64>>,
    /// In the order in which they were first measured.
    whats: Vec<(&'static str, &'static str)>,
}

/// A series as programs read it.
#[derive(Debug, Serialize)]
pub struct Series<'a> {
    /// Under which circumstances.
    circumstances: &'a str,
    /// Of what.
    subject: &'a str,
    /// What was measured.
    what: &'a str,
    /// A value for each round.
    values: &'a [f64],
}

impl Results {
    /// Without values.
    #[must_use]
    pub fn new(subjects: &[&'static str]) -> Self {
        Self { subjects: subjects.to_vec(), series: BTreeMap::new(), whats: Vec::new() }
    }

    /// Notes what was measured in a round. Circumstances are told apart by their name, subjects by theirs.
    pub fn note(&mut self, [circumstances, subject, what]: [&'static str; 3], round: usize, value: f64) {
        let series = self.series.entry((circumstances, subject, what)).or_default();
        assert_eq!(series.len(), round, "each round measures everything once");
        series.push(value);
        if !self.whats.contains(&(circumstances, what)) {
            self.whats.push((circumstances, what));
        }
    }

    /// All values.
    #[must_use]
    pub fn series(&self) -> Vec<Series<'_>> {
        self.series
            .iter()
            .map(|((circumstances, subject, what), values)| Series {
                circumstances,
                subject,
                what: what.trim(),
                values,
            })
            .collect()
    }

    /// Medians with the least and the most, then ratios to the others.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut circumstances = "";
        for (of, what) in &self.whats {
            if *of != circumstances {
                circumstances = of;
                text.push_str(&format!("\n{:<46}", format!("{of}: median (least - most)")));
                text.extend(self.subjects.iter().map(|subject| format!("{subject:>26}")));
                text.push('\n');
            }
            text.push_str(&format!("{what:<46}"));
            text.extend(self.subjects.iter().map(|subject| format!("{:>26}", self.cell(of, subject, what))));
            text.push('\n');
        }
        text.push_str("\nRatios to others, medians of the ratios within rounds\n");
        let first = self.whats.first().map(|(circumstances, _)| *circumstances);
        for other in self.subjects.iter().skip(1) {
            for (circumstances, what) in &self.whats {
                let Some(ratio) = self.ratio(circumstances, what, other) else { continue };
                let among = if first == Some(circumstances) {
                    String::new()
                } else {
                    format!("{}, ", circumstances.to_lowercase())
                };
                text.push_str(&format!("{among}{}: {ratio:.2} x {other}\n", what.trim()));
            }
        }
        text
    }

    fn cell(&self, circumstances: &'static str, subject: &'static str, what: &'static str) -> String {
        let Some(values) = self.series.get(&(circumstances, subject, what)) else { return "-".to_owned() };
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
        let show = |value: f64| if most < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        format!("{} ({} - {})", show(median(&sorted)), show(least), show(most))
    }

    fn ratio(&self, circumstances: &'static str, what: &'static str, other: &'static str) -> Option<f64> {
        let first = self.subjects.first()?;
        let ours = self.series.get(&(circumstances, *first, what))?;
        let theirs = self.series.get(&(circumstances, other, what))?;
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        // Whom something is compared with may have carried nothing, which is no ratio.
        Some(median(&ratios)).filter(|ratio| ratio.is_finite())
    }
}

fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[half - 1] + sorted[half]) / 2.0 } else { sorted[half] }
}
