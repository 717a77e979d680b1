//! What happens in a simulation, in order of time.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::link::TimedAck;

#[derive(Clone, Copy)]
pub(super) enum Event {
    /// An end of a session gets its turn.
    Turn {
        session: usize,
        end: usize,
    },
    Arrive {
        session: usize,
        direction: usize,
        link: u64,
        payload: u64,
        ping: Option<u64>,
    },
    AckTimer {
        session: usize,
        direction: usize,
    },
    AckArrive {
        session: usize,
        direction: usize,
        ack: TimedAck,
    },
    AckDone {
        session: usize,
        direction: usize,
        ack: TimedAck,
    },
    Ping {
        session: usize,
    },
    /// The pace allows more.
    Pace {
        session: usize,
        direction: usize,
    },
    Tick,
    Burst,
}

/// What is still to happen.
#[derive(Default)]
pub(super) struct Events {
    planned: BinaryHeap<Reverse<Timed>>,
    /// Of what happens at the same time, what was planned first comes first.
    sequence: u64,
}

impl Events {
    /// Plans one, in microseconds.
    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.planned.push(Reverse(Timed { at, sequence: self.sequence, event }));
    }

    /// The next one, and when it happens.
    pub(super) fn pop(&mut self) -> Option<(u64, Event)> {
        self.planned.pop().map(|Reverse(Timed { at, event, .. })| (at, event))
    }
}

struct Timed {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}
