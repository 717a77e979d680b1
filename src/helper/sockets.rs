//! Sockets that are opened here and used by the user side: how many, and how they get there.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, getsockname, sendmsg};
use nix::unistd::write;

use crate::firewall::Firewall;
use crate::plan::MAX_SOCKETS;
use crate::protocol::{self, Reply};

/// Most sockets in a session: a connection takes one, and with `use-vc` in resolv.conf every query is one. Ten in a second are
/// enough for eleven days. What is asked for without end ends.
const MOST_IN_SESSION: u64 = 10_000_000;

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The conversation cannot carry them.
    #[error(
        "sockets can only be passed over a Unix socket, and this conversation is held over something else"
    )]
    NoWay,
    /// None, or more than [`MAX_SOCKETS`].
    #[error("count: must be 1 to {MAX_SOCKETS}")]
    Count,
    /// More than [`MOST_IN_SESSION`].
    #[error("this session had {MOST_IN_SESSION} sockets already")]
    Spent,
    /// The system gives none.
    #[error("opening a socket failed")]
    Open(#[source] io::Error),
}

/// What the user side got.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    sockets: u64,
}

impl Passed {
    /// Opens them.
    pub(crate) fn open(
        &mut self,
        firewall: &Firewall,
        v6: bool,
        stream: bool,
        count: u8,
    ) -> Result<Vec<OwnedFd>, Error> {
        getsockname::<UnixAddr>(io::stdout().as_raw_fd()).map_err(|_| Error::NoWay)?;
        self.count(count)?;
        firewall.sockets(v6, stream, count).map_err(Error::Open)
    }

    fn count(&mut self, count: u8) -> Result<(), Error> {
        if count == 0 || count > MAX_SOCKETS {
            return Err(Error::Count);
        }
        let sockets = self.sockets + u64::from(count);
        if sockets > MOST_IN_SESSION {
            return Err(Error::Spent);
        }
        self.sockets = sockets;
        Ok(())
    }
}

/// Says that here they are, and passes them with it.
pub(crate) fn say(sockets: &[OwnedFd]) -> Result<(), protocol::Error> {
    let count = u8::try_from(sockets.len()).expect("at most as many as were asked for");
    let mut frame = Vec::new();
    protocol::write(&mut frame, &Reply::Sockets { count })?;
    let raw: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let output = io::stdout();
    let send = |bytes: &[u8]| {
        let passed = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(output.as_raw_fd(), &[IoSlice::new(bytes)], &passed, MsgFlags::empty(), None)
    };
    // They go with the first part, should the frame ever be sent in parts.
    let failed = |error: nix::Error| protocol::Error::Write(error.into());
    let mut sent = send(&frame).map_err(failed)?;
    while sent < frame.len() {
        sent += write(output.as_fd(), &frame[sent..]).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_does_not_get_them_without_end() {
        let mut passed = Passed::default();
        for count in [0, MAX_SOCKETS + 1] {
            assert!(matches!(passed.count(count), Err(Error::Count)), "{count}");
        }
        passed.count(MAX_SOCKETS).unwrap();
        assert_eq!(passed.sockets, u64::from(MAX_SOCKETS));
        passed.sockets = MOST_IN_SESSION - 2;
        assert!(matches!(passed.count(3), Err(Error::Spent)));
        passed.count(2).unwrap();
    }
}
