//! A link with a round-trip time: connections to the link endpoint are led through a program that holds back what it
//! passes on.
//!
//! Each direction waits for half of the round trip. Connections are opened to the program, so opening one takes no such
//! time; TCP's windows are those of a local connection, and only those of HTTP/2 see the delay. Bandwidth is not limited.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use liquid_lab::Node;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::process::Process;
use super::stage::LINK_PORT;

/// Where the program listens.
const PORT: u16 = 17443;
/// Read at a time.
const CHUNK: usize = 64 * 1024;
/// Chunks on their way: 64 MB at most, more than the windows of HTTP/2 let through.
const CHUNKS: usize = 1024;
/// The rules that lead connections there; those of the machine itself, the program's own among them, are left alone.
const TABLE: &str = "ip liquid_delay";

/// Passes connections on late; started by the benchmark itself.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How late, in milliseconds, each way.
    #[arg(long)]
    milliseconds: u64,
}

/// A delay on the link; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Delay<'a> {
    machine: Node<'a>,
    _program: Process,
}

impl<'a> Delay<'a> {
    /// Leads connections to the link endpoint of this machine through a delay of half `round_trip` each way. Those that
    /// are open stay as they are.
    pub(crate) fn start(
        machine: Node<'a>,
        round_trip: Duration,
        log: &std::path::Path,
    ) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("where is this program?")?;
        let mut command = machine.network_command(own);
        command.args(["delay", "--milliseconds", &(round_trip / 2).as_millis().to_string()]);
        let program = Process::start("delay", command, log)?;
        let rules = format!(
            "table {TABLE} {{\n chain in {{\n type nat hook prerouting priority dstnat\n \
             iifname != \"lo\" tcp dport {LINK_PORT} redirect to :{PORT}\n }}\n}}\n"
        );
        nft(&machine, &rules)?;
        Ok(Self { machine, _program: program })
    }
}

impl Drop for Delay<'_> {
    fn drop(&mut self) {
        // The lab ends with the run if it cannot be taken off.
        let _ = nft(&self.machine, &format!("delete table {TABLE}\n"));
    }
}

fn nft(machine: &Node<'_>, rules: &str) -> anyhow::Result<()> {
    let mut command: Command = machine.network_command("nft");
    command.arg(rules).stdin(Stdio::null());
    let output = command.output().context("cannot run nft")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "nft does not take the delay: {said}");
    Ok(())
}

/// Is the program.
pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let delay = Duration::from_millis(arguments.milliseconds);
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await.context("cannot listen")?;
    loop {
        let (from, _) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(to) = TcpStream::connect(("127.0.0.1", LINK_PORT)).await else { return };
            if from.set_nodelay(true).is_err() || to.set_nodelay(true).is_err() {
                return;
            }
            let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
            tokio::join!(pass(from_read, to_write, delay), pass(to_read, from_write, delay));
        });
    }
}

/// Passes on what comes, that much later; then the end.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, mut late) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let chunk = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send((Instant::now() + delay, chunk)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = late.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // Whoever has left does not care.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_passes_is_late_and_whole() {
        let (mut near, from) = tokio::io::duplex(16);
        let (to, mut far) = tokio::io::duplex(16);
        let delay = Duration::from_millis(30);
        let passing = tokio::spawn(pass(from, to, delay));
        let sent = Instant::now();
        near.write_all(b"hello").await.unwrap();
        let mut first = [0];
        far.read_exact(&mut first).await.unwrap();
        assert!(sent.elapsed() >= delay);
        drop(near);
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.unwrap();
        assert_eq!((first[0], rest.as_str()), (b'h', "ello"));
        passing.await.unwrap();
    }
}
