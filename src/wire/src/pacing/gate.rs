//! Who gets the budget: one queue of chunks over all flows, sparse flows first. No clock, no I/O, no tasks;
//! [`super::permits`] adds them.

use std::collections::VecDeque;
use std::time::Duration;

use super::law::{BUDGET_MIN, Figures, Law, Policy};
use crate::link::TimedAck;

/// A flow with no more bytes than this in the last [`SPARSE_TIME`] is sparse: an interactive one, or a new one until
/// it proves to be a transfer. The first answer of most servers fits.
const SPARSE_BYTES: u64 = 16 << 10;

/// See [`SPARSE_BYTES`].
const SPARSE_TIME: Duration = Duration::from_millis(100);

/// Chunks a budget is handed out in: many enough that flows take turns within a round trip.
const CHUNKS: u64 = 16;

/// Smallest chunk in bytes: below, the headers of four layers (about 90 bytes) cost more than 5 %.
const CHUNK_MIN: u64 = 2 << 10;

/// Largest chunk: one HTTP/2 frame.
const CHUNK_MAX: u64 = 64 << 10;

/// Sparse flows may exceed the budget by a quarter and this much at most, in bytes; on slow lines by the budget.
const SPARSE_EXCESS: u64 = 64 << 10;

/// Permitted bytes the link has not seen after this long never come: HTTP/2 drops what a reset stream had queued.
/// Counted for ever they would fill the budget and stop the session.
const ADMITTED_AGE: Duration = Duration::from_millis(50);

/// How far ahead of its pace a session may be: more than the timers' grain, less than a queue that is felt.
const BURST: Duration = Duration::from_millis(2);

/// How late a timer may be so that what it missed is made up for. Only after the pace held somebody back: time in
/// which nobody waited is lost, or the line would get it as one burst.
const LATE: Duration = Duration::from_millis(20);

/// Permits given within this time share an entry; so there are at most 50 entries.
const ADMITTED_GRAIN: Duration = Duration::from_millis(1);

/// What one flow has sent of late.
#[derive(Debug, Default)]
pub struct FlowHistory {
    bytes: u64,
    since: Duration,
}

impl FlowHistory {
    fn is_sparse(&mut self, now: Duration, wanted: usize) -> bool {
        if now.saturating_sub(self.since) > SPARSE_TIME {
            *self = Self { bytes: 0, since: now };
        }
        self.bytes + wanted as u64 <= SPARSE_BYTES
    }

    /// Tells that `bytes` were permitted.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

/// Answer to a flow that asks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// So many bytes now.
    Granted(usize),
    /// Wait in this queue.
    Wait(Queue),
}

/// The two queues of waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    Sparse,
    Bulk,
}

/// The budget, what was given of it, and who waits. `W` is what stands for a waiter.
pub(crate) struct Gate<W> {
    law: Law,
    /// When, and how many bytes of it the link has not seen.
    admitted: VecDeque<(Duration, u64)>,
    /// Sum of `admitted`.
    pending: u64,
    sparse: VecDeque<Waiter<W>>,
    bulk: VecDeque<Waiter<W>>,
    /// When what was granted will have left, at the law's pace.
    paced_until: Duration,
    /// The pace held somebody back since the last grant.
    held_back: bool,
}

struct Waiter<W> {
    who: W,
    wanted: usize,
}

impl<W> Gate<W> {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            law: Law::new(policy),
            admitted: VecDeque::new(),
            pending: 0,
            sparse: VecDeque::new(),
            bulk: VecDeque::new(),
            paced_until: Duration::ZERO,
            held_back: false,
        }
    }

    /// A flow wants to send `wanted` bytes (at least one).
    pub(crate) fn ask(&mut self, now: Duration, history: &mut FlowHistory, wanted: usize) -> Answer {
        self.age(now);
        let (queue, granted) = if history.is_sparse(now, wanted) {
            (Queue::Sparse, self.sparse_fits().then_some(wanted))
        } else {
            (Queue::Bulk, if self.bulk.is_empty() { self.fits(now, wanted) } else { None })
        };
        match granted {
            Some(bytes) => {
                history.sent(bytes);
                self.admit(now, bytes);
                Answer::Granted(bytes)
            }
            None => Answer::Wait(queue),
        }
    }

    /// Puts a flow whose answer was to wait into its queue.
    pub(crate) fn wait(&mut self, queue: Queue, who: W, wanted: usize) {
        let waiter = Waiter { who, wanted };
        match queue {
            Queue::Sparse => self.sparse.push_back(waiter),
            Queue::Bulk => self.bulk.push_back(waiter),
        }
    }

    /// Gives what the budget allows. `grant` is false when the waiter is gone: it gets nothing and counts nothing.
    pub(crate) fn dispatch(&mut self, now: Duration, mut grant: impl FnMut(W, usize) -> bool) {
        self.age(now);
        while self.sparse_fits()
            && let Some(Waiter { who, wanted }) = self.sparse.pop_front()
        {
            if grant(who, wanted) {
                self.admit(now, wanted);
            }
        }
        while let Some(wanted) = self.bulk.front().map(|waiter| waiter.wanted)
            && let Some(bytes) = self.fits(now, wanted)
            && let Some(Waiter { who, .. }) = self.bulk.pop_front()
        {
            if grant(who, bytes) {
                self.admit(now, bytes);
            }
        }
    }

    /// The link took bytes up to the offset `end`, HTTP/2's and SSH's own among them.
    pub(crate) fn written(&mut self, now: Duration, end: u64) {
        let mut seen = end.saturating_sub(self.law.sent());
        while seen > 0
            && let Some((_, bytes)) = self.admitted.front_mut()
        {
            let part = seen.min(*bytes);
            *bytes -= part;
            seen -= part;
            self.pending -= part;
            if *bytes == 0 {
                self.admitted.pop_front();
            }
        }
        self.law.written(now, end, self.has_bulk());
    }

    /// The peer acknowledged. [`dispatch`](Self::dispatch) afterwards.
    pub(crate) fn acknowledged(&mut self, now: Duration, ack: TimedAck) {
        self.law.acknowledged(now, ack, self.has_bulk());
    }

    /// Another connection carries the link.
    pub(crate) fn attached(&mut self, received: u64) {
        self.law.attached(received);
        // What was permitted at the old path's pace left long ago, or leaves at once.
        (self.paced_until, self.held_back) = (Duration::ZERO, false);
    }

    pub(crate) fn has_waiters(&self) -> bool {
        !self.sparse.is_empty() || self.has_bulk()
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.law.set_policy(policy);
    }

    pub(crate) fn figures(&self) -> Figures {
        self.law.figures()
    }

    fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    fn in_flight(&self) -> u64 {
        self.law.in_flight() + self.pending
    }

    fn sparse_fits(&self) -> bool {
        let budget = self.law.budget();
        self.in_flight() <= budget + budget / 4 + budget.clamp(BUDGET_MIN as u64, SPARSE_EXCESS)
    }

    /// Bytes of a chunk the budget has room for. With nothing under way there is always room: no acknowledgement
    /// would come that could make any.
    fn fits(&mut self, now: Duration, wanted: usize) -> Option<usize> {
        if self.paced_until > now + BURST {
            self.held_back = true;
            return None;
        }
        let budget = self.law.budget();
        let chunk = (wanted as u64).min((budget / CHUNKS).clamp(CHUNK_MIN, CHUNK_MAX));
        let in_flight = self.in_flight();
        (in_flight == 0 || in_flight + chunk <= budget).then_some(chunk as usize)
    }

    /// When [`dispatch`](Self::dispatch) may give more though nothing is acknowledged until then.
    pub(crate) fn wake_at(&self, now: Duration) -> Option<Duration> {
        let waits = self.has_bulk() && self.paced_until > now + BURST;
        waits.then(|| self.paced_until.saturating_sub(BURST))
    }

    fn admit(&mut self, now: Duration, bytes: usize) {
        if let Some(pace) = self.law.pace() {
            let late = if self.held_back { LATE + self.law.noise() } else { Duration::ZERO };
            self.paced_until =
                self.paced_until.max(now.saturating_sub(late)) + Duration::from_secs_f64(bytes as f64 / pace);
        }
        self.held_back = false;
        self.pending += bytes as u64;
        match self.admitted.back_mut() {
            Some((at, sum)) if now.saturating_sub(*at) < ADMITTED_GRAIN => *sum += bytes as u64,
            _ => self.admitted.push_back((now, bytes as u64)),
        }
    }

    fn age(&mut self, now: Duration) {
        while let Some(&(at, bytes)) = self.admitted.front()
            && now.saturating_sub(at) > ADMITTED_AGE
        {
            self.pending -= bytes;
            self.admitted.pop_front();
        }
    }
}
