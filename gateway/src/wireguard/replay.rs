//! The window that keeps a packet from being taken twice (RFC 6479).

const WORD: u64 = 64;
/// Words of the bitmap, one more than the window, so that advancing clears whole words.
const WORDS: usize = 129;
/// How far packets may be late: 8,192, as in Linux. A GSO burst is 64 packets, and several may be under way on paths
/// of different delay.
pub const WINDOW: u64 = (WORDS as u64 - 1) * WORD;

/// The packets of a session that have arrived.
#[derive(Debug, Clone)]
pub struct Replay {
    /// One more than the highest counter seen.
    next: u64,
    bitmap: [u64; WORDS],
}

impl Default for Replay {
    fn default() -> Self {
        Self { next: 0, bitmap: [0; WORDS] }
    }
}

fn place(counter: u64) -> (usize, u64) {
    let word = (counter / WORD) % WORDS as u64;
    (usize::try_from(word).unwrap_or(0), 1 << (counter % WORD))
}

impl Replay {
    /// Whether a packet with this counter may be new: asked before the cost of opening it.
    #[must_use]
    pub fn may_accept(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        let (word, bit) = place(counter);
        self.next - counter <= WINDOW && self.bitmap[word] & bit == 0
    }

    /// Takes an authenticated packet; returns whether it is new.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.may_accept(counter) {
            return false;
        }
        if counter >= self.next {
            let last = self.next.wrapping_sub(1) / WORD;
            let first_new = if self.next == 0 { 0 } else { last + 1 };
            let steps = (counter / WORD + 1).saturating_sub(first_new).min(WORDS as u64);
            for step in 0..steps {
                let (word, _) = place((counter / WORD - step) * WORD);
                self.bitmap[word] = 0;
            }
            self.next = counter.saturating_add(1);
        }
        let (word, bit) = place(counter);
        self.bitmap[word] |= bit;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// Remembers everything.
    #[derive(Default)]
    struct Naive {
        seen: HashSet<u64>,
        highest: Option<u64>,
    }

    impl Naive {
        fn accept(&mut self, counter: u64) -> bool {
            let next = self.highest.map_or(0, |highest| highest + 1);
            let fresh = counter + WINDOW >= next && self.seen.insert(counter);
            if fresh {
                self.highest = self.highest.max(Some(counter));
            }
            fresh
        }
    }

    proptest! {
        #[test]
        fn takes_what_a_complete_memory_would(steps in prop::collection::vec((0u8..6, 0u64..20_000), 1..400)) {
            let (mut replay, mut naive) = (Replay::default(), Naive::default());
            for (kind, amount) in steps {
                let next = naive.highest.map_or(0, |highest| highest + 1);
                let counter = match kind {
                    0..=2 => next + amount % 3,
                    3 => next.saturating_sub(amount % 200),
                    4 => next.saturating_sub(amount),
                    _ => next + amount,
                };
                prop_assert_eq!(replay.accept(counter), naive.accept(counter), "counter {}", counter);
            }
        }
    }

    #[test]
    fn the_window_is_exact_and_the_last_counter_does_not_overflow() {
        let mut replay = Replay::default();
        assert!(replay.accept(10_000));
        assert!(replay.accept(10_001 - WINDOW) && !replay.accept(10_000 - WINDOW));
        assert!(replay.accept(u64::MAX - 1) && !replay.accept(u64::MAX - 1));
    }
}
