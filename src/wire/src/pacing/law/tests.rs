//! What no line of the simulator shows: jumping clocks, silence, new attachments, absurd acknowledgements.

use super::*;

/// A path of 40 ms that carries everything at once.
struct Bench {
    law: Law,
    now: Duration,
    /// The peer's clock minus ours.
    clock: Duration,
    end: u64,
    rtt: Duration,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        let hour = Duration::from_secs(3600);
        let rtt = Duration::from_millis(40);
        Self { law: Law::new(policy), now: 24 * hour, clock: 100 * hour, end: 0, rtt }
    }

    /// Sends the whole budget and gets it acknowledged, in small parts.
    fn round(&mut self) {
        let part = self.law.budget() / 16;
        let mut ends = Vec::new();
        for _ in 0..16 {
            self.end += part;
            self.law.written(self.now, self.end, true);
            ends.push((self.now, self.end));
            self.now += self.rtt / 32;
        }
        for (sent_at, end) in ends {
            self.now = self.now.max(sent_at + self.rtt);
            self.acknowledge(end, sent_at + self.rtt / 2);
        }
    }

    fn acknowledge(&mut self, offset: u64, at: Duration) {
        let received_at = at + self.clock;
        self.law.acknowledged(self.now, TimedAck { offset, received_at, held: Duration::ZERO }, true);
    }

    fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round();
        }
    }
}

#[test]
fn the_path_is_learned() {
    let mut bench = Bench::new(Policy::Auto);
    assert_eq!(bench.law.budget(), 65_536);
    assert_eq!(bench.law.figures(), Figures { budget: 65_536, ..Figures::default() });
    assert_eq!(bench.law.pace(), None);
    bench.rounds(3);
    let figures = bench.law.figures();
    assert!(figures.rate > 1e6 && figures.budget > 65_536 && figures.in_flight == 0, "{figures:?}");
    assert!(figures.base_rtt.abs_diff(bench.rtt) < Duration::from_millis(1), "{figures:?}");
    assert!(bench.law.pace().unwrap() > figures.rate);
}

#[test]
fn the_budget_is_bounded() {
    let mut bench = Bench::new(Policy::Auto);
    bench.rounds(100); // this path takes whatever it is given
    assert_eq!(bench.law.budget(), BUDGET_MAX as u64);
    let mut bench = Bench { rtt: Duration::from_micros(200), ..Bench::new(Policy::Auto) };
    bench.rounds(300);
    assert!(bench.law.budget() <= BUDGET_MAX_NEAR as u64);
    assert!(bench.law.budget() > 1 << 20);
    assert_eq!(bench.law.pace(), None);
}

#[test]
fn busy_processors_do_not_shrink_the_budget_of_a_near_path() {
    let mut bench = Bench { rtt: Duration::from_micros(200), ..Bench::new(Policy::Auto) };
    bench.rounds(100);
    for _ in 0..100 {
        bench.rtt = Duration::from_millis(100);
        bench.rounds(3);
        bench.rtt = Duration::from_micros(200);
        bench.round();
        assert!(bench.law.budget() >= BUDGET_MIN_NEAR as u64);
    }
}

/// Delays beyond [`NEAR`] on a path that was near are the processors'; a new connection is another path.
#[test]
fn a_near_path_stays_near_until_it_is_forgotten() {
    let mut bench = Bench { rtt: Duration::from_micros(200), ..Bench::new(Policy::Auto) };
    bench.rounds(5);
    bench.rtt = Duration::from_millis(30);
    bench.now += Duration::from_secs(60);
    for _ in 0..30 {
        bench.rounds(10);
        assert!(bench.law.budget() >= BUDGET_MIN_NEAR as u64);
        assert_eq!(bench.law.pace(), None);
    }
    bench.law.attached(bench.end);
    assert_eq!(bench.law.budget(), BUDGET_FIRST as u64);
}

#[test]
fn a_fixed_budget_stays_and_is_not_paced() {
    let mut bench = Bench::new("fixed:100000".parse().unwrap());
    for _ in 0..50 {
        bench.round();
        assert_eq!((bench.law.budget(), bench.law.pace()), (100_000, None));
    }
    assert!(bench.law.figures().rate > 0.0);
}

#[test]
fn a_new_attachment_forgets_all_but_what_is_under_way() {
    let mut bench = Bench::new(Policy::Auto);
    bench.rounds(5);
    bench.law.written(bench.now, bench.end + 5_000, true);
    let known = bench.law.figures();
    bench.law.attached(bench.end);
    let figures = bench.law.figures();
    assert!(known.rate > 0.0);
    assert_eq!(figures, Figures { budget: 65_536, in_flight: 5_000, ..Figures::default() });
    // The replayed bytes arrive: no sample, since when they were really sent is unknown.
    bench.acknowledge(bench.end + 5_000, bench.now);
    assert_eq!(bench.law.figures(), Figures { budget: 65_536, ..Figures::default() });
    bench.end += 5_000;
    bench.clock = Duration::from_secs(1); // another machine's
    bench.rounds(5);
    assert!(bench.law.figures().rate > 1e6);
}

#[test]
fn silence_with_bytes_under_way_forgets() {
    let mut bench = Bench::new(Policy::Auto);
    bench.rounds(5);
    bench.end += 5_000;
    bench.law.written(bench.now, bench.end, true);
    let sent_at = bench.now;
    bench.now += Duration::from_secs(3600); // suspended
    bench.acknowledge(bench.end, sent_at + Duration::from_secs(3600));
    assert_eq!(bench.law.figures(), Figures { budget: 65_536, ..Figures::default() });
    bench.rounds(5);
    assert!(bench.law.figures().base_rtt < Duration::from_millis(50));
}

#[test]
fn a_pause_is_no_silence() {
    let mut bench = Bench::new(Policy::Auto);
    bench.rounds(5);
    let before = bench.law.figures();
    bench.now += Duration::from_secs(3600);
    assert_eq!(bench.law.figures(), before);
    bench.round();
    assert!(bench.law.figures().rate >= before.rate);
}

/// One machine slept while nothing was under way: its clock stood, ours did not, or the reverse.
#[test]
fn jumping_clocks_are_no_queue() {
    for jump in [Duration::from_secs(60), Duration::from_secs(40 * 3600)] {
        for forward in [true, false] {
            let mut bench = Bench::new(Policy::Auto);
            bench.rounds(8);
            let before = bench.law.figures();
            if forward {
                bench.clock += jump;
            } else {
                bench.clock -= jump;
            }
            bench.rounds(3);
            let after = bench.law.figures();
            assert!(after.rate > 0.7 * before.rate, "{before:?} {after:?}");
            assert!(after.budget > before.budget / 2, "{before:?} {after:?}");
        }
    }
}

#[test]
fn absurd_acknowledgements_do_no_harm() {
    let mut bench = Bench::new(Policy::Auto);
    bench.acknowledge(1_000, bench.now); // of nothing
    bench.law.written(bench.now, 1_000, true);
    bench.acknowledge(u64::MAX, bench.now); // of more than was sent
    assert_eq!(bench.law.in_flight(), 0);
    bench.acknowledge(500, bench.now); // old
    let long = TimedAck { offset: 2_000, received_at: Duration::MAX, held: Duration::MAX };
    bench.law.written(bench.now, 2_000, true);
    bench.law.acknowledged(bench.now, long, true);
    let long = TimedAck { offset: 3_000, received_at: Duration::ZERO, held: Duration::ZERO };
    bench.law.written(bench.now, 3_000, true);
    bench.law.acknowledged(Duration::ZERO, long, true); // the clock went back
    assert!(bench.law.budget() >= BUDGET_MIN as u64 && bench.law.figures().rate.is_finite());
    assert!(bench.law.pace().is_none_or(|pace| pace.is_finite() && pace > 0.0));
}

#[test]
fn a_line_that_takes_nothing_costs_bounded_memory() {
    let mut path = Path::default();
    for end in 1..100_000 {
        path.written(Duration::from_millis(end), end, true);
    }
    assert_eq!(path.records(), path::MAX_RECORDS);
    let ack = TimedAck { offset: 99_999, received_at: Duration::ZERO, held: Duration::ZERO };
    assert!(path.acknowledged(Duration::from_millis(100_040), ack).is_some());
    assert_eq!(path.records(), 0);
}
