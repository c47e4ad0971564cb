//! Running the programs people use.

use anyhow::{Context as _, bail};
use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// No program of a scenario may take longer.
const LIMIT: Duration = Duration::from_secs(300);

/// What a program printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; -1 if it was killed.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// The output, if the program ended well.
    ///
    /// # Errors
    /// With everything it printed, if not.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.code == 0 {
            return Ok(self.out);
        }
        bail!("exit code {}:\n{}", self.code, self.all())
    }

    /// Everything the program printed.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// A program with arguments that every call has.
#[derive(Debug, Clone)]
pub struct Program {
    path: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// The program at `path`, or of that name on the path.
    pub fn new(path: impl Into<OsString>) -> Self {
        Self { path: path.into(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// With one more argument for every call.
    #[must_use]
    pub fn with(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// With one more variable in the environment of every call.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// If it cannot be started, or takes too long.
    pub async fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Output> {
        self.run_with_input(arguments, b"").await
    }

    /// Runs it to its end, with `input` on its standard input.
    ///
    /// # Errors
    /// If it cannot be started, or takes too long.
    pub async fn run_with_input<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> anyhow::Result<Output> {
        let mut child = self.start(arguments)?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let input = input.to_vec();
        let writer = tokio::spawn(async move {
            // A program that does not read to the end is none of our business.
            drop(stdin.write_all(&input).await);
        });
        let output = timeout(LIMIT, child.wait_with_output())
            .await
            .with_context(|| format!("{} did not end", self.path.to_string_lossy()))??;
        writer.abort();
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts it, with pipes for all three streams. It is killed when the handle is dropped.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot run {}", self.path.to_string_lossy()))
    }
}
