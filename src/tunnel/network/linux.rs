//! rtnetlink(7): the kernel tells every process that asks.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Multicast groups of `linux/rtnetlink.h`: links, addresses and routes of both families.
const GROUPS: u32 = (1 << 0) | (1 << 4) | (1 << 6) | (1 << 8) | (1 << 10);

/// What a message says does not matter, only that there is one; longer ones are cut.
const GLANCE: usize = 64;

pub(super) struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self(AsyncFd::with_interest(socket, Interest::READABLE)?))
    }

    pub(super) async fn next(&self) -> io::Result<()> {
        self.0.async_io(Interest::READABLE, |socket| receive(socket)).await
    }

    /// Takes what has come meanwhile.
    pub(super) fn forget(&self) -> io::Result<()> {
        loop {
            match receive(self.0.get_ref()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<()> {
    match socket::recv(socket.as_raw_fd(), &mut [0; GLANCE], MsgFlags::MSG_TRUNC) {
        // Messages were lost because there were too many: changes there were.
        Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
