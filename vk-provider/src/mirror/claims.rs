//! Claims of pods in one provider: what that shall have of them, and what pods find. It is decided in [`crate::volumes`]; here
//! it is passed on to the state machine, and what the provider says is passed back.

use crate::translate::Reference;
use crate::volumes::{ClaimNews, ProviderClaims, Resolution, Teller, WantedState, Wish};
use bytes::Bytes;
use liquid_link::digest::Hash;
use liquid_reflection::claim::ClaimReport;
use liquid_reflection::frame::{Ref, Refusal, Wanted};
use liquid_reflection::{Consumer, Key, Kind, SetRef};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::watch;
use tracing::warn;

/// Reason of a pod that waits for a volume.
const NOT_READY: &str = "VolumeNotReady";
/// Reason of a pod that has a volume elsewhere.
const UNSUPPORTED: &str = "UnsupportedOnVirtualNode";
/// Reports (of 10 s) a pod waits before that is told: a claim is known a moment after the pod.
const PATIENCE: u8 = 2;

/// A claim of a pod that has no name in the provider.
pub(super) struct Unresolved {
    pub(super) claim: Key,
    /// Why it will not have one; unset if that may change, or is not known.
    pub(super) refusal: Option<Refusal>,
}

/// A pod that waits.
struct Waiting {
    target: Ref,
    /// Its owner is not told: it runs.
    runs: bool,
    reports: u8,
}

/// The claims of one provider.
pub(super) struct Claims {
    news: watch::Receiver<ProviderClaims>,
    teller: Teller,
    wanted: BTreeMap<Key, Wish>,
    resolved: BTreeMap<Key, Resolution>,
    /// Pods that wait for a claim, by virtual node and name.
    waiting: BTreeMap<Key, BTreeMap<(String, Key), Waiting>>,
}

impl Claims {
    pub(super) fn new(news: watch::Receiver<ProviderClaims>, teller: Teller) -> Self {
        Self { news, teller, wanted: BTreeMap::new(), resolved: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// Resolves when there is something to [`Claims::learn`].
    pub(super) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.news.changed().await
    }

    /// Learns what has changed, and tells the state machine. Returns pods that have waited for it, by virtual node.
    pub(super) fn learn(&mut self, consumer: &mut Consumer) -> Vec<(String, Key)> {
        let set = SetRef::claims();
        let now = self.news.borrow_and_update();
        for (key, _) in self.wanted.extract_if(.., |key, _| !now.wanted.contains_key(key)) {
            consumer.released(&set, &key);
        }
        for (key, wish) in &now.wanted {
            if self.wanted.get(key) == Some(wish) {
                continue;
            }
            let wanted = match &wish.state {
                WantedState::Present { hash, .. } => Wanted::Present(*hash),
                WantedState::Deleting => Wanted::Deleting { grace: None },
            };
            let target = Ref { set: set.clone(), key: key.clone(), uid: wish.uid.clone() };
            consumer.observe(target, wanted, None);
            self.wanted.insert(key.clone(), wish.clone());
        }
        if now.complete {
            consumer.synced(&set);
        }
        let mut again = Vec::new();
        self.resolved.retain(|key, _| now.resolved.contains_key(key));
        for (key, resolution) in &now.resolved {
            if self.resolved.get(key) != Some(resolution) {
                self.resolved.insert(key.clone(), resolution.clone());
                again.extend(self.waiting.remove(key).into_iter().flatten().map(|(pod, _)| pod));
            }
        }
        again
    }

    /// What the claims among `references` of a pod are called in the provider.
    pub(super) fn of_pod(
        &self,
        pod: &Key,
        references: &BTreeSet<Reference>,
    ) -> Result<BTreeMap<String, String>, Unresolved> {
        let claims = references.iter().filter(|(kind, _)| *kind == Kind::PersistentVolumeClaim);
        let resolve = |(_, name): &Reference| {
            let claim = Key { namespace: pod.namespace.clone(), name: name.as_str().into() };
            match self.resolved.get(&claim) {
                Some(Resolution::Ready(there)) => Ok((name.clone(), there.clone())),
                Some(Resolution::Refused(why)) => {
                    let refusal = Refusal { reason: UNSUPPORTED.to_owned(), message: why.clone() };
                    Err(Unresolved { claim, refusal: Some(refusal) })
                }
                Some(Resolution::Waiting(_)) | None => Err(Unresolved { claim, refusal: None }),
            }
        };
        claims.map(resolve).collect()
    }

    /// A pod waits for a claim, or for what becomes of it.
    pub(super) fn wait(&mut self, claim: Key, node: &str, target: Ref, runs: bool) {
        let pods = self.waiting.entry(claim).or_default();
        let pod = (node.to_owned(), target.key.clone());
        match pods.get_mut(&pod).filter(|known| known.target.uid == target.uid) {
            Some(known) => known.runs = runs,
            None => drop(pods.insert(pod, Waiting { target, runs, reports: 0 })),
        }
    }

    /// The pods of a virtual node are not followed any more.
    pub(super) fn forget_node(&mut self, node: &str) {
        self.waiting.retain(|_, pods| {
            pods.retain(|(on, _), _| on != node);
            !pods.is_empty()
        });
    }

    /// A pod is gone.
    pub(super) fn forget(&mut self, node: &str, pod: &Key) {
        let pod = (node.to_owned(), pod.clone());
        self.waiting.retain(|_, pods| {
            pods.remove(&pod);
            !pods.is_empty()
        });
    }

    /// Pods that have waited for so long that their owners should know.
    pub(super) fn overdue(&mut self) -> Vec<(Ref, Refusal)> {
        let mut overdue = Vec::new();
        for (claim, pods) in &mut self.waiting {
            let (reason, message) = match self.resolved.get(claim) {
                Some(Resolution::Waiting(message)) => (NOT_READY, message.clone()),
                Some(Resolution::Refused(why)) => (UNSUPPORTED, why.clone()),
                _ => (NOT_READY, format!("PersistentVolumeClaim {} is not known yet", claim.name)),
            };
            for waiting in pods.values_mut().filter(|waiting| !waiting.runs) {
                waiting.reports = waiting.reports.saturating_add(1);
                if waiting.reports == PATIENCE {
                    let refusal = Refusal { reason: reason.to_owned(), message: message.clone() };
                    overdue.push((waiting.target.clone(), refusal));
                }
            }
        }
        overdue
    }

    /// Pods have begun, or ceased, to refer to a claim.
    pub(super) async fn follow(&mut self, claim: Key, referred: bool) {
        let news = if referred { ClaimNews::Follow(claim) } else { ClaimNews::Unfollow(claim) };
        self.teller.tell(news).await;
    }

    /// The body of a claim, if it has this digest.
    pub(super) fn body(&self, target: &Ref, hash: Hash) -> Option<Bytes> {
        match &self.wanted.get(&target.key).filter(|wish| wish.uid == target.uid)?.state {
            WantedState::Present { hash: now, body } if *now == hash => Some(body.clone()),
            WantedState::Present { .. } | WantedState::Deleting => None,
        }
    }

    /// The object at home a warning is about.
    pub(super) fn at_home(&self, target: Ref) -> Option<Ref> {
        if target.set.kind != Kind::PersistentVolumeClaim {
            return Some(target);
        }
        let name = self.wanted.get(&target.key)?.name.clone();
        Some(Ref { key: Key { namespace: target.key.namespace.clone(), name }, ..target })
    }

    pub(super) async fn settled(&mut self, target: Ref) {
        self.teller.tell(ClaimNews::Settled(target.uid)).await;
    }

    pub(super) async fn refused(&mut self, target: Ref, refusal: Refusal) {
        self.teller.tell(ClaimNews::Refused(target.uid, refusal)).await;
    }

    pub(super) async fn gone(&mut self, target: Ref) {
        self.teller.tell(ClaimNews::Gone(target.uid)).await;
    }

    pub(super) async fn report(&mut self, target: Ref, body: &[u8]) {
        match ClaimReport::received(body) {
            Ok(report) => self.teller.tell(ClaimNews::Report(target.uid, report)).await,
            Err(error) => warn!(claim = %target.key, %error, "what the provider tells of it cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_reflection::Uid;

    /// After a restart all becomes known bit by bit. A pod that was named meanwhile goes on waiting for the rest.
    #[test]
    fn a_pod_waits_for_each_of_its_claims() {
        let (sender, news) = watch::channel(ProviderClaims::default());
        let mut claims = Claims::new(news, Teller::to_nobody());
        let (mut consumer, pod) = (Consumer::default(), Key::new("shop", "db"));
        let names = ["data", "logs"];
        let references = names.map(|name| (Kind::PersistentVolumeClaim, name.to_owned())).into();
        let wait = |claims: &mut Claims, runs| {
            let Err(Unresolved { claim, refusal: None }) = claims.of_pod(&pod, &references) else {
                panic!("it does not wait")
            };
            let target = Ref { set: SetRef::pods("n"), key: pod.clone(), uid: Uid::from("u1") };
            claims.wait(claim, "n", target, runs);
        };
        wait(&mut claims, false);
        for known in names {
            let name = Key::new("shop", known);
            sender.send_modify(|news| {
                news.resolved.insert(name, Resolution::Ready(format!("{known}-1")));
            });
            assert_eq!(claims.learn(&mut consumer), [("n".to_owned(), pod.clone())], "{known}");
            if known == names[0] {
                wait(&mut claims, true);
                assert_eq!([claims.overdue().len(), claims.overdue().len()], [0, 0], "it runs");
                wait(&mut claims, false);
                assert_eq!([claims.overdue().len(), claims.overdue().len()], [0, 1]);
            }
        }
        assert_eq!(claims.of_pod(&pod, &references).map_err(|_| ()).unwrap().len(), 2);
    }
}
