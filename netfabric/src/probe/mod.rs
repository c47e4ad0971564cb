//! Probes of the way to each gateway: numbered datagrams over the overlay, ten a second, and what comes back.
//!
//! Nodes leave a gateway that does not answer, long before the control plane hears of it. [`Prober`] is pure: time is an
//! argument. [`task`] sends and receives.

pub mod task;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time between two probes of a gateway.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// Time after which the next one is sent if there is no answer yet, within a cluster a sign that something is wrong.
pub const URGENT: Duration = Duration::from_millis(50);
/// So many probes in a row without an answer, and a gateway counts as dead: at most 0.35 s after it has died. TCP of Linux
/// sends again after 0.2 s and 0.6 s, and then after 1.4 s: by the second time another gateway has to be in use.
const DEAD_AFTER: usize = 5;
/// So many answers in a row, and it is back: what comes and goes is not used.
const BACK_AFTER: u32 = 5;
/// A probe that is not answered within this time is lost. Longer than the time in which a gateway is declared dead, so
/// that late answers are measured too.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// Weight of a new sample: 1/16, as in RFC 3550 section 6.4.1.
const SMOOTHING: f64 = 16.0;

/// Probes gateways and judges them.
#[derive(Debug, Default)]
pub struct Prober {
    targets: BTreeMap<IpAddr, Target>,
}

#[derive(Debug)]
struct Target {
    next: Instant,
    sequence: u64,
    /// Sent and neither answered nor lost: at most as many as fit in `LOST_AFTER`.
    waiting: VecDeque<(u64, Instant)>,
    /// Probes since the last answer.
    silent: usize,
    /// Answers in a row since it was declared dead.
    answers: u32,
    dead: bool,
    figures: Figures,
}

/// What was measured of the way to a gateway and back.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Probes sent.
    pub sent: u64,
    /// Of these, probes lost.
    pub lost: u64,
    /// Smoothed round-trip time in seconds; none before the first answer.
    pub round_trip: Option<f64>,
    /// Smoothed difference of successive round-trip times in seconds.
    pub jitter: f64,
    last: Option<f64>,
}

/// A probe that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Whom to ask.
    pub target: IpAddr,
    /// Its number.
    pub sequence: u64,
}

impl Prober {
    /// Probes these from now on, and no others. A new one counts as alive: the cluster says that it is ready.
    pub fn aim(&mut self, targets: &BTreeSet<IpAddr>, now: Instant) {
        self.targets.retain(|target, _| targets.contains(target));
        for target in targets {
            self.targets.entry(*target).or_insert_with(|| Target {
                next: now,
                sequence: 0,
                waiting: VecDeque::new(),
                silent: 0,
                answers: 0,
                dead: false,
                figures: Figures::default(),
            });
        }
    }

    /// When [`Prober::due`] has to be called next; none without targets.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.targets.values().map(|target| target.next).min()
    }

    /// The probes to send now.
    pub fn due(&mut self, now: Instant) -> Vec<Probe> {
        let mut probes = Vec::new();
        for (address, target) in &mut self.targets {
            if target.next > now {
                continue;
            }
            let lost = target.waiting.iter().take_while(|(_, sent)| now.duration_since(*sent) >= LOST_AFTER);
            let lost = lost.count();
            target.waiting.drain(..lost);
            target.figures.lost += u64::try_from(lost).unwrap_or(0);
            if target.silent >= DEAD_AFTER {
                target.dead = true;
                target.answers = 0;
            }
            target.silent += 1;
            // Not `next + ...`: a process that was held up does not catch up with a burst.
            target.next = now + if target.dead { INTERVAL } else { URGENT };
            target.figures.sent += 1;
            target.waiting.push_back((target.sequence, now));
            probes.push(Probe { target: *address, sequence: target.sequence });
            target.sequence += 1;
        }
        probes
    }

    /// Takes an answer; `serves` is whether the gateway says that it has a tunnel.
    pub fn answered(&mut self, from: IpAddr, sequence: u64, serves: bool, now: Instant) {
        let Some(target) = self.targets.get_mut(&from) else { return };
        let Some(at) = target.waiting.iter().position(|(number, _)| *number == sequence) else { return };
        // One that is out of order leaves those before it waiting.
        let Some((_, sent)) = target.waiting.remove(at) else { return };
        target.figures.sample(now.duration_since(sent).as_secs_f64());
        target.silent = 0;
        target.next = target.next.max(sent + INTERVAL);
        if !serves {
            target.dead = true;
            target.answers = 0;
        } else if target.dead {
            target.answers += 1;
            target.dead = target.answers < BACK_AFTER;
        }
    }

    /// Gateways that do not answer, or say that they have no tunnel.
    #[must_use]
    pub fn dead(&self) -> BTreeSet<IpAddr> {
        self.targets.iter().filter(|(_, target)| target.dead).map(|(address, _)| *address).collect()
    }

    /// What was measured, by gateway.
    #[must_use]
    pub fn figures(&self) -> BTreeMap<IpAddr, Figures> {
        self.targets.iter().map(|(address, target)| (*address, target.figures)).collect()
    }
}

impl Figures {
    fn sample(&mut self, round_trip: f64) {
        let smoothed =
            self.round_trip.map_or(round_trip, |before| before + (round_trip - before) / SMOOTHING);
        self.round_trip = Some(smoothed);
        if let Some(last) = self.last.replace(round_trip) {
            self.jitter += ((round_trip - last).abs() - self.jitter) / SMOOTHING;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn target() -> IpAddr {
        IpAddr::from([10, 0, 0, 1])
    }

    fn prober(start: Instant) -> Prober {
        let mut prober = Prober::default();
        prober.aim(&BTreeSet::from([target()]), start);
        prober
    }

    /// Runs for some time; `answer` says after how long each probe is answered, and whether the gateway serves.
    fn run(
        prober: &mut Prober,
        from: Instant,
        time: Duration,
        answer: impl Fn(u64) -> Option<(Duration, bool)>,
    ) -> Instant {
        let mut answers: Vec<(Instant, u64, bool)> = Vec::new();
        let mut now = from;
        while now < from + time {
            for probe in prober.due(now) {
                answers.extend(
                    answer(probe.sequence).map(|(after, serves)| (now + after, probe.sequence, serves)),
                );
            }
            answers.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
            while answers.last().is_some_and(|(at, ..)| *at <= now) {
                let (at, sequence, serves) = answers.pop().unwrap();
                prober.answered(target(), sequence, serves, at);
            }
            now += MS;
        }
        now
    }

    #[test]
    fn a_silent_gateway_is_dead_within_350_ms_and_back_when_it_answers_steadily() {
        let start = Instant::now();
        let mut prober = prober(start);
        let now = run(&mut prober, start, Duration::from_secs(2), |_| Some((MS, true)));
        assert!(prober.dead().is_empty());
        let now = run(&mut prober, now, Duration::from_millis(200), |_| None);
        assert!(prober.dead().is_empty(), "four lost in a row happen");
        let now = run(&mut prober, now, Duration::from_millis(150), |_| None);
        assert_eq!(prober.dead(), BTreeSet::from([target()]));
        let now = run(&mut prober, now, Duration::from_millis(300), |_| Some((MS, true)));
        assert!(!prober.dead().is_empty(), "not at the first answer");
        run(&mut prober, now, Duration::from_millis(300), |_| Some((MS, true)));
        assert!(prober.dead().is_empty());
    }

    #[test]
    fn a_gateway_that_says_it_has_no_tunnel_is_left_at_once() {
        let start = Instant::now();
        let mut prober = prober(start);
        run(&mut prober, start, Duration::from_millis(5), |_| Some((MS, false)));
        assert_eq!(prober.dead(), BTreeSet::from([target()]));
    }

    #[test]
    fn loss_and_times_are_what_was_played() {
        let start = Instant::now();
        let mut prober = prober(start);
        // Every fourth is lost; the others take 10 and 20 ms in turn.
        let now = run(&mut prober, start, Duration::from_secs(20), |number| {
            (number % 4 != 3).then_some((if number % 2 == 0 { 10 * MS } else { 20 * MS }, true))
        });
        run(&mut prober, now, Duration::from_secs(2), |_| Some((10 * MS, true)));
        let figures = prober.figures()[&target()];
        // One that is not answered is followed by another after half the time.
        assert!((245..255).contains(&figures.sent) && (56..60).contains(&figures.lost), "{figures:?}");
        let round_trip = figures.round_trip.unwrap();
        assert!((0.010..0.0115).contains(&round_trip), "{round_trip}");
        assert!(figures.jitter < 0.005, "{}", figures.jitter);
    }

    #[test]
    fn answers_nobody_asked_for_do_not_count() {
        let start = Instant::now();
        let mut prober = prober(start);
        let probes = prober.due(start);
        prober.answered(target(), 7, false, start + MS);
        prober.answered(IpAddr::from([10, 0, 0, 2]), probes[0].sequence, false, start + MS);
        assert!(prober.dead().is_empty());
        prober.answered(target(), 0, true, start + MS);
        // The same again.
        prober.answered(target(), 0, false, start + MS);
        assert!(prober.dead().is_empty());
    }

    proptest! {
        /// Whatever is lost, late, doubled or out of order: figures add up, and nothing grows.
        #[test]
        fn figures_add_up(fates in proptest::collection::vec((0_u64..3000, any::<bool>(), any::<bool>()), 1..200)) {
            let start = Instant::now();
            let mut prober = prober(start);
            let mut answers = Vec::new();
            for (number, (late, lost, twice)) in (0_u32..).zip(&fates) {
                let now = start + INTERVAL * number;
                prop_assert_eq!(prober.due(now), vec![Probe { target: target(), sequence: number.into() }]);
                if !lost {
                    answers.push((now + Duration::from_millis(*late), number));
                    if *twice {
                        answers.push((now + Duration::from_millis(late + 7), number));
                    }
                }
                answers.sort();
                while answers.first().is_some_and(|(at, _)| *at <= now) {
                    let (at, number) = answers.remove(0);
                    prober.answered(target(), number.into(), true, at);
                }
                prop_assert!(prober.targets[&target()].waiting.len() <= 11);
            }
            let waiting = u64::try_from(prober.targets[&target()].waiting.len()).unwrap();
            let figures = prober.figures()[&target()];
            prop_assert_eq!(figures.sent, u64::try_from(fates.len()).unwrap());
            prop_assert!(figures.lost + waiting <= figures.sent);
        }
    }
}
