//! One SSH session with the pod's real server.

use std::io::ErrorKind;

use kshuttle::addr::Target;
use kshuttle::proxy::{Connections, listen, redirect};
use kshuttle::tunnel::Connect;
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::ssh::{Session, SessionError};
use kshuttle_test_support::net::{connection, echo, greet_and_hold, server};
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn pod() -> (Sshd, Identity) {
    let identity = Identity::generate().unwrap();
    (Sshd::start(&identity.authorized_key().unwrap()).await, identity)
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

#[tokio::test(flavor = "multi_thread")]
async fn bytes_travel_both_ways_at_once() {
    const LENGTH: usize = 32 << 20;
    let (sshd, identity) = pod().await;
    let session = Session::start(sshd.dial().await, &identity, &HostKey::default()).await.unwrap();
    let target = server(echo).await;
    let mut application = application(&session, target.into()).await;
    let (mut read, mut write) = application.split();
    let mut got = Vec::new();
    let send = async {
        write.write_all(&pattern(LENGTH)).await.unwrap();
        write.shutdown().await.unwrap();
    };
    tokio::join!(send, async { within(read.read_to_end(&mut got)).await.unwrap() });
    assert!(got == pattern(LENGTH));
}

#[tokio::test]
async fn another_key_does_not_come_in() {
    let (sshd, _) = pod().await;
    let stranger = Identity::generate().unwrap();
    let refused = Session::start(sshd.dial().await, &stranger, &HostKey::default()).await;
    assert!(matches!(refused, Err(SessionError::KeyRefused)));
}

#[tokio::test]
async fn a_pod_with_another_host_key_is_not_ours() {
    let (sshd, identity) = pod().await;
    let host_key = HostKey::default();
    let _session = Session::start(sshd.dial().await, &identity, &host_key).await.unwrap();
    let impostor = Sshd::start(&identity.authorized_key().unwrap()).await;
    let refused = Session::start(impostor.dial().await, &identity, &host_key).await;
    assert!(matches!(refused, Err(SessionError::HostKey)));
}

#[tokio::test]
async fn a_stream_that_ends_is_an_error_not_a_hang() {
    let (near, far) = tokio::io::duplex(1024);
    drop(far);
    let identity = Identity::generate().unwrap();
    let refused = within(Session::start(near, &identity, &HostKey::default())).await;
    assert!(matches!(refused, Err(SessionError::Handshake(_))));
}

#[tokio::test]
async fn a_dead_session_resets_its_connections_and_says_that_it_ended() {
    let (sshd, identity) = pod().await;
    // A path of our own between client and pod, to cut.
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let mut to_pod = sshd.dial().await;
    let path = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut far, &mut to_pod).await;
    });
    let session = Session::start(near, &identity, &HostKey::default()).await.unwrap();
    let target = server(greet_and_hold).await;
    let mut application = application(&session, target.into()).await;
    application.read_exact(&mut [0; 5]).await.unwrap();
    application.shutdown().await.unwrap(); // half-closed ones too
    path.abort();
    let error = within(application.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    within(session.ended()).await;
}

#[tokio::test]
async fn a_connection_to_the_redirect_listener_itself_is_reset() {
    let (sshd, identity) = pod().await;
    let session = Session::start(sshd.dial().await, &identity, &HostKey::default()).await.unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Connections::default();
    tokio::spawn(async move { redirect::serve(listener, None, &connections, session).await });
    let mut application = TcpStream::connect(address).await.unwrap();
    let error = within(application.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
