//! A flow as one SSH channel (`direct-tcpip`, RFC 4254 §7.2), for servers that are not ours.
//!
//! ```text
//! Opening ── confirmed ──▶ Open ── EOF both ways, CLOSE ──▶ done
//!    └ refused                └ CLOSE before that, too much unread, session over ──▶ broken: a reset for the application
//! ```
//!
//! russh 0.65 hands a channel's data on through a queue of its own and reads nothing while that is full, so one reader that
//! pauses would stop the whole session; and it promises the peer room again as soon as data has *arrived*, so nothing holds
//! a sender back. Here a task per channel therefore takes everything at once. What its reader does not take waits up to a
//! bound; beyond that the flow is reset, and the others do not notice.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{ConnectError, Flow, FlowRecv, FlowSend, RecvWay, SendWay};
use crate::write_queue::Backlog;

/// Bytes one flow may hold that nobody has read. A transfer that is read more slowly than it arrives ends when it is this
/// far behind, so this is generous.
pub const UNREAD_MAX: usize = 16 << 20;

/// The same for all flows of a session together.
const UNREAD_ALL_MAX: usize = 128 << 20;

/// What a flow may hold in any case: about what its window lets arrive before anybody could have read it.
const UNREAD_LEAST: usize = 2 << 20;

/// Memory a piece of received data takes beside its bytes: many small ones must not escape the bound.
const PIECE_COST: usize = 128;

/// Time for the server to close a channel whose ends have both been told. Closing it first would leave something behind in
/// russh for as long as the session lasts (about 3.5 kB).
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// The channels of one session. Cheap to clone.
#[derive(Clone)]
pub struct Channels {
    shared: Arc<Shared>,
}

struct Shared {
    /// The session is over, or shall be.
    ended: CancellationToken,
    backlog: Backlog,
    open: AtomicUsize,
    opened: AtomicUsize,
    carried: AtomicU64,
    unread: AtomicUsize,
    told_prohibited: AtomicBool,
    /// Told when a channel is gone, and when one is opened.
    changed: Notify,
}

/// Why a flow ended early. The application sees a reset.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Broken {
    #[error("the SSH session ended")]
    Session,
    #[error("the SSH server closed the connection early")]
    Closed,
    #[error("the application reads too slowly for an SSH server that is not ours: {} MiB wait", UNREAD_MAX >> 20)]
    Unread,
    #[error("reset here")]
    Reset,
}

impl Channels {
    /// Of the session that is over when `ended` is cancelled and sends through the queue of `backlog`.
    pub fn new(ended: CancellationToken, backlog: Backlog) -> Self {
        Self {
            shared: Arc::new(Shared {
                ended,
                backlog,
                open: AtomicUsize::new(0),
                opened: AtomicUsize::new(0),
                carried: AtomicU64::new(0),
                unread: AtomicUsize::new(0),
                told_prohibited: AtomicBool::new(false),
                changed: Notify::new(),
            }),
        }
    }

    /// The flow whose channel `opening` asks for. Bytes may be sent at once; they wait for the channel.
    pub fn open<F>(&self, opening: F) -> Flow
    where
        F: Future<Output = Result<Channel<Msg>, russh::Error>> + Send + 'static,
    {
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        self.shared.opened.fetch_add(1, Ordering::Relaxed);
        self.shared.changed.notify_waiters();
        let one =
            Arc::new(One { session: self.shared.clone(), state: Mutex::default(), told: Notify::new() });
        tokio::spawn(carry(one.clone(), opening));
        Flow {
            send: FlowSend(SendWay::Channel(Upload { one: one.clone(), finished: false })),
            recv: FlowRecv(RecvWay::Channel(Download { one, ended: false })),
        }
    }

    /// Channels that are open or being opened or closed.
    pub fn count(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Channels ever opened in the session.
    pub fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// Bytes carried so far, both ways.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }

    /// Bytes waiting to be sent.
    pub fn backlog(&self) -> usize {
        self.shared.backlog.bytes()
    }

    /// Waits for a channel to be opened, or to be gone, from now on. Safe to cancel.
    pub fn changed(&self) -> Notified<'_> {
        self.shared.changed.notified()
    }
}

/// One channel, as its two halves and its task share it.
struct One {
    session: Arc<Shared>,
    state: Mutex<State>,
    /// Tells the task of what the halves want.
    told: Notify,
}

#[derive(Default)]
struct State {
    /// Once the server has connected.
    writer: Option<Arc<ChannelWriteHalf<Msg>>>,
    connected: bool,
    refused: Option<ConnectError>,
    /// Received and not yet taken.
    pieces: VecDeque<Bytes>,
    /// What they cost.
    unread: usize,
    eof: bool,
    broken: Option<Broken>,
    /// The sender has sent everything.
    finished: bool,
    /// Halves that were dropped.
    dropped: u8,
    /// Wait for the answer, bytes or the end.
    reader: Option<Waker>,
    /// Waits for the answer.
    sender: Option<Waker>,
    /// Waits for a reset.
    watcher: Option<Waker>,
}

impl State {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.sender.take(), self.watcher.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl One {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is a single step; a panic cannot leave a half-made state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first cause counts.
    fn break_off(&self, why: Broken) {
        let mut state = self.lock();
        state.broken.get_or_insert(why);
        // An answer that came whole is whole, whatever happens to its connection afterwards.
        if !state.eof || matches!(why, Broken::Unread | Broken::Reset) {
            state.eof = false;
            self.forget_unread(&mut state);
        }
        state.wake();
    }

    fn forget_unread(&self, state: &mut State) {
        self.session.unread.fetch_sub(state.unread, Ordering::Relaxed);
        (state.pieces, state.unread) = (VecDeque::new(), 0);
    }

    /// Keeps `data` for the reader; false when that would be too much.
    fn receive(&self, data: Bytes) -> bool {
        let cost = data.len() + PIECE_COST;
        self.session.carried.fetch_add(data.len() as u64, Ordering::Relaxed);
        let mut state = self.lock();
        let all = self.session.unread.fetch_add(cost, Ordering::Relaxed) + cost;
        state.unread += cost;
        let room = if all > UNREAD_ALL_MAX { UNREAD_LEAST } else { UNREAD_MAX };
        let fits = state.unread <= room;
        state.pieces.push_back(data);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        fits
    }

    /// What the halves want of the task.
    fn wish(&self) -> Wish {
        let state = self.lock();
        match (state.dropped, &state.broken) {
            (_, Some(_)) => Wish::Close,
            (2, None) => Wish::Wait,
            _ => Wish::Nothing,
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        let mut state = std::mem::take(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.forget_unread(&mut state);
    }
}

enum Wish {
    Nothing,
    /// Both ends were told, nobody listens any more: wait for the server's CLOSE.
    Wait,
    Close,
}

/// The channel's task: from the request to the end.
async fn carry<F>(one: Arc<One>, opening: F)
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
fn send_eof(write: Arc<ChannelWriteHalf<Msg>>) {
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

/// Sending half.
pub(super) struct Upload {
    one: Arc<One>,
    finished: bool,
}

impl Upload {
    pub(super) async fn send(&mut self, data: Bytes) -> io::Result<()> {
        let one = self.one.clone();
        let writer = poll_fn(|cx| {
            let mut state = one.lock();
            match (&state.broken, &state.writer) {
                (Some(why), _) => Poll::Ready(Err(reset(*why))),
                (None, Some(writer)) => Poll::Ready(Ok(writer.clone())),
                (None, None) => {
                    state.sender = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await?;
        one.session.carried.fetch_add(data.len() as u64, Ordering::Relaxed);
        let sent = async {
            one.session.backlog.short().await;
            writer.data_bytes(data).await
        };
        tokio::select! {
            biased;
            // russh leaves whoever waits for room waiting when the session dies.
            error = poll_fn(|cx| self.poll_reset(cx)) => Err(error),
            sent = sent => sent.map_err(|_| reset(Broken::Session)),
        }
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        let mut state = self.one.lock();
        if let Some(why) = state.broken {
            return Err(reset(why));
        }
        state.finished = true;
        self.finished = true;
        if let Some(writer) = state.writer.clone() {
            send_eof(writer);
        }
        Ok(())
    }

    pub(super) fn reset(&mut self) {
        self.one.break_off(Broken::Reset);
        self.one.told.notify_one();
    }

    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut state = self.one.lock();
        match state.broken {
            Some(why) => Poll::Ready(reset(why)),
            None => {
                state.watcher = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.finished {
            self.one.break_off(Broken::Reset);
        }
        self.one.lock().dropped += 1;
        self.one.told.notify_one();
    }
}

/// Receiving half.
pub(super) struct Download {
    one: Arc<One>,
    /// The end was read.
    ended: bool,
}

impl Download {
    pub(super) async fn opened(&mut self) -> Result<(), ConnectError> {
        poll_fn(|cx| {
            let mut state = self.one.lock();
            if let Some(why) = state.refused.take() {
                return Poll::Ready(Err(why));
            }
            match state.broken {
                _ if state.connected => Poll::Ready(Ok(())),
                Some(why) => Poll::Ready(Err(ConnectError::Session(reset(why)))),
                None => {
                    state.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, ConnectError> {
        self.opened().await?;
        let data = poll_fn(|cx| {
            let mut state = self.one.lock();
            if let Some(data) = state.pieces.pop_front() {
                let cost = data.len() + PIECE_COST;
                state.unread -= cost;
                self.one.session.unread.fetch_sub(cost, Ordering::Relaxed);
                return Poll::Ready(Ok(Some(data)));
            }
            match state.broken {
                // Everything came; what happens to the other direction is told there.
                _ if state.eof => Poll::Ready(Ok(None)),
                Some(why) => Poll::Ready(Err(ConnectError::Session(reset(why)))),
                None => {
                    state.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await?;
        self.ended |= data.is_none();
        Ok(data)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if !self.ended {
            self.one.break_off(Broken::Reset);
        }
        self.one.lock().dropped += 1;
        self.one.told.notify_one();
    }
}

fn reset(why: Broken) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why)
}
