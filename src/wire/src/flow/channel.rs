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

mod carry;
mod halves;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelWriteHalf};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

pub(super) use self::halves::{Download, Upload};
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
        tokio::spawn(carry::carry(one.clone(), opening));
        Flow {
            send: FlowSend(SendWay::Channel(Upload::new(one.clone()))),
            recv: FlowRecv(RecvWay::Channel(Download::new(one))),
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
    fn wish(&self) -> carry::Wish {
        let state = self.lock();
        match (state.dropped, &state.broken) {
            (_, Some(_)) => carry::Wish::Close,
            (2, None) => carry::Wish::Wait,
            _ => carry::Wish::Nothing,
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        let mut state = std::mem::take(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.forget_unread(&mut state);
    }
}

fn reset(why: Broken) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why)
}
