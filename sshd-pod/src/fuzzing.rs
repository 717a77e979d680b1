//! Entrance for coverage-guided fuzzing (`scripts/fuzz`): all of our own code that a stranger's bytes reach before the
//! login, which is the greeting of a link and the frames that carry SSH in it. SSH itself is russh's.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use kshuttle_wire::link::server::Links;
use kshuttle_wire::link::{Limits, LinkStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that says `input[1..]` and ends; the first byte chooses how it is cut. However it is cut, the same must
/// arrive at SSH, or nothing.
///
/// # Panics
/// When that is not so.
pub fn before_login(input: &[u8]) {
    let [seed, said @ ..] = input else { return };
    let whole = play(VecDeque::from([said.to_vec()]));
    let size = usize::from(seed % 13) + 1;
    let cut = play(said.chunks(size).map(<[u8]>::to_vec).collect());
    assert_eq!(whole, cut, "depends on how the bytes are cut");
}

/// Whether the link took the connection, and what arrived in it.
fn play(pieces: VecDeque<Vec<u8>>) -> (bool, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime without threads").block_on(async {
        let links = Links::new(Limits::default());
        let mut link = None;
        let served = links.serve(Said { pieces }, |stream| link = Some(stream)).await;
        (served.is_ok(), link.map(arrived).unwrap_or_default())
    })
}

/// What can be read without waiting.
fn arrived(mut link: LinkStream) -> Vec<u8> {
    let (mut all, mut room) = (Vec::new(), [0; 4096]);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(&mut link).poll_read(&mut cx, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => all.extend(buffer.filled()),
            _ => return all,
        }
    }
}

/// Says its pieces one by one; hears nothing.
struct Said {
    pieces: VecDeque<Vec<u8>>,
}

impl AsyncRead for Said {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buffer.remaining()));
            buffer.put_slice(&piece);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kshuttle_wire::link::frame::{self, CloseReason};
    use kshuttle_wire::link::{Token, hello::Hello};

    use super::*;

    /// A greeting and some of every frame.
    fn conversation() -> Vec<u8> {
        let mut out = BytesMut::new();
        let token = Token::from_bytes([7; 16]);
        Hello { versions: 1..=1, token, resume: false, attempt: 1, received: 0 }.encode(&mut out);
        for text in [&b"SSH-2.0-x\r\n"[..], b"and more"] {
            out.extend_from_slice(&frame::data_header(text.len()));
            out.extend_from_slice(text);
        }
        frame::ping(1, &mut out);
        frame::pong(2, &mut out);
        frame::close(CloseReason::Done, &mut out);
        out.to_vec()
    }

    #[test]
    fn what_is_said_arrives_however_it_is_cut() {
        let said = conversation();
        assert_eq!(play(VecDeque::from([said.clone()])), (true, b"SSH-2.0-x\r\nand more".to_vec()));
        for seed in 0..13 {
            before_login(&[&[seed], &said[..]].concat());
        }
    }

    #[test]
    fn every_changed_byte_and_every_early_end_is_borne() {
        let said = conversation();
        for end in 0..said.len() {
            before_login(&[&[3], &said[..end]].concat());
        }
        for place in 0..said.len() {
            for change in [1, 0x80, 0xff] {
                let mut other = said.clone();
                other[place] ^= change;
                before_login(&[&[place as u8], &other[..]].concat());
            }
        }
    }
}
