//! Time: pings, silence, servers and readers that pause, a machine that slept.

use super::*;

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

/// A server that answers no ping, and asks with one of its own or sends a byte within the time: nothing is missing.
#[tokio::test(start_paused = true)]
async fn any_frame_is_a_sign_of_life() {
    for transport in [Spdy, Websocket] {
        let (mut stream, _reader, mut writer) = open(transport);
        writer.send(&[reply(3), reply(1)]).await;
        let serve = async {
            for frame in
                [ping(2), data(3, b"x", false), ping(77), control(4, &words(&[0]))].iter().cycle().take(100)
            {
                sleep(DEAD_AFTER - PING_EVERY / 2).await;
                writer.send(std::slice::from_ref(frame)).await;
            }
            writer.send(&[clean_end()]).await;
        };
        let ((bytes, end), ()) = tokio::join!(drain(&mut stream), serve);
        assert_eq!((bytes.len(), end.is_ok()), (25, true), "{end:?}");
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
    const TOTAL: usize = 100 * 1024 * 1024;
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

/// The runtime sends replies and data in any order: one reply may lie behind data that a paused reader holds back.
#[tokio::test(start_paused = true)]
async fn a_reply_behind_unread_data_is_not_missing() {
    for transport in [Spdy, Websocket] {
        let (mut stream, _reader, mut writer) = open(transport);
        let server = tokio::spawn(async move {
            writer.send(&[reply(3)]).await;
            for _ in 0..128 {
                writer.send(&[data(3, &[7; 32 * 1024], false)]).await;
            }
            writer.send(&[reply(1), clean_end()]).await;
            writer
        });
        stream.read_exact(&mut [0; 10]).await.unwrap();
        sleep(STREAM_WAIT * 3).await;
        let (bytes, end) = drain(&mut stream).await;
        assert_eq!((bytes.len() + 10, end.is_ok()), (128 * 32 * 1024, true), "{end:?}");
        server.await.unwrap();
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

/// The runtime ends streams after some seconds without a frame, a load balancer cuts what is silent in one direction. Both
/// have three times our ping's period here, and last for an hour.
#[tokio::test(start_paused = true)]
async fn pings_keep_idle_timers_on_the_way_from_firing() {
    let idle = 3 * PING_EVERY;
    for transport in [Spdy, Websocket, V4] {
        let (mut stream, mut reader, mut writer) = open(transport);
        let serve = async {
            if transport == V4 {
                writer.messages(&[b"\0\x40\x1f", b"\x01\x40\x1f"]).await;
            } else {
                reader.opening().await;
                writer.send(&[reply(3), reply(1)]).await;
            }
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(3600) {
                let got = timeout(idle, reader.next()).await.expect("the idle timer fired");
                match got {
                    Got::Ping(id) => writer.send(&[ping(id)]).await,
                    Got::WsPing(payload) => writer.io.write_all(&message(0x8a, &payload)).await.unwrap(),
                    other => panic!("{other:?}"),
                }
            }
            if transport == V4 {
                writer.messages(&[b"\0alive"]).await;
                writer.close(1000).await;
            } else {
                writer.send(&[data(3, b"alive", false), clean_end()]).await;
            }
        };
        let ((bytes, end), ()) = tokio::join!(drain(&mut stream), serve);
        assert_eq!((bytes.as_slice(), end.is_ok()), (&b"alive"[..], true));
    }
}

/// Pings that do not arrive: the runtime's own idle timer ends it before we call it dead.
#[tokio::test(start_paused = true)]
async fn an_idle_timer_that_fires_is_told_as_a_reset() {
    let idle = Duration::from_secs(3);
    let (mut stream, _reader, mut writer) = open(Websocket);
    writer.send(&[reply(3), reply(1)]).await;
    let begin = Instant::now();
    let fire = async {
        sleep(idle).await;
        writer.send(&[rst(1, 5), rst(3, 5), goaway()]).await;
    };
    let ((_, end), ()) = tokio::join!(drain(&mut stream), fire);
    assert!(matches!(end, Err(PortForwardError::Reset { status: Some(5), .. })), "{end:?}");
    assert_eq!(begin.elapsed().as_secs(), idle.as_secs());
}

/// Where `Instant` goes on while the machine sleeps, an hour is gone at once: no further wait. (Where it stands still:
/// `connection/tests.rs`.)
#[tokio::test(start_paused = true)]
async fn a_clock_that_jumped_is_noticed_at_once() {
    for (transport, answered) in [(Spdy, false), (Websocket, false), (Websocket, true), (V4, false)] {
        let (mut stream, _reader, mut writer) = open(transport);
        if transport == V4 {
            writer.messages(&[b"\0\x40\x1f", b"\x01\x40\x1f", b"\0x"]).await;
        } else {
            writer.send(&[reply(3), reply(1), data(3, b"x", false)]).await;
        }
        stream.read_exact(&mut [0]).await.unwrap();
        if answered {
            writer.send(&[ping(1)]).await; // lies unread in the socket: it did come through
        }
        tokio::time::advance(Duration::from_secs(3600)).await;
        let begin = Instant::now();
        let end = timeout(PING_EVERY, drain(&mut stream)).await;
        if answered {
            assert!(end.is_err(), "{end:?}");
        } else {
            let (_, end) = end.unwrap();
            assert!(matches!(end, Err(PortForwardError::PingTimeout { .. })), "{end:?}");
            assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        }
    }
}
