//! Bytes both ways: order, borders, back-pressure, leaving in the middle.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::*;

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

/// Leaving a download in the middle, while the server goes on sending for a second as real ones do: it is told at
/// once, nothing more is taken in, and the connection is closed.
#[tokio::test(start_paused = true)]
async fn leaving_a_download_is_prompt_and_takes_nothing_more() {
    const AT_MOST: usize = 600 * 1024 * 1024;
    for transport in [Spdy, Websocket, V4] {
        let (mut stream, mut reader, mut writer) = open(transport);
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        let server = tokio::spawn(async move {
            let chunk = [7; 32 * 1024];
            let mut bytes = data(3, &chunk, false);
            if transport == V4 {
                writer.messages(&[b"\0\x40\x1f", b"\x01\x40\x1f"]).await;
                bytes = [&b"\0"[..], &chunk].concat();
            } else {
                writer.send(&[reply(3), reply(1)]).await;
            }
            let bytes = if transport == Spdy { bytes } else { message(0x82, &bytes) };
            while count.load(Relaxed) < AT_MOST && writer.io.write_all(&bytes).await.is_ok() {
                count.fetch_add(chunk.len(), Relaxed);
            }
        });
        stream.read_exact(&mut vec![0; 10 * 1024 * 1024]).await.unwrap();
        let (before, begin) = (sent.load(Relaxed), Instant::now());
        drop(stream);
        if transport != V4 {
            reader.opening().await;
            assert_eq!(reader.next().await, Got::Rst { id: 3, status: 5 });
            assert_eq!(reader.next().await, Got::Rst { id: 1, status: 5 });
        }
        if transport != Spdy {
            assert_eq!(reader.next().await, Got::WsClose(vec![0x03, 0xe8]));
        }
        assert_eq!(reader.next().await, Got::Eof);
        server.await.unwrap(); // ends because it cannot write any more
        assert_eq!(begin.elapsed(), Duration::ZERO);
        let more = sent.load(Relaxed) - before;
        assert!(more <= 2 * PIPE + 64 * 1024, "{more} bytes were taken after the end");
    }
}
