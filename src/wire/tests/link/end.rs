//! How links end, and what each side is told.

use std::io;
use std::time::Duration;

use kshuttle_test_support::{pattern, within};
use kshuttle_wire::link::frame::CloseReason;
use kshuttle_wire::link::hello::Refusal;
use kshuttle_wire::link::{AttachError, Detached, End, Limits, Phase, Token, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::scene::{Pod, end_of, linked};

#[tokio::test]
async fn a_restarted_server_refuses_and_the_stream_fails_rather_than_ends() {
    let mut pod = Pod::new(Limits::default());
    let (handle, mut near, _far, attachment) = linked(&mut pod).await;
    drop(attachment);
    let restarted = Pod::new(Limits::default());
    let refused = handle.attach(restarted.dial().0).await.err().unwrap();
    assert!(matches!(refused, AttachError::Refused(Refusal::UnknownToken)), "{refused:?}");
    let error = within(near.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(end_of(&error), End::Refused(Refusal::UnknownToken));
    assert!(near.write_all(b"x").await.is_err());
    let again = handle.attach(restarted.dial().0).await.err().unwrap();
    assert!(matches!(again, AttachError::Ended(End::Refused(Refusal::UnknownToken))), "{again:?}");
    let mut phase = handle.phase();
    assert!(matches!(*phase.borrow_and_update(), Phase::Ended(_)));
}

#[tokio::test(start_paused = true)]
async fn a_link_nothing_carries_is_kept_for_its_time_and_then_ends_with_an_error() {
    let mut pod = Pod::new(Limits::default());
    let (handle, mut near, mut far, attachment) = linked(&mut pod).await;
    drop(attachment);
    tokio::time::sleep(Duration::from_secs(179)).await;
    assert_eq!(pod.links.count(), 1);
    let attachment = handle.attach(pod.dial().0).await.unwrap();
    let running = tokio::spawn(attachment.run());
    near.write_all(b"still here").await.unwrap();
    far.read_exact(&mut [0; 10]).await.unwrap();
    running.abort();
    let gone = Instant::now();
    for stream in [&mut near, &mut far] {
        let error = stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(end_of(&error), End::Expired);
    }
    let kept = gone.elapsed();
    assert!((Duration::from_secs(179)..Duration::from_secs(182)).contains(&kept), "{kept:?}");
    assert_eq!(handle.ended().await, End::Expired);
    while pod.links.count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_second_client_with_the_token_fences_the_first_which_is_told() {
    let pod = Pod::new(Limits::default());
    let token = Token::generate().unwrap();
    let (_one, first) = connect(token, Limits::default());
    let (_two, second) = connect(token, Limits::default());
    let attachment = first.attach(pod.dial().0).await.unwrap();
    let told = tokio::spawn(attachment.run());
    // Its attempts count from 1 too: the first one is taken for one that was overtaken.
    let refused = second.attach(pod.dial().0).await.err().unwrap();
    assert!(matches!(refused, AttachError::Refused(Refusal::Superseded)), "{refused:?}");
    let _attachment = second.attach(pod.dial().0).await.unwrap();
    assert!(matches!(within(told).await.unwrap(), Detached::Fenced));
}

#[tokio::test]
async fn the_end_of_one_side_is_a_clean_end_for_the_other_only_when_it_was_orderly() {
    let mut pod = Pod::new(Limits::default());
    // Everything written before arrives first.
    let (handle, mut near, mut far, attachment) = linked(&mut pod).await;
    let running = tokio::spawn(attachment.run());
    far.write_all(&pattern(300_000)).await.unwrap();
    far.shutdown().await.unwrap();
    assert!(far.write_all(b"x").await.is_err());
    let mut got = Vec::new();
    within(near.read_to_end(&mut got)).await.unwrap();
    assert!(got == pattern(300_000));
    assert_eq!(within(handle.ended()).await, End::Done);
    assert_eq!(within(far.read(&mut [0; 1])).await.unwrap(), 0);
    assert!(matches!(within(running).await.unwrap(), Detached::Ended(End::Done)));

    let (handle, mut near, _far, attachment) = linked(&mut pod).await;
    let running = tokio::spawn(attachment.run());
    within(pod.links.leave()).await;
    assert_eq!(pod.links.count(), 0);
    let error = within(near.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(end_of(&error), End::Peer(CloseReason::Leaving));
    assert_eq!(within(handle.ended()).await, End::Peer(CloseReason::Leaving));
    assert!(matches!(within(running).await.unwrap(), Detached::Ended(_)));

    let (handle, _near, mut far, attachment) = linked(&mut pod).await;
    tokio::spawn(attachment.run());
    handle.close(CloseReason::Done);
    assert_eq!(within(far.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test]
async fn writing_without_end_is_an_error_not_memory_without_end() {
    let limits = Limits { unacknowledged: 1 << 20, ..Limits::default() };
    let (mut near, handle) = connect(Token::generate().unwrap(), limits);
    let mut written = 0;
    let error = loop {
        match near.write(&[0; 10_000]).await {
            Ok(count) => written += count,
            Err(error) => break error,
        }
    };
    assert_eq!(end_of(&error), End::Unacknowledged);
    assert!((1 << 19..1 << 20).contains(&written), "{written}");
    assert_eq!(handle.ended().await, End::Unacknowledged);
    assert_eq!(handle.status().replay_buffer, 0);
}

#[tokio::test(start_paused = true)]
async fn a_layer_above_that_never_reads_ends_the_link_but_not_the_memory() {
    let limits = Limits { unread: 4 << 20, ..Limits::default() };
    let mut pod = Pod::new(limits);
    let (_handle, mut near, far, attachment) = linked(&mut pod).await;
    near.write_all(&vec![7; 3 << 20]).await.unwrap();
    let running = tokio::spawn(attachment.run());
    // Above 1 MiB it reads more slowly, so that the peer's TCP slows down, but it does not look dead.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!running.is_finished());
    assert_eq!(far.status().unread, 3 << 20);
    near.write_all(&vec![7; 2 << 20]).await.unwrap();
    let why = running.await.unwrap();
    assert!(matches!(why, Detached::Ended(End::Peer(CloseReason::Overflow))), "{why:?}");
    assert_eq!(far.status().phase, Phase::Ended(End::Unread));
}
