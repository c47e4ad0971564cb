//! Datagrams on their way out, laid out so that runs of equal size leave in one call (`UDP_SEGMENT`).

use std::net::SocketAddr;

/// Most segments the kernel takes at once (`UDP_MAX_SEGMENTS` before Linux 6.9).
const MAX_SEGMENTS: usize = 64;
/// Most bytes: below 65,535 less the headers of IPv6 and UDP.
const MAX_BYTES: usize = 65_000;
/// What the arena starts with: one egress batch of 160 KiB with its overhead. It grows if segments are tiny, and
/// then stays.
const INITIAL: usize = 256 * 1024;

/// Datagrams of one batch, in the order they were made.
#[derive(Debug)]
pub struct Transmits {
    arena: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
    next: usize,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    to: SocketAddr,
    start: usize,
    end: usize,
    segment: usize,
    count: usize,
    open: bool,
}

/// One call's worth of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// The datagrams, one after the other.
    pub contents: &'a [u8],
    /// Length of each; the last may be shorter.
    pub segment: usize,
}

impl Default for Transmits {
    fn default() -> Self {
        Self { arena: vec![0; INITIAL], used: 0, runs: Vec::new(), next: 0 }
    }
}

impl Transmits {
    /// Room for a datagram of `length` bytes, with whatever was there before.
    pub fn reserve(&mut self, length: usize) -> &mut [u8] {
        let end = self.used + length;
        if end > self.arena.len() {
            self.arena.resize(end.next_power_of_two(), 0);
        }
        &mut self.arena[self.used..end]
    }

    /// Sends what was reserved to `to`.
    pub fn commit(&mut self, to: SocketAddr, length: usize) {
        let (start, end) = (self.used, self.used + length);
        self.used = end;
        if let Some(run) = self.runs.last_mut()
            && run.open
            && run.to == to
            && length <= run.segment
            && run.count < MAX_SEGMENTS
            && end - run.start <= MAX_BYTES
        {
            run.end = end;
            run.count += 1;
            run.open = length == run.segment;
            return;
        }
        self.runs.push(Run { to, start, end, segment: length, count: 1, open: true });
    }

    /// Sends a copy of `datagram` to `to`.
    pub fn push(&mut self, to: SocketAddr, datagram: &[u8]) {
        self.reserve(datagram.len()).copy_from_slice(datagram);
        self.commit(to, datagram.len());
    }

    /// Sends the datagram that was sent last to `to` as well.
    pub fn repeat(&mut self, to: SocketAddr) {
        let Some(last) = self.runs.last() else { return };
        // Only the last of a run may be shorter.
        let length = last.end - last.start - (last.count - 1) * last.segment;
        let datagram = self.used - length..self.used;
        self.reserve(length);
        self.arena.copy_within(datagram, self.used);
        self.commit(to, length);
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// What to send next.
    pub fn poll(&mut self) -> Option<Transmit<'_>> {
        let run = self.runs.get(self.next)?;
        self.next += 1;
        Some(Transmit { to: run.to, contents: &self.arena[run.start..run.end], segment: run.segment })
    }

    /// Forgets the batch, keeping its memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn to(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 1))
    }

    proptest! {
        #[test]
        fn runs_cut_again_are_what_was_sent(
            sizes in prop::collection::vec((0u8..2, prop::sample::select(vec![1452usize, 1452, 1452, 96, 200])), 0..200)
        ) {
            let mut transmits = Transmits::default();
            let mut sent = Vec::new();
            for (number, (host, size)) in sizes.into_iter().enumerate() {
                let datagram = vec![u8::try_from(number % 256).unwrap(); size];
                transmits.push(to(host), &datagram);
                sent.push((to(host), datagram));
            }
            let mut got = Vec::new();
            while let Some(transmit) = transmits.poll() {
                prop_assert!(transmit.contents.len() <= MAX_BYTES);
                prop_assert!(transmit.contents.len().div_ceil(transmit.segment) <= MAX_SEGMENTS);
                got.extend(transmit.contents.chunks(transmit.segment).map(|chunk| (transmit.to, chunk.to_vec())));
            }
            prop_assert_eq!(got, sent);
        }
    }

    #[test]
    fn a_datagram_is_repeated_whatever_it_was_part_of() {
        let mut transmits = Transmits::default();
        for datagram in [&[1; 100][..], &[2; 100], &[3; 40]] {
            transmits.push(to(1), datagram);
        }
        transmits.repeat(to(2));
        transmits.repeat(to(3));
        let mut got = Vec::new();
        while let Some(transmit) = transmits.poll() {
            got.push((transmit.to, transmit.contents.to_vec()));
        }
        assert_eq!(got[0].1.len(), 240);
        assert_eq!(got[1..], [(to(2), vec![3; 40]), (to(3), vec![3; 40])]);
    }

    #[test]
    fn a_burst_is_one_call_and_a_short_datagram_ends_it() {
        let mut transmits = Transmits::default();
        for size in [1000, 1000, 400, 400, 1000] {
            transmits.push(to(1), &vec![0; size]);
        }
        let lengths: Vec<_> = std::iter::from_fn(|| transmits.poll().map(|run| run.contents.len())).collect();
        assert_eq!(lengths, [2400, 400, 1000]);
    }
}
