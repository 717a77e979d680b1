//! The session dies while something is under way: the application sees an error, whichever way it came in and whoever serves.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use kshuttle::proxy::{Connections, listen, socks};
use kshuttle::tunnel::Connect;
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::pool::{DialError, Dialed, Pool, Route, Settings};
use kshuttle::tunnel::ssh::Session;
use kshuttle_test_support::line::Line;
use kshuttle_test_support::net::{connect_through, connection, server};
use kshuttle_test_support::openssh::OpenSsh;
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::within;
use kshuttle_wire::relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What is under way of each connection when the session dies.
#[derive(Clone, Copy, Debug)]
enum Doing {
    /// The target sends.
    Download,
    /// The same, and the application said all it has to say.
    HalfClosed,
    /// The application sends, and the target takes nothing more.
    Upload,
    /// Nothing.
    Nothing,
}

const ALL: [Doing; 4] = [Doing::Download, Doing::HalfClosed, Doing::Upload, Doing::Nothing];

/// Greets, then sends for as long as somebody takes it, to whoever asks with `d`; takes nothing otherwise.
async fn target(mut socket: TcpStream) {
    let mut what = [0];
    if socket.read_exact(&mut what).await.is_err() || socket.write_all(b"hello").await.is_err() {
        return;
    }
    if &what == b"d" {
        while socket.write_all(&[7; 64 << 10]).await.is_ok() {}
    }
    std::future::pending::<()>().await;
}

async fn through_socks(tunnel: impl Connect, to: SocketAddr) -> TcpStream {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { socks::serve(listener, &Connections::default(), tunnel).await });
    connect_through(address, to).await
}

/// As the redirect's listener does it.
async fn through_relay(tunnel: impl Connect, to: SocketAddr) -> TcpStream {
    let (application, accepted) = connection().await;
    tokio::spawn(async move {
        relay::arm(&accepted);
        let flow = tunnel.connect(&to.into()).await.unwrap();
        let _ = relay::relay(accepted, flow).await;
    });
    application
}

/// Brings a connection to the point where the session may die.
async fn begin(mut socket: TcpStream, doing: Doing) -> TcpStream {
    let question = if matches!(doing, Doing::Download | Doing::HalfClosed) { b"d" } else { b"-" };
    socket.write_all(question).await.unwrap();
    within(socket.read_exact(&mut [0; 5])).await.unwrap();
    match doing {
        Doing::HalfClosed => socket.shutdown().await.unwrap(),
        Doing::Upload => {
            // Until everything on the way is full.
            let write = |socket: &mut TcpStream| socket.try_write(&[7; 64 << 10]).is_ok();
            while tokio::time::timeout(Duration::from_millis(500), socket.writable()).await.is_ok() {
                write(&mut socket);
            }
        }
        Doing::Download | Doing::Nothing => {}
    }
    socket
}

/// Every connection through `tunnel` ends with an error when `kill` ends its session.
async fn dies(tunnel: impl Connect, kill: impl AsyncFnOnce()) {
    let to = server(target).await;
    let mut open = Vec::new();
    for doing in ALL {
        open.push((doing, "socks", begin(through_socks(tunnel.clone(), to).await, doing).await));
        open.push((doing, "relay", begin(through_relay(tunnel.clone(), to).await, doing).await));
    }
    kill().await;
    let mut buffer = vec![0; 1 << 20];
    for (doing, way, mut socket) in open {
        let error = loop {
            match within(socket.read(&mut buffer)).await {
                Ok(0) => panic!("{doing:?} through {way}: a clean end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{doing:?} through {way}");
    }
}

fn route(address: SocketAddr, identity: &Identity, user: &str) -> Route {
    let dial = move || {
        async move {
            let stream = TcpStream::connect(address).await.map_err(DialError::passing)?;
            Ok(Dialed { stream: Box::new(stream), way: "loopback".into() })
        }
        .boxed()
    };
    Route {
        name: "pod".into(),
        dial: Arc::new(dial),
        identity: identity.clone(),
        user: user.to_owned(),
        host_key: HostKey::default(),
        ours: false,
    }
}

async fn pool(route: Route) -> Pool {
    let pool = Pool::start(Settings { tunnels: 1, ..Settings::default() });
    pool.lead(Some(route));
    within(pool.first_up(Duration::from_secs(60))).await.unwrap();
    pool
}

#[tokio::test(flavor = "multi_thread")]
async fn our_server_without_a_link() {
    let identity = Identity::generate().unwrap();
    let pod = Sshd::start(&identity.authorized_key().unwrap()).await;
    let line = Line::start(pod.address, 1).await;
    let stream = TcpStream::connect(line.address).await.unwrap();
    let session = Session::start(stream, &identity, &HostKey::default()).await.unwrap();
    dies(session, async || assert_eq!(line.reset_all(), 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_server_forgot_the_link() {
    let identity = Identity::generate().unwrap();
    let pod = Sshd::start(&identity.authorized_key().unwrap()).await;
    let line = Line::start(pod.address, 1).await;
    let pool = pool(route(line.address, &identity, "kshuttle")).await;
    // Its container was restarted.
    let restarted = Sshd::start(&identity.authorized_key().unwrap()).await;
    dies(pool, async || {
        line.lead(restarted.address);
        line.reset_all();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssh_was_killed() {
    let identity = Identity::generate().unwrap();
    let openssh = OpenSsh::start(&identity.authorized_key().unwrap(), "").await;
    let pool = pool(route(openssh.address, &identity, &openssh.user)).await;
    dies(pool, async || openssh.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_openssh_was_reset() {
    let identity = Identity::generate().unwrap();
    let openssh = OpenSsh::start(&identity.authorized_key().unwrap(), "").await;
    let line = Line::start(openssh.address, 1).await;
    let pool = pool(route(line.address, &identity, &openssh.user)).await;
    dies(pool, async || assert!(line.reset_all() > 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssh_fell_silent() {
    let identity = Identity::generate().unwrap();
    let openssh = OpenSsh::start(&identity.authorized_key().unwrap(), "").await;
    let line = Line::start(openssh.address, 1).await;
    let pool = pool(route(line.address, &identity, &openssh.user)).await;
    // Keep-alives find it within 40 s; `within` allows a minute.
    dies(pool, async || assert!(line.black_hole_all() > 0)).await;
}
