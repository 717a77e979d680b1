//! A whole session (SSH, flows, sockets) over a link to the pod's real server, on connections that keep breaking.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kshuttle::addr::Target;
use kshuttle::tunnel::Connect;
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::ssh::Session;
use kshuttle_sshd::idle::Presence;
use kshuttle_sshd::server as sshd;
use kshuttle_test_support::net::{connection, echo, greet_and_hold, server};
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::link::hello::HelloError;
use kshuttle_wire::link::server::Links;
use kshuttle_wire::link::{AttachError, Detached, End, Limits, LinkHandle, Token, connect};
use kshuttle_wire::pacing::Policy;
use kshuttle_wire::relay;
use russh::keys::PublicKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How a path fails.
#[derive(Clone, Copy)]
enum Fault {
    /// RST on both sides after this many bytes.
    ResetAfter(usize),
    /// From this many bytes on nothing is read and nothing said, until the path is told to let go.
    SwallowAfter(usize),
}

/// A TCP path to `to` whose connections fail one after the other, each in its way.
async fn path(
    to: SocketAddr,
    fault: impl Fn(usize) -> Fault + Send + 'static,
) -> (SocketAddr, watch::Sender<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (swallowed, _) = watch::channel(0);
    let tell = swallowed.clone();
    tokio::spawn(async move {
        for count in 0.. {
            let Ok((near, _)) = listener.accept().await else { return };
            let far = TcpStream::connect(to).await.unwrap();
            let (fault, swallowed) = (fault(count), tell.clone());
            tokio::spawn(async move { fail(near, far, fault, &swallowed).await });
        }
    });
    (address, swallowed)
}

async fn fail(mut near: TcpStream, mut far: TcpStream, fault: Fault, swallowed: &watch::Sender<usize>) {
    let (Fault::ResetAfter(bytes) | Fault::SwallowAfter(bytes)) = fault;
    let (mut up, mut down, mut left) = (vec![0; 32 << 10], vec![0; 32 << 10], bytes);
    while left > 0 {
        let passed = tokio::select! {
            count = near.read(&mut up) => match count {
                Ok(count @ 1..) => far.write_all(&up[..count.min(left)]).await.map(|()| count),
                _ => break,
            },
            count = far.read(&mut down) => match count {
                Ok(count @ 1..) => near.write_all(&down[..count.min(left)]).await.map(|()| count),
                _ => break,
            },
        };
        let Ok(passed) = passed else { break };
        left = left.saturating_sub(passed);
    }
    if matches!(fault, Fault::SwallowAfter(_)) && left == 0 {
        swallowed.send_modify(|count| *count += 1);
        std::future::pending::<()>().await;
    }
    relay::arm(&near);
    relay::arm(&far);
}

/// Dials whenever nothing carries the link.
fn keep_attached(handle: LinkHandle, address: SocketAddr) -> JoinHandle<End> {
    tokio::spawn(async move {
        loop {
            let Ok(socket) = TcpStream::connect(address).await else { continue };
            let _ = socket.set_nodelay(true);
            match handle.attach(socket).await {
                Ok(attachment) => {
                    if let Detached::Ended(end) = attachment.run().await {
                        return end;
                    }
                }
                Err(AttachError::Ended(end)) => return end,
                Err(_) => {}
            }
        }
    })
}

struct Scene {
    sshd: Sshd,
    identity: Identity,
}

async fn scene() -> Scene {
    let identity = Identity::generate().unwrap();
    Scene { sshd: Sshd::start(&identity.authorized_key().unwrap()).await, identity }
}

/// An application's socket, relayed through `session` to `target`.
async fn application(session: &Session, target: Target) -> TcpStream {
    let (application, accepted) = connection().await;
    let flow = session.connect(&target).await.unwrap();
    tokio::spawn(async move {
        let _ = relay::relay(accepted, flow).await;
    });
    application
}

/// The pattern there and back again, both ways at once.
async fn there_and_back(session: &Session, length: usize) {
    let target = server(echo).await;
    let mut application = application(session, target.into()).await;
    let (mut read, mut write) = application.split();
    let mut got = Vec::new();
    let send = async {
        write.write_all(&pattern(length)).await.unwrap();
        write.shutdown().await.unwrap();
    };
    tokio::join!(send, async { within(read.read_to_end(&mut got)).await.unwrap() });
    assert!(got == pattern(length));
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_survive_resets_in_every_phase_of_a_session() {
    let scene = scene().await;
    // The first connections die during greeting, key exchange and login.
    let (address, _) = path(scene.sshd.address, |count| {
        Fault::ResetAfter(match count {
            0..20 => 30 + count * 150,
            _ => 20_000 + (count * 104_729) % 700_000,
        })
    })
    .await;
    let (stream, handle) = connect(Token::generate().unwrap(), Limits::default());
    let kept = keep_attached(handle.clone(), address);
    let session =
        Session::start_on_link(stream, &scene.identity, &HostKey::default(), Policy::Auto).await.unwrap();
    let idle_target = server(greet_and_hold).await;
    let mut idle = application(&session, idle_target.into()).await;
    idle.read_exact(&mut [0; 5]).await.unwrap();
    tokio::join!(there_and_back(&session, 12 << 20), there_and_back(&session, 12 << 20));
    let status = handle.status();
    println!("{status:?}");
    assert!(status.drops_survived > 40, "{status:?}");
    // Who asks whether the session stands still is answered.
    within(session.answers()).await;
    // The idle one is still there; its end is told when the session ends for good.
    idle.write_all(b"x").await.unwrap();
    session.close().await;
    let error = within(idle.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    within(handle.ended()).await;
    within(kept).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_is_left_by_a_probe_and_nothing_is_lost() {
    let scene = scene().await;
    let (address, swallowed) = path(scene.sshd.address, |count| match count {
        0 => Fault::SwallowAfter(3 << 20),
        _ => Fault::ResetAfter(usize::MAX),
    })
    .await;
    let (stream, handle) = connect(Token::generate().unwrap(), Limits::default());
    keep_attached(handle.clone(), address);
    let session =
        Session::start_on_link(stream, &scene.identity, &HostKey::default(), Policy::Auto).await.unwrap();
    let network_changes = async {
        within(swallowed.subscribe().wait_for(|count| *count == 1)).await.unwrap();
        handle.probe();
    };
    tokio::join!(there_and_back(&session, 8 << 20), network_changes);
    assert_eq!(handle.status().drops_survived, 1);
}

#[tokio::test(start_paused = true)]
async fn a_kept_link_counts_as_a_client_and_the_pod_leaves_only_after_it() {
    let identity = Identity::generate().unwrap();
    let key = PublicKey::from_openssh(&identity.authorized_key().unwrap()).unwrap();
    let config = Arc::new(sshd::config_over_link(sshd::host_key().unwrap()));
    let (links, presence) = (Links::new(Limits::default()), Presence::default());
    let (near, far) = tokio::io::duplex(64 << 10);
    let (all, present) = (links.clone(), presence.clone());
    tokio::spawn(async move {
        let start = |stream| drop(tokio::spawn(sshd::serve_link(config, stream, key, present)));
        let _ = all.serve(far, start).await;
    });
    let (stream, handle) = connect(Token::generate().unwrap(), Limits::default());
    let attachment = handle.attach(near).await.unwrap();
    let running = tokio::spawn(attachment.run());
    let session = Session::start_on_link(stream, &identity, &HostKey::default(), Policy::Auto).await.unwrap();
    running.abort();
    let _ = running.await;
    let cut = Instant::now();
    // Five minutes alone, which begin when the link is given up after three.
    presence.abandoned(Duration::from_secs(300)).await;
    let left = cut.elapsed();
    assert!((Duration::from_secs(479)..Duration::from_secs(482)).contains(&left), "{left:?}");
    assert_eq!(links.count(), 0);
    within(session.ended()).await; // this end has given up too
    assert_eq!(handle.ended().await, End::Expired);
}

#[tokio::test]
async fn a_stock_server_is_told_from_ours() {
    let target = server(|mut socket: TcpStream| async move {
        let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await;
        let _ = socket.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let (_stream, handle) = connect(Token::generate().unwrap(), Limits::default());
    let refused = handle.attach(TcpStream::connect(target).await.unwrap()).await.err().unwrap();
    assert!(matches!(refused, AttachError::Greeting(HelloError::Ssh)), "{refused:?}");
}

#[tokio::test]
async fn a_client_that_waits_for_the_servers_word_gets_plain_ssh() {
    let scene = scene().await;
    let mut silent = scene.sshd.dial().await;
    let mut ident = vec![0; 16];
    within(silent.read_exact(&mut ident)).await.unwrap();
    assert_eq!(ident, b"SSH-2.0-kshuttle");
}
