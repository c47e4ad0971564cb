//! Status conditions after the Kubernetes API conventions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What a controller found about one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionUpdate<'a> {
    /// CamelCase name of the condition.
    pub type_: &'a str,
    /// `Some(true)` = True, `Some(false)` = False, `None` = Unknown.
    pub status: Option<bool>,
    /// CamelCase reason a program can match on.
    pub reason: &'a str,
    /// A sentence a person can act on.
    pub message: String,
}

/// Merges one finding into `conditions`; returns whether anything changed.
///
/// `lastTransitionTime` becomes `now` only if the status changed, as the API conventions ask.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    update: ConditionUpdate<'_>,
    generation: Option<i64>,
    now: &Time,
) -> bool {
    let status = match update.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let fresh = Condition {
        type_: update.type_.to_owned(),
        status: status.to_owned(),
        reason: update.reason.to_owned(),
        message: update.message,
        observed_generation: generation,
        last_transition_time: now.clone(),
    };
    match conditions.iter_mut().find(|c| c.type_ == fresh.type_) {
        None => {
            conditions.push(fresh);
            true
        }
        Some(old) => {
            let since =
                if old.status == fresh.status { old.last_transition_time.clone() } else { now.clone() };
            let fresh = Condition { last_transition_time: since, ..fresh };
            let changed = *old != fresh;
            *old = fresh;
            changed
        }
    }
}

/// Finds a condition by its type.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition `type_` is there and True.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    condition(conditions, type_).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn up(reason: &str) -> ConditionUpdate<'_> {
        ConditionUpdate { type_: "LinkUp", status: Some(true), reason, message: String::new() }
    }

    #[test]
    fn transition_time_moves_only_when_the_status_changes() {
        let mut conditions = Vec::new();
        assert!(set_condition(&mut conditions, up("A"), Some(1), &at(1)));
        assert!(set_condition(&mut conditions, up("B"), Some(1), &at(2)));
        assert_eq!(conditions[0].last_transition_time, at(1));

        let down = ConditionUpdate { status: Some(false), ..up("C") };
        assert!(set_condition(&mut conditions, down, Some(1), &at(3)));

        assert_eq!(conditions[0].last_transition_time, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn an_equal_finding_changes_nothing() {
        let mut conditions = Vec::new();
        set_condition(&mut conditions, up("A"), None, &at(1));
        assert!(!set_condition(&mut conditions, up("A"), None, &at(9)));
    }
}
