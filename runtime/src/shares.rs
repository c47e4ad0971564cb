//! How many of something each of many may have at one time: connections, say.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many each has now. Whoever has none is not kept.
#[derive(Debug)]
pub struct Shares<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// One more for `who`; none if that has `most` already.
    #[must_use]
    pub fn take(&self, who: &K, most: usize) -> Option<Share<K>> {
        let mut known = self.known();
        let count = known.get(who).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        known.insert(who.clone(), count + 1);
        Some(Share { who: who.clone(), shares: self.clone() })
    }

    /// Whether nobody has any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known().is_empty()
    }
}

impl<K> Shares<K> {
    fn known(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those somebody has; counts until it is dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    who: K,
    shares: Shares<K>,
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut known = self.shares.known();
        if let Some(count) = known.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                known.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_its_share_and_no_more() {
        let shares = Shares::default();
        let one = shares.take(&"turin", 2);
        let two = shares.take(&"turin", 2);
        assert!(one.is_some() && two.is_some());
        assert!(shares.take(&"turin", 2).is_none());
        assert!(shares.take(&"milan", 2).is_some(), "another has its own");
        drop(one);
        assert!(shares.take(&"turin", 2).is_some());
        drop(two);
        assert!(shares.is_empty());
    }
}
