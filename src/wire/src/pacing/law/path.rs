//! What the acknowledgements say about the path: delivery rate, base round trip, queue of our direction.
//!
//! Spans are seconds, rates bytes per second, both `f64`.

use std::collections::VecDeque;
use std::time::Duration;

use super::NEAR;
use crate::link::TimedAck;

/// Writes closer together than this (and [`JOIN_TIME`]) share a record.
const JOIN_BYTES: u64 = 8 << 10;

/// See [`JOIN_BYTES`].
const JOIN_TIME: Duration = Duration::from_micros(500);

/// Records kept. The largest budget in records of [`JOIN_BYTES`], twice; beyond it writes share the last record.
pub(super) const MAX_RECORDS: usize = 4096;

/// A write is *quiet*, so its round trip shows the path without our queue, when no more than this part of the path's
/// content is under way...
const QUIET: f64 = 0.6;

/// ...or no more than these bytes.
const QUIET_BYTES: f64 = 16_384.0;

/// A quiet sample replaces minima not confirmed for so long.
const MINIMUM_AGE: Duration = Duration::from_secs(10);

/// Shortest interval a rate is computed over, in seconds: below it loopback's bunched acknowledgements give absurd rates.
const RATE_INTERVAL: f64 = 0.001;

/// The rate is the highest of the last so many base round trips...
const RATE_ROUNDS: f64 = 10.0;

/// ...and no fewer and no more than these seconds: scheduling noise below, slow forgetting above.
const RATE_WINDOW: (f64, f64) = (0.1, 1.5);

/// A rate within this part of the window after a higher one is not worth keeping; bounds what is kept.
const RATE_GRAIN: f64 = 1.0 / 32.0;

/// Smallest round trip believed, in seconds.
const RTT_MIN: f64 = 20e-6;

/// The path as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Path {
    /// Offset up to which bytes were given to the link.
    pub(super) sent: u64,
    /// Offset up to which they arrived.
    pub(super) acked: u64,
    /// Highest delivery rate of late; 0 = unknown.
    pub(super) rate: f64,
    /// Round trip of the last acknowledgement.
    pub(super) last_rtt: Option<f64>,
    records: VecDeque<Record>,
    rates: VecDeque<(Duration, f64)>,
    minimum: Option<Minimum>,
    /// A round trip has been shorter than [`NEAR`].
    near: bool,
    last_ack_at: Duration,
    /// When the newest acknowledged record was sent.
    acked_sent_at: Duration,
}

#[derive(Debug)]
struct Minimum {
    rtt: f64,
    /// Peer's clock minus ours, plus the time of our direction.
    one_way: f64,
    confirmed_at: Duration,
}

/// Bytes given to the link at one time, and what was known then.
#[derive(Debug)]
struct Record {
    start: u64,
    end: u64,
    sent_at: Duration,
    acked: u64,
    acked_at: Duration,
    acked_sent_at: Duration,
    /// No flow waited: the rate measured may be the application's.
    idle: bool,
    quiet: bool,
}

/// What one acknowledgement says.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) sent_at: Duration,
    pub(super) rtt: f64,
    pub(super) one_way: f64,
    /// Delay of our direction above its minimum.
    pub(super) queue: f64,
    /// `None` when it says nothing about the path.
    pub(super) rate: Option<f64>,
}

impl Path {
    pub(super) fn base_rtt(&self) -> Option<f64> {
        self.minimum.as_ref().map(|minimum| minimum.rtt)
    }

    /// Whether both ends are on one machine or in one building. Once seen it stays true until all is forgotten: a path
    /// that takes longer later is one whose processors are busy.
    pub(super) fn is_near(&self) -> bool {
        self.near
    }

    /// How long the peer has acknowledged nothing although bytes were under way.
    pub(super) fn silence(&self, now: Duration) -> Duration {
        if self.records.is_empty() { Duration::ZERO } else { now.saturating_sub(self.last_ack_at) }
    }

    /// How long ago the minima were seen.
    pub(super) fn unconfirmed(&self, now: Duration) -> Duration {
        self.minimum.as_ref().map_or(Duration::MAX, |minimum| now.saturating_sub(minimum.confirmed_at))
    }

    pub(super) fn written(&mut self, now: Duration, end: u64, backlog: bool) {
        if end <= self.sent {
            return;
        }
        if self.records.is_empty() {
            self.last_ack_at = now;
            self.acked_sent_at = now;
        }
        let content = QUIET * self.rate * self.base_rtt().unwrap_or_default();
        let quiet = (end - self.acked) as f64 <= content.max(QUIET_BYTES);
        let start = self.sent;
        self.sent = end;
        let full = self.records.len() >= MAX_RECORDS;
        // The first record is never joined: an acknowledgement must end it soon.
        let joins = self.records.len() > 1;
        if let Some(last) = self.records.back_mut()
            && (full
                || joins && end - last.start < JOIN_BYTES && now.saturating_sub(last.sent_at) < JOIN_TIME)
        {
            last.end = end;
            last.idle &= !backlog;
            last.quiet &= quiet;
            return;
        }
        self.records.push_back(Record {
            start,
            end,
            sent_at: now,
            acked: self.acked,
            acked_at: self.last_ack_at,
            acked_sent_at: self.acked_sent_at,
            idle: !backlog,
            quiet,
        });
    }

    /// `None` when the acknowledgement ends no record.
    pub(super) fn acknowledged(&mut self, now: Duration, ack: TimedAck) -> Option<Sample> {
        let offset = ack.offset.min(self.sent);
        if offset <= self.acked {
            return None;
        }
        self.acked = offset;
        self.last_ack_at = now;
        let done = self.records.partition_point(|record| record.end <= offset);
        let record = self.records.drain(..done).next_back()?;
        self.acked_sent_at = record.sent_at;
        let rtt = (span(now, record.sent_at) - ack.held.as_secs_f64()).max(RTT_MIN);
        self.last_rtt = Some(rtt);
        self.near |= rtt < NEAR;
        let one_way = signed_span(ack.received_at, record.sent_at);
        let queue = self.learn_minimum(now, record.quiet, rtt, one_way);
        let rate = self.learn_rate(now, offset, &record);
        Some(Sample { sent_at: record.sent_at, rtt, one_way, queue, rate })
    }

    /// Lowers the rate although the window still holds higher ones: the path got slower.
    pub(super) fn lower_rate(&mut self, now: Duration, rate: f64) {
        self.rates.clear();
        self.rates.push_back((now, rate));
        self.rate = rate;
    }

    /// New minima, found by a probe; raised by at most `limit` seconds. Returns by how much our direction's rose.
    pub(super) fn rebase(&mut self, now: Duration, rtt: f64, one_way: f64, limit: f64) -> f64 {
        let old = self.minimum.replace(Minimum { rtt, one_way, confirmed_at: now });
        let (Some(old), Some(new)) = (old, &mut self.minimum) else { return 0.0 };
        new.rtt = rtt.min(old.rtt + limit);
        new.one_way = one_way.min(old.one_way + limit);
        new.one_way - old.one_way
    }

    /// Forgets all but the offsets.
    pub(super) fn forget(&mut self) {
        *self = Self { sent: self.sent, acked: self.acked, ..Self::default() };
    }

    /// The peer has all bytes before `offset`; nothing is known about when they arrived.
    pub(super) fn received(&mut self, offset: u64) {
        self.acked = self.acked.max(offset.min(self.sent));
    }

    #[cfg(test)]
    pub(super) fn records(&self) -> usize {
        self.records.len()
    }

    /// Returns the queue's delay.
    fn learn_minimum(&mut self, now: Duration, quiet: bool, rtt: f64, one_way: f64) -> f64 {
        let minimum = self.minimum.get_or_insert(Minimum { rtt, one_way, confirmed_at: now });
        let old = quiet && now.saturating_sub(minimum.confirmed_at) > MINIMUM_AGE;
        // A queue cannot take longer than the round trip it is part of: one of the clocks has jumped.
        let jumped = one_way - minimum.one_way > rtt;
        if rtt <= minimum.rtt || one_way <= minimum.one_way || old {
            minimum.confirmed_at = now;
        }
        if rtt <= minimum.rtt || old {
            minimum.rtt = rtt;
        }
        if one_way <= minimum.one_way || old || jumped {
            minimum.one_way = one_way;
        }
        one_way - minimum.one_way
    }

    fn learn_rate(&mut self, now: Duration, offset: u64, record: &Record) -> Option<f64> {
        // The longer of both intervals: acknowledgements bunched on their way would give too high a rate.
        let interval = span(now, record.acked_at)
            .max(span(record.sent_at, record.acked_sent_at))
            .max(self.base_rtt().unwrap_or_default())
            .max(RATE_INTERVAL);
        let rate = (offset - record.acked) as f64 / interval;
        if record.idle && rate <= self.rate {
            return None;
        }
        let window = (RATE_ROUNDS * self.base_rtt().unwrap_or_default()).clamp(RATE_WINDOW.0, RATE_WINDOW.1);
        while self.rates.front().is_some_and(|&(at, _)| span(now, at) > window) {
            self.rates.pop_front();
        }
        while self.rates.back().is_some_and(|&(_, lower)| lower <= rate) {
            self.rates.pop_back();
        }
        if self.rates.back().is_none_or(|&(at, _)| span(now, at) > RATE_GRAIN * window) {
            self.rates.push_back((now, rate));
        }
        self.rate = self.rates.front().map_or(rate, |&(_, highest)| highest);
        Some(rate)
    }
}

fn span(later: Duration, earlier: Duration) -> f64 {
    later.saturating_sub(earlier).as_secs_f64()
}

/// Difference of two clocks; exact, as their zeros may be decades apart.
fn signed_span(a: Duration, b: Duration) -> f64 {
    if a >= b { (a - b).as_secs_f64() } else { -(b - a).as_secs_f64() }
}
