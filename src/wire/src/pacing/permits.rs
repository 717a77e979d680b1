//! The gate with a clock, waiters that are futures, and a timer: what flows and the link hold.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

use super::gate::{Answer, FlowHistory, Gate};
use super::law::{Figures, Policy};
use crate::link::{Observer, TimedAck};

/// How often waiters are served when no acknowledgement does it: bytes that never reach the link (a reset stream's)
/// bring none.
const TICK: Duration = Duration::from_millis(25);

/// Hands out one session's budget in one direction. The flows ask it, the link tells it what happens.
///
/// The link must take writes at once: what is permitted must not wait for anything but the line, or the law measures
/// that wait. Its replay buffer is bounded by the budget.
pub struct Pacer {
    state: Mutex<State>,
    clock: Clock,
    /// The timer has to wake earlier than it thinks.
    sooner: Arc<Notify>,
}

struct State {
    gate: Gate<oneshot::Sender<usize>>,
    /// When the timer wakes; `None` while it does not run, as nobody waits.
    wakes_at: Option<Duration>,
}

/// Monotonic, but counted from 1970: the law probes at full tens of seconds, together with all others on the line.
struct Clock {
    started: Instant,
    epoch: Duration,
}

impl Pacer {
    /// A pacer that knows nothing of its path. Flows wait in a tokio runtime with timers.
    pub fn new(policy: Policy) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { gate: Gate::new(policy), wakes_at: None }),
            clock: Clock::start(),
            sooner: Arc::new(Notify::new()),
        })
    }

    /// Waits until the flow may send, and returns how many of the `wanted` bytes (at least one). Ask only for what
    /// could be sent at once: a permit that waits for a window holds back all others. Safe to cancel; what was
    /// already granted then counts for 50 ms.
    pub async fn take(self: &Arc<Self>, history: &mut FlowHistory, wanted: usize) -> usize {
        let receiver = {
            let mut state = self.lock();
            let now = self.clock.now();
            match state.gate.ask(now, history, wanted) {
                Answer::Granted(bytes) => return bytes,
                Answer::Wait(queue) => {
                    let (sender, receiver) = oneshot::channel();
                    state.gate.wait(queue, sender, wanted);
                    self.arm(&mut state, now);
                    receiver
                }
            }
        };
        let granted =
            receiver.await.expect("the gate keeps every waiter until it is served, and we keep the gate");
        history.sent(granted);
        granted
    }

    /// From now on `policy` decides; the pod learns the laptop's choice after the session began.
    pub fn set_policy(&self, policy: Policy) {
        self.lock().gate.set_policy(policy);
    }

    /// What the law has learned.
    pub fn figures(&self) -> Figures {
        self.lock().gate.figures()
    }

    /// Starts the timer, or lets it wake sooner.
    fn arm(self: &Arc<Self>, state: &mut State, now: Duration) {
        match (state.wakes_at, state.next_wake(now)) {
            (None, Some(at)) => {
                state.wakes_at = Some(at);
                tokio::spawn(tick(Arc::downgrade(self), self.sooner.clone(), at - now));
            }
            (Some(_), _) => self.wake_sooner(state, now),
            (None, None) => {}
        }
    }

    /// Whoever waits has started the timer; it may have to wake before it meant to.
    fn wake_sooner(&self, state: &State, now: Duration) {
        if let (Some(planned), Some(at)) = (state.wakes_at, state.next_wake(now))
            && at < planned
        {
            self.sooner.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The gate's numbers stay usable whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Pacer {
    fn written(&self, end: u64) {
        self.lock().gate.written(self.clock.now(), end);
    }

    fn acknowledged(&self, ack: TimedAck) {
        let mut state = self.lock();
        let now = self.clock.now();
        state.gate.acknowledged(now, ack);
        state.serve(now);
        self.wake_sooner(&state, now);
    }

    fn attached(&self, received: u64) {
        let mut state = self.lock();
        let now = self.clock.now();
        state.gate.attached(received);
        // If everything has arrived, no acknowledgement will come.
        state.serve(now);
        self.wake_sooner(&state, now);
    }
}

impl State {
    fn serve(&mut self, now: Duration) {
        self.gate.dispatch(now, |waiter, bytes| waiter.send(bytes).is_ok());
    }

    /// When somebody who waits may be served though nothing is heard until then.
    fn next_wake(&self, now: Duration) -> Option<Duration> {
        let latest = now + TICK;
        self.gate.has_waiters().then(|| self.gate.wake_at(now).map_or(latest, |at| at.clamp(now, latest)))
    }
}

/// Runs while somebody waits.
async fn tick(pacer: Weak<Pacer>, sooner: Arc<Notify>, first: Duration) {
    let mut wait = first;
    loop {
        tokio::select! {
            () = sleep(wait) => {}
            () = sooner.notified() => {}
        }
        let Some(pacer) = pacer.upgrade() else { return };
        let mut state = pacer.lock();
        let now = pacer.clock.now();
        state.serve(now);
        state.wakes_at = state.next_wake(now);
        match state.wakes_at {
            Some(at) => wait = at - now,
            None => return,
        }
    }
}

impl Clock {
    fn start() -> Self {
        // A clock before 1970 costs the common probes, no more.
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), epoch }
    }

    fn now(&self) -> Duration {
        self.epoch + self.started.elapsed()
    }
}

#[cfg(test)]
mod tests;
