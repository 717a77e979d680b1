//! When the law looks at its path with little under way, and what it makes of that: only so are a longer path and a queue
//! told apart.

use std::time::Duration;

use super::{BUDGET_MAX, BUDGET_MIN, Growth, Law, STANDING};

/// A queue that stands, in seconds, is reason for suspicion when the rate has fallen to [`FALLEN`] of the highest
/// since the last probe...
const SUSPECT_QUEUE: f64 = 0.7 * STANDING;

/// See [`SUSPECT_QUEUE`].
const FALLEN: f64 = 0.8;

/// ...in so many rounds in a row.
const SUSPECT_ROUNDS: u32 = 3;

/// A one-way time grown by this part of the round trip means a longer path: there is more to fill.
const LONGER: f64 = 0.1;

/// Base round trips are looked for again this often: at the full tens of seconds of the clock, so that all
/// sessions on a line drain it together. Alone none could drain what the others keep standing.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// No regular probe if the minima were seen so shortly before: traffic with pauses shows them by itself.
const PROBE_FRESH: Duration = Duration::from_secs(2);

/// A probe that finds nothing to look at ends after this.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// A regular probe raises the base round trip by no more than this, in seconds: clocks drift apart by up to 100 ppm.
/// More it might owe to others' queues; if the path is really longer, the rate falls and suspicion finds it.
const DRIFT: f64 = 0.001;

/// Part of rate × base round trip kept under way while probing: the line stays half busy.
const PROBE_DEPTH: f64 = 0.5;

#[derive(Debug, PartialEq)]
pub(super) enum Probe {
    No,
    /// Waiting until little is under way.
    Drain {
        since: Duration,
    },
    /// Looking at what was sent since: smallest round trip and one-way time.
    Look {
        since: Duration,
        seen: Option<(f64, f64)>,
    },
}

impl Law {
    /// Looks for a rate that fell while the queue stood: the path got slower, or longer, or others came. Only a
    /// probe can tell.
    pub(super) fn suspect(&mut self, now: Duration) {
        self.reference = self.reference.max(self.path.rate);
        let fell = self.round.limited
            && self.round.queue_min > SUSPECT_QUEUE + self.noise.value()
            && self.path.rate < FALLEN * self.reference;
        self.suspect_rounds = if fell && self.probe == Probe::No { self.suspect_rounds + 1 } else { 0 };
        if self.suspect_rounds >= SUSPECT_ROUNDS && now >= self.suspect_after {
            self.start_probe(now, true);
        }
    }

    pub(super) fn step_probe(&mut self, now: Duration, backlog: bool) {
        match self.probe {
            Probe::No => {
                let slot = (now.as_micros() / PROBE_EVERY.as_micros()) as u64;
                if backlog && slot != *self.slot.get_or_insert(slot) {
                    self.slot = Some(slot);
                    if self.path.unconfirmed(now) > PROBE_FRESH {
                        self.start_probe(now, false);
                    }
                }
            }
            Probe::Drain { since } => {
                if self.in_flight() as f64 <= self.probe_budget() + self.constant() {
                    self.probe = Probe::Look { since: now, seen: None };
                } else if now.saturating_sub(since) > PROBE_LIMIT {
                    self.probe = Probe::No;
                }
            }
            Probe::Look { since, seen: Some((rtt, one_way)) }
                if now.saturating_sub(since).as_secs_f64() > rtt =>
            {
                self.end_probe(now, rtt, one_way);
            }
            Probe::Look { since, .. } if now.saturating_sub(since) > PROBE_LIMIT => self.probe = Probe::No,
            Probe::Look { .. } => {}
        }
    }

    /// Not on a near path: its budget does not fall below what was a fixed window before, and less for the time of a
    /// probe would be felt where processors are busy.
    fn start_probe(&mut self, now: Duration, suspicion: bool) {
        if !self.path.is_near() {
            self.suspicion = suspicion;
            self.probe = Probe::Drain { since: now };
        }
    }

    fn end_probe(&mut self, now: Duration, rtt: f64, one_way: f64) {
        let limit = if self.suspicion { f64::INFINITY } else { DRIFT };
        let rise = self.path.rebase(now, rtt, one_way, limit);
        let longer = rise > LONGER * rtt;
        self.effective_rtt = Some(rtt);
        self.reference = self.path.rate;
        self.probe = Probe::No;
        if longer {
            self.growth = Growth::Again { full: 0.0, rounds: 0 };
        } else {
            if self.suspicion {
                self.suspect_after = now + PROBE_EVERY;
            }
            if let Growth::Steady { empty } = &mut self.growth {
                *empty = 0;
            }
        }
    }

    /// Bytes under way while probing.
    pub(super) fn probe_budget(&self) -> f64 {
        let base = self.path.base_rtt().unwrap_or_default();
        (PROBE_DEPTH * self.path.rate * base).clamp(BUDGET_MIN, BUDGET_MAX)
    }
}
