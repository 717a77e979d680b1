//! Connections that do everything a network may do, and the dice that decide it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;

use super::super::outgoing::Outgoing;

/// Bytes a connection holds per direction.
const CONNECTION: usize = 64 << 10;

/// Bytes that may wait at an end that has read them and not taken them for frames.
const INPUT_MAX: usize = 256 << 10;

/// xorshift64*.
pub(super) struct Dice(u64);

impl Dice {
    /// `seed` is not 0.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn one_in(&mut self, limit: u64) -> bool {
        self.below(limit) == 0
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    /// Bytes and when they arrive.
    flying: VecDeque<(Duration, Vec<u8>)>,
    /// Since when nothing arrives any more, the end of the connection neither.
    swallows: Option<Duration>,
}

/// One connection; its direction `i` leads to end `i`.
pub(super) struct Wire {
    to: [Pipe; 2],
    closed: bool,
    pub(super) delay: Duration,
    /// Bytes a socket takes and gives at once.
    pub(super) grain: usize,
}

impl Wire {
    pub(super) fn new(dice: &mut Dice) -> Self {
        let delay = Duration::from_micros([0, 300, 20_000, 250_000][dice.below(4) as usize]);
        let grain = [1, 7, 1_000, 50_000, 300_000][dice.below(5) as usize];
        Self { to: Default::default(), closed: false, delay, grain }
    }

    /// What the socket of end `side` takes of `out`.
    pub(super) fn write(&mut self, side: usize, now: Duration, out: &mut Outgoing) {
        let outward = &mut self.to[1 - side];
        let queued: usize = outward.flying.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut room = self.grain.min(CONNECTION.saturating_sub(queued));
        while room > 0 && !out.is_empty() {
            let piece = out.pieces().next().unwrap();
            let bytes = piece[..piece.len().min(room)].to_vec();
            out.advance(bytes.len());
            room -= bytes.len();
            if outward.swallows.is_none() && !self.closed {
                outward.flying.push_back((now + self.delay, bytes));
            }
        }
    }

    /// What has arrived at end `side`, as much as its socket gives at once.
    pub(super) fn read(&mut self, side: usize, now: Duration, input: &mut BytesMut) -> usize {
        let inward = &mut self.to[side];
        let mut read = 0;
        while inward.swallows.is_none() && read < self.grain && input.len() < INPUT_MAX {
            let Some((at, bytes)) = inward.flying.front_mut() else { break };
            if *at > now {
                break;
            }
            let taken = bytes.len().min(self.grain - read);
            input.extend_from_slice(&bytes[..taken]);
            bytes.drain(..taken);
            read += taken;
            if bytes.is_empty() {
                inward.flying.pop_front();
            }
        }
        read
    }

    /// One end closes it: both learn of it once what flies has arrived.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether end `side` sees that it is closed.
    pub(super) fn has_ended(&self, side: usize) -> bool {
        self.closed && self.to[side].flying.is_empty() && self.to[side].swallows.is_none()
    }

    /// Closes it; of what flies all but the first `keep` bytes per direction is lost.
    pub(super) fn reset(&mut self, keep: usize) {
        self.closed = true;
        for pipe in &mut self.to {
            let mut left = keep;
            for (_, bytes) in &mut pipe.flying {
                bytes.truncate(left);
                left -= bytes.len();
            }
            pipe.flying.retain(|(_, bytes)| !bytes.is_empty());
        }
    }

    /// From now on nothing arrives at end `side`.
    pub(super) fn swallow(&mut self, side: usize, now: Duration) {
        self.to[side].swallows.get_or_insert(now);
    }

    /// Since when nothing arrives at end `side`.
    pub(super) fn silent_since(&self, side: usize) -> Option<Duration> {
        self.to[side].swallows
    }

    /// When something arrives next, per direction.
    pub(super) fn arrivals(&self) -> impl Iterator<Item = Duration> {
        self.to.iter().filter_map(|pipe| pipe.flying.front().map(|(at, _)| *at))
    }
}
