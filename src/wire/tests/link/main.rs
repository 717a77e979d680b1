//! Links over connections in memory that break in every way, with tokio's clock stopped where time matters.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::link::frame::{self, CloseReason, Decoder, Frame};
use kshuttle_wire::link::hello::{Answer, Hello, HelloError, Refusal, VERSIONS};
use kshuttle_wire::link::observer::{Observer, TimedAck};
use kshuttle_wire::link::server::{Links, MAX_LINKS, ServeError};
use kshuttle_wire::link::{
    AttachError, Attachment, Detached, End, Limits, LinkHandle, LinkStream, Phase, Token, connect,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes a connection in memory holds per direction.
const CONNECTION: usize = 64 << 10;

/// A server whose new links come out of the channel.
struct Pod {
    links: Links,
    new: mpsc::UnboundedSender<LinkStream>,
    streams: mpsc::UnboundedReceiver<LinkStream>,
}

impl Pod {
    fn new(limits: Limits) -> Self {
        let (new, streams) = mpsc::unbounded_channel();
        Self { links: Links::new(limits), new, streams }
    }

    /// A fresh connection to it, and what becomes of it there.
    fn dial(&self) -> (DuplexStream, tokio::task::JoinHandle<Result<Detached, ServeError>>) {
        let (near, far) = duplex(CONNECTION);
        let (links, new) = (self.links.clone(), self.new.clone());
        let served =
            tokio::spawn(async move { links.serve(far, move |stream| new.send(stream).unwrap()).await });
        (near, served)
    }

    async fn accept(&mut self) -> LinkStream {
        within(self.streams.recv()).await.unwrap()
    }
}

/// A link with both its streams, attached over a connection that stands until the attachment is dropped.
async fn linked(pod: &mut Pod) -> (LinkHandle, LinkStream, LinkStream, Attachment<DuplexStream>) {
    let (near, handle) = connect(Token::generate().unwrap(), Limits::default());
    let attachment = handle.attach(pod.dial().0).await.unwrap();
    let far = pod.accept().await;
    (handle, near, far, attachment)
}

/// What the layer above leaves unread at the peer, as SSH's window does.
const WINDOW: usize = 1 << 20;

/// Sends the pattern, at most [`WINDOW`] ahead of the one-byte receipts that [`receive`] sends per 64 KiB.
async fn send(
    length: usize,
    write: &mut WriteHalf<LinkStream>,
    receipts: &mut mpsc::UnboundedReceiver<usize>,
) {
    let (whole, mut sent, mut received) = (pattern(length), 0, 0);
    while sent < length {
        while sent >= received + WINDOW {
            received += receipts.recv().await.unwrap();
        }
        let next = (sent + 50_000).min(length);
        write.write_all(&whole[sent..next]).await.unwrap();
        sent = next;
    }
}

async fn receive(length: usize, read: &mut ReadHalf<LinkStream>, receipts: mpsc::UnboundedSender<usize>) {
    let whole = pattern(length);
    let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
    while at < length {
        let count = within(read.read(&mut buffer)).await.unwrap();
        assert!(count > 0 && buffer[..count] == whole[at..at + count], "wrong bytes at {at}");
        at += count;
        let _ = receipts.send(count); // the sender is done before its last receipts
    }
}

/// The pattern both ways at once.
async fn exchange(near: LinkStream, far: LinkStream, length: usize) -> (LinkStream, LinkStream) {
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let (up, mut up_receipts) = mpsc::unbounded_channel();
    let (down, mut down_receipts) = mpsc::unbounded_channel();
    tokio::join!(
        send(length, &mut near_write, &mut up_receipts),
        send(length, &mut far_write, &mut down_receipts),
        receive(length, &mut far_read, up),
        receive(length, &mut near_read, down),
    );
    (near_read.unsplit(near_write), far_read.unsplit(far_write))
}

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

/// The error of a read and why.
fn end_of(error: &io::Error) -> End {
    *error.get_ref().and_then(|inner| inner.downcast_ref()).unwrap_or_else(|| panic!("{error:?}"))
}

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
