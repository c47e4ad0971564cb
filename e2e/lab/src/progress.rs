//! What a person sees while something takes its time: lines on stderr with the seconds since the start.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a long step repeats its line when stderr is a terminal, and when it is a file.
const TICK_TERMINAL: Duration = Duration::from_secs(1);
const TICK_FILE: Duration = Duration::from_secs(30);

/// Reports steps on stderr; cheap to share between threads.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    terminal: bool,
    quiet: bool,
}

/// A step that is under way; ends when dropped.
#[derive(Debug)]
pub struct LongStep {
    stop: Arc<(Mutex<bool>, Condvar)>,
    shown: Arc<AtomicBool>,
    terminal: bool,
    ticker: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), terminal: std::io::stderr().is_terminal(), quiet: false }
    }

    /// Starts the clock without writing anything: for tests and library users.
    #[must_use]
    pub fn quiet() -> Self {
        Self { quiet: true, ..Self::new() }
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Reports something that just happened.
    pub fn note(&self, what: &str) {
        if !self.quiet {
            line(&format!("{:6.1}s  {what}\n", self.elapsed().as_secs_f64()));
        }
    }

    /// Reports something that takes long, and its duration again and again until the result is dropped.
    /// A step that ends within the first second is not shown.
    #[must_use]
    pub fn long(&self, what: &str) -> LongStep {
        let stop = Arc::new((Mutex::new(self.quiet), Condvar::new()));
        let shown = Arc::new(AtomicBool::new(false));
        let (terminal, what) = (self.terminal, what.to_owned());
        let ticker = std::thread::spawn({
            let (stop, shown) = (Arc::clone(&stop), Arc::clone(&shown));
            move || tick(&stop, &shown, &what, terminal)
        });
        LongStep { stop, shown, terminal, ticker: Some(ticker) }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for LongStep {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(ticker) = self.ticker.take() {
            // A ticker that panicked has nothing left to do.
            drop(ticker.join());
        }
        if self.terminal && self.shown.load(Ordering::Relaxed) {
            line("\n");
        }
    }
}

fn tick(stop: &(Mutex<bool>, Condvar), shown: &AtomicBool, what: &str, terminal: bool) {
    let begun = Instant::now();
    let mut pause = Duration::from_secs(1);
    let mut stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopped {
        let (guard, timeout) = stop.1.wait_timeout(stopped, pause).unwrap_or_else(PoisonError::into_inner);
        stopped = guard;
        if *stopped || !timeout.timed_out() {
            continue;
        }
        let seconds = begun.elapsed().as_secs();
        if terminal {
            line(&format!("\r         {what} ... {seconds} s"));
        } else {
            line(&format!("         {what} ... {seconds} s\n"));
        }
        shown.store(true, Ordering::Relaxed);
        pause = if terminal { TICK_TERMINAL } else { TICK_FILE };
    }
}

/// Progress is best effort: a closed stderr must not stop the work.
pub(crate) fn line(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}
