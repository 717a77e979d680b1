//! The lines the law is made for, and what it must reach on them: the 99th percentile of a ping within twice the idle
//! round trip and 30 ms, and nine tenths of the line.
//!
//! Shares count what flows carry; the headers of the layers below take 2.5 % to 4 % of a busy line. Each test prints
//! what it saw (`--nocapture`).

use super::super::law::Policy;
use super::seen::Seen;
use super::{Flows, Line, Load, SECOND, run};

const UP: usize = 0;
const DOWN: usize = 1;

fn line(rate: fn(u64) -> f64, delay: fn(u64) -> u64) -> Line {
    Line { rate, delay, jitter: 1_000, turn: |_| 0, seed: 7 }
}

/// So many bulk flows up and down from the start.
fn bulk(up: usize, down: usize) -> Flows {
    late(up, down, 0)
}

fn late(up: usize, down: usize, second: u64) -> Flows {
    let flows = |count| vec![Load::Endless { from: second * SECOND }; count];
    Flows { loads: [flows(up), flows(down)], ..Flows::default() }
}

fn auto(line: &Line, sessions: &[Flows], seconds: u64) -> Seen {
    run(line, sessions, Policy::Auto, seconds)
}

/// What one session saw in some seconds.
struct Row {
    p50: f64,
    p99: f64,
    share: [f64; 2],
}

fn row(name: &str, seen: &Seen, session: usize, window: (u64, u64)) -> Row {
    let row = Row {
        p50: seen.ping(session, window, 50),
        p99: seen.ping(session, window, 99),
        share: [seen.share(session, UP, window), seen.share(session, DOWN, window)],
    };
    println!(
        "{name:32} {window:>8?} s, session {session}: ping {:4.0} {:4.0} ms, up {:5.1} %, down {:5.1} %",
        row.p50, row.p99, row.share[UP], row.share[DOWN]
    );
    row
}

/// Twice the idle round trip and 30 ms.
fn goal(line: &Line) -> f64 {
    4.0 * (line.delay)(0) as f64 / 1e3 + 30.0
}

/// The lines with names and seconds to look at.
fn lines() -> [(&'static str, Line, (u64, u64)); 5] {
    [
        ("1 Mbit/s 40 ms", line(|_| 1e6, |_| 20_000), (2, 22)),
        ("5 Mbit/s 80 ms", line(|_| 5e6, |_| 40_000), (1, 25)),
        ("20 Mbit/s 40 ms", line(|_| 20e6, |_| 20_000), (1, 15)),
        ("200 Mbit/s 100 ms", line(|_| 200e6, |_| 50_000), (2, 12)),
        ("1 Gbit/s 20 ms", line(|_| 1e9, |_| 10_000), (1, 3)),
    ]
}

fn one_direction(up: usize, down: usize) {
    for (name, line, window) in lines() {
        let seen = auto(&line, &[bulk(up, down)], window.1);
        let row = row(&format!("{name}, {up} up {down} down"), &seen, 0, window);
        assert!(row.p99 <= goal(&line), "{name}: goal {}", goal(&line));
        assert!(row.share[UP].max(row.share[DOWN]) >= 90.0, "{name}");
    }
}

#[test]
fn one_flow_up_leaves_pings_alone_and_fills_the_line() {
    one_direction(1, 0);
}

#[test]
fn four_flows_up_leave_pings_alone_and_fill_the_line() {
    one_direction(4, 0);
}

#[test]
fn one_flow_down_leaves_pings_alone_and_fills_the_line() {
    one_direction(0, 1);
}

#[test]
fn four_flows_down_leave_pings_alone_and_fill_the_line() {
    one_direction(0, 4);
}

#[test]
fn both_directions_at_once_get_their_line() {
    for (name, line, window) in lines() {
        let seen = auto(&line, &[bulk(1, 1)], window.1);
        let row = row(&format!("{name}, both"), &seen, 0, window);
        // At 1 Mbit/s the acknowledgements alone take a tenth of the line, and a segment 12 ms of it.
        let slow = (line.rate)(0) < 5e6;
        assert!(slow || row.p99 <= goal(&line), "{name}: goal {}", goal(&line));
        let least = if slow { 75.0 } else { 85.0 };
        assert!(row.share.iter().all(|&share| share >= least), "{name}");
    }
}

/// The same simulation with a window as deep as SSH's usual ones misses the goal by far: it can fail.
#[test]
fn a_fixed_budget_queues_what_the_line_does_not_hold() {
    let (name, line, window) = &lines()[2];
    let seen = run(line, &[bulk(0, 1)], "fixed:1048576".parse().unwrap(), window.1);
    let seen = row(&format!("{name}, fixed 1 MiB"), &seen, 0, *window);
    assert!(seen.p50 > 400.0 && seen.share[DOWN] > 90.0);
    let tight = run(&lines()[3].1, &[bulk(0, 1)], "fixed:262144".parse().unwrap(), 12);
    let tight = row("200 Mbit/s 100 ms, fixed 256 KiB", &tight, 0, (2, 12));
    assert!(tight.p50 < 110.0 && tight.share[DOWN] < 12.0);
}

#[test]
fn a_line_that_gets_slower_drains_within_a_second() {
    let line = line(|t| if (6 * SECOND..12 * SECOND).contains(&t) { 10e6 } else { 100e6 }, |_| 20_000);
    let seen = auto(&line, &[bulk(0, 1)], 18);
    let name = "100-10-100 Mbit/s 40 ms";
    assert!(row(name, &seen, 0, (1, 5)).p99 <= goal(&line));
    // What is under way when the rate falls, 600 KB, takes half a second; nobody can call it back.
    assert!(row(name, &seen, 0, (6, 7)).p99 <= 600.0);
    let slow = row(name, &seen, 0, (7, 11));
    assert!(slow.p99 <= goal(&line) && slow.share[DOWN] >= 90.0);
    assert!(row(name, &seen, 0, (12, 13)).share[DOWN] >= 60.0);
    let fast = row(name, &seen, 0, (13, 18));
    assert!(fast.p99 <= goal(&line) && fast.share[DOWN] >= 90.0);
}

#[test]
fn a_path_that_gets_longer_is_filled_again_within_two_seconds() {
    let far = line(|_| 50e6, |t| if (6 * SECOND..14 * SECOND).contains(&t) { 60_000 } else { 20_000 });
    let near = line(|_| 50e6, |t| if (6 * SECOND..14 * SECOND).contains(&t) { 35_000 } else { 20_000 });
    for (name, line, there) in [("40-120-40 ms 50 Mbit/s", far, 120.0), ("40-70-40 ms 50 Mbit/s", near, 70.0)]
    {
        let seen = auto(&line, &[bulk(0, 1)], 20);
        assert!(row(name, &seen, 0, (1, 5)).p99 <= goal(&line));
        row(name, &seen, 0, (6, 7));
        assert!(row(name, &seen, 0, (7, 8)).share[DOWN] >= 65.0);
        let long = row(name, &seen, 0, (8, 13));
        assert!(long.p99 <= 2.0 * there + 30.0 && long.share[DOWN] >= 90.0);
        let short = row(name, &seen, 0, (15, 20));
        assert!(short.p99 <= goal(&line) && short.share[DOWN] >= 90.0);
    }
}

#[test]
fn a_new_path_slower_and_longer_at_once_is_found() {
    fn there(t: u64) -> bool {
        (6 * SECOND..14 * SECOND).contains(&t)
    }
    let line = line(|t| if there(t) { 5e6 } else { 50e6 }, |t| if there(t) { 60_000 } else { 20_000 });
    let seen = auto(&line, &[bulk(0, 1)], 20);
    let name = "50 Mbit/s 40 ms - 5 Mbit/s 120";
    row(name, &seen, 0, (6, 8));
    let away = row(name, &seen, 0, (8, 13));
    assert!(away.p99 <= 2.0 * 120.0 + 30.0 && away.share[DOWN] >= 90.0);
    let back = row(name, &seen, 0, (15, 20));
    assert!(back.p99 <= goal(&line) && back.share[DOWN] >= 90.0);
}

/// `count` sessions with one flow down each, all but the first after 5 s; their clocks `apart` from each other.
fn share_a_line(rate: fn(u64) -> f64, delay: fn(u64) -> u64, count: usize, apart: u64) -> Vec<Row> {
    let mut sessions = vec![late(0, 1, 5); count];
    sessions[0] = bulk(0, 1);
    for (index, session) in sessions.iter_mut().enumerate() {
        session.clock = index as u64 * apart;
    }
    let line = line(rate, delay);
    let seen = auto(&line, &sessions, 40);
    let name = format!("{count} sessions, clocks {} ms apart", apart / 1_000);
    let rows: Vec<Row> = (0..count).map(|session| row(&name, &seen, session, (20, 40))).collect();
    assert!(rows.iter().map(|row| row.share[DOWN]).sum::<f64>() >= 90.0, "{name}");
    rows
}

#[test]
fn sessions_that_share_a_line_and_a_clock_keep_it_short_and_divide_it() {
    for (count, least) in [(2, 35.0), (4, 12.0)] {
        // Nodes and laptops have their clocks from NTP.
        for apart in [0, 20_000] {
            for row in share_a_line(|_| 20e6, |_| 20_000, count, apart) {
                assert!(row.p99 <= 110.0 && row.share[DOWN] >= least, "{count} sessions");
            }
        }
    }
    for row in share_a_line(|_| 100e6, |_| 15_000, 2, 0) {
        assert!(row.p99 <= 90.0 && row.share[DOWN] >= 25.0);
    }
}

/// None can drain what the others keep standing: they see the base round trip too long. Not worse than half more
/// than the goal.
#[test]
fn sessions_without_a_common_clock_still_share() {
    for row in share_a_line(|_| 20e6, |_| 20_000, 4, 2_300_000) {
        assert!(row.p99 <= 165.0 && row.share[DOWN] >= 10.0);
    }
}

#[test]
fn late_acknowledgements_and_stalls_cost_little() {
    let wireless = Line { jitter: 10_000, ..line(|_| 50e6, |_| 15_000) };
    let seen = auto(&wireless, &[bulk(0, 1)], 15);
    let jitter = row("50 Mbit/s 30 ms, jitter 10 ms", &seen, 0, (1, 15));
    assert!(jitter.p99 <= goal(&wireless) && jitter.share[DOWN] >= 90.0);

    let stalls = line(|t| if t % (2 * SECOND) > 1_750_000 { 1e6 } else { 50e6 }, |_| 15_000);
    let seen = auto(&stalls, &[bulk(0, 1)], 21);
    let row = row("50 Mbit/s 30 ms, stalls", &seen, 0, (1, 21));
    // A ping sent into a stall waits for its end, 250 ms.
    assert!(row.p50 <= 50.0 && row.p99 <= 350.0 && row.share[DOWN] >= 85.0);
}

#[test]
fn bursts_do_not_queue_and_finish_in_time() {
    let line = line(|_| 50e6, |_| 20_000);
    let bursts = Flows { loads: [vec![], vec![Load::Bursts { bytes: 1 << 20 }]], ..Flows::default() };
    let seen = auto(&line, &[bursts], 15);
    assert!(row("1 MiB each second, 50/40", &seen, 0, (1, 15)).p99 <= goal(&line));
    let times: Vec<u64> = seen.bursts.iter().map(|time| time / 1_000).collect();
    println!("bursts took {times:?} ms");
    // The line needs 168 ms and 20 ms of delay.
    assert!(times.len() >= 14 && times.iter().all(|&time| time < 350));
}

#[test]
fn loopback_runs_at_full_speed_with_a_bounded_budget() {
    let line = Line { jitter: 1_500, ..line(|_| 4e9, |_| 100) };
    let seen = auto(&line, &[bulk(0, 1)], 2);
    let row_auto = row("4 Gbit/s 0.2 ms", &seen, 0, (1, 2));
    let fixed = run(&line, &[bulk(0, 1)], mebibyte(), 2);
    let fixed = row("4 Gbit/s 0.2 ms, fixed 1 MiB", &fixed, 0, (1, 2));
    assert!(row_auto.p99 <= goal(&line) && row_auto.share[DOWN] >= fixed.share[DOWN]);
}

/// Both ends get a processor after up to 30 ms only.
fn busy(rate: fn(u64) -> f64, delay: fn(u64) -> u64) -> Line {
    Line { turn: |_| 30_000, ..line(rate, delay) }
}

fn mebibyte() -> Policy {
    "fixed:1048576".parse().unwrap()
}

/// Taken for a queue, the waits let less than a hundredth of this through.
#[test]
fn busy_processors_do_not_slow_a_session_down() {
    let lines = [
        ("2 Gbit/s 0.2 ms", busy(|_| 2e9, |_| 100)),
        ("2 Gbit/s 4 ms", busy(|_| 2e9, |_| 2_000)),
        ("1 Gbit/s 8 ms", busy(|_| 1e9, |_| 4_000)),
        ("200 Mbit/s 40 ms", busy(|_| 200e6, |_| 20_000)),
        ("20 Mbit/s 40 ms", busy(|_| 20e6, |_| 20_000)),
    ];
    for (name, line) in lines {
        for (up, down) in [(1, 0), (0, 1), (1, 1)] {
            let fixed = run(&line, &[bulk(up, down)], mebibyte(), 15);
            let fixed = row(&format!("{name} busy, fixed 1 MiB"), &fixed, 0, (1, 15));
            let seen = auto(&line, &[bulk(up, down)], 15);
            let row = row(&format!("{name} busy"), &seen, 0, (1, 15));
            assert!(row.share.iter().sum::<f64>() >= 0.6 * fixed.share.iter().sum::<f64>(), "{name}");
            // Turns, twice there and twice back, the queue that is kept, and what covers the turns.
            let idle = 2.0 * (line.delay)(0) as f64 / 1e3;
            assert!(row.p99 <= idle + 4.0 * 30.0 + 60.0, "{name}");
        }
    }
}

#[test]
fn sessions_that_are_not_paced_leave_a_paced_one_its_part_of_busy_processors() {
    let lines = [("2 Gbit/s 0.2 ms", busy(|_| 2e9, |_| 100)), ("1 Gbit/s 8 ms", busy(|_| 1e9, |_| 4_000))];
    for (name, line) in lines {
        let mut sessions = vec![Flows { policy: Some(mebibyte()), ..bulk(1, 0) }; 7];
        sessions[0] = late(1, 0, 2);
        let seen = auto(&line, &sessions, 15);
        let own = row(&format!("{name} busy, beside 6 of 1 MiB"), &seen, 0, (3, 15));
        let other = row(&format!("{name} busy, one of these"), &seen, 1, (3, 15));
        assert!(own.share[UP] >= 0.5 * other.share[UP], "{name}");
    }
}

/// The processors are busy for a while, from the start or later.
#[test]
fn processors_that_were_busy_leave_nothing_behind() {
    fn at_first(t: u64) -> u64 {
        if t < 5 * SECOND { 30_000 } else { 0 }
    }
    fn later(t: u64) -> u64 {
        if (5 * SECOND..10 * SECOND).contains(&t) { 30_000 } else { 0 }
    }
    for (name, turn) in [("busy for 5 s", at_first as fn(u64) -> u64), ("busy from 5 to 10 s", later)] {
        let line = Line { turn, ..line(|_| 50e6, |_| 20_000) };
        let seen = auto(&line, &[bulk(0, 1)], 25);
        row(name, &seen, 0, (1, 5));
        assert!(row(name, &seen, 0, (6, 10)).share[DOWN] >= 60.0);
        let quiet = row(name, &seen, 0, (15, 25));
        assert!(quiet.share[DOWN] >= 90.0 && quiet.p99 <= goal(&line));
    }
}
