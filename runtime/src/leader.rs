//! Leader election over a `Lease`, so that several replicas can run and one works.
//!
//! Own code because what exists does not give three things this project needs: a holder that cannot renew
//! gives up *before* others may take over, also when the API server does not answer; expiry is judged by the
//! local monotonic clock (a skewed wall clock cannot make two leaders); a lease given back is taken at once.
//! The algorithm is the one of client-go's `leaderelection`.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, info, warn};

/// How long others wait for a holder that is silent.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops being one: 5 s before anyone else may take over. It counts from
/// before the last renewal was asked for, and also ends one that is under way.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two renewals of the holder.
const RENEW_PERIOD: Duration = Duration::from_secs(5);
/// Time between two looks at the lease while somebody else holds it.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// No request to the API server may take longer than this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Leadership is gone; the process must end without touching anything more.
#[derive(Debug, Error)]
pub enum LeadershipLost {
    /// Somebody else holds the lease.
    #[error("lease {lease} is now held by {holder}")]
    Taken {
        /// Name of the lease.
        lease: String,
        /// The new holder.
        holder: String,
    },
    /// The lease could not be renewed in time.
    #[error("lease {lease} could not be renewed for {} s: {reason}", RENEW_DEADLINE.as_secs())]
    NotRenewed {
        /// Name of the lease.
        lease: String,
        /// The last error.
        reason: String,
    },
}

/// A candidate for one lease.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// A held lease: keep [`Leadership::keep`] running, and call [`Leadership::release`] at the end.
pub struct Leadership {
    candidate: Candidate,
    renewed: Instant,
}

/// What a candidate has last seen of the lease, and when by its own clock.
#[derive(Debug)]
struct Observation {
    record: Record,
    seen: Instant,
}

/// The part of a lease that changes whenever its holder is alive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Record {
    holder: String,
    renewed: Option<Timestamp>,
    transitions: i32,
}

impl Record {
    fn of(lease: &Lease) -> Self {
        let Some(spec) = &lease.spec else { return Self::default() };
        Self {
            holder: spec.holder_identity.clone().unwrap_or_default(),
            renewed: spec.renew_time.as_ref().map(|t| t.0),
            transitions: spec.lease_transitions.unwrap_or(0),
        }
    }
}

/// Whether `identity` may take a lease last seen as `observation`, at `now`.
fn may_take(observation: &Observation, identity: &str, now: Instant) -> bool {
    let holder = &observation.record.holder;
    holder.is_empty() || holder == identity || now.duration_since(observation.seen) >= LEASE_DURATION
}

impl Candidate {
    /// A candidate called `identity` (the pod's name: a restarted container takes its lease back at once).
    pub fn new(client: Client, namespace: &str, lease: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: lease.to_owned(),
            identity: identity.to_owned(),
        }
    }

    /// Waits until the lease is ours.
    pub async fn acquire(self) -> Leadership {
        let mut observation: Option<Observation> = None;
        loop {
            let started = Instant::now();
            match self.try_acquire(&mut observation).await {
                Ok(true) => {
                    info!(lease = %self.name, identity = %self.identity, "leading");
                    return Leadership { candidate: self, renewed: started };
                }
                Ok(false) => {}
                Err(error) => warn!(lease = %self.name, %error, "cannot look at the lease; trying again"),
            }
            sleep(RETRY_PERIOD).await;
        }
    }

    async fn try_acquire(&self, observation: &mut Option<Observation>) -> Result<bool, String> {
        let Some(lease) = bounded(self.api.get_opt(&self.name)).await? else {
            let lease = self.written(None);
            return match bounded(self.api.create(&PostParams::default(), &lease)).await {
                Ok(_) => Ok(true),
                // Another candidate was faster: look again.
                Err(error) if error.contains("AlreadyExists") => Ok(false),
                Err(error) => Err(error),
            };
        };
        let record = Record::of(&lease);
        let now = Instant::now();
        let current = match observation.take() {
            Some(known) if known.record == record => known,
            _ => {
                debug!(lease = %self.name, holder = %record.holder, "lease observed");
                Observation { record, seen: now }
            }
        };
        let take = may_take(&current, &self.identity, now);
        *observation = Some(current);
        if !take {
            return Ok(false);
        }
        self.write(&lease).await
    }

    /// Writes ourselves into the lease as it was read; `false` if somebody else wrote in between.
    async fn write(&self, read: &Lease) -> Result<bool, String> {
        let lease = self.written(Some(read));
        match bounded(self.api.replace(&self.name, &PostParams::default(), &lease)).await {
            Ok(_) => Ok(true),
            Err(error) if error.contains("Conflict") => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn written(&self, read: Option<&Lease>) -> Lease {
        let before = read.map(Record::of).unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let kept = read.and_then(|lease| lease.spec.as_ref()).and_then(|spec| spec.acquire_time.clone());
        let (acquired, transitions) = if before.holder == self.identity {
            (kept, before.transitions)
        } else {
            (None, before.transitions.saturating_add(i32::from(read.is_some())))
        };
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: read.and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
                acquire_time: acquired.or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}

impl Leadership {
    /// Renews the lease for ever; returns only when leadership is lost.
    pub async fn keep(&mut self) -> LeadershipLost {
        let mut next = self.renewed + RENEW_PERIOD;
        loop {
            sleep_until(next).await;
            // One renewal is two requests: together they could take longer than there is.
            let renewal = timeout_at(self.renewed + RENEW_DEADLINE, self.renew()).await;
            let late = || Err(Renewal::Failed("the API server answers too slowly".to_owned()));
            match renewal.unwrap_or_else(|_| late()) {
                Ok(()) => next = self.renewed + RENEW_PERIOD,
                Err(Renewal::Taken(holder)) => {
                    return LeadershipLost::Taken { lease: self.candidate.name.clone(), holder };
                }
                Err(Renewal::Failed(reason)) => {
                    if self.renewed.elapsed() + RETRY_PERIOD >= RENEW_DEADLINE {
                        return LeadershipLost::NotRenewed { lease: self.candidate.name.clone(), reason };
                    }
                    warn!(lease = %self.candidate.name, %reason, "cannot renew the lease; trying again");
                    next = Instant::now() + RETRY_PERIOD / 2;
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(), Renewal> {
        let started = Instant::now();
        let Candidate { api, name, identity } = &self.candidate;
        let lease = bounded(api.get(name)).await.map_err(Renewal::Failed)?;
        let record = Record::of(&lease);
        if record.holder != *identity {
            return Err(Renewal::Taken(record.holder));
        }
        match self.candidate.write(&lease).await {
            Ok(true) => {
                self.renewed = started;
                Ok(())
            }
            Ok(false) => Err(Renewal::Failed("somebody else wrote the lease at the same time".to_owned())),
            Err(reason) => Err(Renewal::Failed(reason)),
        }
    }

    /// Gives the lease back so that another replica takes over at once.
    pub async fn release(self) {
        let Candidate { api, name, identity } = self.candidate;
        let Ok(mut lease) = bounded(api.get(&name)).await else { return };
        if Record::of(&lease).holder != identity {
            return;
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        match bounded(api.replace(&name, &PostParams::default(), &lease)).await {
            Ok(_) => info!(lease = %name, "lease released"),
            Err(error) => {
                warn!(lease = %name, %error, "lease not released; others take over when it expires")
            }
        }
    }
}

enum Renewal {
    Taken(String),
    Failed(String),
}

async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) => Err(format!("{}: {}", status.reason, status.message)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, at: Instant) -> Observation {
        Observation { record: Record { holder: holder.to_owned(), ..Record::default() }, seen: at }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_when_free_or_ours_or_unchanged_for_its_duration() {
        let now = Instant::now();
        assert!(may_take(&seen("", now), "me", now), "free");
        assert!(may_take(&seen("me", now), "me", now), "ours from before a restart");
        assert!(!may_take(&seen("other", now), "me", now), "just seen alive");
        assert!(!may_take(&seen("other", now), "me", now + LEASE_DURATION / 2));
        assert!(may_take(&seen("other", now), "me", now + LEASE_DURATION), "silent for too long");
    }

    /// Leadership over a lease of an API server that reads after 3.9 s and writes after `write`.
    fn leadership(write: Duration) -> Leadership {
        let answer = move |request: axum::extract::Request| async move {
            let pause = if request.method() == "GET" { Duration::from_millis(3900) } else { write };
            sleep(pause).await;
            r#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
                "spec": {"holderIdentity": "me"}}"#
        };
        let client = Client::new(axum::Router::new().fallback(answer), "ns");
        Leadership { candidate: Candidate::new(client, "ns", "l", "me"), renewed: Instant::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_under_way_ends_before_anyone_may_take_over() {
        let mut leadership = leadership(Duration::MAX);
        let renewed = leadership.renewed;

        let lost = leadership.keep().await;

        assert!(matches!(lost, LeadershipLost::NotRenewed { .. }), "{lost}");
        let taken = renewed.elapsed();
        assert!(taken <= RENEW_DEADLINE + Duration::from_millis(10), "gave up after {taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_api_server_takes_no_leadership_away() {
        // Each renewal takes 4.9 s: the next has to begin at once.
        let mut leadership = leadership(Duration::from_secs(1));

        assert!(timeout(Duration::from_secs(120), leadership.keep()).await.is_err(), "still leading");
    }

    #[test]
    fn the_holder_gives_up_before_anyone_may_take_over() {
        assert!(RENEW_DEADLINE < LEASE_DURATION);
        assert!(RENEW_PERIOD + REQUEST_TIMEOUT < RENEW_DEADLINE);
    }
}
