//! How streams end, and what the caller is told.

use super::*;

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

/// The API server's tunnel does not close after a backend's GOAWAY; we do. Whether the end came with it is all the same.
#[tokio::test(start_paused = true)]
async fn goaway_then_silence_is_closed_by_us() {
    for (transport, cut) in [(Spdy, false), (Spdy, true), (Websocket, false), (Websocket, true)] {
        let (mut stream, mut reader, mut writer) = open(transport);
        reader.opening().await;
        writer.send(&[reply(3), reply(1), data(3, b"last", false), goaway()]).await;
        if cut {
            writer.io.shutdown().await.unwrap();
        }
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

/// Our FIN and their RST are on the way at the same time: theirs is the news, and is not answered.
#[tokio::test(start_paused = true)]
async fn our_end_crossing_their_reset() {
    for transport in [Spdy, Websocket] {
        let (mut stream, mut reader, mut writer) = open(transport);
        writer.send(&[reply(3), reply(1), data(3, b"part", false)]).await;
        stream.write_all(b"bye").await.unwrap();
        stream.shutdown().await.unwrap();
        writer.send(&[rst(3, 5), rst(1, 5)]).await; // before it has read our end
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!(bytes, b"part");
        assert!(matches!(end, Err(PortForwardError::Reset { status: Some(5), .. })), "{end:?}");
        reader.opening().await;
        assert_eq!(reader.next().await, Got::Data { id: 3, fin: false, bytes: b"bye".to_vec() });
        assert_eq!(reader.next().await, Got::Data { id: 3, fin: true, bytes: vec![] });
        if transport == Websocket {
            assert_eq!(reader.next().await, Got::WsClose(vec![0x03, 0xe8]));
        }
        assert_eq!(reader.next().await, Got::Eof, "a reset stream is not reset again");
    }
}

#[tokio::test(start_paused = true)]
async fn both_ends_at_the_same_time() {
    for transport in [Spdy, Websocket] {
        let (mut stream, _reader, mut writer) = open(transport);
        writer.send(&[reply(3), reply(1), data(3, b"all", true)]).await;
        stream.shutdown().await.unwrap();
        writer.send(&[data(1, b"", true)]).await;
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!((bytes.as_slice(), end.is_ok()), (&b"all"[..], true));
    }
}
