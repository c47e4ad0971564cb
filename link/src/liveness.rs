//! How soon each end of a connection notices that the other is out of reach.

use std::time::Duration;

/// The longest time for which a connection whose other end is out of reach is taken for a living one.
///
/// Half of it passes until a sign of life is asked for, and the other half may pass until it comes. Both ends watch on
/// their own, and need not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    within: Duration,
}

impl Liveness {
    /// Notices within this time.
    #[must_use]
    pub fn within(within: Duration) -> Self {
        Self { within }
    }

    /// How long a connection may be idle before it is asked for a sign of life.
    #[must_use]
    pub fn interval(self) -> Duration {
        self.within / 2
    }

    /// How long the sign of life may take.
    #[must_use]
    pub fn timeout(self) -> Duration {
        self.within - self.interval()
    }
}

impl Default for Liveness {
    /// 10 s: pods of a node are evicted minutes later, and a link with seconds of delay is still one.
    fn default() -> Self {
        Self::within(Duration::from_secs(10))
    }
}
