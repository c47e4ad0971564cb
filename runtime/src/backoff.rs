//! Waiting times between tries that never give up for good.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// Exponential waiting times from `first` to `cap`, doubling, with a spread of a quarter so that many
/// waiters do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts at `first` and never waits longer than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, failures: 0 }
    }

    /// Forgets earlier failures.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next waiting time; `entropy` is any number that differs between waiters.
    pub fn next(&mut self, entropy: u64) -> Duration {
        // 2^16 times any `first` of a millisecond or more passes every cap in use; a larger shift would overflow.
        let doubled = self.first.saturating_mul(1 << self.failures.min(16)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        let percent = u32::try_from(entropy % 26).unwrap_or(0);
        doubled - doubled * percent / 100
    }
}

/// A number that differs between waiters, for [`Backoff::next`].
pub fn entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_starts_over_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6).map(|_| backoff.next(0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(0).as_millis(), 100);
    }

    #[test]
    fn the_spread_stays_within_a_quarter() {
        for entropy in 0..200 {
            let wait = Backoff::new(Duration::from_secs(1), Duration::from_secs(9)).next(entropy);
            assert!((750..=1000).contains(&wait.as_millis()), "{wait:?}");
        }
    }
}
