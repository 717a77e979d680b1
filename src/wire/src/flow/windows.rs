//! Stream windows that follow what arrives: one flow must be able to fill a long, fast path, and flows nobody reads
//! must stay cheap.
//!
//! HTTP/2 has one initial window for all streams of a connection, and changing it changes the open ones too. So the
//! window grows with the whole session's rate, but only as far as all flows that hold data, should none be read any more,
//! stay within 256 MiB ([`LARGEST_FLOWS`]). Flows that hold none cost no window: a thousand idle ones slow nobody down, and when one of them
//! is not read any more, that is seen within [`PERIOD`].
//!
//! A smaller window may leave a sender with nothing although all it sent has been used: h2 0.4 keeps up to a third of a
//! window to itself until more is used, and does not look again when the window shrinks. So once the peer has confirmed
//! a smaller window, every flow that waits for data makes h2 look again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::STREAM_WINDOW;
use crate::pacing::Pacer;

/// Largest stream window: the largest budget.
const LARGEST: u64 = 16 << 20;

/// So many flows that hold data may have [`LARGEST`] each; with more, the window falls with the square of their number. In
/// whatever order flows stop being read, each holds no more than the window of its turn, and these sum up to twice what the
/// first eight hold: 256 MiB, beyond the [`STREAM_WINDOW`] each has anyway and what arrives until a smaller window is
/// confirmed.
const LARGEST_FLOWS: u64 = 8;

/// Window over what arrives in one round trip: a window no larger than that would itself be what limits the rate.
const HEADROOM: f64 = 2.0;

/// Added to the round trip, for the queue the pacing keeps and the peer's scheduling.
const SLACK: Duration = Duration::from_millis(20);

/// Round trip assumed as long as none is known.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);

/// Shortest time the rate is taken over. Also how often the window may change, and so SETTINGS are sent, and how often a
/// large one is looked at: 20 times a second, but never more than [`KEEP`] after the last transfer.
const PERIOD: Duration = Duration::from_millis(50);

/// A window larger than needed is kept for so long: transfers come in groups.
const KEEP: Duration = Duration::from_secs(10);

/// Decides the stream window of one end of a session.
pub(super) struct Windows {
    /// Where the round trip comes from; `None` leaves the window as it is.
    pacer: Option<Arc<Pacer>>,
    state: Mutex<State>,
    changed: Notify,
    /// The peer keeps to a smaller window from now on.
    shrunk: watch::Sender<()>,
}

struct State {
    flows: u64,
    /// Those of them that took data and have not used it.
    holding: u64,
    /// Bytes used up since `since`.
    used: u64,
    since: Instant,
    /// As the peer was last told.
    window: u32,
    wanted: u32,
    /// A smaller window was told, and it is not known whether the peer has confirmed it.
    shrinking: bool,
    /// When so much was last needed.
    needed_at: Instant,
}

/// One open flow, counted.
pub(super) struct Counted {
    windows: Arc<Windows>,
    holds: bool,
    shrunk: watch::Receiver<()>,
}

impl Windows {
    pub(super) fn new(pacer: Option<Arc<Pacer>>) -> Arc<Self> {
        let state = State::new(Instant::now());
        let shrunk = watch::Sender::new(());
        Arc::new(Self { pacer, state: Mutex::new(state), changed: Notify::new(), shrunk })
    }

    pub(super) fn count(self: &Arc<Self>) -> Counted {
        self.lock().flows += 1;
        Counted { windows: self.clone(), holds: false, shrunk: self.shrunk.subscribe() }
    }

    /// Flows that are open now.
    pub(super) fn flows(&self) -> usize {
        self.lock().flows as usize
    }

    /// Waits for a window to tell the peer: another one, or the same again to learn whether it has confirmed a smaller
    /// one. Safe to cancel.
    pub(super) async fn changed(&self) -> u32 {
        loop {
            let look = {
                let state = self.lock();
                state.shrinking || state.window > STREAM_WINDOW
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(PERIOD), if look => self.lock().look(Instant::now()),
            }
            let state = self.lock();
            if state.wanted != state.window || state.shrinking {
                return state.wanted;
            }
        }
    }

    /// The peer is being told, and so has confirmed whatever it was told before. Without this call, as while it has not
    /// confirmed the last change, the next round trip asks again.
    pub(super) fn told(&self, window: u32) {
        let mut state = self.lock();
        if state.shrinking {
            self.shrunk.send_replace(());
        }
        state.shrinking = window < state.window;
        state.window = window;
    }

    fn used(&self, bytes: usize, held: bool) {
        let mut state = self.lock();
        state.holding -= u64::from(held);
        let Some(pacer) = &self.pacer else { return };
        state.used += bytes as u64;
        let now = Instant::now();
        if now - state.since < PERIOD {
            return;
        }
        let path = pacer.figures();
        let rtt = match path.base_rtt {
            Duration::ZERO => UNKNOWN_RTT,
            rtt => rtt + path.noise,
        };
        if now - state.since < rtt {
            return;
        }
        state.decide(now, rtt + SLACK);
        if state.wanted != state.window {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers stay usable whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            flows: 0,
            holding: 0,
            used: 0,
            since: now,
            window: STREAM_WINDOW,
            wanted: STREAM_WINDOW,
            shrinking: false,
            needed_at: now,
        }
    }

    fn decide(&mut self, now: Instant, round: Duration) {
        let rate = self.used as f64 / (now - self.since).as_secs_f64();
        (self.used, self.since) = (0, now);
        let needed = (HEADROOM * rate * round.as_secs_f64()) as u64;
        let room = self.room();
        let needed = needed.clamp(STREAM_WINDOW.into(), room.into()) as u32;
        let window = self.window.min(room);
        // Small corrections are not worth a frame.
        if needed >= window / 2 {
            self.needed_at = now;
        }
        let grows = needed > window + window / 4 || needed > window && needed == room;
        self.wanted = if grows || now - self.needed_at > KEEP { needed } else { window };
    }

    /// Nobody may be using anything: because all is idle, or because nothing is read any more.
    fn look(&mut self, now: Instant) {
        self.wanted = match now - self.needed_at {
            idle if idle > KEEP + PERIOD => STREAM_WINDOW,
            _ => self.wanted.min(self.room()),
        };
    }

    /// The largest window for as many as hold data, see [`LARGEST_FLOWS`].
    fn room(&self) -> u32 {
        let holding = self.holding.max(LARGEST_FLOWS);
        (LARGEST * LARGEST_FLOWS.pow(2) / holding.pow(2)).max(STREAM_WINDOW.into()) as u32
    }
}

impl Counted {
    /// Tells that this flow took data. What follows it may wait unread from now on.
    pub(super) fn took(&mut self) {
        if !std::mem::replace(&mut self.holds, true) {
            self.windows.lock().holding += 1;
        }
    }

    /// Tells that `bytes` of this flow are used up.
    pub(super) fn used(&mut self, bytes: usize) {
        self.windows.used(bytes, std::mem::take(&mut self.holds));
    }

    /// Waits until the peer has confirmed a smaller window, once for each. Safe to cancel.
    pub(super) async fn shrunk(&mut self) {
        // The sender lives in `windows`, so waiting cannot fail.
        let _ = self.shrunk.changed().await;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.windows.lock();
        state.flows -= 1;
        state.holding -= u64::from(self.holds);
    }
}

#[cfg(test)]
mod tests;
