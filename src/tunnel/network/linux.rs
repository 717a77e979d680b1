//! rtnetlink(7): the kernel tells every process that asks.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType};
use tokio::net::UnixDatagram;

/// Multicast groups of `linux/rtnetlink.h`: links, addresses and routes of both families.
const GROUPS: u32 = (1 << 0) | (1 << 4) | (1 << 6) | (1 << 8) | (1 << 10);

/// What a message says does not matter, only that there is one; longer ones are cut.
const GLANCE: usize = 64;

/// A netlink socket. tokio has no type for it; for recv(2) all datagram sockets are alike.
pub(super) struct Changes(UnixDatagram);

impl Changes {
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self(UnixDatagram::from_std(socket.into())?))
    }

    pub(super) async fn next(&self) -> io::Result<()> {
        heard(self.0.recv(&mut [0; GLANCE]).await)
    }

    /// Takes what has come meanwhile.
    pub(super) fn forget(&self) -> io::Result<()> {
        loop {
            match heard(self.0.try_recv(&mut [0; GLANCE])) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn heard(received: io::Result<usize>) -> io::Result<()> {
    match received {
        // Messages were lost because there were too many: changes there were.
        Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
        received => received.map(drop),
    }
}
