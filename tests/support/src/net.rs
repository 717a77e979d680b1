//! Small servers on loopback that connections are made to.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{pattern, within};

/// Starts a server that runs `serve` for each connection, for as long as the runtime lives.
///
/// # Panics
/// When loopback does not work.
pub async fn server<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind to loopback");
    let address = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    address
}

/// Sends back what it gets; FIN after FIN.
pub async fn echo(mut socket: TcpStream) {
    let (mut read, mut write) = socket.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

/// Says hello, then holds the connection open.
pub async fn greet_and_hold(mut socket: TcpStream) {
    if socket.write_all(b"hello").await.is_ok() {
        let _ = socket.read_to_end(&mut Vec::new()).await;
        std::future::pending::<()>().await;
    }
}

/// Sends for as long as it is read.
pub async fn flood(mut socket: TcpStream) {
    let block = vec![7; 256 << 10];
    while socket.write_all(&block).await.is_ok() {}
}

/// Starts a UDP server that sends each datagram back, for as long as the runtime lives.
///
/// # Panics
/// When loopback does not work.
pub async fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind to loopback");
    let address = socket.local_addr().expect("a bound socket has an address");
    tokio::spawn(async move {
        let mut datagram = vec![0; 65_535];
        loop {
            // An error is that of an earlier datagram, whose sender is gone.
            if let Ok((length, sender)) = socket.recv_from(&mut datagram).await {
                let _ = socket.send_to(&datagram[..length], sender).await;
            }
        }
    });
    address
}

/// A loopback UDP port nobody listens on.
///
/// # Panics
/// When loopback does not work.
pub async fn closed_udp_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.and_then(|socket| socket.local_addr()).expect("bind to loopback")
}

/// Reads to the end.
pub async fn swallow(mut socket: TcpStream) {
    let mut block = vec![0; 256 << 10];
    while matches!(socket.read(&mut block).await, Ok(length) if length > 0) {}
}

/// Sends `length` bytes that repeat nowhere near and reads the echo at the same time; they must be the same.
///
/// # Panics
/// When they are not, or nothing comes.
pub async fn exchange(mut application: TcpStream, length: usize) {
    let (mut read, mut write) = application.split();
    let sent = pattern(length);
    let mut got = Vec::with_capacity(length);
    let send = async {
        write.write_all(&sent).await.expect("send");
        write.shutdown().await.expect("end");
    };
    tokio::join!(send, async { within(read.read_to_end(&mut got)).await.expect("the echo") });
    assert!(got == sent, "{} of {length} bytes", got.len());
}

/// A byte to an [`echo`] server and back.
///
/// # Panics
/// When it does not come back.
pub async fn ping(application: &mut TcpStream) {
    application.write_all(b"x").await.expect("send");
    within(application.read_exact(&mut [0; 1])).await.expect("the echo");
}

/// A connection to `to` through the SOCKS5 server at `socks` (RFC 1928, no password).
///
/// # Panics
/// When it is refused, or `to` is not IPv4.
pub async fn connect_through(socks: SocketAddr, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else { panic!("IPv4 only") };
    let mut socket = within(TcpStream::connect(socks)).await.expect("connect to the proxy");
    let mut request = vec![5, 1, 0, 5, 1, 0, 1];
    request.extend(to.ip().octets());
    request.extend(to.port().to_be_bytes());
    socket.write_all(&request).await.expect("ask");
    let mut reply = [0; 12];
    within(socket.read_exact(&mut reply)).await.expect("an answer");
    assert_eq!(reply[..4], [5, 0, 5, 0]);
    socket
}

/// Both ends of a fresh loopback connection: of the side that connected, and of the side that accepted.
///
/// # Panics
/// When loopback does not work.
pub async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind to loopback");
    let address = listener.local_addr().expect("a bound socket has an address");
    let connecting = TcpStream::connect(address).await.expect("connect to loopback");
    let (accepted, _) = listener.accept().await.expect("accept a connection");
    (connecting, accepted)
}

/// A loopback port nobody listens on.
///
/// # Panics
/// When loopback does not work.
pub async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.and_then(|l| l.local_addr()).expect("bind to loopback")
}
