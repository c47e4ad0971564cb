//! What came of the stages. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::output;

/// Lines of a stage's output that are kept: a few MB at most, and more than any stage prints today.
const LINES: usize = 20_000;
/// Lines shown of a failure that does not say itself where it begins.
const TAIL: usize = 60;
/// What the test harness prints after each test binary.
const RESULT: &str = "test result: ";
/// What begins its list of failures.
const FAILURES: &str = "failures:";

/// How a stage ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// And why.
    Failed(String),
    /// And why.
    Skipped(String),
}

/// A stage and what came of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) name: &'static str,
    pub(super) verdict: Verdict,
    pub(super) transcript: Transcript,
    pub(super) took: Duration,
}

/// What a stage printed.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    lines: VecDeque<String>,
    counts: Counts,
}

/// Tests, as the test harness counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Test binaries that have reported.
    binaries: u32,
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Outcome {
    pub(super) fn is_failure(&self) -> bool {
        // What an interrupt kept from running has not passed; what was left out on purpose does not count.
        matches!(&self.verdict, Verdict::Failed(_))
    }
}

impl Transcript {
    pub(super) fn push(&mut self, line: String) {
        if let Some(counts) = counts(&line) {
            self.counts = self.counts.plus(counts);
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn last(&self) -> Option<&str> {
        self.lines.back().map(String::as_str)
    }

    /// The lines that say what failed: the harness' lists of failures, or the end if there are none.
    fn failures(&self) -> Vec<&str> {
        let mut found = Vec::new();
        let mut inside = false;
        for line in self.lines.iter().map(String::as_str) {
            inside |= line == FAILURES;
            if inside {
                found.push(line);
            }
            inside &= !line.starts_with(RESULT);
        }
        if found.is_empty() {
            let skipped = self.lines.len().saturating_sub(TAIL);
            found.extend(self.lines.iter().skip(skipped).map(String::as_str));
        }
        found
    }
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            binaries: self.binaries + other.binaries,
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// Reads `test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
fn counts(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix(RESULT)?.split_once(". ")?;
    let number = |of: &str| {
        let part = numbers.split(';').map(str::trim).find_map(|part| part.strip_suffix(of))?;
        part.trim().parse().ok()
    };
    Some(Counts {
        binaries: 1,
        passed: number("passed")?,
        failed: number("failed")?,
        ignored: number("ignored")?,
    })
}

/// What failed, in the words of the stages.
pub(super) fn failures(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        if let Verdict::Failed(why) = &outcome.verdict {
            text.push_str(&format!("\n== {} failed: {why}\n", outcome.name));
            for line in outcome.transcript.failures() {
                text.push_str(&format!("{line}\n"));
            }
        }
    }
    text
}

/// A line per stage, and one for all.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let head = ["STAGE", "RESULT", "PASSED", "FAILED", "IGNORED", "SECONDS"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    rows.extend(outcomes.iter().map(row));
    let total = outcomes.iter().fold(Counts::default(), |sum, outcome| sum.plus(outcome.transcript.counts));
    let took: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
    let names = |wanted: fn(&Verdict) -> bool| {
        let chosen = outcomes.iter().filter(|outcome| wanted(&outcome.verdict));
        chosen.map(|outcome| outcome.name).collect::<Vec<_>>().join(", ")
    };
    let failed = names(|verdict| matches!(verdict, Verdict::Failed(_)));
    let skipped = names(|verdict| matches!(verdict, Verdict::Skipped(_)));
    let mut result =
        if failed.is_empty() { "all stages passed".to_owned() } else { format!("FAILED: {failed}") };
    if !skipped.is_empty() {
        result.push_str(&format!("; skipped: {skipped}"));
    }
    format!(
        "{}\n{result}; tests: {} passed, {} failed, {} ignored; {:.0} s\n",
        output::table(&rows),
        total.passed,
        total.failed,
        total.ignored,
        took.as_secs_f64()
    )
}

fn row(outcome: &Outcome) -> Vec<String> {
    let counts = outcome.transcript.counts;
    let count = |number: u32| if counts.binaries == 0 { "-".to_owned() } else { number.to_string() };
    let result = match &outcome.verdict {
        Verdict::Passed => "passed".to_owned(),
        Verdict::Failed(_) => "FAILED".to_owned(),
        Verdict::Skipped(why) => format!("skipped ({why})"),
    };
    vec![
        outcome.name.to_owned(),
        result,
        count(counts.passed),
        count(counts.failed),
        count(counts.ignored),
        format!("{:.1}", outcome.took.as_secs_f64()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &'static str, verdict: Verdict, lines: &[&str]) -> Outcome {
        let mut transcript = Transcript::default();
        lines.iter().for_each(|line| transcript.push((*line).to_owned()));
        Outcome { name, verdict, transcript, took: Duration::from_millis(1500) }
    }

    #[test]
    fn counts_of_all_test_binaries_add_up() {
        let lines = [
            "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "something else",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ];
        let outcome = outcome("unit", Verdict::Passed, &lines);
        assert_eq!(outcome.transcript.counts, Counts { binaries: 2, passed: 13, failed: 2, ignored: 3 });
        let table = table(&[outcome]);
        assert!(table.contains("unit   passed  13      2       3        1.5"), "{table}");
        assert!(
            table.ends_with("all stages passed; tests: 13 passed, 2 failed, 3 ignored; 2 s\n"),
            "{table}"
        );
    }

    #[test]
    fn failures_are_shown_as_the_harness_lists_them() {
        let lines = [
            "test a ... FAILED",
            FAILURES,
            "---- a stdout ----",
            "it is red",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "later noise",
        ];
        let text = failures(&[outcome("unit", Verdict::Failed("exit status: 101".to_owned()), &lines)]);
        assert!(
            text.contains("== unit failed: exit status: 101\nfailures:\n---- a stdout ----\nit is red\n")
        );
        assert!(!text.contains("noise") && !text.contains("test a ..."), "{text}");
    }

    #[test]
    fn of_other_failures_the_end_is_shown() {
        let lines: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let text = failures(&[outcome("clippy", Verdict::Failed("exit status: 1".to_owned()), &lines)]);
        assert!(text.contains("line 99") && text.contains("line 40") && !text.contains("line 39"), "{text}");
        assert_eq!(failures(&[outcome("clippy", Verdict::Passed, &lines)]), "");
    }

    #[test]
    fn what_failed_and_what_was_skipped_is_named_at_the_end() {
        let outcomes = [
            outcome("format", Verdict::Failed("exit status: 1".to_owned()), &[]),
            outcome("lab", Verdict::Skipped("needs root".to_owned()), &[]),
        ];
        let table = table(&outcomes);
        assert!(table.contains("FAILED: format; skipped: lab; tests: 0 passed"), "{table}");
        assert!(table.contains("skipped (needs root)  -"), "{table}");
    }

    #[test]
    fn the_oldest_lines_are_dropped() {
        let mut transcript = Transcript::default();
        (0..=LINES).for_each(|number| transcript.push(number.to_string()));
        assert_eq!((transcript.lines.len(), transcript.lines[0].as_str()), (LINES, "1"));
    }
}
