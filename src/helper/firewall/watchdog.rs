//! The copy of the helper that undoes its work if it is killed.
//!
//! States: *watching* (blocked on the link) → the helper said that all is undone: ends → the link ended without a word:
//! the helper was killed, runs the same undo, ends. It shares the pipes of `nft -i`, so the table outlives the helper
//! until the undo is through; if both are killed the pipes close and the kernel removes the table.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, close};

use crate::process;

/// How long the copy may take to end once it was told; it has nothing left to do.
const PATIENCE: Duration = Duration::from_secs(2);

/// Our end of the link, and who is at the other.
#[derive(Debug)]
pub(super) struct Watchdog {
    link: UnixStream,
    pid: Pid,
}

impl Watchdog {
    /// Starts the copy. `undo` runs in it, with what this process had at this moment, if this process is killed;
    /// it says whether all went well.
    pub(super) fn start(undo: impl FnOnce() -> bool) -> io::Result<Self> {
        let (link, far_end) = UnixStream::pair()?;
        let watch = || {
            let _ = close(link.as_raw_fd()); // the original's; never dropped here, this copy ends by _exit
            let mut word = [0; 1];
            match (&far_end).read(&mut word) {
                Ok(1) => 0,
                _ => i32::from(!undo()),
            }
        };
        let pid = process::split(watch)?;
        Ok(Self { link, pid })
    }

    /// Everything is undone; the copy may go.
    pub(super) fn dismiss(mut self) -> io::Result<()> {
        let told = self.link.write_all(b"d");
        if !self.has_gone()? {
            kill(self.pid, Signal::SIGKILL)?; // our child, not yet waited for: the number is still its own
        }
        waitpid(self.pid, None)?;
        told
    }

    fn has_gone(&self) -> io::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut link = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
            match poll(&mut link, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) if !left.is_zero() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
