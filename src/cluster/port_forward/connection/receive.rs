//! The receiving side of a connection: from the socket to the reader's buffer, or to the backlog.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    super::{
        pair::{Action, DATA_STREAM},
        websocket,
    },
    Connection,
};

/// Bytes read from the connection at once: two of the 32 KiB copies the way is made of.
pub(super) const INBOX: usize = 64 * 1024;
/// Payload kept for a reader that does not come, bytes. Enough that pongs and resets behind a paused reader's
/// data are still seen; beyond it TCP holds the pod back, which is right with one data stream per connection.
pub(in super::super) const BACKLOG: usize = 1024 * 1024;

/// Where delivered payload goes.
pub(in super::super) enum Sink<'a, 'b> {
    Reader(&'a mut ReadBuf<'b>),
    Backlog,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    /// Moves payload that waits into `buf`.
    pub(in super::super) fn read_backlog(&mut self, buf: &mut ReadBuf<'_>) {
        while buf.remaining() > 0 && !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            let count = front.len().min(buf.remaining());
            buf.put_slice(&front[..count]);
            self.backlog.drain(..count);
        }
        if self.backlog.is_empty() && self.backlog.capacity() > INBOX {
            self.backlog = VecDeque::new();
        }
    }

    /// Reads and decodes until a reader's buffer has something, the backlog is full, or it is over. Pending when
    /// the connection has no more to give now.
    pub(in super::super) fn poll_fill(&mut self, cx: &mut Context<'_>, mut sink: Sink<'_, '_>) -> Poll<()> {
        let before = sink.filled();
        loop {
            let full = self.decode(&mut sink);
            if full || self.verdict.is_some() || sink.filled() > before {
                return Poll::Ready(());
            }
            let Some(io) = &mut self.io else { return Poll::Ready(()) };
            let mut buf = ReadBuf::new(&mut self.inbox);
            let result = ready!(Pin::new(io).poll_read(cx, &mut buf));
            (self.head, self.tail) = (0, buf.filled().len());
            match result {
                Ok(()) if self.tail > 0 => self.liveness.heard(Instant::now()),
                Ok(()) => {
                    let place = if self.framing.at_boundary() { "" } else { " inside a frame" };
                    self.lost(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("connection closed{place}"),
                    ));
                }
                Err(error) => self.lost(error),
            }
        }
    }

    /// Whether payload waits for the reader.
    pub(in super::super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether reading ahead stopped because nobody takes the payload.
    pub(super) fn held_back(&self) -> bool {
        self.backlog.len() >= BACKLOG
    }

    /// Unwraps what is in the inbox. True when payload is next and the sink has no room.
    fn decode(&mut self, sink: &mut Sink<'_, '_>) -> bool {
        while self.head < self.tail && self.verdict.is_none() {
            let (mut visible, mut begins) = (self.tail - self.head, false);
            if let Some(envelope) = &mut self.envelope {
                let (taken, event) = match envelope.next(&self.inbox[self.head..self.tail]) {
                    Ok(step) => step,
                    Err(error) => {
                        self.decide(Err(error.into()));
                        break;
                    }
                };
                self.head += taken;
                match event {
                    Some(websocket::Event::Payload { count, begins: first }) => {
                        (visible, begins) = (count, first)
                    }
                    Some(websocket::Event::Ping(payload)) => {
                        self.outbox.pong(payload);
                        continue;
                    }
                    Some(websocket::Event::Close { code: websocket::NORMAL_CLOSURE, .. })
                        if self.framing.ends_by_close() =>
                    {
                        self.pair.closed();
                        self.decide(self.pair.verdict());
                        break;
                    }
                    Some(websocket::Event::Close { code, reason }) => {
                        let text = format!("WebSocket closed with code {code}: {reason}");
                        self.lost(io::Error::new(io::ErrorKind::ConnectionAborted, text));
                        break;
                    }
                    None => continue,
                }
            }
            if self.framing.in_data(begins) == Some(DATA_STREAM) && self.pair.data_open() {
                let room = match sink {
                    Sink::Reader(buf) => buf.remaining(),
                    Sink::Backlog => BACKLOG.saturating_sub(self.backlog.len()),
                };
                if room == 0 {
                    return true;
                }
                visible = visible.min(room);
            }
            let input = &self.inbox[self.head..self.head + visible];
            let (taken, event) = match self.framing.next(input, begins) {
                Ok(step) => step,
                Err(error) => {
                    self.decide(Err(error));
                    break;
                }
            };
            match event.map_or(Action::Nothing, |event| self.pair.on(event)) {
                Action::Nothing => {}
                Action::Deliver(bytes) => match sink {
                    Sink::Reader(buf) => buf.put_slice(bytes),
                    Sink::Backlog => keep(&mut self.backlog, bytes),
                },
                Action::Pong(id) => self.outbox.answer(id),
                Action::Refuse(stream, status) => self.outbox.reset(stream, status),
            }
            self.head += taken;
            if let Some(envelope) = &mut self.envelope {
                envelope.took(taken);
            }
            if self.pair.settled() {
                self.decide(self.pair.verdict());
            } else if self.pair.ending() {
                self.touch_ending();
            }
            if taken > 0 && self.half_closed.is_some() {
                self.half_closed = Some(Instant::now());
            }
        }
        false
    }
}

/// Appends; grows by doubling, but never beyond [`BACKLOG`].
fn keep(backlog: &mut VecDeque<u8>, bytes: &[u8]) {
    let needed = backlog.len() + bytes.len();
    if needed > backlog.capacity() {
        let capacity = (2 * backlog.capacity()).min(BACKLOG).max(needed);
        backlog.reserve_exact(capacity - backlog.len());
    }
    backlog.extend(bytes);
}

impl Sink<'_, '_> {
    /// Bytes a reader has got; reading ahead goes on until there is no more.
    fn filled(&self) -> usize {
        match self {
            Sink::Reader(buf) => buf.filled().len(),
            Sink::Backlog => 0,
        }
    }
}
