//! The pod's end of a UDP flow: one connected socket.
//!
//! An ICMP error of the target ("port unreachable": `ECONNREFUSED` at the socket) does not end the flow, and the application
//! behind it sees what one with an unconnected socket would: nothing, until it gives up waiting. RFC 9298 §3.1 asks for
//! the end where such an error makes the socket unusable; on Linux it stays usable. The target may be a pod that is just
//! being replaced, and an application that goes on sending reaches the next one. The laptop could not pass the error on: only
//! its kernel may send ICMP.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::net::UdpSocket;

use super::super::server::first_that_connects;
use super::{BATCH, Datagrams, IDLE_TIME_IN_POD, LastUse, capsule};
use crate::flow::{ConnectError, Flow, FlowSend};

/// Bytes the kernel may keep of a flow in each direction: what 200 Mbit/s bring in the 20 ms a busy node may let the pod wait for a
/// processor. `net.core.rmem_max` and `wmem_max` (208 KiB by default) may make it less.
const SOCKET_BUFFER: usize = 512 << 10;

/// Opens a socket towards the target. Nothing is sent, so this fails only without a route or a name.
///
/// # Errors
/// That of the last address tried.
pub(in crate::flow) async fn connect(host: &str, port: u16) -> Result<UdpSocket, ConnectError> {
    first_that_connects(host, port, open).await
}

async fn open(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Smaller ones only lose more in a burst.
    let _ = SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER);
    let _ = SockRef::from(&socket).set_send_buffer_size(SOCKET_BUFFER);
    socket.connect(target).await?;
    Ok(socket)
}

/// Carries datagrams until the laptop ends the flow, or nobody used it for long.
///
/// # Errors
/// When the flow was reset or its session ended.
pub(in crate::flow) async fn relay(socket: UdpSocket, flow: Flow) -> Result<(), ConnectError> {
    let (mut send, arriving) = (flow.send, Datagrams::of(flow.recv));
    let used = LastUse::now();
    tokio::select! {
        end = to_target(&socket, arriving, &used) => end?,
        end = from_target(&socket, &mut send, &used) => match end? {},
        () = used.long_ago(IDLE_TIME_IN_POD) => {}
    }
    send.finish().map_err(ConnectError::Session)
}

/// Flow to socket.
async fn to_target(socket: &UdpSocket, mut arriving: Datagrams, used: &LastUse) -> Result<(), ConnectError> {
    while let Some(datagram) = arriving.next().await? {
        used.again();
        deliver(socket, &datagram).await;
    }
    Ok(())
}

/// Linux reports the ICMP error of an earlier datagram in place of sending this one. A second error is its own: too long, or
/// no way. It is lost then, as on any network.
async fn deliver(socket: &UdpSocket, datagram: &[u8]) {
    if socket.send(datagram).await.is_err()
        && let Err(error) = socket.send(datagram).await
    {
        tracing::debug!(%error, "datagram not sent");
    }
}

/// Socket to flow. While the flow waits for window or budget, the kernel keeps up to [`SOCKET_BUFFER`], and drops what comes then.
async fn from_target(
    socket: &UdpSocket,
    send: &mut FlowSend,
    used: &LastUse,
) -> Result<Infallible, ConnectError> {
    loop {
        let batch = receive(socket).await.map_err(ConnectError::Session)?;
        used.again();
        send.send(batch).await.map_err(ConnectError::Session)?;
    }
}

/// What has arrived, as capsules. An idle flow owns no buffer: all share one.
async fn receive(socket: &UdpSocket) -> io::Result<Bytes> {
    thread_local! {
        static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; capsule::MAX_PAYLOAD].into_boxed_slice());
    }
    loop {
        socket.readable().await?;
        let mut batch = BytesMut::new();
        SHARED.with_borrow_mut(|shared| {
            while batch.len() < BATCH {
                match socket.try_recv(shared) {
                    Ok(length) => capsule::encode(&shared[..length], &mut batch),
                    Err(error) => {
                        if error.kind() != io::ErrorKind::WouldBlock {
                            // Of an earlier datagram, and told once.
                            tracing::debug!(%error, "the target refuses datagrams");
                        }
                        break;
                    }
                }
            }
        });
        if !batch.is_empty() {
            return Ok(batch.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use kshuttle_test_support::within;
    use tokio::io::Interest;

    use super::*;

    /// A target that refuses at first.
    async fn refused() -> (UdpSocket, SocketAddr) {
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let socket = open(target).await.unwrap();
        socket.send(b"nobody").await.unwrap();
        while !socket.ready(Interest::ERROR).await.unwrap().is_error() {
            tokio::task::yield_now().await;
        }
        (socket, target)
    }

    #[tokio::test]
    async fn the_error_of_one_datagram_does_not_cost_the_next_one() {
        let (socket, target) = refused().await;
        let target = UdpSocket::bind(target).await.unwrap();
        deliver(&socket, b"somebody").await;
        let mut got = [0; 9];
        assert_eq!(within(target.recv(&mut got)).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn neither_errors_nor_empty_datagrams_end_the_receiving() {
        let (socket, target) = refused().await;
        let target = UdpSocket::bind(target).await.unwrap();
        target.send_to(b"", socket.local_addr().unwrap()).await.unwrap();
        assert_eq!(within(receive(&socket)).await.unwrap(), [0, 1, 0][..]);
    }
}
