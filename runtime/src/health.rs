//! Readiness as a set of named parts, so that `/readyz` says what is missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Readiness of a process: ready when every registered part is.
#[derive(Debug, Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// One part of the process; not ready until it says so.
#[derive(Debug, Clone)]
pub struct Part {
    name: &'static str,
    health: Health,
}

impl Health {
    /// Adds a part, not ready for the reason `waiting_for`.
    pub fn part(&self, name: &'static str, waiting_for: &str) -> Part {
        let part = Part { name, health: self.clone() };
        part.not_ready(waiting_for);
        part
    }

    /// The parts that are not ready and why; empty if the process is ready.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter_map(|(name, why)| why.clone().map(|why| (*name, why))).collect()
    }
}

impl Part {
    /// Marks the part ready.
    pub fn ready(&self) {
        self.set(None);
    }

    /// Marks the part not ready.
    pub fn not_ready(&self, why: &str) {
        self.set(Some(why.to_owned()));
    }

    fn set(&self, why: Option<String>) {
        self.health.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_all_parts_are() {
        let health = Health::default();
        let link = health.part("link", "waiting for its certificate");
        let watch = health.part("pods", "waiting for the first list");
        link.ready();
        assert_eq!(health.missing(), [("pods", "waiting for the first list".to_owned())]);
        watch.ready();
        assert!(health.missing().is_empty());
    }
}
