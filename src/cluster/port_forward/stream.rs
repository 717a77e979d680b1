//! The byte stream users hold, and the driver task behind it.
//!
//! There is no task between the user and the socket: `poll_read` and `poll_write` work on the connection themselves, under a
//! lock nobody else wants in the normal case, so a byte costs no extra wake-up and no extra copy. The driver sleeps and is
//! needed only where the user is not there to act:
//!
//! * clock: pings, silence, the waits for SYN_REPLY and for the error stream;
//! * socket writable again: it writes on and wakes the writer;
//! * socket readable while no reader waits (noticed at the next ping): it reads ahead, up to a bound;
//! * the end: it says goodbye and closes, also when the stream was dropped.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::SystemTime,
};

use futures::task::AtomicWaker;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use super::{
    PortForwardError, Transport,
    connection::{Connection, Sink},
};

/// A connection to one port of a pod. Errors of reads and writes carry a [`PortForwardError`] as their inner error.
///
/// Reads end cleanly only when the pod's side said so without an error text. Shutting down the write side closes
/// the pod's socket within a second on containerd and CRI-O, and over `v4` once the pod has been silent for one:
/// half-close does not exist on this way. Dropping it closes
/// the connection at once; what was written but not flushed gets up to a second to leave.
pub struct PortForwardStream<T = TokioIo<Upgraded>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    shared: Arc<Shared<T>>,
    transport: Transport,
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> PortForwardStream<T> {
    /// Takes over a connection whose 101 was read, and spawns its driver on the current runtime.
    pub(super) fn start(io: T, transport: Transport, port: u16) -> Self {
        let wakers = Arc::<Wakers>::default();
        let shared = Arc::new(Shared {
            connection: Mutex::new(Connection::new(io, transport, port)),
            dropped: AtomicBool::new(false),
            read_ready: Arc::new(ReadReady(wakers.clone())).into(),
            write_ready: Arc::new(WriteReady(wakers.clone())).into(),
            wakers,
        });
        tokio::spawn(drive(shared.clone()));
        PortForwardStream { shared, transport }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> PortForwardStream<T> {
    /// How the bytes travel: never [`Transport::Auto`].
    pub fn transport(&self) -> Transport {
        self.transport
    }

    fn write(&self, cx: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let shared = &*self.shared;
        shared.wakers.writer.register(cx.waker());
        let mut connection = shared.lock();
        if let Some(verdict) = connection.verdict() {
            return Poll::Ready(Err(verdict.clone().err().unwrap_or(PortForwardError::Closed).into_io()));
        }
        if connection.is_shut_down() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if connection.is_ending() {
            return Poll::Pending; // the reason comes within ERROR_WAIT and is a better answer
        }
        let mut taken = queue_all(&mut connection, buffers);
        let _ = shared.drain(&mut connection, Caller::Writer); // what stays queued goes when the socket has room
        if taken == 0 {
            taken = queue_all(&mut connection, buffers);
        }
        if taken > 0 || buffers.iter().all(|buffer| buffer.is_empty()) {
            shared.wakers.writer.take();
            Poll::Ready(Ok(taken))
        } else {
            Poll::Pending
        }
    }
}

fn queue_all<T>(connection: &mut Connection<T>, buffers: &[io::IoSlice<'_>]) -> usize
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut taken = 0;
    for buffer in buffers {
        let count = connection.queue(buffer);
        taken += count;
        if count < buffer.len() {
            break;
        }
    }
    taken
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for PortForwardStream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let shared = &*self.shared;
        shared.wakers.reader.register(cx.waker());
        let mut connection = shared.lock();
        let before = buf.filled().len();
        connection.read_backlog(buf);
        if buf.filled().len() == before && connection.verdict().is_none() {
            let mut ready = Context::from_waker(&shared.read_ready);
            let _ = connection.poll_fill(&mut ready, Sink::Reader(buf)); // what it did shows in `buf` and the verdict
            let _ = shared.drain(&mut connection, Caller::Other); // answers to pings, and the opening when the reader comes first
        }
        if buf.filled().len() == before && connection.verdict().is_none() {
            return Poll::Pending;
        }
        shared.wakers.reader.take();
        match connection.verdict() {
            Some(Err(error)) if buf.filled().len() == before => Poll::Ready(Err(error.clone().into_io())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for PortForwardStream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &*self.shared;
        shared.wakers.writer.register(cx.waker());
        let mut connection = shared.lock();
        let drained = shared.drain(&mut connection, Caller::Writer);
        match connection.verdict() {
            Some(Err(error)) => Poll::Ready(Err(error.clone().into_io())),
            Some(Ok(())) => Poll::Ready(Ok(())),
            None if connection.is_ending() => Poll::Pending,
            None => drained.map(Ok),
        }
    }

    /// Ends our data, then flushes. Reading goes on until the pod's side ends too.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().shut_down();
        self.poll_flush(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Drop for PortForwardStream<T> {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Release);
        self.shared.wakers.driver.wake();
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> fmt::Debug for PortForwardStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortForwardStream").field("transport", &self.transport).finish_non_exhaustive()
    }
}

struct Shared<T> {
    connection: Mutex<Connection<T>>,
    dropped: AtomicBool,
    wakers: Arc<Wakers>,
    read_ready: Waker,
    write_ready: Waker,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Connection<T>> {
        self.connection.lock().expect("only a bug in this module can panic under the lock")
    }

    /// Writes what is queued as far as possible; the driver goes on when the socket has room again.
    fn drain(&self, connection: &mut Connection<T>, caller: Caller) -> Poll<()> {
        let mut progress = false;
        let drained = connection.poll_drain(&mut Context::from_waker(&self.write_ready), &mut progress);
        if progress && caller == Caller::Other {
            self.wakers.writer.wake();
        }
        if connection.take_notice() {
            self.wakers.driver.wake();
        }
        drained
    }
}

/// Who drains: the writer sees by itself what came of it, and waking it would only run it once more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Writer,
    Other,
}

/// Who waits for what. Apart from the connection's lock, because a waker may be called while that is held.
#[derive(Default)]
struct Wakers {
    reader: AtomicWaker,
    writer: AtomicWaker,
    driver: AtomicWaker,
    read_ahead: AtomicBool,
}

/// The socket is readable: the reader's business, or the driver's when no reader waits.
struct ReadReady(Arc<Wakers>);

impl Wake for ReadReady {
    fn wake(self: Arc<Self>) {
        match self.0.reader.take() {
            Some(reader) => reader.wake(),
            None => {
                self.0.read_ahead.store(true, Ordering::Release);
                self.0.driver.wake();
            }
        }
    }
}

/// The socket is writable: the driver writes on and then wakes the writer, who may long have gone on to other things.
struct WriteReady(Arc<Wakers>);

impl Wake for WriteReady {
    fn wake(self: Arc<Self>) {
        self.0.driver.wake();
    }
}

/// Lives from the upgrade until the connection is closed.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(shared: Arc<Shared<T>>) {
    let mut sleep = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        shared.wakers.driver.register(cx.waker());
        loop {
            let now = Instant::now();
            let mut connection = shared.lock();
            if !connection.is_closing() {
                shared.attend(&mut connection, now);
            }
            let mut ready = Context::from_waker(&shared.write_ready);
            if connection.is_closing() && connection.poll_close(&mut ready, now).is_ready() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(connection.deadline());
            drop(connection);
            ready!(sleep.as_mut().poll(cx));
        }
    })
    .await;
}

impl<T: AsyncRead + AsyncWrite + Unpin> Shared<T> {
    /// What the driver does each time it is woken.
    fn attend(&self, connection: &mut Connection<T>, now: Instant) {
        let asked = self.wakers.read_ahead.swap(false, Ordering::AcqRel);
        if asked || connection.look_due(now) {
            let _ = connection.poll_fill(&mut Context::from_waker(&self.read_ready), Sink::Backlog);
            if connection.has_backlog() {
                self.wakers.reader.wake();
            }
        }
        connection.on_time(now, wall_clock());
        let _ = self.drain(connection, Caller::Other); // what is left waits for the socket, which wakes us
        let dropped = self.dropped.load(Ordering::Acquire);
        if dropped || connection.verdict().is_some() {
            connection.begin_close(now);
            self.wakers.reader.wake();
            self.wakers.writer.wake();
        }
    }
}

/// Stands still in tests, because the other clock does, while they compute.
fn wall_clock() -> SystemTime {
    if cfg!(test) { SystemTime::UNIX_EPOCH } else { SystemTime::now() }
}
