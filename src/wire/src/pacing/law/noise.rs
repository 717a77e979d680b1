//! How much the one-way time varies for reasons that are no queue of ours: busy processors above all.
//!
//! A process that waits for its turn on a processor delays as a queue does. Counted as a queue, that would lower the
//! budget, the budget the rate, and the rate the budget, until nothing is left. But a queue stands and changes slowly,
//! from one round trip to the next, while such waits change from turn to turn, and now and then there is none.

use std::time::Duration;

use super::path::Sample;

/// What is acknowledged within this time was handled in one turn.
const TURN: Duration = Duration::from_millis(1);

/// Turns to look at...
const TURNS: u32 = 12;

/// ...and round trips, so that not only one burst is seen.
const ROUNDS: f64 = 2.0;

/// A look whose shortest queue is longer than this, in seconds, has seen a queue that stands.
const STANDS: f64 = 0.007;

/// Looks remembered, of which the middle one counts: a line that gets slower once, or a stall, is no noise.
const LOOKS: usize = 3;

/// Allowance over the mean difference of two turns. Waits from 0 to W differ by W/3 on average. Both ends wait W/2 on
/// average, and a budget for the mean alone would still fall at every wait above it.
const ALLOWANCE: f64 = 8.0;

/// Allowance in seconds that the standing queue covers already; mean differences of up to 3.5 ms are every line's: chunks,
/// other sessions, acknowledgements of the other direction in between.
const ORDINARY: f64 = 0.028;

/// Largest noise, in seconds: on a line that is slow too, pings wait so much longer.
const LARGEST: f64 = 0.050;

/// What is left of the noise after a look at a queue that stands.
const KEPT: f64 = 0.8;

/// The noise of a path.
#[derive(Debug, Default)]
pub(super) struct Noise {
    value: f64,
    look: Option<Look>,
    /// What the last looks found.
    found: [f64; LOOKS],
}

#[derive(Debug)]
struct Look {
    since: Duration,
    turns: u32,
    turn_at: Duration,
    /// Queue at the turn's first acknowledgement.
    turn: f64,
    /// Sum of the differences from turn to turn.
    differences: f64,
    shortest: f64,
    rtt: f64,
}

impl Noise {
    /// Time in seconds that the budget should cover beyond the standing queue.
    pub(super) fn value(&self) -> f64 {
        self.value
    }

    /// What an acknowledgement said.
    pub(super) fn add(&mut self, now: Duration, sample: &Sample) {
        let look = self.look.get_or_insert_with(|| Look::begin(now, sample));
        look.add(now, sample);
        if !look.is_enough(now) {
            return;
        }
        if look.shortest < STANDS {
            self.found.rotate_left(1);
            self.found[0] = look.noise();
            let mut sorted = self.found;
            sorted.sort_by(f64::total_cmp);
            self.value = sorted[LOOKS / 2];
        } else {
            self.found.iter_mut().for_each(|found| *found *= KEPT);
            self.value *= KEPT;
        }
        self.look = None;
    }
}

impl Look {
    fn begin(now: Duration, sample: &Sample) -> Self {
        Self {
            since: now,
            turns: 1,
            turn_at: now,
            turn: sample.queue,
            differences: 0.0,
            shortest: sample.queue,
            rtt: sample.rtt,
        }
    }

    fn add(&mut self, now: Duration, sample: &Sample) {
        if now.saturating_sub(self.turn_at) > TURN {
            self.differences += (sample.queue - self.turn).abs();
            self.turn = sample.queue;
            self.turn_at = now;
            self.turns += 1;
        }
        self.shortest = self.shortest.min(sample.queue);
        self.rtt = self.rtt.min(sample.rtt);
    }

    fn is_enough(&self, now: Duration) -> bool {
        self.turns >= TURNS && now.saturating_sub(self.since).as_secs_f64() > ROUNDS * self.rtt
    }

    fn noise(&self) -> f64 {
        let difference = self.differences / f64::from(self.turns - 1);
        (ALLOWANCE * difference - ORDINARY).clamp(0.0, LARGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path of 40 ms whose queue at each of these turns, 5 ms apart, is the function's.
    fn seen(noise: &mut Noise, turns: std::ops::Range<u64>, queue: impl Fn(u64) -> f64) {
        for turn in turns {
            let (now, queue) = (Duration::from_millis(5 * turn), queue(turn));
            let sample =
                Sample { sent_at: now, rtt: 0.040 + queue, one_way: 0.020 + queue, queue, rate: None };
            noise.add(now, &sample);
        }
    }

    /// From 0 to `longest` milliseconds, in seconds.
    fn wait(turn: u64, longest: u64) -> f64 {
        let mixed = (turn + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed ^ (mixed >> 32)) % (longest + 1)) as f64 / 1e3
    }

    #[test]
    fn waits_that_change_from_turn_to_turn_are_noise() {
        let mut noise = Noise::default();
        seen(&mut noise, 0..200, |turn| wait(turn, 3));
        assert_eq!(noise.value(), 0.0);
        seen(&mut noise, 200..400, |turn| wait(turn, 30));
        assert!(noise.value() > 0.020, "{noise:?}");
        seen(&mut noise, 400..600, |_| 0.001);
        assert_eq!(noise.value(), 0.0);
    }

    #[test]
    fn a_queue_that_stands_is_none_and_lets_it_be_forgotten() {
        let mut noise = Noise::default();
        seen(&mut noise, 0..1_000, |turn| 0.010 + wait(turn, 30));
        assert_eq!(noise.value(), 0.0);
        seen(&mut noise, 1_000..1_200, |turn| wait(turn, 30));
        assert!(noise.value() > 0.020, "{noise:?}");
        seen(&mut noise, 1_200..2_200, |_| 0.010);
        assert!(noise.value() < 0.001);
    }

    #[test]
    fn neither_are_a_ramp_and_a_stall() {
        let mut noise = Noise::default();
        seen(&mut noise, 0..200, |turn| turn as f64 / 1e3);
        seen(&mut noise, 200..300, |turn| if turn == 250 { 0.5 } else { 0.0 });
        assert_eq!(noise.value(), 0.0);
    }
}
