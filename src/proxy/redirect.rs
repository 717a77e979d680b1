//! Connections the kernel redirected to us: ask where they wanted to go, and take them there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};

use super::orig_dst::orig_dst;
use super::{Connections, forward};
use crate::addr::Target;
use crate::tunnel::Connect;

/// Serves a listener that only the redirect rules lead to. `only` these peers, if it says so.
pub async fn serve(
    listener: TcpListener,
    only: Option<IpNet>,
    connections: &Connections,
    tunnel: impl Connect,
) {
    connections.accept(listener, |socket| redirected(socket, only, tunnel.clone())).await;
}

async fn redirected(socket: TcpStream, only: Option<IpNet>, tunnel: impl Connect) {
    // The rules ask the same; this holds for whoever comes to the listener past them.
    let welcome = |peer: SocketAddr| only.is_none_or(|net| net.contains(&peer.ip()));
    if !socket.peer_addr().is_ok_and(welcome) {
        tracing::warn!("connection refused: its sender is not behind the bridge");
        return;
    }
    let target = match orig_dst(&socket) {
        Ok(destination) => Target::from(destination),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "connection refused");
            return;
        }
    };
    tracing::debug!(%target, "redirected");
    // The application is connected already; what it sends first travels with the question.
    // Boxed: what only the question needs is not kept for as long as the connection is open.
    match Box::pin(tunnel.connect(&target)).await {
        Ok(flow) => Box::pin(forward(socket, flow, target)).await,
        Err(error) => tracing::debug!(%target, error = &error as &dyn std::error::Error, "no tunnel"),
    }
}

/// Whether this machine could send to `net` at all. Without a route `connect(2)` fails before the rules are asked;
/// for IPv6 the route must also have a source address that is not link-local, or the redirected packet is dropped.
pub fn has_route(net: &IpNet) -> bool {
    let unspecified: IpAddr = match net {
        IpNet::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpNet::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket looks the route up and sends nothing. The port does not matter.
    let source = UdpSocket::bind((unspecified, 0)).and_then(|socket| {
        socket.connect((net.hosts().next().unwrap_or(net.addr()), 9))?;
        socket.local_addr()
    });
    match source.map(|source| source.ip()) {
        Ok(IpAddr::V6(source)) => !source.is_unicast_link_local(),
        Ok(IpAddr::V4(_)) => true,
        Err(_) => false,
    }
}
