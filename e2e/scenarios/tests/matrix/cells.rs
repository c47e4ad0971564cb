//! What a pod asks of another, and what must answer: the cells of the matrix.

use liquid_scenarios::{Cluster, Look};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Longest wait until all cells of a pod have answered as they must; nothing but the last rules of kube-proxy is awaited.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a cell is asked per round: enough for both pods behind a Service to answer, in most rounds.
const TRIES: u8 = 8;
/// Seconds until a cell that does not answer is given up for the round.
const ROUND: u8 = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// Who has to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Pods of these names, all of them sooner or later, and nobody else.
    Pods(BTreeSet<String>),
    /// Whoever it is: the one who asked is to be seen under this address.
    Source(IpAddr),
}

/// One question.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// What is asked, for people: `ClusterIP`, say.
    pub(crate) what: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) target: SocketAddr,
    pub(crate) wanted: Wanted,
}

/// What a pod's own server says of the answers it got (`/dial` of agnhost).
#[derive(Debug, Default, Deserialize)]
struct Said {
    #[serde(default)]
    responses: Vec<String>,
    #[serde(default)]
    errors: Vec<String>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.target.is_ipv4() { "IPv4" } else { "IPv6" };
        write!(f, "{} over {family} and {:?}, {}", self.what, self.protocol, self.target)
    }
}

impl Cell {
    /// A line of shell that asks, and prints the number of the cell and what was said.
    fn line(&self, number: usize) -> String {
        let protocol = match self.protocol {
            Protocol::Tcp => "http",
            Protocol::Udp => "udp",
        };
        let (request, tries) = match self.wanted {
            Wanted::Pods(_) => ("hostname", TRIES),
            Wanted::Source(_) => ("clientip", 1),
        };
        let (host, port) = (self.target.ip(), self.target.port());
        format!(
            "(said=$(timeout {ROUND} wget -q -O - 'http://127.0.0.1:8080/dial?protocol={protocol}&host={host}&port={port}\
             &request={request}&tries={tries}' 2>&1); echo \"{number} $said\") &\n"
        )
    }

    /// Takes in what was said; returns what is still missing.
    fn judge(&self, said: &str, heard: &mut BTreeSet<String>) -> Result<(), String> {
        let said: Said = serde_json::from_str(said).map_err(|_| format!("no answer ({})", said.trim()))?;
        if let Some(error) = said.errors.first() {
            return Err(format!(
                "{} of {}: {error}",
                said.errors.len(),
                said.errors.len() + said.responses.len()
            ));
        }
        match &self.wanted {
            Wanted::Source(wanted) => {
                let seen = said.responses.first().and_then(|seen| seen.parse::<SocketAddr>().ok());
                let right = seen.is_some_and(|seen| seen.ip().to_canonical() == *wanted);
                if right { Ok(()) } else { Err(format!("seen as {:?}, and not as {wanted}", said.responses)) }
            }
            Wanted::Pods(wanted) => {
                heard.extend(said.responses.into_iter().map(|name| name.trim().to_owned()));
                if heard == wanted { Ok(()) } else { Err(format!("{heard:?} answered, and not {wanted:?}")) }
            }
        }
    }
}

/// Asks all cells from a pod, again and again until each has answered as it must or the time is over; returns those that did
/// not, each with what it said last.
pub(crate) async fn ask(home: &Cluster, namespace: &str, pod: &str, cells: &[Cell]) -> Vec<String> {
    let heard = Mutex::new(vec![BTreeSet::new(); cells.len()]);
    let missing = Mutex::new(vec![Some("not asked".to_owned()); cells.len()]);
    let round = || async {
        let open: Vec<usize> = {
            let missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
            (0..cells.len()).filter(|number| missing[*number].is_some()).collect()
        };
        let mut script: String = open.iter().map(|number| cells[*number].line(*number)).collect();
        script.push_str("wait");
        let output = home.shell(namespace, pod, &script).await?;
        let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        for number in &open {
            let said = output.out.lines().find_map(|line| line.strip_prefix(&format!("{number} ")));
            missing[*number] = match said {
                Some(said) => cells[*number].judge(said, &mut heard[*number]).err(),
                None => Some(format!("no answer ({})", output.err.trim())),
            };
        }
        let left = missing.iter().flatten().count();
        Ok(if left == 0 { Look::Done(()) } else { Look::NotYet(format!("{left} cells")) })
    };
    if let Err(error) = home.wait(&format!("all cells from {pod} in {namespace}"), LIMIT, round).await {
        println!("{error:#}");
    }
    let missing = missing.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed = cells.iter().zip(missing).filter_map(|(cell, missing)| Some((cell, missing?)));
    failed.map(|(cell, missing)| format!("{namespace}, from {pod}: {cell}: {missing}")).collect()
}
