//! The order of this machine's sessions, in which questions to a name server pass them: see [`Plan::rank`](crate::plan::Plan::rank).
//!
//! A rank is a name in the abstract namespace of Unix sockets (unix(7)), which belongs to a network namespace as the rules do.
//! The kernel frees it with the last process that holds the socket, the helper or its watchdog: when the rules are gone.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::plan::MAX_RANKS;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// All are taken.
    #[error("{MAX_RANKS} sessions redirect on this machine already")]
    Crowded,
    /// The kernel gives none.
    #[error("taking a place among this machine's sessions failed")]
    Socket(#[source] io::Error),
}

/// A rank that nobody else has for as long as this, or a copy of this process, lives.
#[derive(Debug)]
pub(super) struct Rank {
    number: u8,
    _name: UnixDatagram,
}

impl Rank {
    /// The lowest that is free.
    pub(super) fn take() -> Result<Self, Error> {
        for number in 0..MAX_RANKS {
            let name = SocketAddr::from_abstract_name(format!("kshuttle-helper/rank/{number}"));
            match name.and_then(|name| UnixDatagram::bind_addr(&name)) {
                Ok(name) => return Ok(Self { number, _name: name }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(Error::Socket(error)),
            }
        }
        Err(Error::Crowded)
    }

    /// Counted from 0.
    pub(super) fn number(&self) -> u8 {
        self.number
    }
}
