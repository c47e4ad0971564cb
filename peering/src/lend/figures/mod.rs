//! What the pods of consumers use, as this cluster's kubelets measure it.
//!
//! Each node is read once in a while, whatever the number of consumers and of those who scrape them: what a reading
//! yields is sorted by virtual node at once, under the names the pods have at home, and only that is kept.

mod sort;

use self::sort::{Pieces, Source, pieces};
use super::shadows::{Roster, Shadows};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use liquid_crds::ClusterId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tracing::debug;

/// How long a reading serves. Kubelets measure every 10 s or so; metrics-server asks every 15 s at most.
const KEPT: Duration = Duration::from_secs(5);
/// Time for one node to answer; a scrape of the virtual node is given up after 10 s by metrics-server.
const READ_TIMEOUT: Duration = Duration::from_secs(6);
/// Nodes read at once. With [`MAX_BODY`] this bounds what a reading pins.
const READS: usize = 4;
/// Longest answer of a node: 500 pods of a few containers are about 4 MiB of cAdvisor's text, and less of the others.
const MAX_BODY: usize = 16 << 20;
/// Longest sum of what is kept of one reading: about 12,000 pods.
const MAX_KEPT: usize = 64 << 20;

pub(crate) use self::sort::Source as FigureSource;

/// Whose figures: consumer and virtual node.
type Owner = (ClusterId, Arc<str>);

/// What a reading yields, ready to be sent.
type Answers = BTreeMap<Owner, Bytes>;

/// Reads the kubelets of this cluster.
#[derive(Clone)]
pub(crate) struct Figures {
    client: Client,
    shadows: Shadows,
    readings: Arc<BTreeMap<Source, Cell>>,
}

/// The latest reading of a source. Who asks while one is under way waits for it.
#[derive(Default)]
struct Cell(Arc<Mutex<Option<Reading>>>);

#[derive(Clone)]
struct Reading {
    at: Instant,
    answers: Arc<Answers>,
}

impl Figures {
    /// Reads by `client`; which pods are whose is asked of `shadows`.
    pub(crate) fn new(client: Client, shadows: Shadows) -> Self {
        let readings = Source::ALL.into_iter().map(|source| (source, Cell::default())).collect();
        Self { client, shadows, readings: Arc::new(readings) }
    }

    /// The figures of the pods of a consumer's virtual node.
    ///
    /// # Errors
    /// If no node can be read.
    pub(crate) async fn of(&self, source: Source, cluster: ClusterId, node: &str) -> Result<Bytes, Status> {
        let Some(Cell(cell)) = self.readings.get(&source) else { return Ok(Bytes::new()) };
        let mut reading = cell.lock().await;
        let fresh = reading.as_ref().filter(|reading| reading.at.elapsed() < KEPT).cloned();
        let current = match fresh {
            Some(current) => current,
            None => {
                let current = Reading { answers: Arc::new(self.read(source).await?), at: Instant::now() };
                *reading = Some(current.clone());
                tokio::spawn(forget(cell.clone(), current.at));
                current
            }
        };
        Ok(current.answers.get(&(cluster, Arc::from(node))).cloned().unwrap_or_default())
    }

    async fn read(&self, source: Source) -> Result<Answers, Status> {
        let roster = Arc::new(self.shadows.roster().await);
        let mut nodes = futures::stream::iter(roster.nodes().cloned().collect::<Vec<_>>())
            .map(|node| {
                let (client, roster) = (self.client.clone(), roster.clone());
                async move {
                    let read = timeout(READ_TIMEOUT, read_node(&client, &node, source, roster)).await;
                    let read = read.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
                    read.map_err(|error| format!("node {node}: {error}"))
                }
            })
            .buffer_unordered(READS);
        let mut all = Pieces::default();
        let (mut read, mut failed) = (0_usize, None);
        while let Some(node) = nodes.next().await {
            match node {
                Ok(pieces) => {
                    read += 1;
                    all.append(pieces);
                }
                Err(error) => {
                    debug!(%error, "figures not read");
                    failed = Some(error);
                }
            }
            if all.len() > MAX_KEPT {
                return Err(Status::resource_exhausted("there are more figures than the provider can hold"));
            }
        }
        match failed {
            // The pods of the other nodes have theirs.
            Some(error) if read == 0 => {
                Err(Status::unavailable(format!("the provider's kubelets do not answer: {error}")))
            }
            _ => Ok(all.into_answers()),
        }
    }
}

/// Frees the memory of a reading that serves nobody any more.
async fn forget(cell: Arc<Mutex<Option<Reading>>>, at: Instant) {
    sleep(KEPT).await;
    let mut reading = cell.lock().await;
    if reading.as_ref().is_some_and(|reading| reading.at == at) {
        *reading = None;
    }
}

/// Reads one node, through the API server: it knows how to reach kubelets and whom to trust.
async fn read_node(
    client: &Client,
    node: &str,
    source: Source,
    roster: Arc<Roster>,
) -> Result<Pieces, String> {
    let request = http::Request::get(format!("/api/v1/nodes/{node}/proxy/{}", source.path()));
    let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("its kubelet answers {status}"));
    }
    let mut body = response.into_body();
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        if let Ok(data) = frame.into_data() {
            text.extend_from_slice(&data);
        }
        if text.len() > MAX_BODY {
            return Err(format!("its answer is longer than {MAX_BODY} bytes"));
        }
    }
    // Megabytes of JSON take some ten milliseconds: not on the threads that answer everyone else.
    tokio::task::spawn_blocking(move || pieces(source, &text, &roster))
        .await
        .map_err(|error| error.to_string())?
}
