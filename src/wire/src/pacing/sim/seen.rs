//! What a simulation saw.

use super::{Line, SECOND};

/// What was seen.
pub(super) struct Seen {
    line: Line,
    /// Per session: when a ping was sent, how long its answer took.
    pub(super) pings: Vec<Vec<(u64, u64)>>,
    /// Per session and direction: bytes arrived in each tenth of a second.
    moved: Vec<[Vec<u64>; 2]>,
    /// Time to finish each burst.
    pub(super) bursts: Vec<u64>,
}

impl Seen {
    pub(super) fn nothing(line: &Line, sessions: usize) -> Self {
        Self {
            line: line.clone(),
            pings: vec![Vec::new(); sessions],
            moved: vec![Default::default(); sessions],
            bursts: Vec::new(),
        }
    }

    /// A session's bytes arrived.
    pub(super) fn moved(&mut self, session: usize, direction: usize, now: u64, bytes: u64) {
        let moved = &mut self.moved[session][direction];
        let tenth = (now * 10 / SECOND) as usize;
        if moved.len() <= tenth {
            moved.resize(tenth + 1, 0);
        }
        moved[tenth] += bytes;
    }

    /// Percentile of the session's pings sent in the seconds `window`, in milliseconds.
    pub(super) fn ping(&self, session: usize, window: (u64, u64), percent: usize) -> f64 {
        let mut times: Vec<u64> = self.pings[session]
            .iter()
            .filter(|(at, _)| (window.0 * SECOND..window.1 * SECOND).contains(at))
            .map(|&(_, took)| took)
            .collect();
        times.sort_unstable();
        assert!(!times.is_empty(), "no ping came back");
        times[(times.len() * percent / 100).min(times.len() - 1)] as f64 / 1e3
    }

    /// Part of the line one session moved in a direction in the seconds `window`, in percent.
    pub(super) fn share(&self, session: usize, direction: usize, window: (u64, u64)) -> f64 {
        let tenths = window.0 * 10..window.1 * 10;
        let room: f64 = tenths.clone().map(|tenth| (self.line.rate)(tenth * SECOND / 10) / 80.0).sum();
        let moved = &self.moved[session][direction];
        let moved: u64 = tenths.map(|tenth| moved.get(tenth as usize).copied().unwrap_or(0)).sum();
        moved as f64 * 100.0 / room
    }
}
