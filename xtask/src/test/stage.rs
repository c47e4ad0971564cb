//! Running stages one after the other.

use std::process::Command;
use std::time::{Duration, Instant};

use super::summary::{Outcome, Transcript, Verdict};
use crate::child::{self, Ended, Interrupt};
use crate::output;

/// No stage may take longer: the slowest builds Kubernetes, which took 15 minutes on two cores, and runs tests.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// A command that ends with success if all is well.
pub(super) struct Stage {
    name: &'static str,
    command: Command,
    silent: bool,
}

/// What was run so far.
pub(super) struct Run<'a> {
    interrupt: &'a Interrupt,
    outcomes: Vec<Outcome>,
    last_line: String,
}

impl Stage {
    pub(super) fn new(name: &'static str, command: Command) -> Self {
        Self { name, command, silent: false }
    }

    /// Any output is a failure.
    pub(super) fn silent(self) -> Self {
        Self { silent: true, ..self }
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(interrupt: &'a Interrupt) -> Self {
        Self { interrupt, outcomes: Vec::new(), last_line: String::new() }
    }

    /// Runs a stage, shows what it prints, and returns whether it passed. After an interrupt, it is not run.
    pub(super) fn stage(&mut self, stage: Stage) -> bool {
        let Stage { name, mut command, silent } = stage;
        if self.interrupt.is_set() {
            self.skip(name, "interrupted");
            return false;
        }
        output::note(&format!("== {name}"));
        let begun = Instant::now();
        let mut transcript = Transcript::default();
        let ended = child::run_with_output(&mut command, self.interrupt, LIMIT, &mut |line| {
            output::note(&line);
            transcript.push(line);
        });
        let verdict = match ended {
            Ok(Ended::Exited(status)) if status.success() && silent && !transcript.is_empty() => {
                Verdict::Failed("it has something to say".to_owned())
            }
            Ok(Ended::Exited(status)) if status.success() => Verdict::Passed,
            Ok(Ended::Exited(status)) => Verdict::Failed(status.to_string()),
            Ok(Ended::Interrupted) => Verdict::Failed("interrupted".to_owned()),
            Ok(Ended::TimedOut) => Verdict::Failed(format!("not within {} minutes", LIMIT.as_secs() / 60)),
            Err(error) => Verdict::Failed(format!("{error:#}")),
        };
        let passed = matches!(verdict, Verdict::Passed);
        self.last_line = transcript.last().unwrap_or_default().to_owned();
        self.outcomes.push(Outcome { name, verdict, transcript, took: begun.elapsed() });
        passed
    }

    /// Notes a stage that was not run.
    pub(super) fn skip(&mut self, name: &'static str, why: &str) {
        output::note(&format!("== {name}: skipped: {why}"));
        self.add(name, Verdict::Skipped(why.to_owned()));
    }

    /// Notes something that failed outside the stages.
    pub(super) fn fail(&mut self, name: &'static str, error: &anyhow::Error) {
        output::error(error);
        self.add(name, Verdict::Failed(format!("{error:#}")));
    }

    /// The last line that the last stage printed.
    pub(super) fn last_line(&self) -> &str {
        &self.last_line
    }

    pub(super) fn finish(self) -> Vec<Outcome> {
        self.outcomes
    }

    fn add(&mut self, name: &'static str, verdict: Verdict) {
        let transcript = Transcript::default();
        self.outcomes.push(Outcome { name, verdict, transcript, took: Duration::ZERO });
    }
}
