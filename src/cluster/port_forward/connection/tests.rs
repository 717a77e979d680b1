//! What needs clocks or buffers in the hand: a machine that sleeps, memory. Everything else is tested through the stream.

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
    BACKLOG, Connection, STREAM_MEMORY_MAX, Sink,
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

/// A peer that says `head`, then `rest` over and over, and takes nothing.
struct Flood {
    head: Vec<u8>,
    rest: Vec<u8>,
    said: usize,
}

impl AsyncRead for Flood {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while buf.remaining() > 0 {
            let script = match self.said.checked_sub(self.head.len()) {
                None => &self.head[self.said..],
                Some(after) => &self.rest[after % self.rest.len()..],
            };
            let count = script.len().min(buf.remaining());
            buf.put_slice(&script[..count]);
            self.said += count;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flood {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// Data, pings of both kinds and error text without end, in lengths that are no power of two.
fn flood(transport: Transport) -> Flood {
    let frame =
        |id: u32, bytes: &[u8]| [&id.to_be_bytes()[..], &(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let message = |first: u8, bytes: &[u8]| {
        if bytes.len() < 126 {
            [&[first, bytes.len() as u8][..], bytes].concat()
        } else {
            [&[first, 126][..], &(bytes.len() as u16).to_be_bytes(), bytes].concat()
        }
    };
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2];
    let (data, text) = ([7; 30_001], [b'e'; 3001]);
    let wrapped = |parts: &[&[u8]]| {
        let messages = parts.iter().map(|part| message(0x82, part));
        [message(0x89, &[b'p'; 125]), messages.collect::<Vec<_>>().concat()].concat()
    };
    let (head, rest) = match transport {
        Transport::Spdy => (vec![], [frame(3, &data), ping.to_vec(), frame(1, &text)].concat()),
        Transport::V4 => (
            wrapped(&[b"\0\x40\x1f", b"\x01\x40\x1f"]),
            wrapped(&[&[&b"\0"[..], &data].concat(), &[&b"\x01"[..], &text].concat()]),
        ),
        _ => (vec![], wrapped(&[&frame(3, &data), &ping, &frame(1, &text)])),
    };
    Flood { head, rest, said: 0 }
}

#[test]
fn memory_is_bounded_whoever_stalls() {
    for transport in [Transport::Spdy, Transport::Websocket, Transport::V4] {
        let mut cx = Context::from_waker(Waker::noop());
        let mut connection = Connection::new(flood(transport), transport, 8000);
        let mut most = 0;
        for round in 0..2000 {
            // First nobody reads, then somebody reads a little now and then.
            let _ = connection.poll_fill(&mut cx, Sink::Backlog);
            connection.queue(&[1; 10_007]);
            assert!(connection.poll_drain(&mut cx, &mut false).is_pending());
            most = most.max(connection.memory());
            if round == 1000 {
                let said = connection.io.as_ref().unwrap().said;
                assert!(said < STREAM_MEMORY_MAX + BACKLOG / 4, "{said} bytes were taken in");
            }
            if round > 1000 {
                let mut storage = [0; 5003];
                let mut buf = ReadBuf::new(&mut storage);
                connection.read_backlog(&mut buf);
                assert_eq!(buf.filled(), [7; 5003], "{transport}");
            }
        }
        assert!(connection.verdict().is_none());
        assert!((BACKLOG..=STREAM_MEMORY_MAX).contains(&most), "{transport}: {most} bytes");
    }
}
