//! SOCKS5 against the pod's real server.

use std::net::SocketAddr;

use kshuttle::proxy::{Connections, listen, socks};
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::ssh::Session;
use kshuttle_test_support::net::{closed_port, echo, greet_and_hold, server};
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Scene {
    _sshd: Sshd,
    connections: Connections,
    address: SocketAddr,
}

async fn scene() -> Scene {
    let identity = Identity::generate().unwrap();
    let sshd = Sshd::start(&identity.authorized_key().unwrap()).await;
    let session = Session::start(sshd.dial().await, &identity, &HostKey::default()).await.unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Connections::default();
    let served = connections.clone();
    tokio::spawn(async move { socks::serve(listener, &served, session).await });
    Scene { _sshd: sshd, connections, address }
}

/// Method selection, then `request`; returns the reply's code (RFC 1928 §6).
async fn ask(proxy: SocketAddr, request: &[u8]) -> (TcpStream, u8) {
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    socket.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    within(socket.read_exact(&mut method)).await.unwrap();
    assert_eq!(method, [5, 0]);
    socket.write_all(request).await.unwrap();
    let mut reply = [0; 10];
    within(socket.read_exact(&mut reply)).await.unwrap();
    assert_eq!(reply[0], 5);
    (socket, reply[1])
}

fn by_address(command: u8, target: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(target) = target else { panic!("IPv4 only") };
    let mut request = vec![5, command, 0, 1];
    request.extend(target.ip().octets());
    request.extend(target.port().to_be_bytes());
    request
}

fn by_name(name: &str, port: u16) -> Vec<u8> {
    let mut request = vec![5, 1, 0, 3, name.len() as u8];
    request.extend(name.as_bytes());
    request.extend(port.to_be_bytes());
    request
}

#[tokio::test]
async fn connects_by_address_and_by_name() {
    let scene = scene().await;
    let target = server(echo).await;
    for request in [by_address(1, target), by_name("localhost", target.port())] {
        let (mut socket, code) = ask(scene.address, &request).await;
        assert_eq!(code, 0);
        socket.write_all(b"ping").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        within(socket.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer, b"ping");
    }
}

#[tokio::test]
async fn failures_have_their_reply_and_then_a_clean_end() {
    let scene = scene().await;
    let closed = closed_port().await;
    for (request, code) in [
        (by_address(1, closed), 5),               // connection refused
        (by_name("no-such-name.invalid", 80), 4), // host unreachable
        (by_address(2, closed), 7),               // BIND: command not supported
    ] {
        let (mut socket, got) = ask(scene.address, &request).await;
        assert_eq!(got, code, "{request:?}");
        assert_eq!(within(socket.read(&mut [0; 1])).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn what_is_not_socks_is_dropped() {
    let scene = scene().await;
    let mut socket = TcpStream::connect(scene.address).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(matches!(within(socket.read(&mut [0; 64])).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn stopping_resets_open_connections() {
    let scene = scene().await;
    let target = server(greet_and_hold).await;
    let (mut socket, code) = ask(scene.address, &by_address(1, target)).await;
    assert_eq!(code, 0);
    within(socket.read_exact(&mut [0; 5])).await.unwrap();
    within(scene.connections.reset_all()).await;
    let error = within(socket.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
