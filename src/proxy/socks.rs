//! SOCKS5 (RFC 1928), CONNECT only, names resolved in the cluster: for `ALL_PROXY`, without root and without rules.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use fast_socks5::server::{Socks5ServerProtocol, SocksServerError};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command};
use kshuttle_wire::flow::{ConnectError, Flow};
use kshuttle_wire::relay;
use tokio::net::{TcpListener, TcpStream};

use super::{Connections, forward};
use crate::addr::Target;
use crate::tunnel::{self, Connect};

/// Time for the handshake: two small messages over loopback.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The address we are bound to in the cluster (BND.ADDR) is the pod's business; clients ignore it.
const UNSPECIFIED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Serves SOCKS5 clients.
pub async fn serve(listener: TcpListener, connections: &Connections, tunnel: impl Connect) {
    connections.accept(listener, |socket| client(socket, tunnel.clone())).await;
}

async fn client(socket: TcpStream, tunnel: impl Connect) {
    relay::disarm(&socket); // an answer of ours must arrive, also a refusal; `relay` arms it again
    // Boxed: what only the handshake needs is not kept for as long as the connection is open.
    match Box::pin(connect(socket, tunnel)).await {
        Ok((socket, flow, target)) => Box::pin(forward(socket, flow, target)).await,
        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no SOCKS connection"),
    }
}

/// Why a client got no connection.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("SOCKS5 handshake")]
    Protocol(#[from] SocksServerError),
    #[error("no complete SOCKS5 handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow,
    #[error("SOCKS5 command {0:?} is not served, only CONNECT")]
    Command(Socks5Command),
    #[error("connect to {target}")]
    Connect {
        target: Target,
        #[source]
        source: ConnectError,
    },
    #[error("ask the tunnel for {target}")]
    Tunnel {
        target: Target,
        #[source]
        source: tunnel::ConnectError,
    },
}

/// Handshake, flow, answer. Success is told only after the pod has connected.
async fn connect(socket: TcpStream, tunnel: impl Connect) -> Result<(TcpStream, Flow, Target), ClientError> {
    let handshake = async { Socks5ServerProtocol::accept_no_auth(socket).await?.read_command().await };
    let (client, command, address) =
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| ClientError::Slow)??;
    if !matches!(command, Socks5Command::TCPConnect) {
        client.reply_error(&ReplyError::CommandNotSupported).await?;
        return Err(ClientError::Command(command));
    }
    let target = match address {
        TargetAddr::Ip(address) => Target::Address(address),
        TargetAddr::Domain(name, port) => Target::Name(name, port),
    };
    tracing::debug!(%target, "SOCKS");
    let mut flow = match tunnel.connect(&target).await {
        Ok(flow) => flow,
        Err(source) => {
            client.reply_error(&ReplyError::GeneralFailure).await?;
            return Err(ClientError::Tunnel { target, source });
        }
    };
    if let Err(source) = flow.recv.opened().await {
        client.reply_error(&reply(&source)).await?;
        return Err(ClientError::Connect { target, source });
    }
    Ok((client.reply_success(UNSPECIFIED).await?, flow, target))
}

/// RFC 1928 §6, the reply that says most.
fn reply(error: &ConnectError) -> ReplyError {
    use std::io::ErrorKind;
    match error {
        ConnectError::Refused(cause) => match cause.kind() {
            ErrorKind::ConnectionRefused => ReplyError::ConnectionRefused,
            ErrorKind::NetworkUnreachable => ReplyError::NetworkUnreachable,
            ErrorKind::HostUnreachable => ReplyError::HostUnreachable,
            ErrorKind::TimedOut => ReplyError::ConnectionTimeout,
            _ => ReplyError::GeneralFailure,
        },
        ConnectError::UnknownName => ReplyError::HostUnreachable,
        ConnectError::TimedOut => ReplyError::ConnectionTimeout,
        // An SSH server does not say more; what fails is mostly refused.
        ConnectError::Failed => ReplyError::ConnectionRefused,
        ConnectError::Prohibited => ReplyError::ConnectionNotAllowed,
        _ => ReplyError::GeneralFailure,
    }
}
