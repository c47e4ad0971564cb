//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// A ones' complement sum that has not been folded to 16 bits; room for 2^48 words.
///
/// Words are added as they lie in memory, whatever the byte order of the machine: the sum of swapped words is the
/// swapped sum (RFC 1071, section 2 (B)), so nothing is swapped before the end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of the 16-bit words of `bytes`; an odd last byte counts as the high half of a word.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::default().with(bytes)
    }

    /// Adds the words of `bytes`, which start at an even distance from what was added before.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        // Four bytes at a time into 64 bits: no carry is lost, and the loop becomes vector code.
        let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let mut tail = [0; 4];
        tail[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(tail));
        // 4 bytes x 65,535 keep the sum far below 2^64; folding here keeps it so for any number of additions.
        Self(self.0 + (sum & 0xffff_ffff) + (sum >> 32))
    }

    /// Adds one word, given in host order.
    #[must_use]
    pub fn with_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Replaces `old` by `new`, of equal length and at an even distance, in what has been summed.
    #[must_use]
    pub fn replace(self, old: &[u8], new: &[u8]) -> Self {
        // Subtracting is adding the complement; a complemented 32-bit half is the complement of both its words.
        let old = Sum::of(old).0;
        let old = (old & 0xffff_ffff) + (old >> 32);
        let old = (old & 0xffff_ffff) + (old >> 32);
        Self(self.0 + (!old & 0xffff_ffff)).with(new)
    }

    /// The sum of the words without what is complemented, in network order: what a packet carries whose checksum
    /// is left to a device.
    #[must_use]
    pub fn folded(self) -> [u8; 2] {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) as u16).to_ne_bytes()
    }

    /// The checksum: the complement of the folded sum, in network order.
    #[must_use]
    pub fn checksum(self) -> [u8; 2] {
        let folded = u16::from_ne_bytes(self.folded());
        (!folded).to_ne_bytes()
    }
}

/// Updates the checksum at `field` for a change of `old` to `new` (RFC 1624, equation 3).
pub fn update(field: &mut [u8; 2], old: &[u8], new: &[u8]) {
    *field = Sum(u64::from(!u16::from_ne_bytes(*field))).replace(old, new).checksum();
}

/// Updates the un-complemented sum at `field` of a packet whose checksum is left to a device.
pub fn update_partial(field: &mut [u8; 2], old: &[u8], new: &[u8]) {
    *field = Sum(u64::from(u16::from_ne_bytes(*field))).replace(old, new).folded();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, section 4.1, word for word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1624_gives_zero() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285.
        let mut field = 0xdd2f_u16.to_be_bytes();
        update(&mut field, &0x5555_u16.to_be_bytes(), &0x3285_u16.to_be_bytes());
        assert_eq!(field, [0, 0]);
    }

    proptest! {
        #[test]
        fn sums_like_the_standard(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(u16::from_be_bytes(Sum::of(&bytes).checksum()), naive(&bytes));
        }

        #[test]
        fn parts_may_be_summed_apart(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
            let cut = (cut * 2).min(bytes.len());
            let sum = Sum::of(&bytes[..cut]).with(&bytes[cut..]);
            prop_assert_eq!(u16::from_be_bytes(sum.checksum()), naive(&bytes));
        }

        #[test]
        fn an_update_is_as_good_as_a_new_sum(
            mut bytes in prop::collection::vec(any::<u8>(), 40..60), new in any::<[u8; 16]>(), at in 0usize..10
        ) {
            bytes[0] |= 1; // A sum of nothing but zeros has two representations, and no packet is all zeros.
            let at = at * 2 + 2;
            let mut field = Sum::of(&bytes).checksum();
            let mut partial = Sum::of(&bytes).folded();
            let old: [u8; 16] = bytes[at..at + 16].try_into().unwrap();
            bytes[at..at + 16].copy_from_slice(&new);
            update(&mut field, &old, &new);
            update_partial(&mut partial, &old, &new);
            prop_assert_eq!(u16::from_be_bytes(field), naive(&bytes));
            prop_assert_eq!(u16::from_be_bytes(partial), !naive(&bytes));
        }
    }
}
