//! Peers that are not like us: plain SSH, nonsense, silence, newer ones, broken ones, one too many.

use std::time::Duration;

use bytes::BytesMut;
use kshuttle_test_support::within;
use kshuttle_wire::link::frame::{self, Decoder, Frame};
use kshuttle_wire::link::hello::{Answer, Hello, HelloError, Refusal, VERSIONS};
use kshuttle_wire::link::observer::TimedAck;
use kshuttle_wire::link::server::{MAX_LINKS, ServeError};
use kshuttle_wire::link::{AttachError, Detached, End, Limits, Token, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::scene::{CONNECTION, Pod, end_of, linked};

#[tokio::test]
async fn plain_ssh_and_nonsense_are_told_apart() {
    for (says, expected) in
        [("SSH-2.0-OpenSSH_9.9\r\n", HelloError::Ssh), ("HTTP/1.1 502", HelloError::Magic)]
    {
        let (near, mut far) = duplex(CONNECTION);
        far.write_all(says.as_bytes()).await.unwrap();
        let (_stream, handle) = connect(Token::generate().unwrap(), Limits::default());
        let error = handle.attach(near).await.err().unwrap();
        assert!(matches!(&error, AttachError::Greeting(reason) if *reason == expected), "{error:?}");
        assert!(handle.status().last_error.unwrap().starts_with("greet the pod: the peer"));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_during_the_greeting_is_bounded_on_both_sides() {
    let (near, _far) = duplex(CONNECTION);
    let (_stream, handle) = connect(Token::generate().unwrap(), Limits::default());
    assert!(matches!(handle.attach(near).await.err().unwrap(), AttachError::Timeout));
    let pod = Pod::new(Limits::default());
    let (mut near, served) = pod.dial();
    near.write_all(b"\x89ksl").await.unwrap();
    assert!(matches!(served.await.unwrap(), Err(ServeError::Timeout)));
    let (mut near, served) = pod.dial();
    near.write_all(b"\x89kshuttle").await.unwrap();
    assert!(matches!(served.await.unwrap(), Err(ServeError::Greeting(HelloError::Magic))));
    assert_eq!(pod.links.count(), 0);
}

#[tokio::test]
async fn links_are_counted_and_one_too_many_is_refused_until_another_ends() {
    let mut pod = Pod::new(Limits::default());
    let mut all = Vec::new();
    for _ in 0..MAX_LINKS {
        all.push(linked(&mut pod).await);
    }
    let (_stream, handle) = connect(Token::generate().unwrap(), Limits::default());
    let refused = handle.attach(pod.dial().0).await.err().unwrap();
    assert!(matches!(refused, AttachError::Refused(Refusal::TooMany)), "{refused:?}");
    // It may be tried again.
    let (_, near, _far, attachment) = all.pop().unwrap();
    let running = tokio::spawn(attachment.run());
    drop(near);
    within(running).await.unwrap();
    while pod.links.count() == MAX_LINKS {
        tokio::task::yield_now().await;
    }
    let _attachment = handle.attach(pod.dial().0).await.unwrap();
}

/// What a client of the future would send, and what this server makes of it.
#[tokio::test]
async fn a_newer_client_and_this_server_talk() {
    let mut pod = Pod::new(Limits::default());
    let (mut near, _served) = pod.dial();
    let hello =
        Hello { versions: 1..=7, token: Token::generate().unwrap(), resume: false, attempt: 1, received: 0 };
    let mut out = BytesMut::new();
    hello.encode(&mut out);
    out[8] += 3;
    out[11] |= 0x40;
    out.extend_from_slice(b"new");
    out.extend_from_slice(&frame::data_header(5));
    out.extend_from_slice(b"hello");
    frame::ping(99, &mut out);
    near.write_all(&out).await.unwrap();
    let mut far = pod.accept().await;
    let mut got = [0; 5];
    within(far.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"hello");
    let mut input = BytesMut::new();
    let answer = loop {
        near.read_buf(&mut input).await.unwrap();
        if let Some(answer) = Answer::decode(&mut input, &(1..=7)).unwrap() {
            break answer;
        }
    };
    assert_eq!(answer, Answer::Welcome { version: *VERSIONS.end(), received: 0 });
    let (mut decoder, mut pong, mut acked) = (Decoder::default(), None, 0);
    while pong.is_none() || acked < 5 {
        match decoder.next(&mut input).unwrap() {
            Some(Frame::Pong(number)) => pong = Some(number),
            Some(Frame::Ack(ack)) => acked = ack.offset,
            Some(other) => panic!("{other:?}"),
            None => {
                within(near.read_buf(&mut input)).await.unwrap();
            }
        }
    }
    assert_eq!((pong, acked), (Some(99), 5));
}

#[tokio::test]
async fn impossible_frames_end_the_connection_and_impossible_offsets_the_link() {
    let mut pod = Pod::new(Limits::default());
    let open = |attempt, received, resume, token| {
        let mut out = BytesMut::new();
        Hello { versions: VERSIONS, token, resume, attempt, received }.encode(&mut out);
        out
    };
    let token = Token::generate().unwrap();
    let (mut near, served) = pod.dial();
    near.write_all(&open(1, 0, false, token)).await.unwrap();
    near.write_all(b"\xff\0\0\0").await.unwrap();
    assert!(matches!(within(served).await.unwrap().unwrap(), Detached::Frame(_)));
    let mut far = pod.accept().await;

    let (mut near, served) = pod.dial();
    near.write_all(&open(2, 1, true, token)).await.unwrap();
    let refused = within(served).await.unwrap();
    assert!(matches!(refused, Err(ServeError::Refused(Refusal::Offset))), "{refused:?}");
    let error = within(far.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(end_of(&error), End::Offset { claimed: 1, lowest: 0, highest: 0 });

    // The same in an acknowledgement.
    let (mut near, served) = pod.dial();
    let mut out = open(1, 0, false, Token::generate().unwrap());
    let ack = TimedAck { offset: 4, received_at: Duration::ZERO, held: Duration::ZERO };
    frame::ack(ack, &mut out);
    near.write_all(&out).await.unwrap();
    let ended = within(served).await.unwrap().unwrap();
    assert!(matches!(ended, Detached::Ended(End::Offset { claimed: 4, .. })), "{ended:?}");
}
