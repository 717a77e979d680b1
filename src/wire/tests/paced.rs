//! Flows over a paced session: the stream under HTTP/2 tells each end's pacer what is written and what arrived, as
//! the link does.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kshuttle_test_support::line::{Direction, Line, Quality};
use kshuttle_test_support::net::{connection, echo, server as target};
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::flow::client::FlowClient;
use kshuttle_wire::flow::server;
use kshuttle_wire::link::{Observer, TimedAck};
use kshuttle_wire::pacing::{Pacer, Policy};
use kshuttle_wire::relay;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

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
    /// How long acknowledgements take.
    delay: Duration,
    sum: Arc<AtomicU64>,
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
            let ack =
                TimedAck { offset: self.read, received_at: self.started.elapsed(), held: Duration::ZERO };
            let (far, delay) = (self.far.clone(), self.delay);
            if delay.is_zero() {
                far.acknowledged(ack);
            } else {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    far.acknowledged(ack);
                });
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Reported {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let length = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        self.written += length as u64;
        self.near.written(self.written);
        self.sum.store(self.written, Ordering::Relaxed);
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
    sent_by_the_pod: Arc<AtomicU64>,
}

async fn session(policy: &str) -> Session {
    session_at(Duration::ZERO, policy).await
}

/// A session whose laptop hears so late what has arrived in the pod.
async fn session_at(delay: Duration, policy: &str) -> Session {
    let policy: Policy = policy.parse().unwrap();
    // As a link: it takes all that the budget allows.
    let (near, far) = tokio::io::duplex(32 << 20);
    let pacers = [Pacer::new(policy), Pacer::new(policy)];
    let (deaf, sum) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let end = |stream, near: usize, deaf, delay, sum| Reported {
        stream,
        near: pacers[near].clone(),
        far: pacers[1 - near].clone(),
        written: 0,
        read: 0,
        started: Instant::now(),
        deaf,
        delay,
        sum,
    };
    let near = end(near, 0, Arc::default(), Duration::ZERO, Arc::default());
    let far = end(far, 1, deaf.clone(), delay, sum.clone());
    let pacer = pacers[1].clone();
    tokio::spawn(async move {
        let _ = server::serve_paced(far, Some(pacer)).await;
    });
    let client = FlowClient::start_paced(near, Some(pacers[0].clone())).await.unwrap();
    Session { client, pacers, deaf, sent_by_the_pod: sum }
}

impl Session {
    /// An application's socket, relayed through the session to `target`.
    async fn connect(&self, target: &str) -> TcpStream {
        let (application, accepted) = connection().await;
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

/// One round trip, and no clock to measure it: while nothing comes back from the pod, a new connection's first bytes reach
/// the target; all that is missing then is the way back.
#[tokio::test]
async fn a_new_connection_takes_one_round_trip() {
    let pod = target(|socket| async move {
        let _ = server::serve_paced(socket, Some(Pacer::new(Policy::Auto))).await;
    })
    .await;
    let line = Line::start(pod, 1).await;
    let socket = TcpStream::connect(line.address).await.unwrap();
    let client = FlowClient::start_paced(socket, Some(Pacer::new(Policy::Auto))).await.unwrap();
    let session = |target: String| {
        let client = &client;
        async move {
            let (application, accepted) = connection().await;
            let flow = client.open(&target).await.unwrap();
            tokio::spawn(relay::relay(accepted, flow));
            application
        }
    };
    let echo = target(echo).await.to_string();
    round_trip(&mut session(echo).await).await; // the session stands
    let (arrived, mut arrivals) = tokio::sync::mpsc::channel(1);
    let asked = target(move |mut socket| {
        let arrived = arrived.clone();
        async move {
            let mut question = [0; 8];
            socket.read_exact(&mut question).await.unwrap();
            arrived.send(question).await.unwrap();
            socket.write_all(b"answer").await.unwrap();
        }
    })
    .await;
    line.set(Direction::Down, Quality { stalled: true, ..Quality::default() });
    let mut application = within(session(asked.to_string())).await;
    application.write_all(b"question").await.unwrap();
    assert_eq!(within(arrivals.recv()).await.unwrap(), *b"question");
    line.set(Direction::Down, Quality::default());
    let mut answer = [0; 6];
    within(application.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"answer");
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

/// A stuck flow gets as much as its window: more than the first megabyte only after the windows have grown.
#[tokio::test]
async fn windows_grow_on_a_long_fast_path() {
    const LENGTH: usize = 16 << 20;
    let rtt = Duration::from_millis(60);
    let session = session_at(rtt, "auto").await;
    let source = source().await;
    let stuck = async || {
        let before = session.sent_by_the_pod.load(Ordering::Relaxed);
        let mut flow = session.client.open(&source).await.unwrap();
        within(flow.recv.opened()).await.unwrap();
        (before, flow)
    };
    let mut flow = stuck().await.1;
    let (mut got, started) = (0, Instant::now());
    // The rate is taken once per round trip.
    while got < LENGTH || started.elapsed() < 4 * rtt {
        let data = within(flow.recv.data()).await.unwrap().unwrap();
        got += data.len();
        flow.recv.release(data.len());
    }
    drop(flow);
    let (before, _flow) = stuck().await;
    within(async {
        while session.sent_by_the_pod.load(Ordering::Relaxed) < before + (2 << 20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
