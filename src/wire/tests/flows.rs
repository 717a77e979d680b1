//! Flows between two real sockets, over HTTP/2 in an in-memory stream: what an application sees.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::io;

use bytes::Bytes;
use kshuttle_test_support::net::{connection, echo, server as target};
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::flow::client::FlowClient;
use kshuttle_wire::flow::{ConnectError, server};
use kshuttle_wire::relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

struct Session {
    client: FlowClient,
    server: JoinHandle<()>,
}

async fn session() -> Session {
    let (near, far): (DuplexStream, DuplexStream) = tokio::io::duplex(256 << 10);
    let server = tokio::spawn(async move {
        let _ = server::serve(far).await;
    });
    Session { client: FlowClient::start(near).await.unwrap(), server }
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

async fn sum_then_send(mut socket: TcpStream, answer: usize) {
    let mut got = Vec::new();
    socket.read_to_end(&mut got).await.unwrap();
    socket.write_all(&(got.len() as u64).to_be_bytes()).await.unwrap();
    socket.write_all(&pattern(answer)).await.unwrap();
}

fn reset(socket: TcpStream) {
    relay::arm(&socket);
    drop(socket);
}

async fn round_trip(application: &mut TcpStream) {
    application.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    within(application.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"ping");
}

#[tokio::test]
async fn half_close_is_kept() {
    let session = session().await;
    let target = target(|socket| sum_then_send(socket, 10 << 20)).await;
    let mut application = session.connect(&target.to_string()).await;
    application.write_all(&pattern(3_000_000)).await.unwrap();
    application.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within(application.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer[..8], 3_000_000u64.to_be_bytes());
    assert!(answer[8..] == pattern(10 << 20));
}

#[tokio::test]
async fn a_refused_port_resets_and_carries_the_errno() {
    let session = session().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut flow = session.client.open(&closed.to_string()).await.unwrap();
    let error = flow.recv.opened().await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused(_)), "{error:?}");
    assert_eq!(error.errno(), Some(111));

    let mut application = session.connect(&closed.to_string()).await;
    let _ = application.write_all(b"early data").await;
    let error = within(application.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_unknown_name_is_told() {
    let session = session().await;
    let mut flow = session.client.open("no-such-name.invalid:80").await.unwrap();
    assert!(matches!(flow.recv.opened().await, Err(ConnectError::UnknownName)));
}

#[tokio::test]
async fn ipv6_targets_work() {
    let session = session().await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let mut flow = session.client.open(&listener.local_addr().unwrap().to_string()).await.unwrap();
    flow.recv.opened().await.unwrap();
}

#[tokio::test]
async fn data_travels_with_the_opening() {
    let session = session().await;
    let target = target(echo).await;
    let mut flow = session.client.open(&target.to_string()).await.unwrap();
    flow.send.send(Bytes::from_static(b"first")).await.unwrap(); // before any answer was read
    assert_eq!(flow.recv.data().await.unwrap().unwrap(), "first");
}

#[tokio::test]
async fn the_targets_reset_is_the_applications_reset() {
    let session = session().await;
    let target = target(|mut socket| async move {
        socket.write_all(&pattern(300_000)).await.unwrap();
        let _ = socket.read(&mut [0; 1]).await; // until the application has it all
        reset(socket);
    })
    .await;
    let mut application = session.connect(&target.to_string()).await;
    let mut got = vec![0; 300_000];
    within(application.read_exact(&mut got)).await.unwrap();
    assert!(got == pattern(300_000));
    application.write_all(b"x").await.unwrap();
    let error = within(application.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_applications_reset_reaches_the_target_even_after_its_fin() {
    let session = session().await;
    let (seen, mut reports) = tokio::sync::mpsc::channel(1);
    let target = target(move |mut socket| {
        let seen = seen.clone();
        async move {
            socket.write_all(b"hello").await.unwrap();
            assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0); // the application's FIN
            // The error shows on a later write.
            let error = loop {
                if let Err(error) = socket.write_all(b"x").await {
                    break error;
                }
                tokio::task::yield_now().await;
            };
            seen.send(error.kind()).await.unwrap();
        }
    })
    .await;
    let mut application = session.connect(&target.to_string()).await;
    application.read_exact(&mut [0; 5]).await.unwrap();
    application.shutdown().await.unwrap();
    application.read_exact(&mut [0; 1]).await.unwrap();
    reset(application);
    let kind = within(reports.recv()).await.unwrap();
    assert!(matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{kind:?}");
}

#[tokio::test]
async fn the_end_of_the_session_is_never_a_clean_end() {
    for half_closed in [false, true] {
        let session = session().await;
        let target = target(|mut socket| async move {
            socket.write_all(b"hello").await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let mut application = session.connect(&target.to_string()).await;
        application.read_exact(&mut [0; 5]).await.unwrap();
        if half_closed {
            application.shutdown().await.unwrap();
        }
        session.server.abort();
        let error = within(application.read(&mut [0; 1])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "half closed: {half_closed}");
        within(session.client.closed().cancelled()).await;
    }
}

#[tokio::test]
async fn flows_nobody_reads_hold_back_nobody() {
    let session = session().await;
    let source = target(|mut socket| async move {
        let block = vec![7; 64 << 10];
        while socket.write_all(&block).await.is_ok() {}
    })
    .await;
    let echo = target(echo).await;
    let mut stuck = Vec::new();
    for _ in 0..100 {
        let mut application = session.connect(&source.to_string()).await;
        application.read_exact(&mut [0; 1]).await.unwrap();
        stuck.push(application);
    }
    let mut application = session.connect(&echo.to_string()).await;
    for _ in 0..100 {
        round_trip(&mut application).await;
    }
}

/// Each of these ended the whole connection with the h2 crate's default limits.
#[tokio::test]
async fn thousands_of_resets_and_tiny_frames_do_not_end_the_session() {
    let session = session().await;
    let source = target(|mut socket| async move {
        let block = vec![7; 64 << 10];
        while socket.write_all(&block).await.is_ok() {}
    })
    .await;
    let drip = target(|mut socket| async move {
        let _ = socket.set_nodelay(true);
        for _ in 0..200_000 {
            if socket.write_all(b"x").await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    })
    .await;
    let _unread = session.connect(&drip.to_string()).await;
    for _ in 0..3_000 {
        let mut application = session.connect(&source.to_string()).await;
        application.read_exact(&mut [0; 1]).await.unwrap();
        reset(application);
    }
    let echo = target(echo).await;
    round_trip(&mut session.connect(&echo.to_string()).await).await;
}

#[tokio::test]
async fn both_directions_at_once_arrive_whole() {
    const LENGTH: usize = 50 << 20;
    let session = session().await;
    let target = target(|mut socket| async move {
        let (mut read, mut write) = socket.split();
        let send = async { write.write_all(&pattern(LENGTH)).await.unwrap() };
        let mut got = vec![0; LENGTH];
        tokio::join!(send, async { read.read_exact(&mut got).await.unwrap() });
        assert!(got == pattern(LENGTH));
        write.write_all(b"whole").await.unwrap();
    })
    .await;
    let mut application = session.connect(&target.to_string()).await;
    let (mut read, mut write) = application.split();
    let mut got = vec![0; LENGTH];
    tokio::join!(async { write.write_all(&pattern(LENGTH)).await.unwrap() }, async {
        within(read.read_exact(&mut got)).await.unwrap()
    });
    assert!(got == pattern(LENGTH));
    let mut verdict = [0; 5];
    within(read.read_exact(&mut verdict)).await.unwrap();
    assert_eq!(&verdict, b"whole");
}

#[tokio::test]
async fn more_flows_than_the_pod_may_hold_are_refused_not_queued() {
    let session = session().await;
    let hold = target(|_socket| std::future::pending()).await;
    let mut open = Vec::new();
    for _ in 0..kshuttle_wire::flow::MAX_FLOWS {
        let mut flow = session.client.open(&hold.to_string()).await.unwrap();
        flow.recv.opened().await.unwrap();
        open.push(flow);
    }
    let mut flow = session.client.open(&hold.to_string()).await.unwrap();
    assert!(matches!(within(flow.recv.opened()).await, Err(ConnectError::TooMany)));
}

#[tokio::test]
async fn malformed_targets_are_refused_here() {
    let session = session().await;
    for target in ["", "host", "host:", "host:99999", "a b:80", "http://x:80/"] {
        assert!(session.client.open(target).await.is_err(), "{target:?}");
    }
}
