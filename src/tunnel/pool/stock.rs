//! A tunnel whose server is not ours: plain SSH, no link, each flow a channel. When its byte stream ends its flows end.
//!
//! ```text
//! login ── stands ── worn or full ──▶ login again: new flows go there, the old session goes on until its last flow ends
//!            └ the session ends: its flows are reset ──▶ the slot begins again
//! ```
//!
//! Sessions are replaced because russh 0.65 keeps about 3.5 kB of every channel closed early, because keys are renewed after so
//! many bytes, and because load balancers cut what lives long.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::super::ByteStream;
use super::super::ident::Greeted;
use super::super::ssh::{Session, SessionError};
use super::slot::{RENEWAL_PAUSE, Slot, dial};
use super::{DialError, Dialed, Route, Shared};

/// Channels opened in a session before it is replaced: what russh keeps of them stays below 7 MB.
pub(super) const CHANNELS_MAX: usize = 2_000;

/// Channels open in a session at once. A server holds one descriptor and more for each, of 1,024 by default.
pub(super) const FLOWS_MAX: usize = 500;

/// Bytes carried by a session before it is replaced: half of what makes OpenSSH renew its keys.
const BYTES_MAX: u64 = 32 << 30;

/// How often the bytes are looked at: a minute carries less than [`BYTES_MAX`] at 4 Gbit/s.
const LOOK: Duration = Duration::from_secs(60);

/// Replaced sessions that may still have flows. One more, and the flows of the oldest are reset.
const OLDER_MAX: usize = 8;

/// A server that has said who it is, at the end of a stream.
pub(super) struct Answered {
    stream: Greeted<Box<dyn ByteStream>>,
    way: String,
}

impl Answered {
    /// Whether it is our server: then a link is better.
    pub(super) fn is_ours(&self) -> bool {
        self.stream.is_ours()
    }
}

/// Dials and asks who answers.
pub(super) async fn ask(route: &Route) -> Result<Answered, DialError> {
    let Dialed { stream, way } = dial(route).await?;
    let stream = Greeted::ask(stream).await.map_err(DialError::passing)?;
    Ok(Answered { way: format!("{way}, plain SSH with {}", stream.server()), stream })
}

/// One session after the other; why the last one ended.
pub(super) async fn stand(shared: &Shared, slot: &Slot, route: &Route, first: Answered) -> DialError {
    let way = first.way.clone();
    let mut session = match login(route, first).await {
        Ok(session) => session,
        Err(error) => return error,
    };
    loop {
        slot.lead_to(session.clone(), way.clone());
        shared.changed.send_replace(());
        let began = Instant::now();
        let fresh = async {
            let why = worn(&session, began + shared.settings.lifetime).await;
            tracing::debug!(tunnel = slot.number(), why, "SSH session is replaced");
            loop {
                let fresh = async { login(route, ask(route).await?).await };
                match fresh.await {
                    Ok(session) => return session,
                    Err(error) => slot.failed(error),
                }
                sleep(RENEWAL_PAUSE).await;
            }
        };
        let fresh = tokio::select! {
            fresh = fresh => fresh,
            () = session.ended() => {
                return DialError::passing(format!("the SSH session with {} ended", route.name));
            }
        };
        let before = std::mem::replace(&mut session, fresh);
        if let Some(oldest) = slot.keep_older(before.clone(), OLDER_MAX) {
            tracing::warn!(
                "{} connections reset: {OLDER_MAX} later SSH sessions have connections, too",
                oldest.open_flows()
            );
            oldest.abandon();
        }
        tokio::spawn(retire(before));
    }
}

/// Whether new flows may go there.
pub(super) fn has_room(session: &Session) -> bool {
    session.channels().is_none_or(|channels| channels.count() < FLOWS_MAX)
}

async fn login(route: &Route, Answered { stream, .. }: Answered) -> Result<Session, DialError> {
    let login = Session::start_stock(stream, &route.user, &route.identity, &route.host_key).await;
    login.map_err(session_error)
}

/// What another attempt cannot change is lasting.
pub(super) fn session_error(error: SessionError) -> DialError {
    match error {
        SessionError::HostKey | SessionError::KeyRefused => DialError::lasting(error),
        error => DialError::passing(error),
    }
}

/// Returns when the session should be replaced, and why.
async fn worn(session: &Session, until: Instant) -> &'static str {
    let Some(channels) = session.channels() else { return std::future::pending().await };
    loop {
        let changed = channels.changed();
        if channels.opened() >= CHANNELS_MAX {
            return "many connections were opened in it";
        }
        if channels.count() >= FLOWS_MAX {
            return "it is full";
        }
        if channels.carried() >= BYTES_MAX {
            return "much was carried";
        }
        tokio::select! {
            () = changed => {}
            () = sleep(LOOK) => {}
            () = sleep_until(until) => return "it is old",
        }
    }
}

/// Ends a session when its last flow has ended.
async fn retire(session: Session) {
    let Some(channels) = session.channels() else { return };
    loop {
        let changed = channels.changed();
        if channels.count() == 0 {
            break;
        }
        tokio::select! {
            () = changed => {}
            () = session.ended() => break,
        }
    }
    session.close().await;
}
