//! An adapter under SSH whose writes never wait.
//!
//! russh awaits the complete flush of its output and reads nothing meanwhile; two russh ends that both send in
//! bulk stop for ever once the path's buffers are full. Here writes only append to a buffer that a task of its own
//! empties into the stream, so reading goes on. What can be in the buffer is what SSH lets be in flight: the sum of
//! the channel windows.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Join, ReadHalf};
use tokio::sync::Notify;

/// Bytes that may wait. Far above what the windows of a session's channels allow (2,000 flows of a stock client
/// may each have one window open, but share the stream's speed); beyond it something is wrong and the session ends.
pub const MAX_QUEUED: usize = 256 << 20;

/// Buffer kept between bursts; above this it is given back.
const KEEP_CAPACITY: usize = 256 << 10;

/// Bytes that may wait before a [`Backlog`] asks for patience. More would only make short answers wait behind them;
/// less would leave the stream idle while its next bytes are on their way here.
const PATIENCE: usize = 256 << 10;

/// Splits `stream` and puts a [`WriteQueue`] in front of its write half.
pub fn decouple<S>(stream: S) -> Join<ReadHalf<S>, WriteQueue>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    decouple_counted(stream).0
}

/// The same, and what tells how much waits.
pub fn decouple_counted<S>(stream: S) -> (Join<ReadHalf<S>, WriteQueue>, Backlog)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    let shared = Arc::new(Shared { state: Mutex::default(), more: Notify::new(), less: Notify::new() });
    tokio::spawn(empty_into(shared.clone(), write));
    let backlog = Backlog { shared: shared.clone() };
    (tokio::io::join(read, WriteQueue { shared }), backlog)
}

/// What waits in a [`WriteQueue`]: for those who can hold their bytes back. Cheap to clone.
#[derive(Clone)]
pub struct Backlog {
    shared: Arc<Shared>,
}

impl Backlog {
    /// Bytes that the stream has not taken.
    pub fn bytes(&self) -> usize {
        self.shared.lock().waiting()
    }

    /// Waits until the queue is short. Nothing is reserved: many who waited may come at once. Safe to cancel.
    pub async fn short(&self) {
        loop {
            let less = self.shared.less.notified();
            if self.shared.lock().is_short() {
                return;
            }
            less.await;
        }
    }
}

/// Write half whose `poll_write` and `poll_flush` are always ready. Dropping it lets what is queued go out, then
/// shuts the stream down.
pub struct WriteQueue {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    more: Notify,
    /// Something left.
    less: Notify,
}

#[derive(Default)]
struct State {
    queued: BytesMut,
    /// Taken out of `queued`, and on its way into the stream.
    leaving: usize,
    /// The writer of the queue is gone.
    closed: bool,
    /// The stream failed; told to the next write.
    failed: Option<io::ErrorKind>,
}

impl State {
    fn waiting(&self) -> usize {
        self.queued.len() + self.leaving
    }

    fn is_short(&self) -> bool {
        self.waiting() < PATIENCE || self.failed.is_some()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock cannot leave the buffer half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncWrite for WriteQueue {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        if let Some(kind) = state.failed {
            return Poll::Ready(Err(kind.into()));
        }
        if state.queued.len() + data.len() > MAX_QUEUED {
            return Poll::Ready(Err(io::Error::other("more queued for the tunnel than its windows allow")));
        }
        state.queued.extend_from_slice(data);
        drop(state);
        self.shared.more.notify_one();
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl WriteQueue {
    fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.more.notify_one();
    }
}

impl Drop for WriteQueue {
    fn drop(&mut self) {
        self.close();
    }
}

async fn empty_into(shared: Arc<Shared>, mut write: impl AsyncWrite + Unpin) {
    let mut batch = BytesMut::new();
    loop {
        let closed = {
            let mut state = shared.lock();
            std::mem::swap(&mut state.queued, &mut batch);
            state.leaving = batch.len();
            state.closed
        };
        shared.less.notify_waiters();
        if batch.is_empty() {
            if closed {
                break;
            }
            shared.more.notified().await;
            continue;
        }
        let sent = match write.write_all(&batch).await {
            Ok(()) => write.flush().await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            // The reading side of the same stream reports the cause; writers only need to know it is over.
            shared.lock().failed = Some(error.kind());
            shared.less.notify_waiters();
            return;
        }
        batch.clear();
        if batch.capacity() > KEEP_CAPACITY {
            batch = BytesMut::new();
        }
    }
    let _ = write.shutdown().await; // the far end may have gone first
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn writes_never_wait_and_arrive_in_order() {
        let (near, mut far) = tokio::io::duplex(16);
        let (_read, mut write) = tokio::io::split(decouple(near));
        let sent: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        for chunk in sent.chunks(777) {
            write.write_all(chunk).await.unwrap(); // nobody reads yet: a waiting write would hang here
        }
        drop(write);
        drop(_read);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn whoever_can_wait_is_told_when_the_queue_is_short_again() {
        let (near, mut far) = tokio::io::duplex(16);
        let (queue, backlog) = decouple_counted(near);
        let (_read, mut write) = tokio::io::split(queue);
        backlog.short().await;
        write.write_all(&vec![7; 2 * PATIENCE]).await.unwrap();
        let mut waiting = std::pin::pin!(backlog.short());
        tokio::select! {
            biased;
            () = &mut waiting => panic!("{} bytes wait", backlog.bytes()),
            () = tokio::task::yield_now() => {}
        }
        let read = async {
            let mut left = 2 * PATIENCE;
            while left > 0 {
                left -= far.read(&mut vec![0; PATIENCE]).await.unwrap();
            }
        };
        tokio::join!(waiting, read);
        assert!(backlog.bytes() < PATIENCE);
    }

    #[tokio::test]
    async fn a_failed_stream_is_told_to_the_writer() {
        let (near, far) = tokio::io::duplex(16);
        let (mut read, mut write) = tokio::io::split(decouple(near));
        drop(far);
        assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
        // The queue learns of it with its first write; one of the next ones reports it.
        loop {
            if write.write_all(b"x").await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}
