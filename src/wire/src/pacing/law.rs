//! The law: budget = delivery rate × (base round trip + 10 ms) + a little. No clock and no I/O.
//!
//! One law per sending direction of a session. Times are durations since any fixed point, as long as it is the same
//! for all calls; sessions that share a line do best when it is the same for all of them (see [`probe`]).
//!
//! States: *start-up* (the budget grows by a gain until the queue or the rate says the path is full), *steady*, and
//! *probe* (drain, then look: the only way to tell a longer path from a queue). What is measured, and how, is in
//! [`path`]; who gets the budget is in [`super::gate`].

mod noise;
pub(crate) mod path;
pub mod policy;
mod probe;
mod round;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::link::TimedAck;
use noise::Noise;
use path::Path;
pub use policy::{Policy, PolicyError};
use probe::Probe;
use round::Round;

/// The queue the law keeps standing, in seconds. Time, not bytes, is what makes one law fit all lines: it absorbs
/// the jitter of acknowledgements, and on loopback, where the round trip means nothing, it alone carries the window.
/// 5 ms loses a tenth of the line at 10 ms jitter and with both directions at once; 20 ms gains nothing and costs
/// every ping 10 ms.
const STANDING: f64 = 0.010;

/// Largest constant part of the budget, in bytes. It pulls sessions sharing a line together: the one with less rate
/// gets more queue per byte than the other. With a third of it, two on 100 Mbit/s still differ nine to one after 30 s.
const CONSTANT_MAX: f64 = 24_576.0;

/// Rate in bytes per second from which the constant part is the largest. Below, it falls with the square root of the
/// rate: 24 KiB are 200 ms of a line of 1 Mbit/s; falling as fast as the rate, it would not pull any more.
const CONSTANT_RATE: f64 = 4_000_000.0;

/// Smallest constant part: three of the smallest chunks, so that one travels while others wait and are acknowledged.
const CONSTANT_MIN: f64 = 6_144.0;

/// Smallest budget in bytes: less cannot keep one full packet of each layer moving.
pub(crate) const BUDGET_MIN: f64 = 4_096.0;

/// Largest budget in bytes, and so the bound of the link's replay buffer: 1 Gbit/s at 130 ms.
pub(crate) const BUDGET_MAX: f64 = 16_777_216.0;

/// Largest budget on a path shorter than [`NEAR`]. The queue there is processor time, not line: beside a transfer over
/// loopback a ping takes 5 and 10 ms (median, 99th percentile) with 2 MiB, 6 and 16 with 4, 20 and 37 with 16; but 2 MiB
/// carry a sixth less than 16.
const BUDGET_MAX_NEAR: f64 = 4_194_304.0;

/// Smallest budget on such a path. Delays there come from busy processors and vary by more than any queue of ours: a
/// budget that followed them would shrink to nothing beside programs that are not paced (64 MiB took 91 s beside six
/// saturating port-forwards on two cores).
const BUDGET_MIN_NEAR: f64 = 1_048_576.0;

/// Base round trip in seconds below which both ends are on one machine or in one building. Lines slow enough for
/// [`BUDGET_MIN_NEAR`] to be a long queue have longer ones.
const NEAR: f64 = 0.005;

/// Budget in bytes before the path is known. Four times TCP's initial window (RFC 6928): the start-up then takes two
/// round trips less, and a line of 1 Mbit/s is busy with it for half a second, once.
const BUDGET_FIRST: f64 = 65_536.0;

/// Growth per round while nothing is known.
const GAIN_FIRST: f64 = 2.0;

/// Growth per round when a known path seems to have room again. Gentler: the old rate is probably nearly right.
const GAIN_AGAIN: f64 = 1.5;

/// Pace over the rate while the budget grows by [`GAIN_FIRST`].
const PACE_FIRST: f64 = 2.5;

/// Pace over the rate while it grows by [`GAIN_AGAIN`].
const PACE_AGAIN: f64 = 2.0;

/// Pace over the rate in the steady state. With both directions at once on 200 Mbit/s, 100 ms: 1.5 reaches 78 % of
/// the line instead of 94 %, no pace at all 58 %; at 1.05 a ping's 99th percentile is 196 ms instead of 141.
const PACE_STEADY: f64 = 1.2;

/// A start-up ends when the mean queue exceeds this part of what the steady state allows...
const FULL_QUEUE: f64 = 0.75;

/// ...or when the rate has not grown by this factor...
const FULL_GROWTH: f64 = 1.25;

/// ...for this many rounds in which flows waited for the budget. As BBR.
const FULL_ROUNDS: u32 = 3;

/// So many rounds with flows waiting and less than half of the intended queue: the path has more to give.
const EMPTY_ROUNDS: u32 = 3;

/// A queue that never was shorter than this in a round, in seconds, is not of our making.
const HIGH_QUEUE: f64 = 1.5 * STANDING + 0.005;

/// A round below this part of the known rate, at a high queue, says that the path got slower (or longer).
const SLOWER: f64 = 0.8;

/// Silence with bytes under way after which nothing measured before counts: a suspended machine, a new route.
const FORGET_AFTER: Duration = Duration::from_secs(5);

/// What the law has learned, for the status page.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Delivery rate in bytes per second; 0 before the first acknowledgement.
    pub rate: f64,
    /// Round trip without queues; zero before the first acknowledgement.
    pub base_rtt: Duration,
    /// Round trip of the last acknowledgement; zero before it.
    pub rtt: Duration,
    /// By how much round trips are longer than the shortest on average though no queue of ours stands: processors that
    /// are busy.
    pub noise: Duration,
    /// Bytes that may be under way.
    pub budget: u64,
    /// Bytes that are under way.
    pub in_flight: u64,
}

/// The law of one sending direction.
#[derive(Debug)]
pub struct Law {
    policy: Policy,
    path: Path,
    round: Round,
    growth: Growth,
    /// Round trip without the queue of our direction, of the last round. The other direction's queue stays in: our
    /// acknowledgements wait there, and the line must be kept busy meanwhile.
    effective_rtt: Option<f64>,
    probe: Probe,
    noise: Noise,
    /// Slot of [`probe`] in which the last regular probe fell.
    slot: Option<u64>,
    /// The probe was made for a suspicion, not because it was time.
    suspicion: bool,
    /// Highest rate since the last probe.
    reference: f64,
    /// Rounds in a row that gave reason for suspicion.
    suspect_rounds: u32,
    /// No probe for a suspicion before this: the last one found nothing.
    suspect_after: Duration,
}

#[derive(Debug, PartialEq)]
enum Growth {
    /// Nothing is known yet.
    First { full: f64, rounds: u32 },
    /// The path seems to have more room than it had.
    Again { full: f64, rounds: u32 },
    /// `empty`: rounds in a row with too short a queue.
    Steady { empty: u32 },
}

impl Law {
    /// A law that knows nothing of its path.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            path: Path::default(),
            round: Round::default(),
            growth: Growth::First { full: 0.0, rounds: 0 },
            effective_rtt: None,
            probe: Probe::No,
            noise: Noise::default(),
            slot: None,
            suspicion: false,
            reference: 0.0,
            suspect_rounds: 0,
            suspect_after: Duration::ZERO,
        }
    }

    /// Bytes up to `end` were given to the link. `backlog`: flows wait for the budget.
    pub fn written(&mut self, now: Duration, end: u64, backlog: bool) {
        self.path.written(now, end, backlog);
    }

    /// The peer acknowledged.
    pub fn acknowledged(&mut self, now: Duration, ack: TimedAck, backlog: bool) {
        if self.path.silence(now) > FORGET_AFTER {
            self.forget();
        }
        self.round.limited |= backlog;
        let Some(sample) = self.path.acknowledged(now, ack) else { return };
        if let Probe::Look { since, seen } = &mut self.probe
            && sample.sent_at >= *since
        {
            let (rtt, one_way) = seen.unwrap_or((f64::MAX, f64::MAX));
            *seen = Some((rtt.min(sample.rtt), one_way.min(sample.one_way)));
        }
        self.noise.add(now, &sample);
        self.round.add(&sample);
        if self.path.acked >= self.round.end {
            self.end_round(now);
            self.round = Round::until(self.path.sent);
        }
        self.step_probe(now, backlog);
    }

    /// A new attachment carries the link: all that was measured belongs to another path. What the peer has not
    /// `received` is still under way.
    pub fn attached(&mut self, received: u64) {
        self.forget();
        self.path.received(received);
    }

    /// Bytes that may be under way.
    pub fn budget(&self) -> u64 {
        if let Policy::Fixed(budget) = self.policy {
            return budget.get();
        }
        if self.probe != Probe::No {
            return self.probe_budget() as u64;
        }
        let (Some(base), true) = (self.effective_rtt, self.path.rate > 0.0) else {
            return BUDGET_FIRST as u64;
        };
        let steady = |gain: f64| self.path.rate * (gain * base + self.standing()) + self.constant();
        let budget = match self.growth {
            Growth::First { .. } => steady(GAIN_FIRST).max(BUDGET_FIRST),
            Growth::Again { .. } => steady(GAIN_AGAIN),
            Growth::Steady { .. } => steady(1.0),
        };
        let least = if self.path.is_near() { BUDGET_MIN_NEAR } else { BUDGET_MIN };
        let most =
            if self.path.base_rtt().is_some_and(|rtt| rtt < NEAR) { BUDGET_MAX_NEAR } else { BUDGET_MAX };
        budget.clamp(least, most) as u64
    }

    /// Bytes per second the budget should be spent at, if it matters: a budget spent at once comes back at once, and
    /// with data both ways the bursts of one direction hold back the other's acknowledgements.
    pub(crate) fn pace(&self) -> Option<f64> {
        if self.policy != Policy::Auto
            || self.path.rate == 0.0
            || self.path.base_rtt().is_none()
            || self.path.is_near()
        {
            return None;
        }
        let gain = match self.growth {
            Growth::First { .. } => PACE_FIRST,
            Growth::Again { .. } => PACE_AGAIN,
            Growth::Steady { .. } => PACE_STEADY,
        };
        // Never slower than the budget comes round: a small rate could not grow.
        let round = self.effective_rtt.unwrap_or_default() + STANDING;
        Some((gain * self.path.rate).max(self.budget() as f64 / round))
    }

    /// See [`Figures::noise`].
    pub(crate) fn noise(&self) -> Duration {
        Duration::from_secs_f64(self.noise.value())
    }

    /// Bytes given to the link and not acknowledged.
    pub fn in_flight(&self) -> u64 {
        self.path.sent - self.path.acked
    }

    /// Offset up to which bytes were given to the link.
    pub(crate) fn sent(&self) -> u64 {
        self.path.sent
    }

    /// From now on `policy` decides; what was learned is kept.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// What the law has learned.
    pub fn figures(&self) -> Figures {
        let time = |seconds: Option<f64>| Duration::from_secs_f64(seconds.unwrap_or_default());
        Figures {
            rate: self.path.rate,
            base_rtt: time(self.path.base_rtt()),
            rtt: time(self.path.last_rtt),
            noise: self.noise(),
            budget: self.budget(),
            in_flight: self.in_flight(),
        }
    }

    fn forget(&mut self) {
        self.path.forget();
        *self = Self { path: std::mem::take(&mut self.path), slot: self.slot, ..Self::new(self.policy) };
    }

    /// The part of the budget that does not depend on the round trip.
    fn constant(&self) -> f64 {
        (CONSTANT_MAX * (self.path.rate / CONSTANT_RATE).sqrt()).clamp(CONSTANT_MIN, CONSTANT_MAX)
    }

    /// Time in seconds, beyond the base round trip, that the budget covers: the queue that shall stand, and what busy
    /// processors take.
    fn standing(&self) -> f64 {
        STANDING + self.noise.value()
    }

    /// Queue in seconds that the steady state intends.
    fn intended_queue(&self) -> f64 {
        self.standing() + self.constant() / self.path.rate.max(1.0)
    }

    fn end_round(&mut self, now: Duration) {
        self.effective_rtt = Some(self.round.effective);
        let queue = self.round.queue_mean();
        let full_queue = FULL_QUEUE * self.intended_queue();
        match &mut self.growth {
            Growth::First { full, rounds } | Growth::Again { full, rounds } if self.round.limited => {
                if self.round.rate > FULL_GROWTH * *full {
                    (*full, *rounds) = (self.round.rate, 0);
                } else {
                    *rounds += 1;
                }
                if *rounds >= FULL_ROUNDS || queue > full_queue {
                    self.growth = Growth::Steady { empty: 0 };
                }
            }
            Growth::Steady { empty } => {
                let room =
                    self.round.limited && self.probe == Probe::No && queue < 0.5 / FULL_QUEUE * full_queue;
                *empty = if room { *empty + 1 } else { 0 };
                if *empty >= EMPTY_ROUNDS {
                    self.growth = Growth::Again { full: self.round.rate, rounds: 0 };
                }
            }
            Growth::First { .. } | Growth::Again { .. } => {}
        }
        if self.round.queue_min > HIGH_QUEUE + self.noise.value()
            && self.round.rate > 0.0
            && self.round.rate < SLOWER * self.path.rate
        {
            self.path.lower_rate(now, self.round.rate);
        }
        self.suspect(now);
    }
}
