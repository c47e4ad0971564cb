//! The process beside this one: before it has made the overlay, nothing that comes out of a tunnel gets any further.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for an answer, over loopback.
const PATIENCE: Duration = Duration::from_secs(1);
const QUESTION: &[u8] = b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n";

/// Waits until `/readyz` at `address` says that the process is ready.
pub(crate) async fn ready(address: SocketAddr) {
    while !timeout(PATIENCE, ask(address)).await.is_ok_and(|answer| answer.unwrap_or(false)) {
        sleep(PAUSE).await;
    }
}

/// Whether the first line of the answer has status 200.
async fn ask(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(QUESTION).await?;
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    Ok(line.starts_with(b"HTTP/1.") && line.ends_with(b" 200"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn it_waits_through_refusals_and_other_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = ["", "HTTP/1.0 503 not yet\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"];
        let server = tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut question = [0; QUESTION.len()];
                stream.read_exact(&mut question).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        timeout(Duration::from_secs(10), ready(address)).await.unwrap();
        server.await.unwrap();
    }
}
