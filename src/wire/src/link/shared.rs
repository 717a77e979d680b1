//! One end of a link as its stream, its handle and its attachment share it: the state, who waits for what, and its end when
//! nothing carries it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::end::End;
use super::observer::Observer;
use super::state::{Limits, State};
use crate::causes::chain;

/// Whether something carries the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing: bytes wait.
    Detached,
    /// A connection does.
    Attached,
    /// It is over.
    Ended(End),
}

/// A link at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether something carries it.
    pub phase: Phase,
    /// The last round trip measured: by a greeting, then by pings.
    pub rtt: Option<Duration>,
    /// Bytes written and not acknowledged.
    pub in_flight: u64,
    /// Memory that takes, about, in bytes.
    pub replay_buffer: usize,
    /// Bytes received that the layer above has not read.
    pub unread: usize,
    /// Times it went on over another connection.
    pub drops_survived: u64,
    /// How the last attachment ended, or why the last attempt failed, causes included.
    pub last_error: Option<String>,
}

/// What the stream, the handle and the attachment of one link share.
pub(super) struct Shared {
    inner: Mutex<Inner>,
    origin: Instant,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) observer: OnceLock<Arc<dyn Observer>>,
}

pub(super) struct Inner {
    pub(super) state: State,
    /// Waits for bytes, or the end.
    pub(super) reader: Option<Waker>,
    /// The attachment's task.
    pub(super) pump: Option<Waker>,
    /// It can send more.
    pub(super) hungry: bool,
    last_error: Option<String>,
}

impl Shared {
    pub(super) fn start(limits: Limits) -> Arc<Self> {
        let state = State::new(limits, Duration::ZERO);
        let inner = Inner { state, reader: None, pump: None, hungry: false, last_error: None };
        let shared = Arc::new(Self {
            inner: Mutex::new(inner),
            origin: Instant::now(),
            phase: watch::Sender::new(Phase::Detached),
            observer: OnceLock::new(),
        });
        tokio::spawn(expire(shared.clone()));
        shared
    }

    pub(super) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The moment `deadline` on tokio's clock, or a far one.
    pub(super) fn at(&self, deadline: Duration) -> Instant {
        self.origin + deadline.min(self.now() + Duration::from_secs(3600))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state machine has no way to panic half way through a change that matters.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells everybody whom that concerns.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut inner = self.lock();
        let result = change(&mut inner.state);
        inner.wake_pump();
        self.publish(&mut inner);
        result
    }

    /// Tells the phase, and the reader if there is something for it.
    pub(super) fn publish(&self, inner: &mut Inner) {
        let phase = match inner.state.ended() {
            Some(end) => Phase::Ended(end),
            None if inner.state.is_attached() => Phase::Attached,
            None => Phase::Detached,
        };
        self.phase.send_if_modified(|current| std::mem::replace(current, phase) != phase);
        if inner.state.ended().is_some() {
            inner.wake_pump();
            inner.wake_reader();
        }
    }

    pub(super) fn observe(&self, tell: impl FnOnce(&dyn Observer)) {
        if let Some(observer) = self.observer.get() {
            tell(&**observer);
        }
    }

    /// Remembers what went wrong, for the status.
    pub(super) fn note(&self, error: &(dyn std::error::Error + 'static)) {
        let text = chain(error);
        tracing::debug!(error = text, "link connection ended");
        self.lock().last_error = Some(text);
    }

    pub(super) async fn ended(&self) -> End {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Ended(end) = *phase.borrow_and_update() {
                return end;
            }
            // The sender lives in `self`, so waiting cannot fail.
            let _ = phase.changed().await;
        }
    }

    pub(super) fn status(&self) -> Status {
        let inner = self.lock();
        let state = &inner.state;
        Status {
            phase: *self.phase.borrow(),
            rtt: state.rtt(),
            in_flight: state.in_flight(),
            replay_buffer: state.held(),
            unread: state.unread(),
            drops_survived: state.attachments().saturating_sub(1),
            last_error: inner.last_error.clone(),
        }
    }
}

impl Inner {
    pub(super) fn wake_pump(&mut self) {
        if let Some(waker) = self.pump.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }
}

/// Ends a link that nothing carries for too long.
async fn expire(shared: Arc<Shared>) {
    let mut phase = shared.phase.subscribe();
    loop {
        let now = shared.now();
        let at = shared.change(|state| {
            state.expire(now);
            state.expires_at()
        });
        if matches!(*phase.borrow_and_update(), Phase::Ended(_)) {
            return;
        }
        let expired = async {
            match at {
                Some(at) => sleep_until(shared.at(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expired => {}
            _ = phase.changed() => {}
        }
    }
}
