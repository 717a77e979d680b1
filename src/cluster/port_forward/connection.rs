//! One upgraded connection: the codecs joined to an I/O object by poll functions, with buffers, deadlines and verdict.
//!
//! Nothing here knows tasks or locks. `stream.rs` decides who calls: the reader's and writer's own tasks, and the driver.
//! Reading goes socket → `inbox` → (envelope and frames unwrapped in place) → the reader's buffer: one copy. Only
//! when the driver reads ahead for a reader that does not come, payload waits in `backlog`.

mod receive;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use self::receive::INBOX;
pub(super) use self::receive::{BACKLOG, Sink};
use super::{
    PortForwardError, Transport,
    framing::Framing,
    liveness::Liveness,
    outbox::{Dialect, Outbox},
    pair::Pair,
    spdy, websocket,
};

/// For both SYN_REPLYs; client-go's and the server's own limit is 30 s as well.
pub(super) const STREAM_WAIT: Duration = Duration::from_secs(30);
/// For the error stream after the data stream ended, or the reverse: the runtime closes within 1 s.
pub(super) const ERROR_WAIT: Duration = Duration::from_secs(2);
/// Over channels, which have no half-close: how long after our end the pod may still answer before we close, counted
/// from the last byte. The runtime gives it as long after SPDY's FIN.
pub(super) const HALF_CLOSED: Duration = Duration::from_secs(1);
/// For our goodbye to leave. The peer is told as a courtesy; nobody waits for it.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Most memory one stream takes for bytes, whoever stalls and whatever the peer says: what was read, what waits for the
/// reader, what waits to be sent, the error's text. Socket and TLS have their own on top.
pub const STREAM_MEMORY_MAX: usize =
    INBOX + BACKLOG + Outbox::MEMORY_MAX + Pair::MEMORY_MAX + websocket::Decoder::MEMORY_MAX;

/// See the module.
pub(super) struct Connection<T> {
    /// `None` once closed.
    io: Option<T>,
    inbox: Box<[u8]>,
    head: usize,
    tail: usize,
    envelope: Option<websocket::Decoder>,
    framing: Framing,
    pair: Pair,
    backlog: VecDeque<u8>,

    outbox: Outbox,
    unflushed: bool,
    write_blocked: bool,
    write_error: Option<PortForwardError>,
    shut_down: bool,

    verdict: Option<Result<(), PortForwardError>>,
    opened: Instant,
    liveness: Liveness,
    /// When the last thing happened since the pod's side ended; the wait for the rest counts from here.
    ending: Option<Instant>,
    /// Over channels: when the last thing happened since our end.
    half_closed: Option<Instant>,
    closing: Option<Instant>,
    /// Something changed that the driver's deadlines depend on.
    notice: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    /// Takes over a connection whose 101 was read. Both streams are opened without waiting for answers: data may
    /// follow at once.
    pub(super) fn new(io: T, transport: Transport, port: u16) -> Self {
        let mut outbox = Outbox::new(Dialect::new(transport));
        outbox.open_pair(port);
        let now = Instant::now();
        Connection {
            io: Some(io),
            inbox: vec![0; INBOX].into_boxed_slice(),
            head: 0,
            tail: 0,
            envelope: (transport != Transport::Spdy).then(websocket::Decoder::default),
            framing: Framing::new(transport, port),
            pair: Pair::default(),
            backlog: VecDeque::new(),
            outbox,
            unflushed: false,
            write_blocked: false,
            write_error: None,
            shut_down: false,
            verdict: None,
            opened: now,
            liveness: Liveness::new(now, SystemTime::now()),
            ending: None,
            half_closed: None,
            closing: None,
            notice: false,
        }
    }

    /// How it ended, if it has. Payload may still wait in the backlog.
    pub(super) fn verdict(&self) -> Option<&Result<(), PortForwardError>> {
        self.verdict.as_ref()
    }

    /// Whether the pod's side has ended, its reason perhaps still on the way.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    /// True once after each change the driver must act on.
    pub(super) fn take_notice(&mut self) -> bool {
        std::mem::take(&mut self.notice)
    }

    /// Queues payload; how much was taken, 0 when there is no room.
    pub(super) fn queue(&mut self, bytes: &[u8]) -> usize {
        self.outbox.data(bytes)
    }

    /// Queues the end of our data. On containerd and CRI-O the pod's socket is closed by it, not half-closed.
    pub(super) fn shut_down(&mut self) {
        if !self.shut_down && self.verdict.is_none() {
            self.shut_down = true;
            self.pair.sent_fin();
            self.outbox.fin();
            if self.framing.ends_by_close() {
                self.half_closed = Some(Instant::now());
                self.notice = true;
            }
        }
    }

    /// Writes what is queued. Ready when everything has left; `progress` tells whether there is new room.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, progress: &mut bool) -> Poll<()> {
        if self.write_error.is_some() {
            return Poll::Ready(());
        }
        let Some(io) = &mut self.io else { return Poll::Ready(()) };
        let failed = loop {
            let bytes = self.outbox.next();
            if bytes.is_empty() {
                if !self.unflushed {
                    return Poll::Ready(());
                }
                match ready!(Pin::new(&mut *io).poll_flush(cx)) {
                    Ok(()) => {
                        self.unflushed = false;
                        *progress = true; // a writer may wait for nothing but this
                        return Poll::Ready(());
                    }
                    Err(error) => break error,
                }
            }
            match Pin::new(&mut *io).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => break io::ErrorKind::WriteZero.into(),
                Poll::Ready(Ok(count)) => {
                    self.outbox.wrote(count);
                    *progress = true;
                    self.unflushed = true;
                    if std::mem::take(&mut self.write_blocked) {
                        self.liveness.heard(Instant::now()); // room again: the peer's TCP has acknowledged something
                    }
                }
                Poll::Ready(Err(error)) => break error,
                Poll::Pending => {
                    self.write_blocked = true;
                    return Poll::Pending;
                }
            }
        };
        // The reason may lie unread in the socket: keep reading for a while before this becomes the verdict.
        self.write_error = Some(PortForwardError::lost(failed));
        self.touch_ending();
        *progress = true;
        Poll::Ready(())
    }

    /// Acts on deadlines that have passed. `wall` tells whether the machine slept.
    pub(super) fn on_time(&mut self, now: Instant, wall: SystemTime) {
        if self.verdict.is_some() {
            return;
        }
        self.liveness.look(now, wall);
        if self.held_back() {
            self.liveness.heard(now);
            self.ending = self.ending.and(Some(now));
        }
        if self.held_back() || !self.outbox.is_empty() {
            self.half_closed = self.half_closed.and(Some(now));
        }
        if self.ending.is_some_and(|since| now >= since + ERROR_WAIT) {
            let lost = self.write_error.clone().unwrap_or(PortForwardError::Closed);
            self.decide(self.pair.verdict_when_lost(lost));
        } else if self.half_closed.is_some_and(|since| now >= since + HALF_CLOSED) {
            self.pair.closed();
            self.decide(self.pair.verdict());
        } else if !self.pair.confirmed() && now >= self.opened + STREAM_WAIT {
            self.decide(Err(PortForwardError::StreamTimeout { after: STREAM_WAIT }));
        } else if let Some(after) = self.liveness.dead(now) {
            self.decide(Err(PortForwardError::PingTimeout { after }));
        } else if self.liveness.due(now) {
            let id = self.liveness.ping(now);
            self.outbox.ping(id);
        }
    }

    /// Time for a look at the socket on behalf of a reader that may not be coming: a ping is due, or a decision that
    /// what lies there unread would change.
    pub(super) fn look_due(&self, now: Instant) -> bool {
        self.is_ending() || self.half_closed.is_some() || now >= self.liveness.deadline()
    }

    /// When the driver must look again, whatever else happens.
    pub(super) fn deadline(&self) -> Instant {
        if let Some(closing) = self.closing {
            return closing + CLOSE_WAIT;
        }
        let ending = self.ending.map(|since| since + ERROR_WAIT);
        let half_closed = self.half_closed.map(|since| since + HALF_CLOSED);
        let confirm = (!self.pair.confirmed()).then_some(self.opened + STREAM_WAIT);
        [ending, half_closed, confirm].into_iter().flatten().fold(self.liveness.deadline(), Instant::min)
    }

    /// Says goodbye once: open streams are reset (unread data would leak goroutines in the runtime otherwise), then the
    /// envelope's close.
    pub(super) fn begin_close(&mut self, now: Instant) {
        if self.closing.is_none() {
            self.closing = Some(now);
            for stream in self.pair.open_streams() {
                self.outbox.reset(stream, spdy::CANCEL);
            }
            self.outbox.close();
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Writes the goodbye, then closes; at [`CLOSE_WAIT`] it closes anyway.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        let late = self.closing.is_some_and(|since| now >= since + CLOSE_WAIT);
        let lost = matches!(self.verdict, Some(Err(PortForwardError::ConnectionLost(_))));
        if !late && !lost && self.write_error.is_none() {
            ready!(self.poll_drain(cx, &mut false));
            if let Some(io) = &mut self.io {
                let _ = ready!(Pin::new(io).poll_shutdown(cx)); // it is gone either way
            }
        }
        self.io = None;
        Poll::Ready(())
    }

    /// What is allocated now, of [`STREAM_MEMORY_MAX`].
    #[cfg(any(test, fuzzing))]
    pub(super) fn memory(&self) -> usize {
        self.inbox.len()
            + self.backlog.capacity()
            + self.outbox.memory()
            + self.pair.memory()
            + self.envelope.as_ref().map_or(0, websocket::Decoder::memory)
    }

    fn lost(&mut self, error: io::Error) {
        let lost = self.write_error.take().unwrap_or_else(|| PortForwardError::lost(error));
        self.decide(self.pair.verdict_when_lost(lost));
    }

    fn decide(&mut self, verdict: Result<(), PortForwardError>) {
        if self.verdict.is_none() {
            self.verdict = Some(verdict);
            self.notice = true;
        }
    }

    fn touch_ending(&mut self) {
        self.notice |= self.ending.is_none();
        self.ending = Some(Instant::now());
    }
}
