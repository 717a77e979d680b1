//! Flushing over a connection that buffers, as TLS does.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::Instant,
};

use super::{PING_EVERY, PIPE, PortForwardStream, Transport::Spdy};

/// TLS as the stream sees it: a write is always taken, and what it takes leaves only when flushing gets room.
struct Buffering {
    io: DuplexStream,
    held: Vec<u8>,
}

impl AsyncRead for Buffering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Buffering {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.held.extend(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.held.is_empty() {
            let count = ready!(Pin::new(&mut this.io).poll_write(cx, &this.held))?;
            this.held.drain(..count);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_waited_ends_when_the_socket_has_room_not_at_the_next_ping() {
    let (ours, mut theirs) = duplex(PIPE);
    let mut stream = PortForwardStream::start(Buffering { io: ours, held: Vec::new() }, Spdy, 8000);
    let started = Instant::now();
    let write = async {
        stream.write_all(&[7; 2 * PIPE]).await.unwrap();
        stream.flush().await.unwrap();
        started.elapsed()
    };
    let read = async {
        tokio::task::yield_now().await; // the flush waits before there is room
        let mut got = vec![0; PIPE];
        for _ in 0..2 {
            theirs.read_exact(&mut got).await.unwrap();
        }
        std::future::pending::<()>().await
    };
    let took = tokio::select! {
        took = write => took,
        () = read => unreachable!("it waits for ever"),
    };
    assert!(took < PING_EVERY, "{took:?}");
}
