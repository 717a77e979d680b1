//! Is the peer still there? Asked by a ping when nothing was heard for a while; any byte is an answer.
//!
//! "Nothing heard although something was asked" is what counts, not an unanswered ping: behind a deep queue on a slow
//! line an answer may take longer than any sensible limit while other bytes keep arriving.

use std::time::Duration;

/// Silence after which a ping asks.
pub(super) const PING_AFTER: Duration = Duration::from_secs(4);

/// Silence after a question that means dead. With [`PING_AFTER`] a dead path is found within 14 s.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(10);

/// The same after [`Liveness::probe`]: something has happened to the path, and a fresh one costs about as much as
/// waiting this long.
pub(super) const PROBE_WAIT: Duration = Duration::from_secs(3);

/// Pings on a busy path, only to know its round trip.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

/// One attachment's signs of life.
#[derive(Debug)]
pub(super) struct Liveness {
    heard: Duration,
    /// When something was first asked since.
    asked: Option<Duration>,
    /// A ping must leave.
    ping_due: bool,
    /// The ping under way.
    pinged: Option<(u64, Duration)>,
    last_ping: Duration,
    /// Dead when neither the answer nor anything else has come by then.
    probe_until: Option<Duration>,
    number: u64,
}

/// Nothing was heard for too long.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Silent;

impl Liveness {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            heard: now,
            asked: None,
            ping_due: false,
            pinged: None,
            last_ping: now,
            probe_until: None,
            number: 0,
        }
    }

    /// Bytes arrived.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
        self.asked = None;
        if self.probe_until.is_some() {
            // They may have been on this side already when the path changed: only the answer ends a probe.
            self.probe_until = Some(now + PROBE_WAIT);
        }
    }

    /// Something leaves that the peer must react to.
    pub(super) fn asked(&mut self, now: Duration) {
        self.asked.get_or_insert(now);
    }

    /// The answer to ping `number`; its round trip.
    pub(super) fn pong(&mut self, number: u64, now: Duration) -> Option<Duration> {
        let (expected, at) = self.pinged?;
        if number != expected {
            return None;
        }
        self.pinged = None;
        self.probe_until = None;
        Some(now.saturating_sub(at))
    }

    /// Asks at once, with little patience.
    pub(super) fn probe(&mut self, now: Duration) {
        self.pinged = None; // an answer already on its way proves nothing
        self.ping_due = true;
        self.probe_until = Some(now + PROBE_WAIT);
        self.asked(now);
    }

    pub(super) fn on_time(&mut self, now: Duration) -> Result<(), Silent> {
        let silent = self.asked.is_some_and(|asked| now >= asked + DEAD_AFTER);
        if silent || self.probe_until.is_some_and(|until| now >= until) {
            return Err(Silent);
        }
        if now >= self.next_ping() {
            self.ping_due = true;
            self.asked(now);
        }
        Ok(())
    }

    /// The number of the ping that must leave now.
    pub(super) fn take_ping(&mut self, now: Duration) -> Option<u64> {
        if !std::mem::take(&mut self.ping_due) {
            return None;
        }
        self.number += 1;
        self.pinged = Some((self.number, now));
        self.last_ping = now;
        self.asked(now);
        Some(self.number)
    }

    /// When [`on_time`](Self::on_time) has something to do.
    pub(super) fn deadline(&self) -> Duration {
        let dead = self.asked.map(|asked| asked + DEAD_AFTER);
        [dead, self.probe_until].into_iter().flatten().fold(self.next_ping(), Duration::min)
    }

    fn next_ping(&self) -> Duration {
        // One that could not leave yet, or is under way.
        let waiting = self.ping_due || self.pinged.is_some();
        // If it is from before the last sign of life it asks nothing any more: its answer may be lost with the path.
        let silence = if waiting && self.asked.is_some() { Duration::MAX } else { self.heard + PING_AFTER };
        let measure = if waiting { Duration::MAX } else { self.last_ping + MEASURE_EVERY };
        silence.min(measure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_silent_path_is_dead_after_fourteen_seconds() {
        let mut live = Liveness::new(s(0));
        assert_eq!(live.deadline(), s(4));
        live.on_time(s(4)).unwrap();
        assert_eq!(live.take_ping(s(4)), Some(1));
        assert_eq!(live.take_ping(s(4)), None);
        assert_eq!(live.deadline(), s(14));
        live.on_time(s(13)).unwrap();
        assert_eq!(live.on_time(s(14)), Err(Silent));
    }

    #[test]
    fn a_ping_that_cannot_leave_counts_too() {
        let mut live = Liveness::new(s(0));
        live.on_time(s(4)).unwrap(); // the socket takes nothing, so nobody takes the ping
        assert_eq!(live.on_time(s(14)), Err(Silent));
    }

    #[test]
    fn data_asks_and_any_byte_answers() {
        let mut live = Liveness::new(s(0));
        live.asked(s(1));
        live.asked(s(2));
        assert_eq!(live.on_time(s(11)), Err(Silent));
        live.heard(s(11));
        live.on_time(s(11)).unwrap();
        assert_eq!(live.deadline(), s(15));
    }

    #[test]
    fn a_late_pong_does_not_kill_while_bytes_arrive() {
        let mut live = Liveness::new(s(0));
        live.on_time(s(4)).unwrap();
        let number = live.take_ping(s(4)).unwrap();
        for second in 5..60 {
            live.heard(s(second));
            live.on_time(s(second)).unwrap();
        }
        assert_eq!(live.pong(number, s(60)), Some(s(56)));
    }

    #[test]
    fn silence_after_a_sign_of_life_is_asked_about_although_an_old_ping_is_out() {
        let mut live = Liveness::new(s(0));
        live.on_time(s(4)).unwrap();
        live.take_ping(s(4)).unwrap();
        live.heard(s(5)); // not the answer, which the path has swallowed
        assert_eq!(live.deadline(), s(9));
        live.on_time(s(9)).unwrap();
        assert_eq!(live.on_time(s(19)), Err(Silent));
    }

    #[test]
    fn a_ping_that_cannot_leave_does_not_hide_a_later_silence() {
        let mut live = Liveness::new(s(0));
        live.on_time(s(4)).unwrap(); // due, but the socket takes nothing
        live.heard(s(5));
        assert_eq!(live.deadline(), s(9));
        live.on_time(s(9)).unwrap();
        assert_eq!(live.on_time(s(19)), Err(Silent));
    }

    #[test]
    fn a_probe_is_short_and_only_its_own_answer_ends_it() {
        let mut live = Liveness::new(s(0));
        live.on_time(s(4)).unwrap();
        let old = live.take_ping(s(4)).unwrap();
        live.probe(s(5));
        let number = live.take_ping(s(5)).unwrap();
        live.heard(s(5));
        assert_eq!(live.pong(old, s(5)), None);
        assert_eq!(live.on_time(s(8)), Err(Silent));

        live.heard(s(7));
        live.on_time(s(8)).unwrap();
        assert_eq!(live.pong(number, s(9)), Some(s(4)));
        live.heard(s(9));
        live.on_time(s(11)).unwrap();
    }
}
