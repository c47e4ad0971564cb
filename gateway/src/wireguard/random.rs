//! Random numbers from one seed, so that a gateway in a test does the same each time.

use blake2::Blake2sMac;
use blake2::digest::Mac;
use blake2::digest::consts::U32;

/// A generator of random bytes: keyed BLAKE2s over a counter.
#[derive(Clone)]
pub struct Random {
    key: [u8; 32],
    counter: u64,
}

impl Random {
    /// A generator that starts from `seed`, which must come from the system where secrets depend on it.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self { key: seed, counter: 0 }
    }

    /// 32 random bytes.
    pub fn bytes(&mut self) -> [u8; 32] {
        self.counter += 1;
        let mut mac =
            <Blake2sMac<U32> as Mac>::new_from_slice(&self.key).expect("BLAKE2s takes keys of 32 bytes");
        mac.update(&self.counter.to_le_bytes());
        mac.finalize().into_bytes().into()
    }

    /// A random number.
    pub fn number(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random(..)")
    }
}
