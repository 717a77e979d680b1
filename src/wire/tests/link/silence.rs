//! Paths on which nothing is heard, and how soon that is noticed.

use std::time::Duration;

use bytes::BytesMut;
use kshuttle_wire::link::hello::{Answer, Hello};
use kshuttle_wire::link::{Attachment, Detached, Limits, LinkHandle, Phase, Token, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use crate::scene::{Pod, exchange, linked};

/// Attached to somebody who never says another word after the welcome.
async fn black_hole(handle: &LinkHandle) -> (Attachment<DuplexStream>, DuplexStream) {
    let (path, mut hole) = duplex(16 << 20);
    let welcome = async {
        let mut input = BytesMut::new();
        while Hello::decode(&mut input.clone()).unwrap().is_none() {
            hole.read_buf(&mut input).await.unwrap();
        }
        let mut out = BytesMut::new();
        Answer::Welcome { version: 1, received: 0 }.encode(&mut out);
        hole.write_all(&out).await.unwrap();
    };
    let (attachment, ()) = tokio::join!(handle.attach(path), welcome);
    (attachment.unwrap(), hole)
}

#[tokio::test(start_paused = true)]
async fn a_silent_path_is_given_up_within_fifteen_seconds_busy_or_idle() {
    for busy in [false, true] {
        let (near, handle) = connect(Token::generate().unwrap(), Limits::default());
        let (attachment, _hole) = black_hole(&handle).await;
        let (_read, mut write) = tokio::io::split(near);
        let began = Instant::now();
        let writer = async {
            loop {
                if busy {
                    write.write_all(b"anybody there?").await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let why = tokio::select! {
            why = attachment.run() => why,
            () = writer => unreachable!(),
        };
        assert!(matches!(why, Detached::Silent), "{why:?}");
        let took = began.elapsed();
        assert!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&took), "{took:?}");
        assert_eq!(*handle.phase().borrow(), Phase::Detached);
        assert_eq!(handle.status().last_error.unwrap(), "the path is silent");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_on_a_good_path_stays_and_measures_it() {
    let mut pod = Pod::new(Limits::default());
    let (handle, _near, _far, attachment) = linked(&mut pod).await;
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, attachment.run()).await.is_err(), "it ended");
    assert_eq!(handle.status().drops_survived, 0);
    assert!(handle.status().rtt.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_probe_finds_a_dead_path_in_seconds_and_long_sleep_at_once() {
    for (gap, bound) in [(None, 3), (Some(1), 3), (Some(60), 0)] {
        let (_near, handle) = connect(Token::generate().unwrap(), Limits::default());
        let (attachment, _hole) = black_hole(&handle).await;
        let began = Instant::now();
        match gap {
            None => handle.probe(),
            Some(gap) => handle.slept(Duration::from_secs(gap)),
        }
        let why = attachment.run().await;
        let expected = if bound == 0 { "asleep" } else { "silent" };
        assert!(why.to_string().contains(expected), "{why:?}");
        assert!(began.elapsed() <= Duration::from_secs(bound) + Duration::from_millis(100));
    }
}

#[tokio::test]
async fn a_probe_of_a_good_path_changes_nothing() {
    let mut pod = Pod::new(Limits::default());
    let (handle, near, far, attachment) = linked(&mut pod).await;
    tokio::spawn(attachment.run());
    handle.probe();
    handle.slept(Duration::from_secs(2));
    exchange(near, far, 1 << 20).await;
    assert_eq!(handle.status().drops_survived, 0);
}
