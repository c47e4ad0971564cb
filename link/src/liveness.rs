//! How soon each end of a connection notices that the other is out of reach.
//!
//! A consumer asks for a *beat* when it opens a stream that lasts: whenever the provider has had nothing to say for that long, it
//! sends an empty message. As long as they come, nobody asks for an answer: a beat and its TCP acknowledgement are 140
//! bytes, an HTTP/2 PING with its answer 234. If one is late the consumer asks (PING is not subject to flow control, so a
//! consumer that is slow to read does not take its provider for dead), and if there is no answer the connection is lost.
//!
//! The provider finds out by TCP: its beats have to be acknowledged. Where something in between acknowledges what it does not pass
//! on, a PING now and then tells.

use futures::Stream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};
use tonic::{Request, Status};

/// Metadata with the interval of beats, in milliseconds.
const METADATA: &str = "liquid-beat-ms";
/// The interval a provider goes by: nobody can make it send all the time.
const BEATS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(600)];

/// Time for an answer over a link with a second of delay.
const LEAST_ANSWER: Duration = Duration::from_secs(1);

/// The longest time for which a connection whose other end is out of reach is taken for a living one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    within: Duration,
}

impl Liveness {
    /// Notices within this time.
    #[must_use]
    pub const fn within(within: Duration) -> Self {
        Self { within }
    }

    /// For connections on which nothing depends that has to happen soon.
    #[must_use]
    pub fn patient(self) -> Self {
        Self::within(self.within * 3)
    }

    /// The interval of beats.
    fn beat(self) -> Duration {
        self.within * 2 / 3
    }

    /// When it has to be noticed, so that who is to know is told in time.
    fn notice(self) -> Duration {
        self.within * 99 / 100
    }

    /// How long a consumer waits for a sign of life before it asks for one: until a beat is about a tenth late, if that leaves time
    /// for an answer.
    pub(crate) fn ask(self) -> Duration {
        self.notice().saturating_sub(self.answer())
    }

    /// How long the answer may take. A beat that is late and comes after all does not put this off.
    pub(crate) fn answer(self) -> Duration {
        (self.within / 4).max(LEAST_ANSWER.min(self.within / 2))
    }

    /// When a provider is taken to be out of reach whose connection has ended `now`; it was last `heard` before. One that hangs up was
    /// there until then, and may come back (a roll-out, a proxy that restarts); one that was silent has had this time.
    #[must_use]
    pub fn lost_at(self, heard: Instant, now: Instant) -> Instant {
        let hung_up = now.duration_since(heard) < (self.beat() + self.within) / 2;
        if hung_up { now + self.notice() } else { heard + self.notice() }
    }

    /// How long what a provider has sent may not be acknowledged.
    pub(crate) fn acknowledgement(self) -> Duration {
        self.within
    }

    /// How often a provider asks for a sign of life itself: whatever acknowledges what it does not pass on is rare.
    pub(crate) fn doubt(self) -> Duration {
        self.within * 12
    }

    /// A request for a stream that beats.
    pub fn request<T>(self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let beat = u64::try_from(self.beat().as_millis()).unwrap_or(u64::MAX);
        request.metadata_mut().insert(METADATA, beat.into());
        request
    }
}

impl Default for Liveness {
    /// 12 s: pods of a node are evicted minutes later, and a link with seconds of delay is still one.
    fn default() -> Self {
        Self::within(Duration::from_secs(12))
    }
}

/// The interval of beats that is asked for; `None` if none are.
pub fn asked<T>(request: &Request<T>) -> Option<Duration> {
    let value = request.metadata().get(METADATA)?.to_str().ok()?.parse().ok()?;
    let [least, most] = BEATS;
    Some(Duration::from_millis(value).clamp(least, most))
}

/// A stream of messages that is never silent for longer than an interval: then it yields an empty one.
#[derive(Debug)]
pub struct Beating<S> {
    messages: S,
    interval: Option<Duration>,
    silence: Pin<Box<Sleep>>,
}

impl<S> Beating<S> {
    /// `messages` with beats at this interval, if any.
    pub fn new(messages: S, interval: Option<Duration>) -> Self {
        Self { messages, interval, silence: Box::pin(sleep(interval.unwrap_or_default())) }
    }
}

impl<S, T> Stream for Beating<S>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
    T: Default,
{
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = Pin::new(&mut self.messages).poll_next(cx);
        let Some(interval) = self.interval else { return message };
        let message = match message {
            Poll::Ready(message) => message,
            Poll::Pending if self.silence.as_mut().poll(cx).is_ready() => Some(Ok(T::default())),
            Poll::Pending => return Poll::Pending,
        };
        self.silence.as_mut().reset(Instant::now() + interval);
        Poll::Ready(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use tokio::sync::mpsc;

    #[test]
    fn a_beat_may_be_late_and_an_answer_comes_in_time() {
        let liveness = Liveness::default();
        assert_eq!(liveness.beat(), Duration::from_secs(8));
        assert_eq!(liveness.ask(), Duration::from_millis(8880));
        assert_eq!(liveness.ask() + liveness.answer(), Duration::from_millis(11_880));
        assert_eq!(Liveness::within(Duration::from_secs(2)).answer(), Duration::from_secs(1));
    }

    #[test]
    fn who_hangs_up_has_all_the_time_to_come_back_and_who_was_silent_has_had_it() {
        let (liveness, heard) = (Liveness::default(), Instant::now());
        let after = |seconds| heard + Duration::from_secs(seconds);
        assert_eq!(liveness.lost_at(heard, after(5)), after(5) + liveness.notice());
        assert_eq!(liveness.lost_at(heard, after(12)), heard + liveness.notice());
    }

    #[test]
    fn what_is_asked_for_has_bounds() {
        let interval = |within| asked(&Liveness::within(Duration::from_millis(within)).request(()));
        assert_eq!(interval(12_000), Some(Duration::from_secs(8)));
        assert_eq!(interval(1), Some(BEATS[0]));
        assert_eq!(interval(u64::MAX / 16), Some(BEATS[1]));
        assert_eq!(asked(&Request::new(())), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_has_nothing_to_say_beats() {
        let (messages, mut queue) = mpsc::channel(1);
        let stream = futures::stream::poll_fn(move |cx| queue.poll_recv(cx));
        let mut beating = Beating::new(stream, Some(Duration::from_secs(5)));
        let begun = Instant::now();
        assert_eq!(beating.next().await.unwrap().unwrap(), 0);
        assert_eq!(begun.elapsed().as_secs(), 5);
        sleep(Duration::from_secs(3)).await;
        messages.send(Ok(7)).await.unwrap();
        assert_eq!(beating.next().await.unwrap().unwrap(), 7);
        // The interval begins with what was said last.
        assert_eq!(beating.next().await.unwrap().unwrap(), 0);
        assert_eq!(begun.elapsed().as_secs(), 13);
        drop(messages);
        assert!(beating.next().await.is_none());
    }
}
