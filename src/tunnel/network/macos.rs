//! route(4): the kernel tells every process that has a routing socket.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;
use socket2::{Domain, Socket, Type};
use tokio::net::UnixDatagram;

/// Every message begins with its length (`u16`), the version and its type (`net/route.h`, `struct rt_msghdr`).
const HEADER: usize = 4;
const TYPE: usize = 3;

/// Routes, addresses and links that came, went or changed. The others are questions of some program and their answers
/// (`RTM_GET`), and what a sent packet causes (`RTM_MISS`, `RTM_RESOLVE`).
const CHANGES: [i32; 8] = [
    libc::RTM_ADD,
    libc::RTM_DELETE,
    libc::RTM_CHANGE,
    libc::RTM_REDIRECT,
    libc::RTM_NEWADDR,
    libc::RTM_DELADDR,
    libc::RTM_IFINFO,
    libc::RTM_IFINFO2,
];

/// A routing socket. tokio has no type for it; for recv(2) all sockets that keep messages apart are alike.
pub(super) struct Changes(UnixDatagram);

impl Changes {
    pub(super) fn listen() -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::PF_ROUTE), Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        Ok(Self(UnixDatagram::from_std(OwnedFd::from(socket).into())?))
    }

    pub(super) async fn next(&self) -> io::Result<()> {
        let mut header = [0; HEADER];
        loop {
            let length = self.0.recv(&mut header).await?; // the rest of the message is cut
            if is_change(&header[..length]) {
                return Ok(());
            }
        }
    }

    /// Takes what has come meanwhile.
    pub(super) fn forget(&self) -> io::Result<()> {
        loop {
            match self.0.try_recv(&mut [0; HEADER]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_change(header: &[u8]) -> bool {
    header.get(TYPE).is_some_and(|kind| CHANGES.contains(&i32::from(*kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_changes() {
        assert!(is_change(&[0x5c, 0, 5, 0xc]), "a new address");
        assert!(!is_change(&[0x5c, 0, 5, 4]), "somebody asks for a route");
        assert!(!is_change(&[]));
    }
}
