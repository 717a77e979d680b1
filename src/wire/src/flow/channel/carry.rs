//! The task of one channel: asks for it, takes everything that arrives, and closes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::time::{Instant, sleep_until};

use super::super::ConnectError;
use super::{Broken, One, Shared};

/// Time for the server to close a channel whose ends have both been told. Closing it first would leave something behind in
/// russh for as long as the session lasts (about 3.5 kB).
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// What the halves want of the task.
pub(super) enum Wish {
    Nothing,
    /// Both ends were told, nobody listens any more: wait for the server's CLOSE.
    Wait,
    Close,
}

/// The channel's task: from the request to the end.
pub(super) async fn carry<F>(one: Arc<One>, opening: F)
where
    F: Future<Output = Result<Channel<Msg>, russh::Error>>,
{
    let _counted = Open(one.session.clone());
    // To its end, although nobody may wait for it any more: a channel that is confirmed to nobody would stay for ever.
    let opened = tokio::select! {
        opened = opening => opened,
        () = one.session.ended.cancelled() => return one.break_off(Broken::Session),
    };
    let (read, write) = match opened {
        Ok(channel) => channel.split(),
        Err(error) => return refused(&one, &error),
    };
    let write = Arc::new(write);
    let finished = {
        let mut state = one.lock();
        state.writer = Some(write.clone());
        state.connected = true;
        state.wake();
        state.finished
    };
    if finished {
        send_eof(write.clone());
    }
    if receive(&one, read).await == Left::Here {
        // SSH has no reset; a channel that is closed before its end is the nearest to it. Never awaited where the channel
        // should be read: the session may wait for exactly that.
        tokio::spawn(async move { write.close().await });
    }
    one.lock().writer = None;
}

fn refused(one: &One, error: &russh::Error) {
    tracing::debug!(%error, "channel not opened");
    let why = match error {
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed) => ConnectError::Failed,
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited) => {
            if !one.session.told_prohibited.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the SSH server does not permit a connection: see AllowTcpForwarding and PermitOpen"
                );
            }
            ConnectError::Prohibited
        }
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::ResourceShortage) => ConnectError::TooMany,
        russh::Error::ChannelOpenFailure(_) => ConnectError::Failed,
        _ => return one.break_off(Broken::Session),
    };
    let mut state = one.lock();
    state.refused = Some(why);
    state.broken.get_or_insert(Broken::Closed);
    state.wake();
}

/// How a channel's task came to its end.
#[derive(PartialEq, Eq)]
enum Left {
    /// The server closed the channel, or there is no session any more.
    There,
    /// The channel still has to be closed.
    Here,
}

/// Takes what arrives, until the channel's end.
async fn receive(one: &One, mut read: ChannelReadHalf) -> Left {
    let mut patience: Option<Instant> = None;
    loop {
        match one.wish() {
            Wish::Nothing => {}
            Wish::Wait => {
                patience.get_or_insert_with(|| Instant::now() + CLOSE_TIME);
            }
            Wish::Close => return Left::Here,
        }
        let too_long = async {
            match patience {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            biased; // what came before the session's end counts
            message = read.wait() => message,
            () = one.told.notified() => continue,
            () = one.session.ended.cancelled() => None,
            () = too_long => return Left::Here,
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                if !one.receive(data) {
                    tracing::info!(
                        "connection reset: its application reads too slowly, and the SSH server is not ours"
                    );
                    one.break_off(Broken::Unread);
                }
            }
            Some(ChannelMsg::Eof) => {
                let mut state = one.lock();
                state.eof = true;
                state.wake();
            }
            Some(ChannelMsg::Close) => {
                let over = {
                    let state = one.lock();
                    state.eof && state.finished
                };
                if !over {
                    one.break_off(Broken::Closed);
                }
                return Left::There;
            }
            Some(_) => {}
            None => {
                one.break_off(Broken::Session);
                return Left::There;
            }
        }
    }
}

/// In a task of its own: the session's queue may be full, and this channel must be read meanwhile.
pub(super) fn send_eof(write: Arc<ChannelWriteHalf<Msg>>) {
    // Fails when the session is over, which the channel's task finds out by itself.
    tokio::spawn(async move { write.eof().await });
}

/// A channel that counts.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_waiters();
    }
}
