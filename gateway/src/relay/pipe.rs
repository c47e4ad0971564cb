//! Two connections that become one.

use super::Figures;
use liquid_runtime::relay::Refusal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

/// Bytes held for each direction of a connection: a record of TLS.
const BUFFER: usize = 16 * 1024;
/// What was sent and not acknowledged for so long never arrives: both ends of a link give each other up after 10 s, and then
/// nobody is left to close a connection that leads to where a host has gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// Seconds after which an end that says nothing is asked for a sign of life, and again.
const PROBE_SECONDS: u32 = 5;
/// Time for a caller to take in that it is refused, and callers who are told so at one time.
const FAREWELL: Duration = Duration::from_secs(2);
const MAX_FAREWELLS: usize = 16;

/// Sets what ends the connection of a host that is gone, and sends small messages at once.
pub(super) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let millis = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, TcpUserTimeout, &millis)?;
    setsockopt(stream, KeepAlive, &true)?;
    setsockopt(stream, TcpKeepIdle, &PROBE_SECONDS)?;
    setsockopt(stream, TcpKeepInterval, &PROBE_SECONDS)?;
    Ok(())
}

/// Passes bytes on both ways until both ends have closed, or one has failed.
pub(super) async fn join(mut from: TcpStream, mut to: TcpStream, figures: &Figures) {
    let _open = figures.open();
    match copy_bidirectional_with_sizes(&mut from, &mut to, BUFFER, BUFFER).await {
        Ok((forth, back)) => figures.passed(forth + back),
        Err(error) => debug!(%error, "relayed connection broke"),
    }
}

/// Tells callers why they are not connected. Only so many are told at one time: the others are just hung up on.
#[derive(Debug, Clone)]
pub(super) struct Farewells(Arc<Semaphore>);

impl Default for Farewells {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_FAREWELLS)))
    }
}

impl Farewells {
    pub(super) async fn refuse(&self, mut stream: TcpStream, refusal: Refusal, figures: &Figures) {
        figures.refused(refusal);
        let Ok(_slot) = self.0.clone().try_acquire_owned() else { return };
        let farewell = async {
            stream.write_all(&refusal.alert()).await?;
            stream.shutdown().await?;
            // What comes after a socket is closed makes the kernel take back what was sent before.
            let mut rest = [0; 512];
            while stream.read(&mut rest).await? > 0 {}
            Ok::<(), std::io::Error>(())
        };
        drop(timeout(FAREWELL, farewell).await);
    }
}
