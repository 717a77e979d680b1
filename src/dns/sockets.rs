//! Where the sockets towards the system's own servers come from.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;

use tokio::net::{TcpStream, UdpSocket};

/// Gives sockets that reach the system's own servers whatever is redirected.
pub trait Sockets: Send + Sync + 'static {
    /// A UDP socket that is lent: dropping it gives it back.
    type Udp: Deref<Target = UdpSocket> + Send + Sync;

    /// Lends a UDP socket connected to `server`, from a port that nobody can guess (RFC 5452). It carries one question. What
    /// came for its last user may still be in it; waits while all are lent.
    ///
    /// # Errors
    /// When there is none, or no route to `server`.
    fn udp(&self, server: SocketAddr) -> impl Future<Output = io::Result<Self::Udp>> + Send;

    /// A fresh connection to `server`.
    ///
    /// # Errors
    /// When there is none.
    fn tcp(&self, server: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send;
}

/// Sockets like everybody's, where nothing redirects what goes to the system's own servers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ordinary;

/// A socket for one question.
#[derive(Debug)]
pub struct OrdinaryUdp(UdpSocket);

impl Deref for OrdinaryUdp {
    type Target = UdpSocket;

    fn deref(&self) -> &UdpSocket {
        &self.0
    }
}

impl Sockets for Ordinary {
    type Udp = OrdinaryUdp;

    async fn udp(&self, server: SocketAddr) -> io::Result<OrdinaryUdp> {
        let any = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(server).await?;
        Ok(OrdinaryUdp(socket))
    }

    async fn tcp(&self, server: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(server).await
    }
}
