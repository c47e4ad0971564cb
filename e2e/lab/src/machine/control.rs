//! How a machine is talked to from the host: one JSON line each way over a socket in its directory.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};

/// A supervisor answers at once or not at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest request or answer: a machine has a handful of units.
const MESSAGE_MAX: u64 = 64 * 1024;

/// What a supervisor is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Request {
    /// Nothing but the answer.
    Status,
    /// Kill a unit and keep it down.
    Stop(String),
    /// Start a unit that is down.
    Start(String),
}

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnitStatus {
    /// Its name.
    pub(crate) name: String,
    /// Whether its process runs.
    pub(crate) running: bool,
    /// Whether it is kept down on purpose.
    pub(crate) held: bool,
    /// How often it ended by itself.
    pub(crate) failures: u32,
}

/// What a supervisor answers.
pub(super) type Answer = Result<Vec<UnitStatus>, String>;

/// The socket of a machine.
pub(super) fn socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// Asks the supervisor of a machine.
pub(super) fn ask(directory: &Path, request: &Request) -> anyhow::Result<Vec<UnitStatus>> {
    let mut stream = UnixStream::connect(socket(directory)).context("the machine does not answer")?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    send(&mut stream, request).context("the machine does not listen")?;
    let answer: Answer = receive(&stream).context("the machine does not answer")?;
    answer.map_err(|message| anyhow!(message))
}

/// Writes one message.
pub(super) fn send(stream: &mut UnixStream, message: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

/// Reads one message.
pub(super) fn receive<T: serde::de::DeserializeOwned>(stream: &UnixStream) -> anyhow::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(MESSAGE_MAX)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
