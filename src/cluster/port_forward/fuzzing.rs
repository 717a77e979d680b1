//! Entrances for coverage-guided fuzzing (`scripts/fuzz`), and the replay of its corpus among the ordinary tests; built
//! for these two only. Both panic when a promise is broken, whatever the bytes are.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use http::Response;
use kube::client::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    PortForwardError, STREAM_MEMORY_MAX, Transport,
    connection::{Connection, Sink},
    negotiate,
};

/// Of RFC 6455, section 1.3, so that the corpus can hold a right `Sec-WebSocket-Accept`.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// Bytes of an error's text: the largest body read, and the words around it.
const TEXT_MAX: usize = 70 * 1024;

/// A connection whose server says `input[2..]`; the first byte chooses the way and what we do, the second how the bytes
/// are cut. However they are cut, the same data must come out and it must end the same, and what we send must be
/// well-formed.
pub fn stream(input: &[u8]) {
    let [choice, seed, said @ ..] = input else { return };
    let transport = [Transport::Spdy, Transport::Websocket, Transport::V4][usize::from(choice % 3)];
    let whole = play(transport, said, None, choice & 4 != 0);
    let cut = play(transport, said, Some(*seed), choice & 4 != 0);
    assert_eq!(whole, cut, "depends on how the bytes are cut");
}

/// An HTTP answer: a line `WAY STATUS` (WAY is s, w or v), header lines, an empty line, a body.
pub fn answer(input: &[u8]) {
    let end = input.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = end.map_or((input, &[][..]), |end| (&input[..end], &input[end + 2..]));
    let mut lines = head.split(|byte| *byte == b'\n');
    let Some([way, b' ', status @ ..]) = lines.next() else { return };
    let transport = match way {
        b's' => Transport::Spdy,
        b'v' => Transport::V4,
        _ => Transport::Websocket,
    };
    let mut response = Response::builder().status(status);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default().trim_ascii());
        let name = http::HeaderName::from_bytes(name);
        let value = http::HeaderValue::from_bytes(value);
        if let (Ok(name), Ok(value)) = (name, value) {
            response = response.header(name, value);
        }
    }
    let Ok(response) = response.body(Body::from(body.to_vec())) else { return };
    let upgrade = response.headers().get("upgrade").cloned();
    let error = if response.status() == 101 {
        match negotiate::check(response.headers(), transport, KEY) {
            Err(error) => error,
            Ok(()) => {
                let expected = if transport == Transport::Spdy { "spdy/3.1" } else { "websocket" };
                let upgrade = upgrade.expect("accepted without an Upgrade header");
                assert!(upgrade.as_bytes().eq_ignore_ascii_case(expected.as_bytes()));
                return;
            }
        }
    } else {
        RUNTIME.with(|runtime| runtime.block_on(negotiate::refusal(response, transport)))
    };
    assert!(error.to_string().len() <= TEXT_MAX, "a text of {} bytes", error.to_string().len());
    let refused = [(transport, error)];
    for way in negotiate::ways(Some(transport)) {
        let again = negotiate::worth_trying(*way, &refused);
        let last_word = matches!(
            refused[0].1,
            PortForwardError::Unauthorized { .. }
                | PortForwardError::NotFound { .. }
                | PortForwardError::TooManyRequests { .. }
        );
        assert!(!(again && last_word), "{way} after {:?}", refused[0].1);
    }
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
}

/// What came out, and how it ended.
fn play(transport: Transport, said: &[u8], seed: Option<u8>, shut_down: bool) -> (Vec<u8>, String) {
    let mut cx = Context::from_waker(Waker::noop());
    let (mut sent, mut delivered) = (Vec::new(), Vec::new());
    let mut sizes = Sizes(seed.map(|seed| u32::from(seed) + 1));
    let server = Server { said, sizes: Sizes(sizes.0), sent: &mut sent };
    let mut connection = Connection::new(server, transport, 8000);
    connection.queue(b"question");
    if shut_down {
        connection.shut_down();
    }
    let mut storage = vec![0; 64 * 1024];
    loop {
        let size = sizes.next(storage.len());
        let mut buf = ReadBuf::new(&mut storage[..size]);
        connection.read_backlog(&mut buf);
        if buf.filled().is_empty() && connection.verdict().is_none() {
            let sink = if size.is_multiple_of(3) { Sink::Backlog } else { Sink::Reader(&mut buf) };
            let _ = connection.poll_fill(&mut cx, sink);
        }
        delivered.extend(buf.filled());
        assert!(connection.memory() <= STREAM_MEMORY_MAX, "{} bytes of memory", connection.memory());
        if connection.poll_drain(&mut cx, &mut false).is_pending() {
            panic!("the server takes everything");
        }
        if buf.filled().is_empty() && connection.verdict().is_some() && !connection.has_backlog() {
            break;
        }
    }
    let verdict = format!("{:?}", connection.verdict());
    let now = Instant::now();
    connection.begin_close(now);
    assert!(connection.poll_close(&mut cx, now).is_ready());
    drop(connection);
    check_sent(transport, &sent);
    (delivered, verdict)
}

/// A server with a script. It is never slow and takes everything.
struct Server<'a> {
    said: &'a [u8],
    sizes: Sizes,
    sent: &'a mut Vec<u8>,
}

impl AsyncRead for Server<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.sizes.next(buf.remaining()).min(self.said.len());
        let (now, later) = self.said.split_at(count);
        buf.put_slice(now);
        self.said = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Server<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = self.sizes.next(buf.len());
        self.sent.extend(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How many bytes at once: as many as there are, or pseudo-random numbers (a linear congruential generator).
struct Sizes(Option<u32>);

impl Sizes {
    fn next(&mut self, most: usize) -> usize {
        let Some(state) = &mut self.0 else { return most };
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let random = (*state >> 16) as usize;
        // Mostly a few bytes, where borders are; sometimes many.
        (1 + if random.is_multiple_of(5) { random } else { random % 9 }).min(most.max(1))
    }
}

/// What we sent is what the other side's parser takes, and ends between two frames (unless the end was a lost
/// connection: then what was not yet written is not).
fn check_sent(transport: Transport, sent: &[u8]) {
    let mut plain = Vec::new();
    if transport == Transport::Spdy {
        plain.extend(sent);
    }
    let mut rest = if transport == Transport::Spdy { &[][..] } else { sent };
    while let [first, second, behind @ ..] = rest {
        assert!(matches!(first, 0x82 | 0x88 | 0x89 | 0x8a) && second & 0x80 != 0, "{first:#x} {second:#x}");
        let (length, behind) = match second & 0x7f {
            126 => (usize::from(u16::from_be_bytes([behind[0], behind[1]])), &behind[2..]),
            short => (usize::from(short), behind),
        };
        let (key, behind) = behind.split_at(4);
        let (payload, behind) = behind.split_at(length);
        let unmasked: Vec<u8> =
            payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        match (first, transport) {
            (0x82, Transport::V4) => assert_eq!(unmasked.first(), Some(&0), "data only"),
            (0x82, _) => plain.extend(unmasked),
            _ => {}
        }
        rest = behind;
    }
    let mut frames = &plain[..];
    while !frames.is_empty() {
        let (header, behind) = frames.split_at(8);
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        assert!(
            matches!(header, [0x80, 3, 0, 1 | 3 | 6, 0, ..] | [0, 0, 0, 1 | 3, 0 | 1, ..]),
            "sent a frame {header:02x?}"
        );
        frames = &behind[length..];
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;

    use super::*;

    /// What fuzzing found worth keeping, and what was written by hand. Each file is one input.
    fn replay(target: &str, entrance: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wire/corpus").join(target);
        let mut count = 0;
        for file in fs::read_dir(&folder).unwrap() {
            entrance(&fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 20, "{count} files in {}", folder.display());
    }

    #[test]
    fn the_corpus_of_streams() {
        replay("port_forward_stream", stream);
    }

    #[test]
    fn the_corpus_of_answers() {
        replay("port_forward_answer", answer);
    }

    proptest! {
        #[test]
        fn any_bytes_as_stream(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            stream(&bytes);
        }

        #[test]
        fn any_bytes_as_answer(status in 100u16..1000, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            answer(&[format!("w {status}\n").as_bytes(), &rest].concat());
        }
    }
}
