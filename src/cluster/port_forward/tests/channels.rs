//! `v4.channel.k8s.io`: the old protocol, where the end of a stream is the end of the connection.

use super::*;

/// The first messages of both channels, for port 8000.
const PORTS: [&[u8]; 2] = [b"\x00\x40\x1f", b"\x01\x40\x1f"];

fn sent(bytes: &[u8]) -> Got {
    Got::Data { id: 0, fin: false, bytes: bytes.to_vec() }
}

#[tokio::test(start_paused = true)]
async fn data_both_ways_and_an_end_by_close() {
    let (mut stream, mut reader, mut writer) = open(V4);
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(reader.message().await, sent(b"hello"), "there is nothing to open first");
    writer.messages(&PORTS).await;
    writer.messages(&[b"\0wor", b"", b"\0", b"\0ld"]).await;
    writer.close(1000).await;
    let (bytes, end) = drain(&mut stream).await;
    assert_eq!((bytes.as_slice(), end.is_ok()), (&b"world"[..], true));
    assert_eq!(stream.transport(), V4);
    assert_eq!(reader.message().await, Got::WsClose(vec![0x03, 0xe8]));
    assert_eq!(reader.message().await, Got::Eof);
}

#[tokio::test(start_paused = true)]
async fn messages_in_any_fragments() {
    let messages: [&[u8]; 5] = [PORTS[0], PORTS[1], b"\0some ", b"\0", b"\0data"];
    for size in [1, 2, 3, 100] {
        let (mut stream, mut reader, mut writer) = open(V4);
        for bytes in messages {
            // The message's parts as fragments, a ping between them, an empty one at its end.
            for (index, part) in bytes.chunks(size).enumerate() {
                let first = if index == 0 { 0x02 } else { 0x00 };
                writer.io.write_all(&message(first, part)).await.unwrap();
                writer.io.write_all(&message(0x89, b"p")).await.unwrap();
                tokio::task::yield_now().await;
            }
            writer.io.write_all(&message(0x80, b"")).await.unwrap();
        }
        let mut bytes = [0; 9];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"some data", "fragments of {size}");
        assert_eq!(reader.message().await, Got::WsPong(b"p".to_vec()));
        writer.close(1000).await;
        drain(&mut stream).await.1.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_text_is_the_reason() {
    let text = [&b"\x01"[..], REFUSED].concat();
    let halves: [&[u8]; 2] = [&text[..40], &[&b"\x01"[..], &text[40..]].concat()];
    for (messages, close) in [(&[&text[..]][..], true), (&halves[..], true), (&halves[..], false)] {
        let (mut stream, _reader, mut writer) = open(V4);
        writer.messages(&PORTS).await;
        writer.messages(messages).await;
        if close {
            writer.close(1000).await;
        } else {
            writer.io.shutdown().await.unwrap(); // cut before the Close
        }
        let (_, end) = drain(&mut stream).await;
        assert!(matches!(end, Err(PortForwardError::Refused { .. })), "{end:?}");
        let error = stream.write(b"x").await.unwrap_err();
        assert!(matches!(typed(error), PortForwardError::Refused { .. }));
    }
    // Nothing after the text: we do not wait for the Close for ever.
    let (mut stream, _reader, mut writer) = open(V4);
    writer.messages(&PORTS).await;
    writer.messages(&[&text]).await;
    let begin = Instant::now();
    let (_, end) = drain(&mut stream).await;
    assert!(matches!(end, Err(PortForwardError::Refused { .. })), "{end:?}");
    assert_eq!(begin.elapsed().as_secs(), ERROR_WAIT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn only_a_normal_close_is_a_clean_end() {
    for code in [Some(1001), Some(1006), Some(1011), None] {
        let (mut stream, _reader, mut writer) = open(V4);
        writer.messages(&PORTS).await;
        writer.messages(&[b"\0kept"]).await;
        match code {
            Some(code) => writer.close(code).await,
            None => writer.io.shutdown().await.unwrap(),
        }
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!(bytes, b"kept");
        assert!(matches!(end, Err(PortForwardError::ConnectionLost(_))), "{code:?}: {end:?}");
    }
    let (mut stream, _reader, mut writer) = open(V4);
    writer.messages(&PORTS).await;
    writer.close(1000).await;
    assert!(matches!(drain(&mut stream).await.1, Err(PortForwardError::ClosedBeforeData)));
}

#[tokio::test(start_paused = true)]
async fn what_the_protocol_does_not_know_closes_the_connection() {
    let cases: [(&[u8], ChannelError); 4] = [
        (b"\x00\x1f\x40", ChannelError::Port { channel: 0, expected: 8000, got: 0x401f }),
        (b"\x00data", ChannelError::Port { channel: 0, expected: 8000, got: u16::from_le_bytes(*b"da") }),
        (b"\x00\x40\x1f!", ChannelError::Preamble(0)),
        (b"\x02\x40\x1f", ChannelError::Channel(2)),
    ];
    for (first, error) in cases {
        let (mut stream, mut reader, mut writer) = open(V4);
        writer.messages(&[first]).await;
        let end = drain(&mut stream).await.1;
        assert!(matches!(&end, Err(PortForwardError::Channel(got)) if *got == error), "{end:?}");
        assert_eq!(reader.message().await, Got::WsClose(vec![0x03, 0xe8]));
        assert_eq!(reader.message().await, Got::Eof);
    }
    let (mut stream, mut reader, mut writer) = open(V4);
    let begin = Instant::now();
    let pongs = async {
        while let Got::WsPing(payload) = reader.message().await {
            writer.io.write_all(&message(0x8a, &payload)).await.unwrap();
        }
    };
    let ((_, end), ()) = tokio::join!(drain(&mut stream), pongs);
    assert!(matches!(end, Err(PortForwardError::StreamTimeout { .. })), "no ports: {end:?}");
    assert_eq!(begin.elapsed().as_secs(), STREAM_WAIT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn silence_is_found_by_websocket_pings() {
    let (mut stream, mut reader, mut writer) = open(V4);
    writer.messages(&PORTS).await;
    let begin = Instant::now();
    let (_, end) = drain(&mut stream).await;
    assert!(matches!(end, Err(PortForwardError::PingTimeout { .. })), "{end:?}");
    assert!(begin.elapsed() >= DEAD_AFTER && begin.elapsed() <= DEAD_AFTER + PING_EVERY);
    for id in [1, 3] {
        assert_eq!(reader.message().await, Got::WsPing(vec![0, 0, 0, id]));
    }
}

#[tokio::test(start_paused = true)]
async fn uploads_are_messages_of_32_kib_at_most() {
    const TOTAL: usize = 16 * 1024 * 1024;
    let (mut stream, mut reader, mut writer) = open(V4);
    let upload = async {
        let bytes: Vec<u8> = (0..=255).cycle().take(TOTAL).collect();
        stream.write_all(&bytes).await.unwrap();
        drain(&mut stream).await
    };
    let serve = async {
        writer.messages(&PORTS).await;
        let mut total = 0;
        while total < TOTAL {
            let Got::Data { id: 0, bytes, .. } = reader.message().await else { panic!("data expected") };
            assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == (total + i) as u8), "at {total}");
            total += bytes.len();
        }
        writer.messages(&[b"\0got it"]).await;
        writer.close(1000).await;
    };
    let ((bytes, end), ()) = tokio::join!(upload, serve);
    assert_eq!((bytes.as_slice(), end.is_ok()), (&b"got it"[..], true));
    assert!(reader.messages.iter().all(|size| *size <= 32 * 1024), "message too large");
    assert!(reader.messages.len() < TOTAL / (30 * 1024), "{} messages", reader.messages.len());
}

#[tokio::test(start_paused = true)]
async fn large_messages_and_a_paused_reader() {
    const LARGE: usize = 8 * 1024 * 1024;
    let (mut stream, _reader, mut writer) = open(V4);
    let server = tokio::spawn(async move {
        writer.messages(&PORTS).await;
        let payload: Vec<u8> = (0..=255).cycle().take(LARGE).collect();
        writer.messages(&[&[b"\0", &payload[..]].concat()]).await;
        writer.close(1000).await;
        writer
    });
    sleep(Duration::from_secs(300)).await;
    assert!(!server.is_finished(), "it is held back");
    let (bytes, end) = drain(&mut stream).await;
    end.unwrap();
    assert_eq!(bytes.len(), LARGE);
    assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == i as u8));
    server.await.unwrap();
}

/// There is no half-close to be sent: the pod may answer for a second, then we close, and that is a clean end.
#[tokio::test(start_paused = true)]
async fn our_end_closes_after_a_second_of_silence() {
    let (mut stream, mut reader, mut writer) = open(V4);
    writer.messages(&PORTS).await;
    stream.write_all(b"bye").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(reader.message().await, sent(b"bye"));
    let begin = Instant::now();
    let answer = async {
        for _ in 0..5 {
            sleep(HALF_CLOSED / 2).await; // an answer that flows is not cut
            writer.messages(&[b"\0late "]).await;
        }
        reader.message().await
    };
    let ((bytes, end), next) = tokio::join!(drain(&mut stream), answer);
    assert_eq!((bytes.as_slice(), end.is_ok()), (&b"late late late late late "[..], true));
    assert_eq!(next, Got::WsClose(vec![0x03, 0xe8]));
    let passed = begin.elapsed() - 5 * (HALF_CLOSED / 2);
    assert_eq!(passed.as_secs(), HALF_CLOSED.as_secs());

    // Data that waits for our own reader is not cut either.
    let (mut stream, _reader, mut writer) = open(V4);
    stream.shutdown().await.unwrap();
    writer.messages(&PORTS).await;
    writer.messages(&[b"\0answer"]).await;
    sleep(4 * HALF_CLOSED).await;
    let (bytes, end) = drain(&mut stream).await;
    assert_eq!((bytes.as_slice(), end.is_ok()), (&b"answer"[..], true));
}
