//! Connections that break, and attachments that take over from each other: the bytes do not notice.

use std::sync::{Arc, Mutex};

use kshuttle_test_support::within;
use kshuttle_wire::link::observer::{Observer, TimedAck};
use kshuttle_wire::link::{AttachError, Detached, End, Limits, LinkHandle, Token, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::scene::{CONNECTION, Pod, exchange};

/// Copies between two connections until `bytes` have passed, then cuts both.
async fn cut_after(bytes: usize, mut near: DuplexStream, mut far: DuplexStream) {
    let (mut up, mut down) = (vec![0; 8 << 10], vec![0; 8 << 10]);
    let mut left = bytes;
    while left > 0 {
        let passed = tokio::select! {
            count = near.read(&mut up) => match count {
                Ok(count @ 1..) => far.write_all(&up[..count.min(left)]).await.map(|()| count),
                _ => return,
            },
            count = far.read(&mut down) => match count {
                Ok(count @ 1..) => near.write_all(&down[..count.min(left)]).await.map(|()| count),
                _ => return,
            },
        };
        let Ok(passed) = passed else { return };
        left = left.saturating_sub(passed);
    }
}

/// Dials again whenever the connection breaks, each time through a relay that cuts it after some bytes.
fn keep_attached(pod: &Pod, handle: LinkHandle, cuts: impl Fn(u64) -> usize + Send + 'static) {
    let (links, new) = (pod.links.clone(), pod.new.clone());
    tokio::spawn(async move {
        for count in 0.. {
            let (near, relay_near) = duplex(CONNECTION);
            let (relay_far, far) = duplex(CONNECTION);
            tokio::spawn(cut_after(cuts(count), relay_near, relay_far));
            let (links, new) = (links.clone(), new.clone());
            tokio::spawn(async move { links.serve(far, move |stream| new.send(stream).unwrap()).await });
            match handle.attach(near).await {
                Ok(attachment) => {
                    if let Detached::Ended(_) = attachment.run().await {
                        return;
                    }
                }
                Err(AttachError::Ended(_)) => return,
                Err(_) => {}
            }
        }
    });
}

#[tokio::test]
async fn bytes_arrive_whole_and_in_order_over_hundreds_of_broken_connections() {
    let mut pod = Pod::new(Limits::default());
    let (near, handle) = connect(Token::generate().unwrap(), Limits::default());
    // From a greeting that is cut in its middle to half a megabyte.
    keep_attached(&pod, handle.clone(), |count| match count % 8 {
        0 => 20 + count as usize % 120,
        _ => 1_000 + (count as usize * 104_729) % 500_000,
    });
    let far = pod.accept().await;
    let (near, far) = exchange(near, far, 24 << 20).await;
    let status = handle.status();
    assert!(status.drops_survived > 50, "{status:?}");
    assert_eq!(near.status().unread, 0);
    println!("{} drops survived", status.drops_survived);
    // And the end arrives as one.
    drop(near);
    let mut rest = Vec::new();
    let (mut read, _write) = tokio::io::split(far);
    within(read.read_to_end(&mut rest)).await.unwrap();
    assert_eq!((rest.len(), within(handle.ended()).await), (0, End::Done));
}

#[tokio::test]
async fn a_hundred_attachments_take_over_from_each_other_while_bytes_flow() {
    let mut pod = Pod::new(Limits::default());
    let (near, handle) = connect(Token::generate().unwrap(), Limits::default());
    let first = handle.attach(pod.dial().0).await.unwrap();
    tokio::spawn(first.run());
    let far = pod.accept().await;
    let exchange = tokio::spawn(exchange(near, far, 16 << 20));
    let mut last = None;
    for _ in 0..100 {
        let attachment = handle.attach(pod.dial().0).await.unwrap();
        if let Some(run) = last.replace(tokio::spawn(attachment.run())) {
            let why = within(run).await.unwrap();
            assert!(matches!(why, Detached::Fenced), "{why:?}");
        }
    }
    let _streams = within(exchange).await.unwrap();
    assert_eq!(handle.status().drops_survived, 100);
}

#[tokio::test]
async fn an_attachment_may_be_dropped_anywhere() {
    let mut pod = Pod::new(Limits::default());
    let (near, handle) = connect(Token::generate().unwrap(), Limits::default());
    let keeper = handle.clone();
    let (links, new) = (pod.links.clone(), pod.new.clone());
    tokio::spawn(async move {
        for polls in 0.. {
            let (near, far) = duplex(CONNECTION);
            let (links, new) = (links.clone(), new.clone());
            tokio::spawn(async move { links.serve(far, move |stream| new.send(stream).unwrap()).await });
            let Ok(attachment) = keeper.attach(near).await else { return };
            // Cancelled between two polls of its task, wherever that is.
            let mut run = Box::pin(attachment.run());
            for _ in 0..1 + polls % 50 {
                tokio::select! {
                    biased;
                    _ = &mut run => break,
                    () = tokio::task::yield_now() => {}
                }
            }
        }
    });
    let far = pod.accept().await;
    exchange(near, far, 4 << 20).await;
    assert!(handle.status().drops_survived > 10, "{:?}", handle.status());
}

#[derive(Default)]
struct Heard {
    written: Mutex<Vec<u64>>,
    acks: Mutex<Vec<TimedAck>>,
    attached: Mutex<usize>,
}

impl Observer for Heard {
    fn written(&self, end: u64) {
        self.written.lock().unwrap().push(end);
    }
    fn acknowledged(&self, ack: TimedAck) {
        self.acks.lock().unwrap().push(ack);
    }
    fn attached(&self, _: u64) {
        *self.attached.lock().unwrap() += 1;
    }
}

#[tokio::test]
async fn the_observer_hears_everything_in_order() {
    let mut pod = Pod::new(Limits::default());
    let (near, handle) = connect(Token::generate().unwrap(), Limits::default());
    let heard = Arc::new(Heard::default());
    near.observe(heard.clone());
    keep_attached(&pod, handle.clone(), |_| 300_000);
    let far = pod.accept().await;
    let _streams = exchange(near, far, 2 << 20).await;
    while handle.status().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    let (written, acks) = (heard.written.lock().unwrap(), heard.acks.lock().unwrap());
    assert_eq!(written.last(), Some(&(2 << 20)));
    assert!(written.is_sorted() && acks.is_sorted_by_key(|ack| (ack.offset, ack.received_at)));
    assert!(!acks.is_empty());
    assert_eq!(*heard.attached.lock().unwrap() as u64, handle.status().drops_survived + 1);
    assert!(handle.status().drops_survived > 5);
}
