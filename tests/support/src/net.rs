//! Small servers on loopback that connections are made to.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
