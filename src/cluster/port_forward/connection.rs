//! One upgraded connection: the codecs joined to an I/O object by poll functions, with buffers, deadlines and verdict.
//!
//! Nothing here knows tasks or locks. `stream.rs` decides who calls: the reader's and writer's own tasks, and the driver.
//! Reading goes socket → `inbox` → (envelope and frames unwrapped in place) → the reader's buffer: one copy. Only
//! when the driver reads ahead for a reader that does not come, payload waits in `backlog`.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    PortForwardError, Transport,
    outbox::{Envelope, Outbox},
    pair::{Action, DATA_STREAM, ERROR_STREAM, Pair},
    spdy::{self, FIN, HeaderBlocks},
    websocket::{self, MaskKeys},
};

/// Bytes read from the connection at once: two of the 32 KiB copies the way is made of.
const INBOX: usize = 64 * 1024;
/// Payload kept for a reader that does not come, bytes. Enough that pongs and resets behind a paused reader's
/// data are still seen; beyond it TCP holds the pod back, which is right with one data stream per connection.
pub(super) const BACKLOG: usize = 1024 * 1024;
/// A PING this often: moves every idle timer on the way (load balancers from 60 s, the runtime's own), and its absence
/// is the only sign of a backend that left behind an API server's tunnel. client-go has the same period.
pub(super) const PING_EVERY: Duration = Duration::from_secs(10);
/// Dead after this long without a byte: three pings lost. Longer than any pause the server makes under load.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(30);
/// For both SYN_REPLYs; client-go's and the server's own limit is 30 s as well.
pub(super) const STREAM_WAIT: Duration = Duration::from_secs(30);
/// For the error stream after the data stream ended, or the reverse: the runtime closes within 1 s.
pub(super) const ERROR_WAIT: Duration = Duration::from_secs(2);
/// For our goodbye to leave. The peer is told as a courtesy; nobody waits for it.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Where delivered payload goes.
pub(super) enum Sink<'a, 'b> {
    Reader(&'a mut ReadBuf<'b>),
    Backlog,
}

/// See the module.
pub(super) struct Connection<T> {
    /// `None` once closed.
    io: Option<T>,
    inbox: Box<[u8]>,
    head: usize,
    tail: usize,
    envelope: Option<websocket::Decoder>,
    frames: spdy::Decoder,
    pair: Pair,
    backlog: VecDeque<u8>,

    outbox: Outbox,
    unflushed: bool,
    write_blocked: bool,
    write_error: Option<PortForwardError>,
    shut_down: bool,

    verdict: Option<Result<(), PortForwardError>>,
    opened: Instant,
    heard: Instant,
    next_ping: Instant,
    last_ping: u32,
    /// When the last thing happened since the pod's side ended; the wait for the rest counts from here.
    ending: Option<Instant>,
    closing: Option<Instant>,
    /// Something changed that the driver's deadlines depend on.
    notice: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    /// Takes over a connection whose 101 was read. Both streams are opened without waiting for answers: data may
    /// follow at once.
    pub(super) fn new(io: T, transport: Transport, port: u16) -> Self {
        let websocket = transport == Transport::Websocket;
        let envelope = if websocket { Envelope::WebSocket(MaskKeys::new()) } else { Envelope::Raw };
        let mut outbox = Outbox::new(envelope);
        outbox.control(|out| open_pair(out, port));
        let now = Instant::now();
        Connection {
            io: Some(io),
            inbox: vec![0; INBOX].into_boxed_slice(),
            head: 0,
            tail: 0,
            envelope: websocket.then(websocket::Decoder::default),
            frames: spdy::Decoder::default(),
            pair: Pair::default(),
            backlog: VecDeque::new(),
            outbox,
            unflushed: false,
            write_blocked: false,
            write_error: None,
            shut_down: false,
            verdict: None,
            opened: now,
            heard: now,
            next_ping: now + PING_EVERY,
            last_ping: 0,
            ending: None,
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

    /// Moves payload that waits into `buf`.
    pub(super) fn read_backlog(&mut self, buf: &mut ReadBuf<'_>) {
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
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, mut sink: Sink<'_, '_>) -> Poll<()> {
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
                Ok(()) if self.tail > 0 => self.heard = Instant::now(),
                Ok(()) => {
                    let place = if self.frames.at_boundary() { "" } else { " inside a frame" };
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
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether reading ahead stopped because nobody takes the payload.
    fn held_back(&self) -> bool {
        self.backlog.len() >= BACKLOG
    }

    /// Unwraps what is in the inbox. True when payload is next and the sink has no room.
    fn decode(&mut self, sink: &mut Sink<'_, '_>) -> bool {
        while self.head < self.tail && self.verdict.is_none() {
            let mut visible = self.tail - self.head;
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
                    Some(websocket::Event::Payload(count)) => visible = count,
                    Some(websocket::Event::Ping(payload)) => {
                        self.outbox.pong(payload);
                        continue;
                    }
                    Some(websocket::Event::Close { code, reason }) => {
                        let text = format!("WebSocket closed with code {code}: {reason}");
                        self.lost(io::Error::new(io::ErrorKind::ConnectionAborted, text));
                        break;
                    }
                    None => continue,
                }
            }
            if self.frames.in_data() == Some(DATA_STREAM) && self.pair.data_open() {
                let room = match sink {
                    Sink::Reader(buf) => buf.remaining(),
                    Sink::Backlog => BACKLOG.saturating_sub(self.backlog.len()),
                };
                if room == 0 {
                    return true;
                }
                visible = visible.min(room);
            }
            let (taken, event) = match self.frames.next(&self.inbox[self.head..self.head + visible]) {
                Ok(step) => step,
                Err(error) => {
                    self.decide(Err(error.into()));
                    break;
                }
            };
            match event.map_or(Action::Nothing, |event| self.pair.on(event)) {
                Action::Nothing => {}
                Action::Deliver(bytes) => match sink {
                    Sink::Reader(buf) => buf.put_slice(bytes),
                    Sink::Backlog => self.backlog.extend(bytes),
                },
                // No room for an answer means the peer floods us; it may do without.
                Action::Pong(id) => {
                    self.outbox.control(|out| spdy::ping(out, id));
                }
                Action::Refuse(stream, status) => {
                    self.outbox.control(|out| spdy::rst_stream(out, stream, status));
                }
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
        }
        false
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
                        self.heard = Instant::now(); // room again: the peer's TCP has acknowledged something
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

    /// Acts on deadlines that have passed.
    pub(super) fn on_time(&mut self, now: Instant) {
        if self.verdict.is_some() {
            return;
        }
        if self.held_back() {
            self.heard = now;
            self.ending = self.ending.and(Some(now));
        }
        if self.ending.is_some_and(|since| now >= since + ERROR_WAIT) {
            let lost = self.write_error.clone().unwrap_or(PortForwardError::Closed);
            self.decide(self.pair.verdict_when_lost(lost));
        } else if !self.pair.confirmed() && now >= self.opened + STREAM_WAIT {
            self.decide(Err(PortForwardError::StreamTimeout { after: STREAM_WAIT }));
        } else if now >= self.heard + DEAD_AFTER {
            self.decide(Err(PortForwardError::PingTimeout { after: DEAD_AFTER }));
        } else if self.tick_due(now) {
            self.next_ping = now + PING_EVERY;
            self.last_ping = self.last_ping.wrapping_add(if self.last_ping == 0 { 1 } else { 2 }); // odd ids are ours
            let id = self.last_ping;
            self.outbox.control(|out| spdy::ping(out, id));
        }
    }

    /// Time for a ping, and for a look at the socket on behalf of a reader that may not be coming.
    pub(super) fn tick_due(&self, now: Instant) -> bool {
        now >= self.next_ping
    }

    /// When the driver must look again, whatever else happens.
    pub(super) fn deadline(&self) -> Instant {
        if let Some(closing) = self.closing {
            return closing + CLOSE_WAIT;
        }
        let ending = self.ending.map(|since| since + ERROR_WAIT);
        let confirm = (!self.pair.confirmed()).then_some(self.opened + STREAM_WAIT);
        [ending, confirm, Some(self.heard + DEAD_AFTER)]
            .into_iter()
            .flatten()
            .fold(self.next_ping, Instant::min)
    }

    /// Says goodbye once: open streams are reset (unread data would leak goroutines in the runtime otherwise), then the
    /// envelope's close.
    pub(super) fn begin_close(&mut self, now: Instant) {
        if self.closing.is_none() {
            self.closing = Some(now);
            for stream in self.pair.open_streams() {
                self.outbox.control(|out| spdy::rst_stream(out, stream, spdy::CANCEL));
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

impl Sink<'_, '_> {
    /// Bytes a reader has got; reading ahead goes on until there is no more.
    fn filled(&self) -> usize {
        match self {
            Sink::Reader(buf) => buf.filled().len(),
            Sink::Backlog => 0,
        }
    }
}

/// Error stream first and finished at once (we never write to it), then the data stream.
fn open_pair(out: &mut Vec<u8>, port: u16) {
    let port = port.to_string();
    let mut blocks = HeaderBlocks::default();
    blocks.syn_stream(
        out,
        ERROR_STREAM,
        false,
        &[("streamtype", "error"), ("port", &port), ("requestid", "0")],
    );
    out.extend(spdy::data_header(ERROR_STREAM, FIN, 0));
    blocks.syn_stream(
        out,
        DATA_STREAM,
        false,
        &[("streamtype", "data"), ("port", &port), ("requestid", "0")],
    );
}
