//! Whether packets pass a tunnel in both directions: numbered probes, each end's saying which of the other's it has heard.
//!
//! While packets flow, twenty probes a second each way; otherwise one every five seconds, which keeps NATs open too. A probe
//! that stays unanswered is followed by others at the fast pace at once, so that a tunnel that broke while nobody used it is
//! found out before somebody does.

use crate::signal::Probe;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Between probes while packets flow, and while an answer is missing.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// Between probes when nothing flows.
pub const IDLE_INTERVAL: Duration = Duration::from_secs(5);
/// Without an answer for so long (and the time an answer takes), a tunnel is dead. TCP of Linux sends again after 0.2 s and
/// 0.6 s, and then after 1.4 s: by the second time another way has to be found.
pub const DEAD_AFTER: Duration = Duration::from_millis(300);
/// So many probes at least have to be unanswered for that: a process that was held up asks again before it judges.
const DEAD_PROBES: u32 = 5;
/// So many answers in a row, and a dead tunnel is used again: what comes and goes is not.
const BACK_AFTER: u32 = 3;
/// After so many probes without an answer (2 s), a dead tunnel is tried less often,
const EAGER_PROBES: u32 = 40;
/// as long as packets flow so often: that bounds the time until a tunnel that works again is found.
const PATIENT_INTERVAL: Duration = Duration::from_secs(1);
/// Longest round-trip time that is allowed for: twice that of a geostationary satellite.
const MAX_ROUND_TRIP: Duration = Duration::from_millis(1200);
/// Probes whose times are remembered: as many as are under way at that time.
const REMEMBERED: usize = 32;
/// Weight of a new round-trip time: 1/8, as in RFC 6298.
const SMOOTHING: u32 = 8;

/// How a tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Nothing comes back.
    Down,
    /// Something comes back again, not often enough yet.
    Recovering,
    /// It works, and the other end would rather have packets go elsewhere.
    Standby,
    /// It works.
    Up,
}

/// What is known of a tunnel. It sends nothing itself, and knows no time but what it is told.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    /// When the next probe is due; none without a session.
    next: Option<Instant>,
    /// Number of the last probe sent.
    number: u32,
    /// Highest number that was answered.
    confirmed: u32,
    /// The last probes sent and not confirmed, and when.
    sent: VecDeque<(u32, Instant)>,
    /// Probes sent since the last answer, and when the first of them was.
    unanswered: u32,
    waiting_since: Option<Instant>,
    /// Highest number heard of the other end, and when.
    heard: Option<(u32, Instant)>,
    up: bool,
    /// Answers in a row while it was not up.
    answers: u32,
    /// It was up before: the first time, one answer is enough.
    tried: bool,
    /// What the other end said last.
    standby: Option<bool>,
    round_trip: Option<Duration>,
}

impl Liveness {
    /// A handshake was completed: packets pass both ways. The other end may be another process than before, which knows
    /// nothing of what was heard.
    pub(crate) fn session_begins(&mut self, now: Instant) {
        self.heard = None;
        self.answered();
        self.next = Some(now);
    }

    /// There is no session any more.
    pub(crate) fn session_ends(&mut self) {
        self.next = None;
        self.fall();
    }

    /// Packets begin to flow: from now on it matters.
    pub(crate) fn wake(&mut self, now: Instant) {
        if let Some(next) = &mut self.next {
            *next = (*next).min(now);
        }
    }

    /// When [`Liveness::due`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// The probe to send at `now`, if one is due. `active`: packets flow. `standby`: what to tell of this end.
    pub(crate) fn due(&mut self, now: Instant, active: bool, standby: bool) -> Option<Probe> {
        if self.next.is_none_or(|next| next > now) {
            return None;
        }
        let patience = DEAD_AFTER + self.round_trip.unwrap_or_default().min(MAX_ROUND_TRIP);
        let waited = self.waiting_since.map(|since| now.saturating_duration_since(since));
        if self.unanswered >= DEAD_PROBES && waited.is_some_and(|waited| waited >= patience) {
            self.fall();
        }
        self.number = self.number.wrapping_add(1).max(1);
        self.unanswered = self.unanswered.saturating_add(1);
        self.waiting_since.get_or_insert(now);
        if self.sent.len() >= REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        let pause = match (self.unanswered, active) {
            (..=EAGER_PROBES, _) => INTERVAL,
            (_, true) => PATIENT_INTERVAL,
            (_, false) => IDLE_INTERVAL,
        };
        // Not from the deadline on: a process that was held up does not catch up with a burst.
        self.next = Some(now + pause);
        Some(self.message(self.number, now, standby))
    }

    /// Takes what the other end sent; returns the answer, if it has to go out at once.
    pub(crate) fn take(&mut self, probe: &Probe, now: Instant, active: bool, standby: bool) -> Option<Probe> {
        self.standby = Some(probe.standby);
        // A number is new if it is less than half the circle ahead.
        let newer =
            |number: u32, than: u32| number != 0 && number.wrapping_sub(than).wrapping_sub(1) < 1 << 31;
        if newer(probe.echo, self.confirmed) && !newer(probe.echo, self.number) {
            let asked = self.sent.iter().find(|(number, _)| *number == probe.echo).map(|(_, at)| *at);
            self.sent.retain(|(number, _)| newer(*number, probe.echo));
            self.confirmed = probe.echo;
            if let Some(asked) = asked {
                let sample = now.saturating_duration_since(asked).saturating_sub(probe.held);
                let before = self.round_trip.unwrap_or(sample);
                self.round_trip = Some((before * (SMOOTHING - 1) + sample) / SMOOTHING);
            }
            self.answered();
            if let Some(next) = &mut self.next {
                match (self.up, active) {
                    // Whether it is back is to be known soon.
                    (false, _) => *next = (*next).min(now + INTERVAL),
                    (true, false) => *next = now + IDLE_INTERVAL,
                    (true, true) => {}
                }
            }
        }
        if probe.sequence == 0 {
            return None;
        }
        if self.heard.is_none_or(|(heard, _)| newer(probe.sequence, heard)) {
            self.heard = Some((probe.sequence, now));
        }
        // The next probe carries the answer, if it goes out soon in any case.
        let soon = active && self.next.is_some_and(|next| next <= now + INTERVAL);
        (!soon).then(|| self.message(0, now, standby))
    }

    /// How the tunnel is.
    pub(crate) fn way(&self) -> Way {
        match (self.up, self.standby) {
            (true, Some(false)) => Way::Up,
            // Before it has said that it is ready, it is not.
            (true, _) => Way::Standby,
            (false, _) if self.answers > 0 => Way::Recovering,
            (false, _) => Way::Down,
        }
    }

    /// Whether so many answers are missing that another address of the other end may be the better one.
    pub(crate) fn is_silent(&self) -> bool {
        self.unanswered >= DEAD_PROBES
    }

    /// Smoothed round-trip time, without the time answers wait at the other end.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    fn message(&self, sequence: u32, now: Instant, standby: bool) -> Probe {
        let of = |(number, at)| (number, now.saturating_duration_since(at));
        let (echo, held) = self.heard.map_or((0, Duration::ZERO), of);
        Probe { sequence, echo, held, standby }
    }

    fn answered(&mut self) {
        self.unanswered = 0;
        self.waiting_since = None;
        if !self.up {
            self.answers += 1;
            self.up = !self.tried || self.answers >= BACK_AFTER;
            self.tried |= self.up;
        }
    }

    fn fall(&mut self) {
        self.up = false;
        self.answers = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// Two ends and the way between, played in steps of a millisecond.
    struct Play {
        now: Instant,
        ends: [Liveness; 2],
        active: [bool; 2],
        standby: [bool; 2],
        /// Whether the way from each end is open.
        open: [bool; 2],
        delay: Duration,
        /// Of a hundred probes, so many are lost.
        loss: u64,
        random: u64,
        /// When, for which end, what.
        under_way: Vec<(Instant, usize, Probe)>,
        sent: [u32; 2],
    }

    impl Play {
        fn new(delay: Duration) -> Self {
            let now = Instant::now();
            let mut ends = [Liveness::default(), Liveness::default()];
            ends.iter_mut().for_each(|end| end.session_begins(now));
            let (active, standby, open) = ([true; 2], [false; 2], [true; 2]);
            Self {
                now,
                ends,
                active,
                standby,
                open,
                delay,
                loss: 0,
                random: 1,
                under_way: vec![],
                sent: [0; 2],
            }
        }

        fn put(&mut self, from: usize, probe: Probe) {
            self.sent[from] += 1;
            // Knuth's generator: as good as it has to be here.
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if self.open[from] && (self.random >> 33) % 100 >= self.loss {
                self.under_way.push((self.now + self.delay, 1 - from, probe));
            }
        }

        fn run(&mut self, time: Duration) {
            self.run_until(time, |_| false);
        }

        /// Runs for at most `time`, until something holds; returns how long that took.
        fn run_until(&mut self, time: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
            let begun = self.now;
            while self.now < begun + time && !holds(self) {
                self.now += MS;
                for end in 0..2 {
                    let due = self.ends[end].due(self.now, self.active[end], self.standby[end]);
                    due.into_iter().for_each(|probe| self.put(end, probe));
                }
                let (arrived, rest) = self.under_way.iter().partition(|(at, ..)| *at <= self.now);
                self.under_way = rest;
                let arrived: Vec<(Instant, usize, Probe)> = arrived;
                for (_, end, probe) in arrived {
                    let answer = self.ends[end].take(&probe, self.now, self.active[end], self.standby[end]);
                    answer.into_iter().for_each(|probe| self.put(end, probe));
                }
            }
            self.now - begun
        }

        fn ways(&self) -> [Way; 2] {
            [self.ends[0].way(), self.ends[1].way()]
        }
    }

    #[test]
    fn a_tunnel_that_dies_in_either_direction_is_left_by_both_ends_within_half_a_second() {
        for delay in [MS, 20 * MS, 150 * MS] {
            for broken in [[false, false], [true, false], [false, true]] {
                let mut play = Play::new(delay);
                play.run(Duration::from_secs(2));
                assert_eq!(play.ways(), [Way::Up; 2]);
                play.open = broken;
                let took = play.run_until(Duration::from_secs(5), |play| play.ways() == [Way::Down; 2]);
                assert!(took <= 450 * MS + delay * 4, "{took:?} at {delay:?}, {broken:?}");
                play.open = [true; 2];
                let took = play.run_until(Duration::from_secs(5), |play| play.ways() == [Way::Up; 2]);
                assert!(took >= 50 * MS && took <= 300 * MS + delay * 4, "{took:?} at {delay:?}");
            }
        }
    }

    #[test]
    fn one_that_was_broken_for_long_is_found_again_within_seconds() {
        let mut play = Play::new(5 * MS);
        play.run(Duration::from_secs(1));
        play.open = [false; 2];
        play.run(Duration::from_secs(60));
        play.open = [true; 2];
        let took = play.run_until(Duration::from_secs(20), |play| play.ways() == [Way::Up; 2]);
        assert!(took <= 1500 * MS, "{took:?}");
        play.active = [false; 2];
        play.open = [false; 2];
        play.run(Duration::from_secs(60));
        play.open = [true; 2];
        let took = play.run_until(Duration::from_secs(20), |play| play.ways() == [Way::Up; 2]);
        assert!(took <= 6 * Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn what_nobody_uses_costs_little_and_is_watched_all_the_same() {
        let mut play = Play::new(5 * MS);
        play.active = [false; 2];
        play.run(Duration::from_secs(2));
        play.sent = [0; 2];
        play.run(Duration::from_secs(100));
        assert!(play.sent.iter().all(|sent| (20..=45).contains(sent)), "{:?}", play.sent);
        play.open = [true, false];
        let took = play.run_until(Duration::from_secs(20), |play| play.ways() == [Way::Down; 2]);
        assert!(took <= Duration::from_secs(6), "{took:?}");
    }

    #[test]
    fn one_end_with_traffic_is_enough_to_find_out_at_once() {
        let mut play = Play::new(5 * MS);
        play.active = [false; 2];
        play.run(Duration::from_secs(10));
        play.open = [true, false];
        play.active = [true, false];
        let now = play.now;
        play.ends[0].wake(now);
        let took = play.run_until(Duration::from_secs(20), |play| play.ways()[0] == Way::Down);
        assert!(took <= 450 * MS, "{took:?}");
    }

    #[test]
    fn the_rate_is_bounded_and_probes_of_both_ends_answer_each_other() {
        let mut play = Play::new(2 * MS);
        play.run(Duration::from_secs(1));
        play.sent = [0; 2];
        play.run(Duration::from_secs(10));
        assert!(play.sent.iter().all(|sent| (195..=205).contains(sent)), "{:?}", play.sent);
        // Its way back is measured without the time the answer waited for the next probe.
        let round_trip = play.ends[0].round_trip().unwrap();
        assert!(round_trip >= 3 * MS && round_trip <= 7 * MS, "{round_trip:?}");
    }

    #[test]
    fn an_end_that_is_about_to_go_is_used_only_if_there_is_no_other() {
        let mut play = Play::new(5 * MS);
        play.run(Duration::from_secs(1));
        play.standby = [false, true];
        let now = play.now;
        play.ends[1].wake(now);
        let took = play.run_until(Duration::from_secs(1), |play| play.ways() == [Way::Standby, Way::Up]);
        assert!(took <= 8 * MS, "{took:?}");
    }

    #[test]
    fn before_it_has_said_that_it_is_ready_it_is_not() {
        let mut end = Liveness::default();
        assert_eq!(end.way(), Way::Down);
        end.session_begins(Instant::now());
        assert_eq!(end.way(), Way::Standby);
        end.session_ends();
        assert_eq!((end.way(), end.poll_timeout()), (Way::Down, None));
    }

    #[test]
    fn a_process_that_was_held_up_asks_again_before_it_judges() {
        let mut play = Play::new(MS);
        play.run(Duration::from_secs(1));
        // Nothing is done for two seconds; answers of what was sent before have come meanwhile.
        play.now += Duration::from_secs(2);
        play.run(Duration::from_secs(1));
        assert_eq!(play.ways(), [Way::Up; 2]);
    }

    #[test]
    fn an_end_that_began_anew_is_not_told_what_its_predecessor_sent() {
        let mut play = Play::new(MS);
        play.run(Duration::from_secs(3));
        play.ends[1] = Liveness::default();
        let now = play.now;
        play.ends.iter_mut().for_each(|end| end.session_begins(now));
        play.run(Duration::from_secs(1));
        assert_eq!(play.ways(), [Way::Up; 2]);
        assert!(play.ends[1].confirmed <= play.ends[1].number && play.ends[1].number < 25);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// A fifth of all probes may be lost, whatever the delay: nothing that works is given up for long.
        #[test]
        fn loss_alone_kills_nothing(seed: u64, delay in 0u32..300) {
            let mut play = Play::new(MS * delay);
            play.run(Duration::from_secs(2));
            (play.loss, play.random) = (20, seed);
            let mut down = 0;
            for _ in 0..100 {
                play.run(100 * MS);
                down += play.ways().iter().filter(|way| **way != Way::Up).count();
            }
            prop_assert!(down <= 4, "{down} of 200 looks");
        }

        /// Whatever is lost, late, doubled, out of order or made up by a peer: numbers stay sound and little is sent.
        #[test]
        fn nothing_an_end_says_makes_another_talk_more(
            messages in prop::collection::vec((any::<u32>(), any::<u32>(), 0u64..400, any::<bool>()), 1..200)
        ) {
            let mut now = Instant::now();
            let mut end = Liveness::default();
            end.session_begins(now);
            for (sequence, echo, wait, active) in messages {
                now += MS * u32::try_from(wait).unwrap();
                let sent: usize = (0..3).map(|_| usize::from(end.due(now, active, false).is_some())).sum();
                prop_assert!(sent <= 1);
                let probe = Probe { sequence, echo: echo % 300, ..Probe::default() };
                let answer = end.take(&probe, now, active, false);
                prop_assert!(answer.is_none_or(|answer| answer.sequence == 0 && answer.echo != 0));
                prop_assert!(end.confirmed <= end.number && end.sent.len() <= REMEMBERED);
            }
        }
    }
}
