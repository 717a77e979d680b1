//! One connection carrying the link: the only task that reads and writes it.
//!
//! Reading and writing take turns in one future, so neither waits for the other, and every byte is counted and handed up
//! under one lock without an await between: dropping the future anywhere loses and doubles nothing.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::end::End;
use super::frame::{self, CloseReason, FrameError};
use super::observer::TimedAck;
use super::outgoing::Outgoing;
use super::shared::Shared;
use super::state::Stop;

/// Bytes asked of the connection at once; below the second number there is too little room and a new buffer is taken
/// (or the old one, once all its slices are read).
const READ_SIZE: usize = 128 << 10;
const READ_LEAST: usize = 16 << 10;

/// Pieces handed to one write.
const SLICES: usize = 16;

/// Turns before other tasks get theirs.
const TURNS: usize = 32;

/// Time for the last word. A peer that does not hear it finds out by itself.
const LAST_WORD_TIME: Duration = Duration::from_secs(1);

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// A connection that carries the link while [`run`](Self::run) is polled. Dropping it cuts the connection; the link
/// stays.
#[must_use = "nothing flows until it runs"]
pub struct Attachment<S> {
    shared: Arc<Shared>,
    role: Role,
    epoch: u64,
    connection: S,
    input: BytesMut,
    /// `input` has bytes that nobody has looked at.
    unseen: bool,
    out: Outgoing,
    unflushed: bool,
    /// Writing has failed; what the peer said before may still be there to read, its reason among it.
    broken: Option<io::Error>,
    acks: Vec<TimedAck>,
    timer: Pin<Box<Sleep>>,
    /// When the timer goes off. Deadlines move at every packet, mostly later: it is moved only when one is earlier.
    armed: Option<Duration>,
}

/// Why a connection carries the link no longer.
#[derive(Debug, thiserror::Error)]
pub enum Detached {
    /// It failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// It ended without a word.
    #[error("the connection was closed")]
    Eof,
    /// Nothing was heard for too long.
    #[error("the path is silent")]
    Silent,
    /// The machine slept for longer than the peer waits.
    #[error("the machine was asleep")]
    Slept,
    /// A newer one carries the link, as this or the other side says.
    #[error("a newer connection carries the link")]
    Fenced,
    /// Something on the way damages the stream.
    #[error("read the link")]
    Frame(#[source] FrameError),
    /// The link is over: no other connection helps.
    #[error("the link has ended")]
    Ended(#[source] End),
}

impl<S> Attachment<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// `input` was read behind the greeting, `greeting` is to be written before all else.
    pub(super) fn new(
        shared: Arc<Shared>,
        role: Role,
        epoch: u64,
        connection: S,
        input: BytesMut,
        greeting: BytesMut,
    ) -> Self {
        let mut out = Outgoing::default();
        out.last_word(|bytes| bytes.unsplit(greeting));
        Self {
            shared,
            role,
            epoch,
            connection,
            unseen: !input.is_empty(),
            input,
            out,
            unflushed: false,
            broken: None,
            acks: Vec::new(),
            timer: Box::pin(sleep_until(Instant::now())),
            armed: None,
        }
    }

    /// Carries the link until the connection is of no more use, and says why. May be dropped.
    pub async fn run(mut self) -> Detached {
        let stop = poll_fn(|cx| self.poll(cx)).await;
        self.detach();
        self.say_last_word(&stop).await;
        self.shared.note(&stop);
        stop
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Detached> {
        for _ in 0..TURNS {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(stop) => return Poll::Ready(stop),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One look at everything. False when there is nothing to do but wait.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Detached> {
        let now = self.shared.now();
        let (may_read, deadline) = {
            let mut inner = self.shared.lock();
            let inner = &mut *inner;
            inner.state.on_time(self.epoch, now)?;
            if self.out.is_empty() {
                inner.state.transmit(self.epoch, now, &mut self.out)?;
            }
            inner.hungry = self.out.is_empty();
            inner.pump = Some(cx.waker().clone());
            (inner.state.may_read(now), inner.state.next_timeout(now, !self.out.is_empty()))
        };
        let wrote = match self.broken {
            None => self.write(cx).unwrap_or_else(|error| {
                self.broken = Some(error);
                false
            }),
            Some(_) => false,
        };
        let read = if self.unseen || may_read { self.read(cx)? } else { false };
        if let Some(error) = self.broken.take_if(|_| !read) {
            return Err(Detached::Io(error));
        }
        Ok(wrote || read || self.poll_timer(cx, deadline).is_ready())
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut wrote = false;
        while let Poll::Ready(count) = self.poll_write(cx) {
            match count? {
                0 if self.out.is_empty() => break,
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.out.advance(count),
            }
            (wrote, self.unflushed) = (true, true);
        }
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.connection).poll_flush(cx)
        {
            flushed?;
            self.unflushed = false;
        }
        Ok(wrote)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if !self.connection.is_write_vectored() {
            self.out.merge();
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(self.out.pieces()) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        Pin::new(&mut self.connection).poll_write_vectored(cx, &slices[..count])
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Detached> {
        if !std::mem::take(&mut self.unseen) {
            if self.input.capacity() - self.input.len() < READ_LEAST {
                self.input.reserve(READ_SIZE);
            }
            let read = pin!(self.connection.read_buf(&mut self.input)).poll(cx);
            match read {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(Detached::Eof),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(Detached::Io(error)),
            }
        }
        let now = self.shared.now();
        let received = {
            let mut inner = self.shared.lock();
            let received = inner.state.receive(self.epoch, now, &mut self.input, &mut self.acks);
            if inner.state.unread() > 0 {
                inner.wake_reader();
            }
            received
        };
        for ack in self.acks.drain(..) {
            self.shared.observe(|observer| observer.acknowledged(ack));
        }
        received?;
        Ok(true)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, deadline: Option<Duration>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        if self.armed.is_none_or(|armed| deadline < armed) {
            self.timer.as_mut().reset(self.shared.at(deadline));
            self.armed = Some(deadline);
        }
        ready!(self.timer.as_mut().poll(cx));
        self.armed = None;
        Poll::Ready(())
    }

    /// Best effort and bounded. What is half written must leave first.
    async fn say_last_word(&mut self, stop: &Detached) {
        match stop {
            Detached::Ended(_) => {
                let reason = self.shared.lock().state.take_last_word();
                self.out.last_word(|bytes| {
                    reason.into_iter().for_each(|reason: CloseReason| frame::close(reason, bytes))
                });
            }
            Detached::Fenced if self.role == Role::Server => self.out.last_word(frame::fenced),
            _ => return,
        }
        let say = async {
            for piece in self.out.pieces() {
                self.connection.write_all(piece).await?;
            }
            self.connection.shutdown().await?;
            // Closing a socket with unread bytes resets it, and the last word could be lost with that.
            while self.connection.read(&mut [0; 4096]).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = timeout(LAST_WORD_TIME, say).await; // best effort
    }
}

impl<S> Attachment<S> {
    fn detach(&self) {
        let now = self.shared.now();
        let mut inner = self.shared.lock();
        inner.state.detach(self.epoch, now);
        self.shared.publish(&mut inner);
    }
}

impl<S> Drop for Attachment<S> {
    fn drop(&mut self) {
        self.detach();
    }
}

impl From<Stop> for Detached {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Stale | Stop::Fenced => Self::Fenced,
            Stop::Silent => Self::Silent,
            Stop::Slept => Self::Slept,
            Stop::Frame(error) => Self::Frame(error),
            Stop::Ended(end) => Self::Ended(end),
        }
    }
}
