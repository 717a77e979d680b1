//! A copy of the helper that looks whether the rules still stand. Nothing tells when somebody flushes them: another VPN,
//! Internet Sharing, `pfctl -F all`.
//!
//! States: *waiting* → looks, and waits again → the rules are gone: ends, which the helper sees → told to end, or the helper is
//! gone: ends.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, close};

use crate::process;

/// How often it looks. A look starts eight short programs; until it, connections may go to the local network.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Our ends of its pipes, and who it is.
#[derive(Debug)]
pub(super) struct Lookout {
    /// Hangs up when it ends.
    life: PipeReader,
    /// It ends when this does.
    leave: PipeWriter,
    pid: Pid,
}

impl Lookout {
    /// Starts the copy; `stands` says in it whether all is well.
    pub(super) fn start(stands: impl Fn() -> bool) -> io::Result<Self> {
        let (life, its_life) = io::pipe()?;
        let (its_leave, leave) = io::pipe()?;
        let look = || {
            let _ = close(leave.as_raw_fd()); // the original's; never dropped here, this copy ends by _exit
            while !told_to_leave(&its_leave) && stands() {}
            0
        };
        let pid = process::split(look)?;
        drop(its_life); // the copy has the other one, which ends with it
        Ok(Self { life, leave, pid })
    }

    /// Hangs up when the rules are gone.
    pub(super) fn ending(&self) -> BorrowedFd<'_> {
        self.life.as_fd()
    }

    /// Ends the copy.
    pub(super) fn dismiss(self) -> io::Result<()> {
        drop(self.leave);
        waitpid(self.pid, None)?; // in the middle of a look it takes as long as pfctl may
        Ok(())
    }
}

/// Waits for the next look; true when there is to be none.
fn told_to_leave(leave: &PipeReader) -> bool {
    let mut told = [PollFd::new(leave.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::MAX);
    !matches!(poll(&mut told, patience), Ok(0) | Err(Errno::EINTR))
}
