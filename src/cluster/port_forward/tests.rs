//! The stream against a scripted server over an in-memory pipe, in paused time: waits cost nothing and are exact.
//!
//! The server speaks with its own few lines of SPDY and WebSocket, not with the code under test.

mod flush;

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    time::{Instant, sleep, timeout},
};

use super::{
    PortForwardError, PortForwardStream, SpdyError,
    Transport::{self, Spdy, Websocket},
    connection::{BACKLOG, CLOSE_WAIT, DEAD_AFTER, ERROR_WAIT, PING_EVERY, STREAM_WAIT},
};

const REFUSED: &[u8] =
    b"failed to connect to localhost:9: dial tcp4 127.0.0.1:9: connect: connection refused";
/// Bytes that fit into the pipe each way: stands for all socket buffers on the way.
const PIPE: usize = 64 * 1024;

/// What the server got.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Syn { id: u32, block: Vec<u8> },
    Data { id: u32, fin: bool, bytes: Vec<u8> },
    Rst { id: u32, status: u32 },
    Ping(u32),
    WsPong(Vec<u8>),
    WsClose(Vec<u8>),
    Eof,
}

struct Reader {
    io: ReadHalf<DuplexStream>,
    websocket: bool,
    payload: Vec<u8>,
    /// Payload sizes of WebSocket messages, in order.
    messages: Vec<usize>,
}

struct Writer {
    io: WriteHalf<DuplexStream>,
    websocket: bool,
}

fn open(transport: Transport) -> (PortForwardStream<DuplexStream>, Reader, Writer) {
    let (ours, theirs) = duplex(PIPE);
    let stream = PortForwardStream::start(ours, transport, 8000);
    let websocket = transport == Websocket;
    let (read, write) = split(theirs);
    let reader = Reader { io: read, websocket, payload: Vec::new(), messages: Vec::new() };
    (stream, reader, Writer { io: write, websocket })
}

impl Reader {
    /// More payload; `Err` is a control frame or the end.
    async fn fill(&mut self) -> Result<(), Got> {
        if !self.websocket {
            let mut buf = vec![0; 32 * 1024];
            let count = self.io.read(&mut buf).await.unwrap();
            self.payload.extend(&buf[..count]);
            return if count == 0 { Err(Got::Eof) } else { Ok(()) };
        }
        let Ok(first) = self.io.read_u8().await else { return Err(Got::Eof) };
        let second = self.io.read_u8().await.unwrap();
        assert_eq!(second & 0x80, 0x80, "client frames are masked");
        let length = match second & 0x7f {
            126 => {
                let length = usize::from(self.io.read_u16().await.unwrap());
                assert!(length > 125, "the shortest form of a length must be used");
                length
            }
            127 => panic!("a message of 64 KiB or more"),
            short => usize::from(short),
        };
        let mut key = [0; 4];
        self.io.read_exact(&mut key).await.unwrap();
        let mut bytes = vec![0; length];
        self.io.read_exact(&mut bytes).await.unwrap();
        bytes.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        match first {
            0x82 => {
                self.messages.push(length);
                self.payload.extend(bytes);
                Ok(())
            }
            0x8a => Err(Got::WsPong(bytes)),
            0x88 => Err(Got::WsClose(bytes)),
            other => panic!("unexpected first byte {other:#x}"),
        }
    }

    async fn next(&mut self) -> Got {
        loop {
            if let Some(header) = self.payload.first_chunk::<8>().copied() {
                let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
                if self.payload.len() >= 8 + length {
                    let body: Vec<u8> = self.payload.drain(..8 + length).skip(8).collect();
                    let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
                    let id = u32::from_be_bytes(header[..4].try_into().unwrap());
                    return match id {
                        0x8003_0001 => Got::Syn { id: word(0), block: body[10..].to_vec() },
                        0x8003_0003 => Got::Rst { id: word(0), status: word(4) },
                        0x8003_0006 => Got::Ping(word(0)),
                        id if id >> 31 == 0 => Got::Data { id, fin: header[4] == 1, bytes: body },
                        other => panic!("unexpected frame {other:#x}"),
                    };
                }
            }
            if let Err(got) = self.fill().await {
                return got;
            }
        }
    }

    /// Skips the three frames of the opening, after checking them.
    async fn opening(&mut self) {
        assert!(matches!(self.next().await, Got::Syn { id: 1, .. }));
        assert_eq!(self.next().await, Got::Data { id: 1, fin: true, bytes: vec![] });
        assert!(matches!(self.next().await, Got::Syn { id: 3, .. }));
    }

    /// Skips pings.
    async fn beside_pings(&mut self) -> Got {
        loop {
            match self.next().await {
                Got::Ping(_) => {}
                other => return other,
            }
        }
    }
}

impl Writer {
    async fn send(&mut self, frames: &[Vec<u8>]) {
        let bytes = frames.concat();
        let bytes = if self.websocket { message(0x82, &bytes) } else { bytes };
        self.io.write_all(&bytes).await.unwrap();
    }
}

fn message(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 127];
    frame.extend((payload.len() as u64).to_be_bytes());
    if payload.len() < 126 {
        frame = vec![first, payload.len() as u8];
    }
    frame.extend(payload);
    frame
}

fn data(id: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = id.to_be_bytes().to_vec();
    frame.extend(((u32::from(fin) << 24) | bytes.len() as u32).to_be_bytes());
    frame.extend(bytes);
    frame
}

fn control(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3, 0, kind];
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    frame
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn reply(id: u32) -> Vec<u8> {
    control(2, &[&words(&[id])[..], &[0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x62, 0x60]].concat())
}

fn rst(id: u32, status: u32) -> Vec<u8> {
    control(3, &words(&[id, status]))
}

fn ping(id: u32) -> Vec<u8> {
    control(6, &words(&[id]))
}

fn goaway() -> Vec<u8> {
    control(7, &words(&[3, 0]))
}

/// Both streams finished without an error text.
fn clean_end() -> Vec<u8> {
    [data(3, b"", true), data(1, b"", true)].concat()
}

fn typed(error: io::Error) -> PortForwardError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<PortForwardError>());
    inner.unwrap_or_else(|| panic!("no typed error in {error:?}")).clone()
}

/// Everything until the end: data and how it ended.
async fn drain(stream: &mut PortForwardStream<DuplexStream>) -> (Vec<u8>, Result<(), PortForwardError>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await;
    (bytes, end.map(drop).map_err(typed))
}

/// Connection: opening, data and first bytes go out before the server said anything; replies come in any order.
#[tokio::test(start_paused = true)]
async fn everything_is_pipelined() {
    for transport in [Spdy, Websocket] {
        let (mut stream, mut reader, mut writer) = open(transport);
        stream.write_all(b"hello").await.unwrap();
        let Got::Syn { id: 1, block } = reader.next().await else { panic!("the error stream comes first") };
        let text = String::from_utf8_lossy(&block).into_owned();
        for word in ["streamtype", "error", "port", "8000", "requestid"] {
            assert!(text.contains(word), "{word} in {text:?}");
        }
        assert_eq!(reader.next().await, Got::Data { id: 1, fin: true, bytes: vec![] });
        assert!(matches!(reader.next().await, Got::Syn { id: 3, .. }));
        assert_eq!(reader.next().await, Got::Data { id: 3, fin: false, bytes: b"hello".to_vec() });
        // Data before its reply, reply of 3 before 1, data's end before the reply of 1.
        writer
            .send(&[data(3, b"wor", false), reply(3), data(3, b"ld", true), reply(1), data(1, b"", true)])
            .await;
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!(bytes, b"world");
        end.unwrap();
        assert_eq!(stream.transport(), transport);
    }
}

#[tokio::test(start_paused = true)]
async fn any_split_gives_the_same_result() {
    let script =
        [ping(2), reply(3), reply(1), data(3, b"some data", false), data(3, b"", true), data(1, b"", true)];
    let script = script.concat();
    for size in [1, 2, 3, 7, 1000] {
        let (mut stream, _reader, mut writer) = open(Spdy);
        for part in script.chunks(size) {
            writer.io.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!((bytes.as_slice(), end.is_ok()), (&b"some data"[..], true), "raw parts of {size}");

        // Messages of that size, as fragments with an empty continuation, an empty message and a ping in between.
        let (mut stream, mut reader, mut writer) = open(Websocket);
        for part in script.chunks(size) {
            for frame in [(0x02, part), (0x89, &b"p"[..]), (0x80, b""), (0x82, b"")] {
                writer.io.write_all(&message(frame.0, frame.1)).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!((bytes.as_slice(), end.is_ok()), (&b"some data"[..], true), "messages of {size}");
        let mut ponged = false;
        loop {
            match reader.next().await {
                Got::WsPong(payload) => ponged |= payload == b"p",
                Got::Eof => break,
                _ => {}
            }
        }
        assert!(ponged || size > script.len(), "WebSocket pings before the end are answered");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_port_is_not_a_clean_end() {
    for transport in [Spdy, Websocket] {
        let (mut stream, mut reader, mut writer) = open(transport);
        reader.opening().await;
        writer.send(&[reply(3), data(3, b"", true), reply(1)]).await;
        sleep(ERROR_WAIT / 2).await; // the text may come a little later
        writer.send(&[data(1, REFUSED, false), rst(1, 5)]).await;
        let (bytes, end) = drain(&mut stream).await;
        assert!(bytes.is_empty());
        assert!(matches!(end, Err(PortForwardError::Refused { .. })), "{end:?}");
        // The writer is told the same, not only "broken pipe".
        let error = stream.write(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(matches!(typed(error), PortForwardError::Refused { .. }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_alone_learns_the_reason() {
    let (mut stream, _reader, mut writer) = open(Websocket);
    writer.send(&[reply(3), reply(1), data(3, b"", true)]).await;
    let send = async {
        sleep(Duration::from_secs(1)).await;
        writer.send(&[data(1, REFUSED, true)]).await;
    };
    let write = async {
        loop {
            if let Err(error) = stream.write_all(&[0; 1000]).await {
                return typed(error);
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    // Nobody reads: the driver finds out at its next look.
    let (error, ()) = tokio::join!(timeout(PING_EVERY + ERROR_WAIT, write), send);
    assert!(matches!(error.unwrap(), PortForwardError::Refused { .. }));
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_on_the_error_stream_the_wait_ends() {
    let (mut stream, _reader, mut writer) = open(Spdy);
    writer.send(&[reply(3), reply(1), data(3, b"done", true)]).await;
    let begin = Instant::now();
    let (bytes, end) = drain(&mut stream).await;
    assert_eq!((bytes.as_slice(), end.is_ok()), (&b"done"[..], true));
    assert_eq!(begin.elapsed().as_secs(), ERROR_WAIT.as_secs());

    // A text that is never finished, while the data stream stays open: the server's own creation timeout.
    let (mut stream, _reader, mut writer) = open(Spdy);
    writer.send(&[reply(1), data(1, b"(conn=1, request=0) timed out waiting for streams", false)]).await;
    let begin = Instant::now();
    let (_, end) = drain(&mut stream).await;
    assert!(matches!(end, Err(PortForwardError::Node { .. })), "{end:?}");
    assert_eq!(begin.elapsed().as_secs(), ERROR_WAIT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_keeps_what_came_and_says_so() {
    let starts = [reply(3), reply(1), data(3, b"kept", false)].concat();
    let ends: [&[u8]; 4] = [b"", &data(3, b"", true)[..5], &data(3, b"lost?", false)[..10], &reply(3)[..13]];
    for transport in [Spdy, Websocket] {
        for cut in ends {
            let (mut stream, _reader, mut writer) = open(transport);
            writer.send(&[starts.clone(), cut.to_vec()]).await;
            writer.io.shutdown().await.unwrap();
            let (bytes, end) = drain(&mut stream).await;
            assert!(bytes.starts_with(b"kept"));
            assert!(matches!(end, Err(PortForwardError::ConnectionLost(_))), "{end:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_websocket_close_is_a_lost_connection_unless_all_was_said() {
    for (before, clean) in [(data(3, b"x", false), false), (clean_end(), true)] {
        let (mut stream, _reader, mut writer) = open(Websocket);
        writer.send(&[reply(3), reply(1), data(3, b"y", false), before]).await;
        writer.io.write_all(&message(0x88, &[0x03, 0xe8])).await.unwrap();
        let (_, end) = drain(&mut stream).await;
        assert_eq!(end.is_ok(), clean, "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn protocol_errors_close_the_connection() {
    let bad_length = control(6, &[0; 8]);
    let bad_version = [0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2].to_vec();
    let too_long = [0x80, 3, 0, 2, 0, 1, 0, 1].to_vec();
    for bad in [bad_length, bad_version, too_long] {
        let (mut stream, mut reader, mut writer) = open(Spdy);
        reader.opening().await;
        writer.send(&[reply(3), data(3, b"kept", false), bad]).await;
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!(bytes, b"kept");
        assert!(matches!(end, Err(PortForwardError::Protocol(_))), "{end:?}");
        assert_eq!(reader.next().await, Got::Rst { id: 3, status: 5 });
        assert_eq!(reader.next().await, Got::Rst { id: 1, status: 5 });
        assert_eq!(reader.next().await, Got::Eof);
    }
    let (mut stream, _reader, mut writer) = open(Websocket);
    writer.io.write_all(&message(0x81, b"text")).await.unwrap();
    assert!(matches!(drain(&mut stream).await.1, Err(PortForwardError::WebSocket(_))));
    assert_eq!(SpdyError::Version(2).to_string(), "SPDY control frame of version 2, expected 3");
}

#[tokio::test(start_paused = true)]
async fn strange_frames_do_no_harm() {
    let (mut stream, mut reader, mut writer) = open(Spdy);
    reader.opening().await;
    let settings = control(4, &words(&[1, 4, 100]));
    let window = control(9, &words(&[0, 1000]));
    let unknown = control(0x7f, &[1; 33]);
    let headers = control(8, &words(&[3, 0, 0]));
    let syn = control(1, &words(&[2, 0, 0]));
    writer.send(&[settings, window, unknown, headers, syn, ping(4), ping(77)]).await;
    writer.send(&[data(0, b"zero", false), data(9, b"nine", true), rst(7, 1), reply(11)]).await;
    writer.send(&[reply(3), reply(1), data(3, b"fine", true), data(3, b"after the end", false)]).await;
    writer.send(&[data(1, b"", true)]).await;
    let (bytes, end) = drain(&mut stream).await;
    assert_eq!((bytes.as_slice(), end.is_ok()), (&b"fine"[..], true));
    assert_eq!(reader.next().await, Got::Rst { id: 2, status: 3 });
    assert_eq!(reader.next().await, Got::Ping(4));
    assert_eq!(reader.next().await, Got::Eof, "no answer to anything else");
}

#[tokio::test(start_paused = true)]
async fn resets_give_their_status_after_the_data() {
    for status in [1, 3, 5, 11] {
        let (mut stream, _reader, mut writer) = open(Websocket);
        writer.send(&[reply(3), reply(1), data(3, b"part", false), rst(3, status), rst(1, 5)]).await;
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!(bytes, b"part");
        assert!(
            matches!(end, Err(PortForwardError::Reset { status: Some(s), .. }) if s == status),
            "{end:?}"
        );
    }
    let (mut stream, _reader, mut writer) = open(Spdy);
    writer.send(&[reply(3), reply(1), data(3, b"part", false), rst(3, 5)]).await;
    writer.send(&[data(1, b"read: connection reset by peer", false), rst(1, 5)]).await;
    let (_, end) = drain(&mut stream).await;
    assert!(matches!(end, Err(PortForwardError::Reset { status: None, .. })), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn an_end_without_a_byte_is_suspicious() {
    let (mut stream, _reader, mut writer) = open(Spdy);
    writer.send(&[reply(3), reply(1), clean_end()]).await;
    assert!(matches!(drain(&mut stream).await.1, Err(PortForwardError::ClosedBeforeData)));
}

#[tokio::test(start_paused = true)]
async fn our_end_then_theirs() {
    let (mut stream, mut reader, mut writer) = open(Websocket);
    stream.write_all(b"bye").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    reader.opening().await;
    let mut got = Vec::new();
    loop {
        let Got::Data { id: 3, fin, bytes } = reader.next().await else { panic!("data expected") };
        got.extend(bytes);
        if fin {
            break;
        }
    }
    assert_eq!(got, b"bye");
    writer.send(&[reply(3), reply(1), data(3, b"late answer", false)]).await;
    sleep(Duration::from_secs(1)).await;
    writer.send(&[clean_end(), data(3, b"ignored", false)]).await;
    let (bytes, end) = drain(&mut stream).await;
    assert_eq!((bytes.as_slice(), end.is_ok()), (&b"late answer"[..], true));
}

/// The API server's tunnel does not close after a backend's GOAWAY; we do.
#[tokio::test(start_paused = true)]
async fn goaway_then_silence_is_closed_by_us() {
    for transport in [Spdy, Websocket] {
        let (mut stream, mut reader, mut writer) = open(transport);
        reader.opening().await;
        writer.send(&[reply(3), reply(1), data(3, b"last", false), goaway()]).await;
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!(bytes, b"last");
        assert!(matches!(end, Err(PortForwardError::GoAway { status: 0 })));
        assert_eq!(reader.next().await, Got::Rst { id: 3, status: 5 });
        assert_eq!(reader.next().await, Got::Rst { id: 1, status: 5 });
        if transport == Websocket {
            assert_eq!(reader.next().await, Got::WsClose(vec![0x03, 0xe8]));
        }
        assert_eq!(reader.next().await, Got::Eof);
    }
}

/// The runtime's idle timeout: RST(5) on both streams, then GOAWAY, but no close of the WebSocket.
#[tokio::test(start_paused = true)]
async fn idle_timeout_of_the_runtime_is_seen_at_once() {
    let (mut stream, _reader, mut writer) = open(Websocket);
    writer.send(&[reply(3), reply(1), rst(1, 5), rst(3, 5), goaway()]).await;
    let begin = Instant::now();
    let (_, end) = drain(&mut stream).await;
    assert!(matches!(end, Err(PortForwardError::Reset { status: Some(5), .. })), "{end:?}");
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_the_connection_in_time() {
    for transport in [Spdy, Websocket] {
        let (mut stream, mut reader, mut writer) = open(transport);
        writer.send(&[reply(3), reply(1)]).await;
        let begin = Instant::now();
        let (_, end) = drain(&mut stream).await;
        assert!(matches!(end, Err(PortForwardError::PingTimeout { .. })), "{end:?}");
        assert!(begin.elapsed() >= DEAD_AFTER && begin.elapsed() <= DEAD_AFTER + PING_EVERY);
        reader.opening().await;
        for id in [1, 3] {
            assert_eq!(reader.next().await, Got::Ping(id), "odd ids, one every interval");
        }
    }
}

/// Also when nobody reads or writes: the driver alone keeps it, and finds out.
#[tokio::test(start_paused = true)]
async fn pongs_keep_an_idle_connection_whoever_reads() {
    for reading in [true, false] {
        let (mut stream, mut reader, mut writer) = open(Websocket);
        reader.opening().await;
        writer.send(&[reply(3), reply(1)]).await;
        let serve = async {
            for _ in 0..60 {
                let Got::Ping(id) = reader.next().await else { panic!("only pings in between") };
                writer.send(&[ping(id)]).await;
            }
            writer.send(&[data(3, b"alive", false), clean_end()]).await;
        };
        let begin = Instant::now();
        let ((bytes, end), ()) = if reading {
            tokio::join!(drain(&mut stream), serve)
        } else {
            serve.await;
            (drain(&mut stream).await, ())
        };
        assert_eq!((bytes.as_slice(), end.is_ok()), (&b"alive"[..], true));
        assert_eq!(begin.elapsed(), PING_EVERY * 60);
    }
}

/// A reader that pauses for minutes: bounded memory, no loss, and the missing pongs are not held against the server.
#[tokio::test(start_paused = true)]
async fn a_paused_reader_loses_nothing() {
    const TOTAL: usize = 20 * 1024 * 1024;
    for transport in [Spdy, Websocket] {
        let (mut stream, _reader, mut writer) = open(transport);
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = sent.clone();
        let server = tokio::spawn(async move {
            writer.send(&[reply(3), reply(1)]).await;
            let chunk: Vec<u8> = (0..=255).cycle().take(32 * 1024).collect();
            for _ in 0..TOTAL / chunk.len() {
                writer.send(&[data(3, &chunk, false)]).await;
                count.fetch_add(chunk.len(), std::sync::atomic::Ordering::Relaxed);
            }
            writer.send(&[clean_end()]).await;
            writer
        });
        let mut first = [0; 10];
        stream.read_exact(&mut first).await.unwrap();
        sleep(Duration::from_secs(300)).await;
        let held = sent.load(std::sync::atomic::Ordering::Relaxed);
        let bound = BACKLOG + 4 * PIPE + 64 * 1024;
        assert!((BACKLOG..=bound).contains(&held), "read ahead {held} bytes");
        let (bytes, end) = drain(&mut stream).await;
        end.unwrap();
        assert_eq!(bytes.len() + first.len(), TOTAL);
        assert!(first.iter().chain(&bytes).enumerate().all(|(i, byte)| *byte == i as u8));
        server.await.unwrap();
    }
}

/// A server that never sends WINDOW_UPDATE gets everything; frames are as large as they should be.
#[tokio::test(start_paused = true)]
async fn upload_needs_no_window_updates() {
    const TOTAL: usize = 64 * 1024 * 1024;
    for transport in [Spdy, Websocket] {
        let (mut stream, mut reader, mut writer) = open(transport);
        let upload = async {
            let bytes: Vec<u8> = (0..=255).cycle().take(1024 * 1024).collect();
            for _ in 0..TOTAL / bytes.len() {
                stream.write_all(&bytes).await.unwrap();
            }
            stream.shutdown().await.unwrap();
            drain(&mut stream).await
        };
        let serve = async {
            reader.opening().await;
            let (mut total, mut frames) = (0, 0);
            loop {
                let Got::Data { id: 3, fin, bytes } = reader.beside_pings().await else {
                    panic!("data expected")
                };
                assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == (total + i) as u8), "at {total}");
                total += bytes.len();
                frames += 1;
                if fin {
                    break;
                }
            }
            writer.send(&[reply(3), reply(1), clean_end()]).await;
            (total, frames)
        };
        let ((_, end), (total, frames)) = tokio::join!(upload, serve);
        end.unwrap();
        assert_eq!(total, TOTAL);
        assert!(frames < TOTAL / (30 * 1024), "{frames} frames are too many");
        assert!(reader.messages.iter().all(|size| *size <= 32 * 1024), "message too large");
    }
}

#[tokio::test(start_paused = true)]
async fn small_writes_are_joined_while_the_server_does_not_read() {
    let (mut stream, mut reader, _writer) = open(Websocket);
    reader.opening().await;
    stream.write_all(b"a").await.unwrap();
    stream.write_all(b"b").await.unwrap();
    for expected in [b"a", b"b"] {
        let got = reader.next().await;
        assert_eq!(got, Got::Data { id: 3, fin: false, bytes: expected.to_vec() }, "nothing waits when idle");
    }
    let before = reader.messages.len();
    let mut total = 0;
    while let Ok(result) = timeout(Duration::from_secs(1), stream.write(&[b'x'; 100])).await {
        total += result.unwrap();
    }
    assert!(total < PIPE + 3 * 32 * 1024, "queued {total} bytes, more than pipe and two messages");
    let mut read = 0;
    while read < total {
        let Got::Data { bytes, .. } = reader.beside_pings().await else { panic!("data expected") };
        read += bytes.len();
    }
    let largest = reader.messages[before..].iter().max();
    assert!(largest > Some(&30_000), "the waiting writes came in one message, not {largest:?}");
}

/// The server stops reading: our writer blocks, and leaving is prompt all the same.
#[tokio::test(start_paused = true)]
async fn a_blocked_writer_can_leave() {
    let (mut stream, mut reader, _writer) = open(Websocket);
    let blocked = timeout(Duration::from_secs(5), stream.write_all(&[0; 1024 * 1024])).await;
    assert!(blocked.is_err(), "the pipe cannot hold a megabyte");
    let begin = Instant::now();
    drop(stream);
    sleep(CLOSE_WAIT + Duration::from_millis(1)).await;
    let mut rest = Vec::new();
    reader.io.read_to_end(&mut rest).await.unwrap(); // ends only because our side is closed
    assert!(begin.elapsed() < CLOSE_WAIT * 2);
}

#[tokio::test(start_paused = true)]
async fn dropping_says_goodbye_at_once() {
    for transport in [Spdy, Websocket] {
        let (mut stream, mut reader, _writer) = open(transport);
        stream.write_all(b"last words").await.unwrap();
        let begin = Instant::now();
        drop(stream);
        reader.opening().await;
        assert_eq!(reader.next().await, Got::Data { id: 3, fin: false, bytes: b"last words".to_vec() });
        assert_eq!(reader.next().await, Got::Rst { id: 3, status: 5 });
        assert_eq!(reader.next().await, Got::Rst { id: 1, status: 5 });
        if transport == Websocket {
            assert_eq!(reader.next().await, Got::WsClose(vec![0x03, 0xe8]));
        }
        assert_eq!(reader.next().await, Got::Eof);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_never_confirmed_end_it() {
    let (mut stream, mut reader, mut writer) = open(Websocket);
    reader.opening().await;
    let answer_pings = async {
        loop {
            match reader.next().await {
                Got::Ping(id) => writer.send(&[ping(id)]).await,
                other => return other,
            }
        }
    };
    let begin = Instant::now();
    let ((_, end), next) = tokio::join!(drain(&mut stream), answer_pings);
    assert!(matches!(end, Err(PortForwardError::StreamTimeout { .. })), "{end:?}");
    assert_eq!(begin.elapsed().as_secs(), STREAM_WAIT.as_secs());
    assert_eq!(next, Got::Rst { id: 3, status: 5 });
}

/// Our pongs to a peer that floods us with pings and does not read are dropped, not hoarded.
#[tokio::test(start_paused = true)]
async fn a_flood_of_pings_is_bounded() {
    let (mut stream, mut reader, mut writer) = open(Spdy);
    reader.opening().await;
    let flood = ping(2).repeat(1000);
    let serve = async {
        for _ in 0..100 {
            writer.send(std::slice::from_ref(&flood)).await;
        }
        writer.send(&[reply(3), reply(1), data(3, b"x", false), clean_end()]).await;
    };
    let ((bytes, end), ()) = tokio::join!(drain(&mut stream), serve);
    assert_eq!((bytes.as_slice(), end.is_ok()), (&b"x"[..], true));
    let mut rest = Vec::new();
    sleep(CLOSE_WAIT * 2).await;
    reader.io.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() <= PIPE + 2 * 40 * 1024, "{} bytes of answers", rest.len());
}
