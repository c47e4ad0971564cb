//! Waits: each shows what it waits for, has a deadline, and says what was missing when it passes.

use crate::failure::Failure;
use crate::output::tell;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How often the state is looked at.
const POLL: Duration = Duration::from_millis(100);
/// A wait that is over before this shows nothing.
const QUIET: Duration = Duration::from_millis(800);

/// What a look has found.
#[derive(Debug)]
pub(crate) enum Look<T> {
    /// It is there.
    Done(T),
    /// Not yet, and what is missing.
    NotYet(String),
}

/// Looks again and again until it is there.
///
/// # Errors
/// If `look` fails, or the deadline passes; the failure then names what was waited for and what was missing last.
pub(crate) async fn until<T, F>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<Look<T>, Failure>>,
{
    let started = Instant::now();
    let mut progress = Progress::new(what);
    loop {
        match look().await? {
            Look::Done(found) => {
                progress.done(started.elapsed());
                return Ok(found);
            }
            Look::NotYet(missing) => {
                if started.elapsed() >= timeout {
                    progress.gone();
                    let seconds = timeout.as_secs();
                    return Err(Failure::failed(format!("{what}: not within {seconds} s: {missing}")));
                }
                progress.show(&missing, started.elapsed());
            }
        }
        sleep(POLL).await;
    }
}

/// A spinner on a terminal, and a line for each change elsewhere.
struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    last: String,
    shown: bool,
}

impl Progress {
    fn new(what: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            // The template is fixed and valid; without it the default would be shown.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar
        });
        Self { what: what.to_owned(), bar, last: String::new(), shown: false }
    }

    fn show(&mut self, missing: &str, elapsed: Duration) {
        let line = format!("{}: {missing}", self.what);
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None if elapsed > QUIET && line != self.last => {
                tell(&line);
                self.last = line;
            }
            None => {}
        }
        self.shown |= elapsed > QUIET;
    }

    fn done(&mut self, elapsed: Duration) {
        self.gone();
        if self.shown {
            tell(&format!("{}: done after {:.1} s", self.what, elapsed.as_secs_f64()));
        }
    }

    fn gone(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
