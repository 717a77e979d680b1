//! A tunnel to our own server: a link that outlives its byte streams, and one session over it.
//!
//! ```text
//! stand(): new link + login ── stands ── the link ends: flows reset ──▶ the slot begins again
//!            └ carry(): dial, attach, run │ lost or renewed ──▶ again, the link goes on
//! ```

use std::pin::pin;

use backon::BackoffBuilder;
use kshuttle_wire::link::frame::CloseReason;
use kshuttle_wire::link::hello::HelloError;
use kshuttle_wire::link::{self, AttachError, Limits, LinkHandle, Phase, Token};
use tokio::time::{Instant, sleep};

use super::super::ssh::Session;
use super::slot::{PAUSES, RENEWAL_PAUSE, STABLE, Slot, dial};
use super::standstill::stands_still;
use super::{DialError, Dialed, Route, Shared, stock};

/// Share of the lifetime by which the tunnels' renewals lie apart.
const RENEWAL_STAGGER: f64 = 0.1;

/// A link and a session over it, from the first dial to the end of either; why it ended.
pub(super) async fn stand(shared: &Shared, slot: &Slot, route: &Route) -> DialError {
    let token = match Token::generate() {
        Ok(token) => token,
        Err(error) => return DialError::passing(error),
    };
    let (stream, handle) = link::connect(token, Limits::default());
    // However this ends, applications must learn of it: the session's tasks end with their stream.
    let _closed = Closed(handle.clone());
    slot.begin(handle.clone());
    let session = async {
        let started =
            Session::start_on_link(stream, &route.identity, &route.host_key, shared.settings.pacing);
        let session = match started.await {
            Ok(session) => session,
            Err(error) => return stock::session_error(error),
        };
        slot.logged_in(session.clone());
        shared.changed.send_replace(());
        let attached = || handle.status().phase == Phase::Attached;
        let why = tokio::select! {
            () = session.ended() => "ended",
            () = stands_still(attached, || session.answers()) => "stands still though its link is alive",
        };
        DialError::passing(format!("the SSH session with {} {why}", route.name))
    };
    tokio::select! {
        biased; // the link's end is the cause, the session's the effect
        end = handle.ended() => DialError::passing(end),
        error = carry(shared, slot, route, &handle) => error,
        error = session => error,
    }
}

/// Closes a link when it is dropped.
struct Closed(LinkHandle);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.close(CloseReason::Leaving);
    }
}

/// Gives the link one byte stream after the other; returns when none can carry it any more.
async fn carry(shared: &Shared, slot: &Slot, route: &Route, handle: &LinkHandle) -> DialError {
    let mut pauses = PAUSES.build();
    let (mut fresh, mut greeted) = (None, false);
    loop {
        let dialed = match fresh.take() {
            Some(dialed) => Ok(dialed),
            None => dial(route).await,
        };
        let attached = match dialed {
            Ok(Dialed { stream, way }) => match handle.attach(stream).await {
                Ok(attachment) => Ok((attachment, way)),
                Err(error @ (AttachError::Ended(_) | AttachError::Refused(_))) if is_over(handle) => {
                    return DialError::passing(error);
                }
                // Later it only means that our greeting was so long under way that the pod took us for a plain client.
                Err(error @ AttachError::Greeting(HelloError::Ssh)) if !greeted => {
                    return DialError::passing(error);
                }
                Err(error) => Err(DialError::passing(error)),
            },
            Err(error) => Err(error),
        };
        let (attachment, way) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                slot.failed(error);
                shared.changed.send_replace(());
                shared.pause(pauses.next()).await;
                continue;
            }
        };
        greeted = true;
        slot.attached(way);
        shared.changed.send_replace(());
        let began = Instant::now();
        let mut run = pin!(attachment.run());
        tokio::select! {
            why = &mut run => {
                slot.detached(why);
                shared.changed.send_replace(());
                if began.elapsed() > STABLE {
                    pauses = PAUSES.build();
                }
            }
            renewal = renewal(shared, slot, route) => fresh = Some(renewal),
        }
    }
}

/// When the lifetime is nearly over, a byte stream to go on with.
async fn renewal(shared: &Shared, slot: &Slot, route: &Route) -> Dialed {
    let stagger = 1.0 - RENEWAL_STAGGER * slot.index as f64 / shared.slots.len() as f64;
    sleep(shared.settings.lifetime.mul_f64(stagger)).await;
    loop {
        match dial(route).await {
            Ok(dialed) => {
                tracing::debug!(tunnel = slot.number(), "byte stream renewed");
                return dialed;
            }
            Err(error) => slot.failed(error),
        }
        sleep(RENEWAL_PAUSE).await;
    }
}

fn is_over(handle: &LinkHandle) -> bool {
    matches!(handle.status().phase, Phase::Ended(_))
}
