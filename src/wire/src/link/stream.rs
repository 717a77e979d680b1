//! The stream that SSH sits on, and the handle that gives it connections.
//!
//! ```text
//! let (stream, handle) = link::connect(Token::generate()?, Limits::default());
//! SSH over `stream`, meanwhile, until `handle.ended()`:
//!     let attachment = handle.attach(dial().await?).await?;   // greeting: bounded time
//!     let why = attachment.run().await;                       // until this connection is of no more use
//! ```
//!
//! Both may be dropped at any time: an attachment's future only cuts its connection.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;

use super::end::End;
use super::frame::CloseReason;
use super::hello::{Answer, Hello, HelloError, Refusal, Token, VERSIONS};
use super::observer::Observer;
use super::pump::{Attachment, Role};
use super::shared::{Phase, Shared, Status};
use super::state::{Limits, Opening, State, Stop};

/// Time for a greeting and its answer: one round trip, and the far end of a port-forward may still be connecting.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Begins a link as its client. Bytes written wait for the first attachment.
///
/// Must be called within a tokio runtime.
pub fn connect(token: Token, limits: Limits) -> (LinkStream, LinkHandle) {
    let shared = Shared::start(limits);
    (LinkStream::new(shared.clone()), LinkHandle { shared, token })
}

/// The byte stream over whatever carries the link.
///
/// Writes never wait and need no flush; what may be in flight is bounded by the layer above, and going over
/// [`Limits::unacknowledged`] ends the link. Reads end cleanly only when the peer's layer above ended in order; errors
/// of reads and writes carry an [`End`]. Shutting down ends the link for both once everything written has been sent;
/// dropping does the same and forgets what arrives.
pub struct LinkStream {
    shared: Arc<Shared>,
    ready: VecDeque<Bytes>,
}

/// Gives a link its connections. Cheap to clone.
#[derive(Clone)]
pub struct LinkHandle {
    shared: Arc<Shared>,
    token: Token,
}

/// Why a connection could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The link is over; no connection helps.
    #[error("the link has ended")]
    Ended(#[source] End),
    /// The server says no. After [`Refusal::TooMany`] and [`Refusal::Superseded`] the link lives on, after others it has
    /// ended.
    #[error("the pod refused the connection")]
    Refused(#[source] Refusal),
    /// The server answered something else; [`HelloError::Ssh`] means plain SSH.
    #[error("greet the pod")]
    Greeting(#[source] HelloError),
    /// The connection failed.
    #[error("greet the pod")]
    Io(#[source] io::Error),
    /// No answer.
    #[error("the pod did not answer the greeting within {} s", GREETING_TIMEOUT.as_secs())]
    Timeout,
    /// A newer attempt began meanwhile.
    #[error("a newer connection carries the link")]
    Fenced,
}

impl LinkHandle {
    /// Greets the server over `connection` and makes it carry the link, instead of the one that did so far (which is
    /// let go at once: greet only over a connection that is ready). Nothing flows before
    /// [`run`](Attachment::run) is awaited.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub async fn attach<S>(&self, connection: S) -> Result<Attachment<S>, AttachError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let result = self.greeted(connection).await;
        if let Err(error) = &result {
            self.shared.note(error);
        }
        result
    }

    async fn greeted<S>(&self, mut connection: S) -> Result<Attachment<S>, AttachError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = &self.shared;
        let began = shared.now();
        let opening = shared.change(|state| state.opening(began)).map_err(AttachError::Ended)?;
        let mut input = BytesMut::new();
        let answer = timeout(GREETING_TIMEOUT, self.greet(&mut connection, &opening, &mut input))
            .await
            .unwrap_or(Err(AttachError::Timeout))?;
        let now = shared.now();
        let attached = shared.change(|state| match answer {
            Answer::Welcome { received, .. } => {
                state.attach(opening.epoch, received, now).map_err(|stop| match stop {
                    Stop::Ended(end) => AttachError::Ended(end),
                    _ => AttachError::Fenced,
                })?;
                state.measured(now - began);
                Ok(received)
            }
            Answer::Refused(reason) => {
                if !matches!(reason, Refusal::TooMany | Refusal::Superseded) {
                    state.refused(reason);
                }
                Err(AttachError::Refused(reason))
            }
        });
        let received = attached?;
        shared.observe(|observer| observer.attached(received));
        let out = BytesMut::new();
        Ok(Attachment::new(shared.clone(), Role::Client, opening.epoch, connection, input, out))
    }

    async fn greet<S>(
        &self,
        connection: &mut S,
        opening: &Opening,
        input: &mut BytesMut,
    ) -> Result<Answer, AttachError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = Hello {
            versions: VERSIONS,
            token: self.token,
            resume: opening.resume,
            attempt: opening.epoch,
            received: opening.received,
        };
        let mut greeting = BytesMut::new();
        hello.encode(&mut greeting);
        connection.write_all(&greeting).await.map_err(AttachError::Io)?;
        connection.flush().await.map_err(AttachError::Io)?;
        loop {
            if let Some(answer) = Answer::decode(input, &VERSIONS).map_err(AttachError::Greeting)? {
                return Ok(answer);
            }
            if connection.read_buf(input).await.map_err(AttachError::Io)? == 0 {
                return Err(AttachError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Changes of the phase.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// Waits until the link is over, whoever ended it.
    pub async fn ended(&self) -> End {
        self.shared.ended().await
    }

    /// The network has changed: asks the peer at once, and gives the connection up after 3 s of silence. Does nothing
    /// without an attachment.
    pub fn probe(&self) {
        let now = self.shared.now();
        self.shared.change(|state| state.probe(now));
    }

    /// The machine slept for `gap`, which tokio's clock does not show: probes the connection, or gives it up at once
    /// when the peer will have done so.
    pub fn slept(&self, gap: Duration) {
        let now = self.shared.now();
        self.shared.change(|state| state.slept(gap, now));
    }

    /// Ends the link now; what was not sent yet is lost. The peer is told if a connection is there.
    pub fn close(&self, reason: CloseReason) {
        self.shared.change(|state| state.close(reason));
    }
}

impl LinkStream {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, ready: VecDeque::new() }
    }

    /// From now on `observer` hears what is written and acknowledged. There is one per link; another is ignored.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.shared.observer.set(observer);
    }

    /// How the link stands.
    pub fn status(&self) -> Status {
        self.shared.status()
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { shared, ready } = &mut *self;
        if ready.is_empty() && buf.remaining() > 0 {
            let mut inner = shared.lock();
            if inner.state.take_received(ready) {
                inner.wake_pump();
            }
            if ready.is_empty() {
                return match inner.state.ended() {
                    Some(End::Done) => Poll::Ready(Ok(())),
                    Some(end) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, end))),
                    None => {
                        inner.reader = Some(cx.waker().clone());
                        Poll::Pending
                    }
                };
            }
        }
        while let Some(piece) = ready.front_mut().filter(|_| buf.remaining() > 0) {
            let count = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..count]);
            piece.advance(count);
            if piece.is_empty() {
                ready.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.shared.lock();
        if inner.state.is_finished() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match inner.state.write(data) {
            Ok(end) => {
                if inner.hungry {
                    inner.wake_pump();
                }
                // Under the lock: the acknowledgement must not be heard first.
                self.shared.observe(|observer| observer.written(end));
                Poll::Ready(Ok(data.len()))
            }
            Err(end) => {
                self.shared.publish(&mut inner);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, end)))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.change(State::finish);
        Poll::Ready(Ok(()))
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        self.shared.change(State::abandon);
    }
}
