//! Processes that are known by more than their number.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process by number *and* start time: the kernel gives numbers out again, start times it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number in the host's pid namespace.
    pub pid: i32,
    /// Clock ticks between boot and its start (field 22 of `/proc/PID/stat`).
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now, if there is one that has not ended.
    #[must_use]
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse_stat(&stat)?;
        // A zombie holds no resources: nothing is left to stop.
        (state != 'Z' && state != 'X').then_some(Self { pid, started })
    }

    /// Whether this very process still runs.
    #[must_use]
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Kills this very process; nothing happens when it has ended.
    pub(crate) fn kill(self) {
        if self.is_alive() {
            // It may end between the look and the signal; that is what was wanted.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// State and start time. The program's name (field 2) may hold spaces and parentheses: the fields count from the last.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) S 1 (b)) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(parse_stat(stat), Some(('R', 4242)));
    }

    #[test]
    fn this_process_is_alive_and_one_with_another_start_time_is_not() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { started: own.started + 1, ..own }.is_alive());
    }

    #[test]
    fn a_recycled_number_is_not_killed() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        ProcessId { started: id.started + 1, ..id }.kill();
        assert!(id.is_alive());
        id.kill();
        child.wait().unwrap();
        assert!(!id.is_alive());
    }
}
