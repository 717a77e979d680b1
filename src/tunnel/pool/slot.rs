//! One tunnel of a pool: link, session, and what keeps them going.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kshuttle_wire::link::{self, LinkHandle};
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::ssh::Session;
use super::{DialError, Route, Shared};

/// Time for a fresh byte stream, through proxies, to kubelet and runtime.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// First pause between attempts; the attempt right after a loss waits for nothing.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Longest pause, before jitter of up to as much again: an API server that comes back meets a few askers a second
/// even from a hundred laptops.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A tunnel that stood this long starts again with short pauses.
const STABLE: Duration = Duration::from_secs(10);

/// An outage that is told to the user by itself; shorter ones are in the log.
const NOTABLE_OUTAGE: Duration = Duration::from_secs(2);

/// One tunnel, as the pool sees it.
pub(super) struct Slot {
    index: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<LinkHandle>,
    /// There once login is through, until the link is lost.
    session: Option<Session>,
    /// What the byte stream is made of.
    way: String,
    /// Attachments lost that the link survived.
    survived: u64,
    last_error: Option<DialError>,
    down_since: Option<Instant>,
}

/// What is known about one tunnel.
#[derive(Debug, Clone)]
pub struct TunnelStatus {
    /// Its number, from 1.
    pub number: usize,
    /// Whether new flows may use it now.
    pub up: bool,
    /// What its byte stream is made of, e.g. `websocket`.
    pub way: String,
    /// Losses of the byte stream that no flow noticed.
    pub survived: u64,
    /// Flows in it.
    pub flows: usize,
    /// For how long there has been no byte stream.
    pub down_for: Option<Duration>,
    /// Why the last attempt or byte stream failed.
    pub last_error: Option<String>,
    /// What the link says about itself, if there is one.
    pub link: Option<link::Status>,
}

impl Slot {
    pub(super) fn new(index: usize) -> Self {
        Self { index, state: Mutex::default() }
    }

    /// Its load and session, if a flow opened now would reach the pod now.
    pub(super) fn ready(&self) -> Option<((u64, usize), Session)> {
        let state = self.lock();
        let (link, session) = (state.link.as_ref()?, state.session.as_ref()?);
        let status = link.status();
        status.attached.then(|| ((status.in_flight, session.open_flows()), session.clone()))
    }

    /// What its byte stream is made of, once login is through.
    pub(super) fn way(&self) -> Option<String> {
        let state = self.lock();
        state.session.as_ref().map(|_| state.way.clone())
    }

    pub(super) fn last_error(&self) -> Option<DialError> {
        self.lock().last_error.clone()
    }

    pub(super) fn status(&self) -> TunnelStatus {
        let state = self.lock();
        let link = state.link.as_ref().map(LinkHandle::status);
        TunnelStatus {
            number: self.index + 1,
            up: state.session.is_some() && link.as_ref().is_some_and(|link| link.attached),
            way: state.way.clone(),
            survived: state.survived,
            flows: state.session.as_ref().map_or(0, Session::open_flows),
            down_for: state.down_since.map(|since| since.elapsed()),
            last_error: state.last_error.as_ref().map(ToString::to_string),
            link,
        }
    }

    /// Asks the peer for a sign of life.
    pub(super) fn probe(&self) {
        if let Some(link) = &self.lock().link {
            link.probe();
        }
    }

    /// Says goodbye.
    pub(super) async fn close(&self) {
        let session = self.lock().session.take();
        if let Some(session) = session {
            session.close().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each use is a single step; a panic cannot leave a half-made state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
