//! `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`: conntrack's record of the connection
//! (net/netfilter/nf_conntrack_proto.c, `getorigdst`).

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::NotFinished;

/// Everybody may ask about his own connections.
pub(super) fn available() -> Result<(), NotFinished> {
    Ok(())
}

pub(super) fn orig_dst(socket: &TcpStream) -> io::Result<SocketAddr> {
    let reference = SockRef::from(socket);
    let destination = match socket.local_addr()? {
        SocketAddr::V4(_) => reference.original_dst_v4(),
        SocketAddr::V6(_) => reference.original_dst_v6(),
    }?;
    destination.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}
