//! What needs clocks in the hand: a machine that sleeps. Everything else is tested through the stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    super::{PortForwardError, Transport, liveness::DEAD_AFTER_SLEEP},
    Connection, Sink,
};

/// A socket with `said` to read and then silence, that keeps what was written.
#[derive(Default)]
struct Socket {
    said: Vec<u8>,
    sent: Vec<u8>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.said.is_empty() {
            return Poll::Pending;
        }
        buf.put_slice(&std::mem::take(&mut self.said));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.sent.extend(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// `Instant` stands still in suspend on Linux: after waking up it is not 30 s more, but a ping and 5 s.
#[test]
fn after_a_sleep_one_ping_decides() {
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    for answered in [false, true] {
        let mut cx = Context::from_waker(Waker::noop());
        let mut connection = Connection::new(Socket::default(), Transport::Spdy, 8000);
        let replies = [[0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1], [0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 3]];
        connection.io.as_mut().unwrap().said = replies.concat();
        assert!(connection.poll_fill(&mut cx, Sink::Backlog).is_pending());
        assert!(connection.poll_drain(&mut cx, &mut false).is_ready());
        connection.io.as_mut().unwrap().sent.clear();

        let (awake, wall) = (Instant::now() + second, SystemTime::now() + hour);
        connection.on_time(awake, wall);
        assert!(connection.verdict().is_none());
        assert!(connection.poll_drain(&mut cx, &mut false).is_ready());
        let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
        assert_eq!(connection.io.as_ref().unwrap().sent, ping, "asked at once");
        assert_eq!(connection.deadline(), awake + DEAD_AFTER_SLEEP);

        if answered {
            connection.io.as_mut().unwrap().said = ping.to_vec();
        }
        let late = awake + DEAD_AFTER_SLEEP;
        assert!(connection.look_due(late), "what lies in the socket unread must be seen first");
        let _ = connection.poll_fill(&mut cx, Sink::Backlog);
        connection.on_time(late, wall + DEAD_AFTER_SLEEP);
        match connection.verdict() {
            None => assert!(answered),
            Some(Err(PortForwardError::PingTimeout { after })) => {
                assert!(!answered);
                assert_eq!(*after, DEAD_AFTER_SLEEP);
            }
            other => panic!("{other:?}"),
        }
    }
}
