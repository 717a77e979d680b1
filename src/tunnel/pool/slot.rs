//! One tunnel of a pool: what is known of it, and what makes it again whenever it ends.
//!
//! ```text
//! run(): a route ──▶ stand(): one after the other ─┬─ our server ──▶ linked.rs: a link, and a session over it
//!          another one: all is forgotten           └─ any other ───▶ stock.rs: plain SSH
//! ```

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use kshuttle_wire::link::hello::HelloError;
use kshuttle_wire::link::{AttachError, Detached, LinkHandle, Phase};
use tokio::time::{Instant, timeout};

use super::super::ssh::Session;
use super::load::Load;
use super::status::TunnelStatus;
use super::{DialError, Dialed, Route, Shared, linked, stock};

/// Time for a fresh byte stream, through proxies, to kubelet and runtime.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses after failed attempts; the attempt right after a loss waits for nothing. With jitter up to twice as long: an
/// API server that comes back meets a few askers a second even from a hundred laptops.
pub(super) const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_secs(1))
    .with_jitter()
    .without_max_times();

/// Pause after a lost link. Links are lost rarely, and a new login costs both ends more than an attachment.
const LINK_PAUSES: ExponentialBuilder = PAUSES.with_max_delay(Duration::from_secs(5));

/// Pause after a renewal that failed; the old byte stream still works.
pub(super) const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

/// A byte stream that lasted this long ends a series of failures.
pub(super) const STABLE: Duration = Duration::from_secs(10);

/// Time for a goodbye to reach the pod.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// An outage of one tunnel that is worth a line in the log.
const NOTABLE_OUTAGE: Duration = Duration::from_secs(1);

/// One tunnel, as the pool sees it.
pub(super) struct Slot {
    /// Its place in the pool, from 0.
    pub(super) index: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<LinkHandle>,
    /// There once login is through, until the link is lost.
    session: Option<Session>,
    /// Replaced ones that still have flows, where flows are channels; the oldest first.
    older: Vec<Session>,
    /// What the byte stream is made of.
    way: String,
    /// Byte streams lost that the link survived; renewals are none.
    survived: u64,
    last_error: Option<DialError>,
    /// Since when nothing carries the link.
    down_since: Option<Instant>,
}

impl Slot {
    pub(super) fn new(index: usize) -> Self {
        Self { index, state: Mutex::default() }
    }

    /// Its load and session, if a flow opened now would reach the pod now.
    pub(super) fn ready(&self) -> Option<(Load, Session)> {
        let state = self.lock();
        let session = state.session.as_ref()?;
        let in_flight = match (&state.link, session.channels()) {
            (Some(link), _) => {
                Some(link.status()).filter(|link| link.phase == Phase::Attached).map(|link| link.in_flight)?
            }
            (None, Some(channels)) if stock::has_room(session) => channels.backlog() as u64,
            (None, _) => return None,
        };
        Some((Load::of(in_flight, session.open_flows()), session.clone()))
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
            number: self.number(),
            up: state.session.is_some() && link.as_ref().is_none_or(|link| link.phase == Phase::Attached),
            way: state.way.clone(),
            survived: state.survived,
            flows: state.session.iter().chain(&state.older).map(Session::open_flows).sum(),
            down_for: state.down_since.map(|since| since.elapsed()),
            last_error: state.last_error.as_ref().map(DialError::words),
            link,
            pacing: state.session.as_ref().and_then(Session::pacing),
        }
    }

    /// Asks the peer for a sign of life.
    pub(super) fn probe(&self) {
        let state = self.lock();
        if let Some(link) = &state.link {
            link.probe();
        }
        state.session.iter().chain(&state.older).for_each(Session::probe);
    }

    /// This machine slept for so long.
    pub(super) fn slept(&self, gap: Duration) {
        let state = self.lock();
        if let Some(link) = &state.link {
            link.slept(gap);
        }
        state.session.iter().chain(&state.older).for_each(Session::probe);
    }

    /// Says goodbye, for a moment.
    pub(super) async fn close(&self) {
        let (session, older, link) = {
            let mut state = self.lock();
            (state.session.take(), std::mem::take(&mut state.older), state.link.clone())
        };
        for session in older.iter().chain(&session) {
            // It may wait for a server that does not read.
            let _ = timeout(CLOSE_TIME, session.close()).await;
        }
        if let (Some(_), Some(link)) = (session, link) {
            // Without an answer the pod finds out when the link's time is over.
            let _ = timeout(CLOSE_TIME, link.ended()).await;
        }
    }

    /// Forgets link and sessions; what still uses them gets errors.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        for session in state.session.take().into_iter().chain(std::mem::take(&mut state.older)) {
            session.abandon();
        }
        state.link = None;
    }

    /// As [`clear`](Self::clear), and whatever went wrong on the route before.
    pub(super) fn forget(&self) {
        self.clear();
        let mut state = self.lock();
        (state.last_error, state.down_since) = (None, None);
    }

    /// Its number, from 1.
    pub(super) fn number(&self) -> usize {
        self.index + 1
    }

    /// A new link; nobody has logged in over it so far.
    pub(super) fn begin(&self, link: LinkHandle) {
        self.lock().link = Some(link);
    }

    /// New flows go to `session` from now on.
    pub(super) fn logged_in(&self, session: Session) {
        self.lock().session = Some(session);
    }

    /// As [`logged_in`](Self::logged_in), over no link.
    pub(super) fn lead_to(&self, session: Session, way: String) {
        self.attached(way);
        self.logged_in(session);
    }

    /// Remembers a replaced session; returns the oldest if there are more than `most`.
    pub(super) fn keep_older(&self, session: Session, most: usize) -> Option<Session> {
        let mut state = self.lock();
        state.older.retain(|session| !session.is_over());
        state.older.push(session);
        (state.older.len() > most).then(|| state.older.remove(0))
    }

    /// A byte stream made of this carries it from now on.
    pub(super) fn attached(&self, way: String) {
        let mut state = self.lock();
        state.way = way;
        if let Some(since) = state.down_since.take() {
            let outage = since.elapsed();
            let number = self.number();
            if outage >= NOTABLE_OUTAGE {
                tracing::info!(tunnel = number, "byte stream back after {} ms", outage.as_millis());
            } else {
                tracing::debug!(tunnel = number, "byte stream back after {} ms", outage.as_millis());
            }
        }
    }

    /// Its byte stream is lost; the link goes on.
    pub(super) fn detached(&self, why: Detached) {
        tracing::debug!(tunnel = self.number(), %why, "byte stream lost");
        let mut state = self.lock();
        state.survived += 1;
        state.down_since.get_or_insert_with(Instant::now);
        state.last_error = Some(DialError::passing(why));
    }

    /// A line about this tunnel in the log.
    fn lost(&self, error: DialError) {
        tracing::info!(tunnel = self.number(), error = error.words(), "tunnel lost");
        let mut state = self.lock();
        state.last_error = Some(error);
        state.down_since.get_or_insert_with(Instant::now);
    }

    /// An attempt that came to nothing.
    pub(super) fn failed(&self, error: DialError) {
        tracing::debug!(tunnel = self.number(), error = error.words(), "no byte stream");
        self.lock().last_error = Some(error);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each use is a single step; a panic cannot leave a half-made state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Keeps the tunnel `index` up, for ever.
pub(super) async fn run(shared: Arc<Shared>, index: usize) {
    let mut routes = shared.route.subscribe();
    loop {
        let route = routes.borrow_and_update().clone();
        let Some(route) = route else {
            // The sender lives in `shared`, so waiting cannot fail.
            let _ = routes.changed().await;
            continue;
        };
        let slot = &shared.slots[index];
        tokio::select! {
            never = stand(&shared, slot, &route) => match never {},
            _ = routes.changed() => {}
        }
        slot.forget();
    }
}

/// One link after the other, all to the same pod.
async fn stand(shared: &Shared, slot: &Slot, route: &Route) -> Infallible {
    if slot.index > 0 {
        // The first tunnel shall be ready soon; the others would only compete with it.
        let mut changed = shared.changed.subscribe();
        while shared.slots[0].way().is_none() {
            let _ = changed.changed().await;
        }
    }
    let (mut pauses, mut ours) = (LINK_PAUSES.build(), route.ours);
    loop {
        let began = Instant::now();
        let error =
            if ours { linked::stand(shared, slot, route).await } else { foreign(shared, slot, route).await };
        let stood = slot.way().is_some();
        shared.clear(slot);
        if shared.closing.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if ours && speaks_plain_ssh(&error) {
            ours = false;
            continue;
        }
        if stood {
            slot.lost(error)
        } else {
            slot.failed(error)
        }
        shared.changed.send_replace(());
        if began.elapsed() > STABLE {
            pauses = LINK_PAUSES.build();
        }
        shared.pause(pauses.next()).await;
    }
}

/// The same to a server of which it is not known whether it is ours: it is asked, and gets what it can do.
async fn foreign(shared: &Shared, slot: &Slot, route: &Route) -> DialError {
    match stock::ask(route).await {
        Ok(answered) if answered.is_ours() => {
            drop(answered); // a link begins otherwise
            linked::stand(shared, slot, route).await
        }
        Ok(answered) => stock::stand(shared, slot, route, answered).await,
        Err(error) => error,
    }
}

fn speaks_plain_ssh(error: &DialError) -> bool {
    matches!(error.cause.downcast_ref(), Some(AttachError::Greeting(HelloError::Ssh)))
}

/// A fresh byte stream, within [`DIAL_TIMEOUT`].
pub(super) async fn dial(route: &Route) -> Result<Dialed, DialError> {
    timeout(DIAL_TIMEOUT, (route.dial)()).await.unwrap_or_else(|_| {
        let cause = format!("no connection to {} within {} s", route.name, DIAL_TIMEOUT.as_secs());
        Err(DialError::passing(cause))
    })
}
