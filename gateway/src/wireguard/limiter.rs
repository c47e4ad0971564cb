//! How many handshakes a sender may begin: each costs four Diffie-Hellman exchanges, about 0.2 ms.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Initiations per second and source, as in Linux.
const PER_SECOND: u32 = 20;
/// Initiations a source may send at once, as in Linux.
const BURST: u32 = 5;
/// Sources remembered: 4,096 of about 64 bytes each pin 256 KiB.
const MAX_SOURCES: usize = 4096;
/// Initiations per second, of all sources, above which addresses have to be proven: 5 % of a core.
pub const BUSY_PER_SECOND: u32 = 250;
const REFILL: Duration = Duration::from_millis(1000 / PER_SECOND as u64);

/// What to do with an initiation whose first MAC is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Read it.
    Read,
    /// Send a cookie instead.
    Challenge,
    /// Ignore it.
    Drop,
}

/// Counts initiations by source: one flooder uses up what is its own, and peers elsewhere do not notice.
#[derive(Debug)]
pub struct Limiter {
    sources: HashMap<Source, Bucket>,
    window: Instant,
    in_window: u32,
}

/// A source is an IPv4 address or an IPv6 /64, which one host may own; what has proven its address is counted apart
/// from what claims it, or anybody could use up the share of a peer by sending in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Source {
    network: u64,
    v4: bool,
    proven: bool,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// When the bucket is full again.
    full: Instant,
}

impl Limiter {
    /// Nobody has sent anything.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { sources: HashMap::new(), window: now, in_window: 0 }
    }

    /// Counts an initiation from `from`, whose sender has or has not proven that it receives there.
    pub fn judge(&mut self, from: SocketAddr, proven: bool, now: Instant) -> Verdict {
        if now.saturating_duration_since(self.window) >= Duration::from_secs(1) {
            self.window = now;
            self.in_window = 0;
        }
        if !proven && self.in_window >= BUSY_PER_SECOND {
            return Verdict::Challenge;
        }
        let allowed = self.take(source(from, proven), now);
        match (allowed, proven) {
            (true, _) => {
                self.in_window += 1;
                Verdict::Read
            }
            (false, false) => Verdict::Challenge,
            (false, true) => Verdict::Drop,
        }
    }

    fn take(&mut self, source: Source, now: Instant) -> bool {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, bucket| bucket.full > now);
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let bucket = self.sources.entry(source).or_insert(Bucket { full: now });
        let full = bucket.full.max(now) + REFILL;
        let allowed = full.saturating_duration_since(now) <= REFILL * BURST;
        if allowed {
            bucket.full = full;
        }
        allowed
    }
}

fn source(from: SocketAddr, proven: bool) -> Source {
    match from.ip() {
        IpAddr::V4(address) => Source { network: u64::from(address.to_bits()), v4: true, proven },
        IpAddr::V6(address) => {
            let network = u64::try_from(address.to_bits() >> 64).unwrap_or(0);
            Source { network, v4: false, proven }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_flooder_uses_up_only_its_own_share() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        let flooder = at("192.0.2.66:1");
        let read = (0..1000).filter(|_| limiter.judge(flooder, false, now) == Verdict::Read).count();
        assert_eq!(read, 5);
        assert_eq!(limiter.judge(flooder, false, now), Verdict::Challenge);
        assert_eq!(limiter.judge(at("192.0.2.1:1"), false, now), Verdict::Read);
        // Somebody who sends in the name of a peer cannot shut it out: the peer proves its address.
        assert_eq!(limiter.judge(flooder, true, now), Verdict::Read);
        let later = now + Duration::from_millis(51);
        assert_eq!(limiter.judge(flooder, false, later), Verdict::Read);
        assert_eq!(limiter.judge(flooder, false, later), Verdict::Challenge);
    }

    #[test]
    fn many_sources_at_once_have_to_prove_their_addresses_and_those_that_do_are_served() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        let sources = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0b00_0000 + n), 1));
        let read = (0..100_000).filter(|n| limiter.judge(sources(*n), false, now) == Verdict::Read).count();
        assert_eq!(read, usize::try_from(BUSY_PER_SECOND).unwrap());
        assert!(limiter.sources.len() <= MAX_SOURCES);
        assert_eq!(limiter.judge(at("192.0.2.1:1"), true, now), Verdict::Read);
        assert_eq!(limiter.judge(at("192.0.2.1:1"), false, now + Duration::from_secs(1)), Verdict::Read);
    }

    #[test]
    fn hosts_of_one_ipv6_network_share() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        let from = |host: u16| at(&format!("[2001:db8::{host:x}]:1"));
        let read = (0..100).filter(|host| limiter.judge(from(*host), false, now) == Verdict::Read).count();
        assert_eq!(read, 5);
    }
}
