//! Child processes that can be ended with all they started: each leads a process group of its own.

use std::io::{BufRead, BufReader, PipeReader, pipe};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// How often it is looked whether the user wants to end.
const LOOK: Duration = Duration::from_millis(100);
/// From the request to end until a process is killed.
const GRACE: Duration = Duration::from_secs(10);
/// Wait for the end of the output after that of the process: something it left behind may hold the pipe open.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// Whether the user asked to end. As long as this exists, the signals do nothing but tell, so that what was made can be
/// taken down.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicUsize>);

/// How a child process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// Because the user asked to end.
    Interrupted,
    /// Because it took longer than it may.
    TimedOut,
}

enum Event {
    Line(String),
    Exited(std::io::Result<ExitStatus>),
}

impl Interrupt {
    /// Takes notice of SIGINT, SIGTERM and SIGHUP from now on.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let number = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register_usize(signal, Arc::clone(&number), usize::try_from(signal)?)
                .context("cannot watch for signals")?;
        }
        Ok(Self(number))
    }

    /// Whether the user asked to end.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// The exit code shells give a program that was ended by a signal.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::try_from(128 + self.0.load(Ordering::Relaxed)).unwrap_or(u8::MAX))
    }
}

impl Ended {
    /// An error unless it was a success.
    pub(crate) fn success(self, what: &str) -> anyhow::Result<()> {
        match self {
            Self::Exited(status) if status.success() => Ok(()),
            Self::Exited(status) => bail!("{what} failed ({status})"),
            Self::Interrupted => bail!("{what} was interrupted"),
            Self::TimedOut => bail!("{what} took too long"),
        }
    }
}

/// Runs a command to its end; its output goes where ours goes.
pub(crate) fn run(command: &mut Command, interrupt: &Interrupt, limit: Duration) -> anyhow::Result<Ended> {
    supervise(command, None, interrupt, limit, &mut |_| ())
}

/// Runs a command to its end and hands out the lines of its output and its error output, in the order they come.
pub(crate) fn run_with_output(
    command: &mut Command,
    interrupt: &Interrupt,
    limit: Duration,
    line: &mut dyn FnMut(String),
) -> anyhow::Result<Ended> {
    let (reader, writer) = pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
    supervise(command, Some(reader), interrupt, limit, line)
}

fn supervise(
    command: &mut Command,
    output: Option<PipeReader>,
    interrupt: &Interrupt,
    limit: Duration,
    line: &mut dyn FnMut(String),
) -> anyhow::Result<Ended> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    // The command holds ends of the pipe, which would keep the output from ending.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let (sender, events) = mpsc::channel();
    if let Some(output) = output {
        let sender = sender.clone();
        thread::spawn(move || read(output, &sender));
    }
    // Nobody listens any more after a grace period that has passed.
    thread::spawn(move || drop(sender.send(Event::Exited(child.wait()))));

    let deadline = Instant::now() + limit;
    let ended = loop {
        if let Some(status) = next(&events, LOOK, line) {
            break Ended::Exited(status.with_context(|| format!("cannot wait for {program}"))?);
        }
        let why = match (interrupt.is_set(), Instant::now() >= deadline) {
            (true, _) => Ended::Interrupted,
            (_, true) => Ended::TimedOut,
            _ => continue,
        };
        end(group, &events, line);
        break why;
    };
    // The sender of the process is gone; that of the output goes when the output ends.
    let deadline = Instant::now() + OUTPUT_GRACE;
    while let Ok(event) = events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if let Event::Line(text) = event {
            line(text);
        }
    }
    Ok(ended)
}

/// Ends a process group: by request, then by force.
fn end(group: Pid, events: &Receiver<Event>, line: &mut dyn FnMut(String)) {
    // A group that is gone already is what was wanted.
    let _ = killpg(group, Signal::SIGTERM);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && next(events, LOOK, line).is_none() {}
    let _ = killpg(group, Signal::SIGKILL);
}

/// The end of the process, if it comes within a while; lines that come are handed out.
fn next(
    events: &Receiver<Event>,
    wait: Duration,
    line: &mut dyn FnMut(String),
) -> Option<std::io::Result<ExitStatus>> {
    match events.recv_timeout(wait) {
        Ok(Event::Line(text)) => {
            line(text);
            None
        }
        Ok(Event::Exited(status)) => Some(status),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            Some(Err(std::io::Error::other("the thread that waits for it has ended")))
        }
    }
}

fn read(output: PipeReader, sender: &Sender<Event>) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while output.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
        if sender.send(Event::Line(text)).is_err() {
            return;
        }
        bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn quiet() -> Interrupt {
        Interrupt(Arc::default())
    }

    fn shell(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn both_outputs_come_in_their_order_and_without_a_newline_at_the_end() {
        let mut lines = Vec::new();
        let ended = run_with_output(
            &mut shell("echo a; echo b >&2; printf c; exit 3"),
            &quiet(),
            LONG,
            &mut |line| {
                lines.push(line);
            },
        );
        assert!(matches!(ended.unwrap(), Ended::Exited(status) if status.code() == Some(3)));
        assert_eq!(lines, ["a", "b", "c"]);
    }

    #[test]
    fn a_process_left_behind_does_not_hold_up_the_end() {
        let begun = Instant::now();
        let ended = run_with_output(&mut shell("sleep 5 & echo a"), &quiet(), LONG, &mut |_| ());
        assert!(matches!(ended.unwrap(), Ended::Exited(status) if status.success()));
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn the_limit_ends_children_of_the_child_too() {
        let begun = Instant::now();
        let mut lines = Vec::new();
        let limit = Duration::from_millis(300);
        let ended = run_with_output(&mut shell("sleep 30 & echo $!; wait"), &quiet(), limit, &mut |line| {
            lines.push(line);
        });
        assert_eq!(ended.unwrap(), Ended::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(9));
        // The kernel takes a moment to hand a dead orphan over; a zombie has no command line.
        let gone = || std::fs::read(format!("/proc/{}/cmdline", lines[0])).is_ok_and(|line| !line.is_empty());
        while gone() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{} lives on", lines[0]);
            thread::yield_now();
        }
    }

    #[test]
    fn an_interrupt_ends_it() {
        let interrupt = quiet();
        interrupt.0.store(15, Ordering::Relaxed);
        let ended = run_with_output(&mut shell("sleep 30"), &interrupt, LONG, &mut |_| ());
        assert_eq!(ended.unwrap(), Ended::Interrupted);
        assert_eq!(interrupt.exit_code(), ExitCode::from(143));
    }
}
