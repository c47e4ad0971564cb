//! The next step for a claim, and for a namespace, which holds claims.
//!
//! A claim with data ends only if its owner said so ([`Wish::Absent`]). That it is not named any more, that its set is
//! given up or the peering ends says nothing about its data: it stays, and the namespace with it.

use super::decide::{Decision, store};
use super::member::{Member, Wish};
use super::state::{Hold, Record, Step};

/// What the claims in a namespace mean for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Within {
    /// There are none.
    Nothing,
    /// Some are on their way out, or it is not known whether they exist: the namespace waits.
    Ending,
    /// Some stay.
    Kept,
}

impl Within {
    /// What one claim means for its namespace.
    pub(super) fn of(claim: &Member) -> Self {
        let known = claim.record.as_ref();
        if claim.running.is_some() || claim.outdated {
            return Self::Ending;
        }
        match (&claim.wish, known) {
            (_, None) if claim.uncertain.is_some() => Self::Ending,
            (_, None) => Self::Nothing,
            (_, Some(record)) if record.terminating => Self::Ending,
            (Wish::Absent { uid, .. }, Some(record)) if record.home == *uid => Self::Ending,
            (Wish::Omitted { .. }, Some(record)) if record.hold == Hold::Nothing => Self::Ending,
            (_, Some(_)) => Self::Kept,
        }
    }

    /// What both mean for it.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ending, _) | (_, Self::Ending) => Self::Ending,
            (Self::Kept, _) | (_, Self::Kept) => Self::Kept,
            (Self::Nothing, Self::Nothing) => Self::Nothing,
        }
    }
}

/// Derives the next step of a claim. New ones are only made where the namespace is `open`: wanted, and there.
pub(super) fn decide(member: &Member, open: bool) -> Decision {
    if member.outdated {
        return Decision::Run(Step::Look);
    }
    let record = member.record.as_ref();
    match (&member.wish, record) {
        (Wish::Present { uid, .. }, Some(record)) if record.home != *uid => Decision::Refuse(
            "VolumeConflict",
            "the provider has a volume of another claim under this name; nothing is done to it".to_owned(),
        ),
        (Wish::Present { .. }, Some(record)) if record.terminating => Decision::Nothing,
        (Wish::Present { hash, .. }, Some(record)) if record.hash == *hash => Decision::Settled(*hash),
        (Wish::Present { .. }, None) if !open && member.uncertain.is_some() => Decision::Run(Step::Look),
        (Wish::Present { .. }, None) if !open => Decision::Refuse(
            "NamespaceNotOffloaded",
            "the namespace of the claim is not offloaded to this provider".to_owned(),
        ),
        (Wish::Present { hash, body, .. }, _) => store(body.as_ref(), *hash, record),
        (Wish::Unspoken | Wish::Omitted { .. } | Wish::Absent { .. }, None) if member.uncertain.is_some() => {
            Decision::Run(Step::Look)
        }
        (Wish::Absent { .. }, None) => Decision::ReportGone,
        // What is there stands for another one.
        (Wish::Absent { uid, .. }, Some(record)) if record.home != *uid => Decision::ReportKept,
        (Wish::Absent { .. }, Some(record)) if !record.terminating => reclaim(record),
        (Wish::Omitted { uid }, Some(record))
            if record.home == *uid && record.hold == Hold::Nothing && !record.terminating =>
        {
            reclaim(record)
        }
        (Wish::Unspoken | Wish::Omitted { .. }, None) => Decision::Forget,
        (Wish::Unspoken | Wish::Omitted { .. } | Wish::Absent { .. }, Some(_)) => Decision::Nothing,
    }
}

/// Derives the next step of a namespace from what there is `within`.
pub(super) fn decide_namespace(member: &Member, within: Within) -> Decision {
    if member.outdated {
        return Decision::Run(Step::Look);
    }
    let record = member.record.as_ref();
    match (&member.wish, record) {
        (_, None) if member.uncertain.is_some() && !matches!(member.wish, Wish::Present { .. }) => {
            Decision::Run(Step::Look)
        }
        (Wish::Absent { .. }, None) => Decision::ReportGone,
        (Wish::Unspoken | Wish::Omitted { .. }, None) => Decision::Forget,
        (_, Some(record)) if record.terminating => Decision::Nothing,
        (Wish::Absent { .. }, Some(record)) if record.hold == Hold::Retired => Decision::ReportKept,
        (Wish::Absent { .. }, Some(record)) => give_up(record, within),
        (Wish::Present { uid, hash, body }, Some(record)) => {
            if record.hold == Hold::Retired {
                // It is the consumer's, whatever it was offloaded for then: its claims are found again.
                store(body.as_ref(), *hash, Some(record))
            } else if record.home != *uid {
                // What stands for an earlier offloading goes first.
                give_up(record, within)
            } else if record.hash == *hash {
                Decision::Settled(*hash)
            } else {
                store(body.as_ref(), *hash, Some(record))
            }
        }
        (Wish::Present { hash, body, .. }, None) => store(body.as_ref(), *hash, None),
        (Wish::Unspoken | Wish::Omitted { .. }, Some(record)) => {
            // The last claim it was kept for is gone.
            if record.hold == Hold::Retired && within == Within::Nothing {
                reclaim(record)
            } else {
                Decision::Nothing
            }
        }
    }
}

fn give_up(record: &Record, within: Within) -> Decision {
    match within {
        Within::Nothing => reclaim(record),
        Within::Ending => Decision::Nothing,
        Within::Kept => Decision::Run(Step::Retire(record.object.clone())),
    }
}

fn reclaim(record: &Record) -> Decision {
    Decision::Run(Step::Reclaim { object: record.object.clone(), version: record.version })
}
