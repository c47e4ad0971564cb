//! Running the programs of the system, with errors a person can act on.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, bail};

/// Longest part of a program's error output that is repeated in an error message.
const TAIL: usize = 2000;

/// Runs a program to its end and returns what it wrote to stdout.
///
/// # Errors
/// If it cannot be started or fails: with its arguments and its error output.
pub(crate) fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    finish(&mut command, None)
}

/// Like [`run`], with `input` on stdin.
pub(crate) fn feed<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
    input: &[u8],
) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped());
    finish(&mut command, Some(input))
}

/// Runs a prepared command to its end and returns what it wrote to stdout.
pub(crate) fn finish(command: &mut Command, input: Option<&[u8]>) -> anyhow::Result<String> {
    let shown = describe(command);
    let output = output(command, input).with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, tail(&output.stderr, &output.stdout));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn output(command: &mut Command, input: Option<&[u8]>) -> std::io::Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Inputs are far smaller than what a program writes before it has read them all, so writing first cannot block
    // for ever; a program that leaves early closes the pipe, and its exit status says more than the broken pipe.
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        drop(stdin.write_all(input));
    }
    child.wait_with_output()
}

pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn tail(stderr: &[u8], stdout: &[u8]) -> String {
    let text = if stderr.is_empty() { stdout } else { stderr };
    let start = text.len().saturating_sub(TAIL);
    String::from_utf8_lossy(&text[start..]).trim().to_owned()
}
