//! Whether the other end still lives, without I/O: when to ping, and when silence is long enough.
//!
//! ```text
//!  Normal: PING every 10 s, dead after 30 s without a byte ──the machine slept──▶ Doubt: PING now, dead after 5 s
//!     ◀──────────────────────────────── a byte came ────────────────────────────────┘
//! ```

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A PING this often: moves every idle timer on the way (load balancers from 60 s, the runtime's own), and its absence
/// is the only sign of a backend that left behind an API server's tunnel. client-go has the same period.
pub(super) const PING_EVERY: Duration = Duration::from_secs(10);
/// Dead after this long without a byte: three pings lost. Longer than any pause the server makes under load.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(30);
/// The same after the machine slept: most likely something on the way has forgotten the connection, so one ping, and
/// the time a slow network just found again needs for it.
pub(super) const DEAD_AFTER_SLEEP: Duration = Duration::from_secs(5);
/// The wall clock may run this far ahead of the one that stands still in suspend: less is a clock being set right.
/// A false alarm costs a ping that must be answered a little sooner.
const SLEPT: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Debug)]
pub(super) struct Liveness {
    heard: Instant,
    patience: Duration,
    next_ping: Instant,
    last_id: u32,
    /// Both clocks at the last look.
    looked: (Instant, SystemTime),
}

impl Liveness {
    pub(super) fn new(now: Instant, wall: SystemTime) -> Self {
        Liveness {
            heard: now,
            patience: DEAD_AFTER,
            next_ping: now + PING_EVERY,
            last_id: 0,
            looked: (now, wall),
        }
    }

    /// A sign of life, or a reason not to expect one.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.patience = DEAD_AFTER;
    }

    /// The length of the silence, once it is too long.
    pub(super) fn dead(&self, now: Instant) -> Option<Duration> {
        (now >= self.heard + self.patience).then_some(self.patience)
    }

    /// Notices that the machine slept: `Instant` stands still meanwhile (on Linux and macOS), the wall clock does not.
    pub(super) fn look(&mut self, now: Instant, wall: SystemTime) {
        let (then, wall_then) = std::mem::replace(&mut self.looked, (now, wall));
        let passed = wall.duration_since(wall_then).unwrap_or_default(); // set back: no sleep
        if passed > now - then + SLEPT {
            tracing::debug!(?passed, "the machine slept; asking the node for a sign of life");
            self.heard = now;
            self.patience = DEAD_AFTER_SLEEP;
            self.next_ping = now;
        }
    }

    /// Whether it is time for a ping.
    pub(super) fn due(&self, now: Instant) -> bool {
        now >= self.next_ping
    }

    /// The id of the ping to send now.
    pub(super) fn ping(&mut self, now: Instant) -> u32 {
        self.next_ping = now + PING_EVERY;
        self.last_id = self.last_id.wrapping_add(if self.last_id == 0 { 1 } else { 2 }); // odd ids are ours
        self.last_id
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Instant {
        self.next_ping.min(self.heard + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pings_and_patience() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let mut liveness = Liveness::new(start, wall);
        assert!(!liveness.due(start + 9 * SECOND) && liveness.due(start + PING_EVERY));
        assert_eq!(liveness.ping(start + PING_EVERY), 1);
        assert_eq!(liveness.ping(start + 2 * PING_EVERY), 3);
        assert_eq!(liveness.deadline(), start + DEAD_AFTER);
        assert_eq!(liveness.dead(start + 29 * SECOND), None);
        assert_eq!(liveness.dead(start + DEAD_AFTER), Some(DEAD_AFTER));
        liveness.heard(start + 29 * SECOND);
        assert_eq!(liveness.dead(start + DEAD_AFTER), None);
    }

    #[test]
    fn a_sleep_is_a_jump_of_one_clock_only() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let mut liveness = Liveness::new(start, wall);
        for (ahead, passed) in [(0, 10), (10, 0), (3600, 3600)] {
            liveness.looked = (start, wall);
            liveness.look(start + passed * SECOND, wall + ahead.max(passed) * SECOND);
            assert_eq!(liveness.patience, DEAD_AFTER, "{passed} s and {ahead} s");
        }
        liveness.looked = (start, wall);
        liveness.look(start, wall - 3600 * SECOND);
        assert_eq!(liveness.patience, DEAD_AFTER, "the clock was set back");

        liveness.looked = (start, wall);
        liveness.look(start + SECOND, wall + 3600 * SECOND);
        assert!(liveness.due(start + SECOND));
        assert_eq!(liveness.deadline(), start + SECOND);
        liveness.ping(start + SECOND);
        assert_eq!(liveness.dead(start + 5 * SECOND), None);
        assert_eq!(liveness.dead(start + 6 * SECOND), Some(DEAD_AFTER_SLEEP));
        liveness.heard(start + 5 * SECOND);
        assert_eq!(liveness.dead(start + 6 * SECOND), None, "it answered");
    }
}
