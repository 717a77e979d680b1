//! What a flow holds of its channel.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::super::ConnectError;
use super::carry::send_eof;
use super::{Broken, One, PIECE_COST, reset};

/// Sending half.
pub(in crate::flow) struct Upload {
    one: Arc<One>,
    finished: bool,
}

impl Upload {
    pub(super) fn new(one: Arc<One>) -> Self {
        Self { one, finished: false }
    }

    pub(in crate::flow) async fn send(&mut self, data: Bytes) -> io::Result<()> {
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

    pub(in crate::flow) fn finish(&mut self) -> io::Result<()> {
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

    pub(in crate::flow) fn reset(&mut self) {
        self.one.break_off(Broken::Reset);
        self.one.told.notify_one();
    }

    pub(in crate::flow) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
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
pub(in crate::flow) struct Download {
    one: Arc<One>,
    /// The end was read.
    ended: bool,
}

impl Download {
    pub(super) fn new(one: Arc<One>) -> Self {
        Self { one, ended: false }
    }

    pub(in crate::flow) async fn opened(&mut self) -> Result<(), ConnectError> {
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

    pub(in crate::flow) async fn data(&mut self) -> Result<Option<Bytes>, ConnectError> {
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
