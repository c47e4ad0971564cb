//! Which tokens the pods in a provider shall have, and when these are replaced. Pure: times are seconds since 1970.
//!
//! A kubelet replaces a token when four fifths of its life are over, or a day. Here this is a matter of the clock alone: the
//! time since a pod was made falls into turns of that length, and what is wanted in the provider is "the tokens of this
//! turn". Its digest says which turn that is, so the provider knows whether it has them, also after a restart of either
//! side; a token is only asked for when the provider wants it, and kept nowhere on the way. One that comes late in its turn
//! is replaced earlier than it would have to be.

use super::references::Companion;
use crate::translate::TokenSource;
use liquid_link::digest::Hash;
use liquid_reflection::companion::token_secret;
use liquid_reflection::frame::Ref;
use liquid_reflection::{Key, Kind, SetRef, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The longest turn, as for kubelets.
const LONGEST_TURN: i64 = 24 * 3600;
/// After a start, what is overdue is not said at once: the link needs a moment.
const GRACE: i64 = 30;
/// A token that lives shorter than asked for by more than this was cut short on purpose; less is the time of the request.
const TOLERANCE: i64 = 60;

/// What a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::mirror) struct Asked {
    /// Its UID.
    pub(in crate::mirror) uid: Uid,
    /// Its service account.
    pub(in crate::mirror) account: String,
    /// When it was made.
    pub(in crate::mirror) created: i64,
    /// Its tokens.
    pub(in crate::mirror) sources: Vec<TokenSource>,
}

/// What follows for the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It shall have the tokens with this digest.
    Wanted(Ref, Hash),
    /// It shall have none.
    Unwanted(Ref),
    /// It should have had others by now: those of this pod expire.
    Overdue(Ref),
}

/// What is to be asked of the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    /// The pod.
    pub(super) pod: Ref,
    /// Its service account.
    pub(super) account: String,
    /// Its tokens.
    pub(super) sources: Vec<TokenSource>,
}

#[derive(Debug)]
struct Pod {
    asked: Asked,
    /// End of the current turn, and when the tokens of the last one expire.
    turn_ends: i64,
    overdue: Option<i64>,
    /// The provider has tokens of this pod, or has been sent some.
    served: bool,
}

/// A pod by its virtual node and its names.
type At = (Arc<str>, Key);

/// The tokens of all pods in one provider.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    pods: BTreeMap<At, Pod>,
    by_secret: BTreeMap<Key, At>,
    /// When something is to be done, and for which pod.
    due: BTreeSet<(i64, At)>,
    /// The longest life the API server gives a token, if it is known to cut it.
    longest: Option<i64>,
}

impl Tokens {
    /// The pod asks for these tokens; for none if it is gone, has ended or may have none.
    pub(super) fn set(&mut self, node: &str, key: &Key, asked: Option<Asked>, now: i64) -> Vec<Change> {
        let at = (Arc::from(node), key.clone());
        let asked = asked.filter(|asked| !asked.sources.is_empty());
        if self.pods.get(&at).map(|pod| &pod.asked) == asked.as_ref() {
            return Vec::new();
        }
        let mut changes: Vec<Change> = self.remove(&at).into_iter().collect();
        if let Some(asked) = asked {
            self.by_secret.insert(secret(&at, &asked).key, at.clone());
            let pod = Pod { asked, turn_ends: now, overdue: None, served: false };
            self.pods.insert(at.clone(), pod);
            changes.extend(self.begin_turn(&at, now));
        }
        changes
    }

    /// Of the pods on `node`, only these are left.
    pub(super) fn retain(&mut self, node: &str, left: impl Fn(&Key) -> bool) -> Vec<Change> {
        let gone = self.pods.keys().filter(|(on, pod)| **on == *node && !left(pod));
        let gone: Vec<At> = gone.cloned().collect();
        gone.iter().filter_map(|at| self.remove(at)).collect()
    }

    /// Pods of `namespace` may have no tokens any more.
    pub(super) fn revoke(&mut self, namespace: &str) -> Vec<Change> {
        let gone = self.pods.keys().filter(|(_, pod)| *pod.namespace == *namespace);
        let gone: Vec<At> = gone.cloned().collect();
        gone.iter().filter_map(|at| self.remove(at)).collect()
    }

    /// What the provider shall have of `namespace`.
    pub(super) fn wanted(&self, namespace: &str) -> Vec<Change> {
        let pods = self.pods.iter().filter(|((_, pod), _)| *pod.namespace == *namespace);
        pods.map(|(at, pod)| Change::Wanted(secret(at, &pod.asked), self.digest(pod))).collect()
    }

    /// When there is something to do.
    pub(super) fn poll_timeout(&self) -> Option<i64> {
        self.due.first().map(|(when, _)| *when)
    }

    /// What is due by `now`.
    pub(super) fn handle_timeout(&mut self, now: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((when, at)) = self.due.first().cloned().filter(|(when, _)| *when <= now) {
            self.due.remove(&(when, at.clone()));
            let Some(pod) = self.pods.get_mut(&at) else { continue };
            if pod.overdue == Some(when) {
                pod.overdue = None;
                changes.push(Change::Overdue(pod_ref(&at, &pod.asked)));
            }
            if pod.turn_ends <= now {
                changes.extend(self.begin_turn(&at, now));
            }
        }
        changes
    }

    /// What is to be asked for if the provider wants this Secret.
    pub(super) fn order(&self, target: &Ref) -> Option<Order> {
        let (at, pod) = self.pod(target)?;
        let mut sources = pod.asked.sources.clone();
        for source in &mut sources {
            source.seconds = self.life(source.seconds);
        }
        Some(Order { pod: pod_ref(at, &pod.asked), account: pod.asked.account.clone(), sources })
    }

    /// The pod whose tokens these are.
    pub(super) fn owner(&self, target: &Ref) -> Option<Ref> {
        self.pod(target).map(|(at, pod)| pod_ref(at, &pod.asked))
    }

    /// The API server has given a token of `seconds`, of which `asked` were asked for. Returns what changes by that.
    pub(super) fn granted(&mut self, asked: i64, seconds: i64, now: i64) -> Vec<Change> {
        let longest = match self.longest {
            _ if seconds + TOLERANCE < asked => Some(seconds),
            // It gives longer ones than it did.
            Some(longest) if seconds > longest + TOLERANCE => None,
            known => known,
        };
        if std::mem::replace(&mut self.longest, longest) == longest {
            return Vec::new();
        }
        let all: Vec<At> = self.pods.keys().cloned().collect();
        all.iter().flat_map(|at| self.begin_turn(at, now)).collect()
    }

    /// The provider was sent the tokens it shall have.
    pub(super) fn sent(&mut self, target: &Ref) {
        if let Some(pod) = self.pod_mut(target) {
            pod.served = true;
        }
    }

    /// The provider has the tokens it shall have.
    pub(super) fn settled(&mut self, target: &Ref) {
        let Some(at) = self.by_secret.get(&target.key).cloned() else { return };
        let Some(pod) = self.pod_mut(target) else { return };
        pod.served = true;
        if let Some(when) = pod.overdue.take() {
            let turn_ends = pod.turn_ends;
            if when != turn_ends {
                self.due.remove(&(when, at));
            }
        }
    }

    /// Whether a pod asks for tokens, and the provider has none of it yet: there it would wait for them in vain.
    pub(super) fn waits(&self, pod: &Ref) -> bool {
        let known = self.pods.get(&(pod.set.scope.clone(), pod.key.clone()));
        known.is_some_and(|known| known.asked.uid == pod.uid && !known.served)
    }

    fn pod(&self, target: &Ref) -> Option<(&At, &Pod)> {
        let (at, pod) = self.pods.get_key_value(self.by_secret.get(&target.key)?)?;
        (pod.asked.uid == target.uid).then_some((at, pod))
    }

    fn pod_mut(&mut self, target: &Ref) -> Option<&mut Pod> {
        let pod = self.pods.get_mut(self.by_secret.get(&target.key)?)?;
        (pod.asked.uid == target.uid).then_some(pod)
    }

    fn remove(&mut self, at: &At) -> Option<Change> {
        let pod = self.pods.remove(at)?;
        self.due.remove(&(pod.turn_ends, at.clone()));
        if let Some(when) = pod.overdue {
            self.due.remove(&(when, at.clone()));
        }
        let secret = secret(at, &pod.asked);
        self.by_secret.remove(&secret.key);
        Some(Change::Unwanted(secret))
    }

    fn begin_turn(&mut self, at: &At, now: i64) -> Option<Change> {
        let lives: Vec<i64> =
            self.pods.get(at)?.asked.sources.iter().map(|it| self.life(it.seconds)).collect();
        let pod = self.pods.get_mut(at)?;
        self.due.remove(&(pod.turn_ends, at.clone()));
        if let Some(when) = pod.overdue.take() {
            self.due.remove(&(when, at.clone()));
        }
        let turns = lives.iter().map(|life| Turn::at(&pod.asked, *life, now));
        let (mut ends, mut expires) = (i64::MAX, i64::MAX);
        for (turn, life) in turns.zip(&lives) {
            ends = ends.min(turn.ends);
            // Those of the last turn are at least as old as the current one, at most by its length.
            expires = expires.min(turn.began + life - turn.length);
        }
        pod.turn_ends = ends;
        pod.overdue = Some(expires.max(now + GRACE));
        self.due.insert((ends, at.clone()));
        self.due.extend(pod.overdue.map(|when| (when, at.clone())));
        let pod = self.pods.get(at)?;
        Some(Change::Wanted(secret(at, &pod.asked), self.digest(pod)))
    }

    /// How long a token lives for which so much is asked.
    fn life(&self, seconds: i64) -> i64 {
        self.longest.map_or(seconds, |longest| seconds.min(longest))
    }

    /// Digest of the tokens a pod shall have in its current turn: not of themselves, which nobody keeps.
    fn digest(&self, pod: &Pod) -> Hash {
        let mut text = format!("{} {}", pod.asked.uid, pod.asked.account);
        for source in &pod.asked.sources {
            let life = self.life(source.seconds);
            let turn = Turn::at(&pod.asked, life, pod.turn_ends - 1).number;
            let audience = source.audience.as_deref().unwrap_or_default();
            text.push_str(&format!("\n{} {audience} {life} {turn}", source.key));
        }
        Hash::of(text.as_bytes())
    }
}

/// A turn of a token.
#[derive(Debug, Clone, Copy)]
struct Turn {
    number: i64,
    began: i64,
    ends: i64,
    length: i64,
}

impl Turn {
    /// The turn at `now` of a token with this life.
    fn at(asked: &Asked, life: i64, now: i64) -> Self {
        let longest = (life * 4 / 5).clamp(10, LONGEST_TURN);
        // Pods that were made together take their turns apart.
        let spread = i64::from(Hash::of(asked.uid.as_str().as_bytes()).as_bytes()[0]);
        let length = longest - longest * spread / (10 * 256);
        let number = (now - asked.created).max(0) / length;
        let began = asked.created + number * length;
        Self { number, began, ends: began + length, length }
    }
}

/// The Secret with the tokens of a pod, as the provider is to have it.
fn secret(at: &At, asked: &Asked) -> Ref {
    let namespace = &at.1.namespace;
    Ref {
        set: SetRef::companions(Kind::Secret, namespace),
        key: Key::new(namespace, &token_secret(asked.uid.as_str())),
        uid: asked.uid.clone(),
    }
}

fn pod_ref((node, key): &At, asked: &Asked) -> Ref {
    Ref { set: SetRef::pods(node), key: key.clone(), uid: asked.uid.clone() }
}

/// Whether this is a Secret of tokens.
pub(super) fn is_tokens((kind, key): &Companion) -> bool {
    *kind == Kind::Secret && liquid_reflection::companion::is_made_for_pods(*kind, &key.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(uid: &str, created: i64, lives: &[i64]) -> Asked {
        let source = |(index, seconds): (usize, &i64)| TokenSource {
            key: format!("v.{index}"),
            audience: None,
            seconds: *seconds,
        };
        Asked {
            uid: Uid::from(uid),
            account: "default".to_owned(),
            created,
            sources: lives.iter().enumerate().map(source).collect(),
        }
    }

    fn wanted(changes: &[Change]) -> (Ref, Hash) {
        match changes {
            [Change::Wanted(target, hash)] => (target.clone(), *hash),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_token_of_ten_minutes_is_replaced_in_time_and_no_sooner_than_needed() {
        let mut tokens = Tokens::default();
        let pod = Key::new("shop", "web-0");
        let (secret, first) = wanted(&tokens.set("n", &pod, Some(asked("u1", 1000, &[600])), 1000));
        assert_eq!(&*secret.key.name, "token-u1.home.liquid.mesh");
        assert!(tokens.waits(&tokens.owner(&secret).unwrap()));
        tokens.settled(&secret);
        assert!(!tokens.waits(&tokens.owner(&secret).unwrap()));
        let due = tokens.poll_timeout().unwrap();
        assert!((1000 + 432..=1000 + 480).contains(&due), "{due}");
        assert_eq!(tokens.handle_timeout(due - 1), []);
        let (again, second) = wanted(&tokens.handle_timeout(due));
        assert_eq!(again, secret);
        assert_ne!(first, second);
    }

    #[test]
    fn after_a_restart_the_same_is_wanted_as_before() {
        let pod = Key::new("shop", "web-0");
        let at = |now| {
            let mut tokens = Tokens::default();
            wanted(&tokens.set("n", &pod, Some(asked("u1", 1000, &[3607, 600])), now)).1
        };
        assert_eq!(at(1400), at(1410));
        assert_ne!(at(1400), at(1900));
    }

    #[test]
    fn tokens_that_could_not_be_replaced_are_said_when_they_expire_and_not_twice() {
        let mut tokens = Tokens::default();
        let pod = Key::new("shop", "web-0");
        let (secret, _) = wanted(&tokens.set("n", &pod, Some(asked("u1", 0, &[600])), 0));
        tokens.settled(&secret);
        let end = tokens.poll_timeout().unwrap();
        wanted(&tokens.handle_timeout(end));
        // The link is down. What the provider has was given at 0 at the earliest.
        assert_eq!(tokens.handle_timeout(599), []);
        let overdue = tokens.handle_timeout(600);
        assert_eq!(overdue, [Change::Overdue(tokens.owner(&secret).unwrap())]);
        assert_eq!(tokens.handle_timeout(700), []);
        let mut served = Tokens::default();
        let (secret, _) = wanted(&served.set("n", &pod, Some(asked("u1", 0, &[600])), 0));
        served.settled(&secret);
        wanted(&served.handle_timeout(end));
        served.settled(&secret);
        assert_eq!(served.handle_timeout(700), []);
    }

    #[test]
    fn an_api_server_that_gives_less_is_asked_more_often() {
        let mut tokens = Tokens::default();
        let pod = Key::new("shop", "web-0");
        let (secret, before) = wanted(&tokens.set("n", &pod, Some(asked("u1", 0, &[86_400])), 0));
        assert_eq!(tokens.granted(86_400, 86_395, 1), []);
        let (_, after) = wanted(&tokens.granted(86_400, 3600, 1));
        assert_ne!(before, after);
        assert!(tokens.poll_timeout().unwrap() <= 3600);
        assert_eq!(tokens.order(&secret).unwrap().sources[0].seconds, 3600);
        assert_eq!(tokens.granted(3600, 3600, 2), []);
        assert_eq!(wanted(&tokens.granted(7200, 7200, 3)).1, before);
    }

    #[test]
    fn a_pod_that_is_gone_leaves_nothing() {
        let mut tokens = Tokens::default();
        let (a, b) = (Key::new("shop", "a"), Key::new("other", "b"));
        let (of_a, _) = wanted(&tokens.set("n", &a, Some(asked("u1", 0, &[600])), 0));
        let (of_b, _) = wanted(&tokens.set("n", &b, Some(asked("u2", 0, &[600])), 0));
        assert_eq!(tokens.set("n", &a, None, 5), [Change::Unwanted(of_a)]);
        assert_eq!(tokens.retain("m", |_| false), []);
        assert_eq!(tokens.wanted("other").len(), 1);
        assert_eq!(tokens.revoke("other"), [Change::Unwanted(of_b)]);
        assert!(tokens.pods.is_empty() && tokens.due.is_empty() && tokens.by_secret.is_empty());
    }

    proptest! {
        /// However the clock runs, and whenever a token is delivered in its turn: one that was given is replaced before it
        /// expires, with a fifth of its life (of a day's turn: more) to spare.
        #[test]
        fn tokens_are_replaced_before_they_expire(
            uid in "[a-z0-9]{8}",
            life in 600..200_000i64,
            first in 0..1_000_000i64,
            delays in proptest::collection::vec(0..400i64, 1..20),
        ) {
            let mut tokens = Tokens::default();
            let pod = Key::new("shop", "web-0");
            let (secret, _) = wanted(&tokens.set("n", &pod, Some(asked(&uid, 0, &[life])), first));
            let (mut now, mut given) = (first, first);
            for delay in delays {
                tokens.settled(&secret);
                let due = tokens.poll_timeout().unwrap();
                prop_assert!(due - given <= life - life / 5, "{due} {given}");
                now = due.max(now);
                let changes = tokens.handle_timeout(now);
                prop_assert!(matches!(changes[..], [Change::Wanted(..)]), "{:?}", changes);
                // The link takes its time, but less than what is to spare.
                given = now;
                now += delay.min(life / 5 - 1);
                for change in tokens.handle_timeout(now) {
                    prop_assert!(!matches!(change, Change::Overdue(_)), "{change:?}");
                }
            }
        }
    }
}
