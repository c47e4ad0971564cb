//! The one next step of an object, derived from what is wanted, what is stored and what runs.

use super::member::{Member, Wish};
use super::state::{Instance, Record, Step};
use bytes::Bytes;
use liquid_link::digest::Hash;

/// What follows from the state of a member.
pub(super) enum Decision {
    Nothing,
    Run(Step),
    AskForBody,
    /// Everything is as wished, with this digest.
    Settled(Hash),
    ReportGone,
    /// Nothing of what the consumer means is left, but something stays.
    ReportKept,
    /// It cannot be done as things are: CamelCase for programs, a sentence for people.
    Refuse(&'static str, String),
    Forget,
}

/// Derives the next step from what is wanted, what is stored and what runs.
pub(super) fn decide(member: &Member, has_instance: bool) -> Decision {
    if member.outdated {
        return Decision::Run(Step::Look);
    }
    let (record, instance) = (member.record.as_ref(), member.instance.as_ref());
    match &member.wish {
        Wish::Absent { grace, .. } => match (record, instance) {
            (None, None) if member.uncertain.is_some() => Decision::Run(Step::Look),
            (None, None) => Decision::ReportGone,
            _ => remove(member, *grace),
        },
        Wish::Present { uid, hash, body } => {
            // What stands for an earlier object of this name goes first.
            let stale_instance = instance.filter(|instance| instance.home != *uid);
            if let Some(stop) = stale_instance.and_then(|instance| stop(member, instance, None)) {
                return Decision::Run(stop);
            }
            if let Some(record) = record.filter(|record| record.home != *uid && !record.terminating) {
                return Decision::Run(Step::Erase(record.object.clone()));
            }
            if stale_instance.is_some() {
                return Decision::Nothing;
            }
            match record {
                Some(record) if record.terminating => Decision::Nothing,
                Some(record) if record.hash == *hash => {
                    keep(member, record, has_instance).unwrap_or(Decision::Settled(*hash))
                }
                _ => store(body.as_ref(), *hash, record),
            }
        }
        Wish::Unspoken | Wish::Omitted { .. } => match record {
            Some(record) if record.terminating => Decision::Nothing,
            Some(record) => keep(member, record, has_instance).unwrap_or(Decision::Nothing),
            // The record is what says that something shall run; it goes last when something starts and is deleted
            // right after the instance was told to end, so an instance without one is on its way out.
            None => match instance {
                Some(instance) if member.orphaned => {
                    stop(member, instance, None).map_or(Decision::Nothing, Decision::Run)
                }
                Some(instance) if instance.terminating => Decision::Nothing,
                Some(_) => Decision::Run(Step::Look),
                None if member.uncertain.is_some() => Decision::Run(Step::Look),
                None => Decision::Forget,
            },
        },
    }
}

/// Stores the body over `record`, or asks for it.
pub(super) fn store(body: Option<&Bytes>, hash: Hash, record: Option<&Record>) -> Decision {
    let Some(body) = body.cloned() else { return Decision::AskForBody };
    Decision::Run(Step::Store { body, hash, replaces: record.map(|record| record.object.clone()) })
}

/// Keeps what the record describes running; `None` if it is as it should be.
fn keep(member: &Member, record: &Record, has_instance: bool) -> Option<Decision> {
    if !has_instance {
        return None;
    }
    match &member.instance {
        None if record.finished => None,
        None => Some(Decision::Run(Step::Start)),
        Some(instance) if instance.home != record.home => {
            Some(stop(member, instance, None).map_or(Decision::Nothing, Decision::Run))
        }
        Some(instance) if instance.finished && !record.finished => Some(Decision::Run(Step::Finish)),
        Some(instance) if instance.finished || instance.terminating => None,
        Some(instance) if instance.hash != record.hash => {
            Some(Decision::Run(Step::Adjust(instance.object.clone())))
        }
        Some(_) => None,
    }
}

/// Ends the instance, then the record. The order matters: the garbage collector does not touch an instance that
/// is terminating already, so the grace that was asked for holds.
fn remove(member: &Member, grace: Option<u32>) -> Decision {
    if let Some(instance) = &member.instance
        && let Some(stop) = stop(member, instance, grace)
    {
        return Decision::Run(stop);
    }
    match &member.record {
        Some(record) if !record.terminating => Decision::Run(Step::Erase(record.object.clone())),
        _ => Decision::Nothing,
    }
}

/// Ends an instance, once, and again if less time is granted than before.
fn stop(member: &Member, instance: &Instance, grace: Option<u32>) -> Option<Step> {
    let shorter = match &member.stopped {
        Some((object, earlier)) if *object == instance.object => match (earlier, grace) {
            (Some(earlier), Some(grace)) => grace < *earlier,
            (None, Some(_)) => true,
            (_, None) => false,
        },
        // Told to end by somebody else, or before a restart: only a wish for a certain time is worth repeating.
        _ => !instance.terminating || grace.is_some(),
    };
    shorter.then(|| Step::Stop { object: instance.object.clone(), grace })
}
