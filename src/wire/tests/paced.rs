//! Flows over a paced session: the stream under HTTP/2 tells each end's pacer what is written and what arrived, as
//! the link does.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kshuttle_test_support::net::{echo, server as target};
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::flow::client::FlowClient;
use kshuttle_wire::flow::server;
use kshuttle_wire::link::{Observer, TimedAck};
use kshuttle_wire::pacing::{Pacer, Policy};
use kshuttle_wire::relay;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// One end of a stream that reports what it does as a link would.
struct Reported {
    stream: DuplexStream,
    near: Arc<Pacer>,
    far: Arc<Pacer>,
    written: u64,
    read: u64,
    started: Instant,
    /// While set, nothing that arrives is acknowledged.
    deaf: Arc<AtomicBool>,
}

impl AsyncRead for Reported {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.read += (buffer.filled().len() - before) as u64;
        if !self.deaf.load(Ordering::Relaxed) {
            let received_at = self.started.elapsed();
            self.far.acknowledged(TimedAck { offset: self.read, received_at, held: Duration::ZERO });
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Reported {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let length = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        self.written += length as u64;
        self.near.written(self.written);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Session {
    client: FlowClient,
    pacers: [Arc<Pacer>; 2],
    /// The pod's end acknowledges nothing.
    deaf: Arc<AtomicBool>,
}

async fn session(policy: &str) -> Session {
    let policy: Policy = policy.parse().unwrap();
    // As a link: it takes all that the budget allows.
    let (near, far) = tokio::io::duplex(32 << 20);
    let pacers = [Pacer::new(policy), Pacer::new(policy)];
    let deaf = Arc::new(AtomicBool::new(false));
    let end = |stream, near: usize, deaf| Reported {
        stream,
        near: pacers[near].clone(),
        far: pacers[1 - near].clone(),
        written: 0,
        read: 0,
        started: Instant::now(),
        deaf,
    };
    let (near, far) = (end(near, 0, Arc::default()), end(far, 1, deaf.clone()));
    let pacer = pacers[1].clone();
    tokio::spawn(async move {
        let _ = server::serve_paced(far, Some(pacer)).await;
    });
    let client = FlowClient::start_paced(near, Some(pacers[0].clone())).await.unwrap();
    Session { client, pacers, deaf }
}

impl Session {
    /// An application's socket, relayed through the session to `target`.
    async fn connect(&self, target: &str) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let flow = self.client.open(target).await.unwrap();
        tokio::spawn(async move {
            let _ = relay::relay(accepted, flow).await;
        });
        application
    }
}

async fn round_trip(application: &mut TcpStream) {
    application.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    within(application.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"ping");
}

/// A target that sends without end, or until nobody listens.
async fn source() -> String {
    let address = target(|mut socket| async move {
        let block = vec![7; 64 << 10];
        while socket.write_all(&block).await.is_ok() {}
    })
    .await;
    address.to_string()
}

#[tokio::test]
async fn both_directions_arrive_whole_whatever_the_budget() {
    const LENGTH: usize = 4 << 20;
    for policy in ["auto", "fixed:1", "fixed:16777216"] {
        let session = session(policy).await;
        let echo = target(echo).await.to_string();
        let mut application = session.connect(&echo).await;
        let (mut read, mut write) = application.split();
        let mut got = vec![0; LENGTH];
        tokio::join!(async { write.write_all(&pattern(LENGTH)).await.unwrap() }, async {
            within(read.read_exact(&mut got)).await.unwrap()
        });
        assert!(got == pattern(LENGTH), "{policy}");
        assert!(session.pacers.iter().all(|pacer| pacer.figures().rate > 0.0), "{policy}");
    }
}

/// A permit is asked for only when the flow's window has room: flows nobody reads hold no budget.
#[tokio::test]
async fn flows_nobody_reads_hold_no_budget() {
    for policy in ["auto", "fixed:65536"] {
        let session = session(policy).await;
        let (source, echo) = (source().await, target(echo).await.to_string());
        let mut stuck = Vec::new();
        for _ in 0..20 {
            let mut application = session.connect(&source).await;
            within(application.read_exact(&mut [0; 1])).await.unwrap();
            stuck.push(application);
        }
        let mut application = session.connect(&echo).await;
        for _ in 0..20 {
            round_trip(&mut application).await;
        }
        let (mut read, mut write) = application.split();
        let mut got = vec![0; 1 << 20];
        tokio::join!(async { write.write_all(&pattern(1 << 20)).await.unwrap() }, async {
            within(read.read_exact(&mut got)).await.unwrap()
        });
        assert!(got == pattern(1 << 20), "{policy}");
    }
}

/// HTTP/2 drops what a reset stream had queued: permitted bytes that nobody ever acknowledges.
#[tokio::test]
async fn resets_in_the_middle_of_data_do_not_use_the_budget_up() {
    let session = session("fixed:262144").await;
    let source = source().await;
    for _ in 0..200 {
        let mut application = session.connect(&source).await;
        within(application.read_exact(&mut [0; 1])).await.unwrap();
        relay::arm(&application);
    }
    let echo = target(echo).await.to_string();
    let mut application = session.connect(&echo).await;
    let (mut read, mut write) = application.split();
    let mut got = vec![0; 4 << 20];
    tokio::join!(async { write.write_all(&pattern(4 << 20)).await.unwrap() }, async {
        within(read.read_exact(&mut got)).await.unwrap()
    });
    assert!(got == pattern(4 << 20));
}

#[tokio::test]
async fn a_flow_reset_while_it_waits_for_the_budget_learns_of_it() {
    let session = session("fixed:65536").await;
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let gone = std::sync::Mutex::new(Some(gone));
    let target = target(move |socket| {
        let gone = gone.lock().unwrap().take();
        async move {
            let _ = gone.unwrap().await;
            relay::arm(&socket); // resets when dropped
        }
    })
    .await;
    let mut flow = session.client.open(&target.to_string()).await.unwrap();
    within(flow.recv.opened()).await.unwrap();
    // From now on the budget only shrinks.
    session.deaf.store(true, Ordering::Relaxed);
    let sending = flow.send.send(Bytes::from(vec![0; 512 << 10]));
    tokio::pin!(sending);
    let pacer = &session.pacers[0];
    loop {
        tokio::select! {
            biased;
            result = &mut sending => panic!("512 KiB fitted into 64: {result:?}"),
            () = tokio::task::yield_now() => {}
        }
        let figures = pacer.figures();
        if figures.in_flight + (4 << 10) > figures.budget {
            break;
        }
    }
    go.send(()).unwrap();
    let error = within(sending).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_windows_grow_with_the_rate_and_the_data_stays_whole() {
    const LENGTH: usize = 64 << 20;
    let session = session("auto").await;
    let target = target(|mut socket| async move { socket.write_all(&pattern(LENGTH)).await.unwrap() }).await;
    let mut flow = session.client.open(&target.to_string()).await.unwrap();
    let mut got = Vec::new();
    while let Some(data) = within(flow.recv.data()).await.unwrap() {
        got.extend_from_slice(&data);
        flow.recv.release(data.len());
    }
    assert!(got == pattern(LENGTH));
}
