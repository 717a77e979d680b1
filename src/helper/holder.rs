//! The copy of the helper that holds the far end of a link of ours in a network namespace with nothing else in it.
//!
//! States: *making* (a namespace, the pair of links) → *holding*, until the line to the helper ends, or what else [`Life`] says.
//! With it ends the namespace, with that the far end, with that the link: the kernel leaves nothing, whoever is killed.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, dup2_stdin, getpid};

use crate::error_chain;
use crate::firewall::program::IP;
use crate::process;

/// The far end's name, in a namespace where no other is.
const FAR_END: &str = "far";

/// What the copy says when the link is made; anything else is why it is not.
const MADE: &str = "made";

/// Most bytes of what it says: a complaint of a program is quoted shorter.
const MOST_SAID: u64 = 4096;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No process.
    #[error("starting the link's holder failed")]
    Start(#[source] io::Error),
    /// It could not make the link.
    #[error("making the link {link} failed: {said}")]
    Make {
        /// Its name.
        link: String,
        /// The copy's words.
        said: String,
    },
}

/// Who has to live for the link to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// The helper: the link ends in the moment in which it does.
    OfHelper,
    /// The helper, or a watchdog that was started after this, which then has what it needs for the undo.
    OfWatchdog,
}

/// Our end of the line, and who is at the other.
#[derive(Debug)]
pub(crate) struct Holder {
    /// Never written to; its end ends the copy.
    _line: UnixStream,
    pid: Pid,
}

impl Holder {
    /// Starts the copy, which makes the link of this name in our namespace; it is down and has no address.
    pub(crate) fn start(link: &str, life: Life) -> Result<Self, Error> {
        let (mut line, far_line) = UnixStream::pair().map_err(Error::Start)?;
        let helper = getpid();
        let pid = process::split(move || hold(far_line, link, helper, life)).map_err(Error::Start)?;
        let mut said = String::new();
        let heard = (&mut line).take(MOST_SAID).read_to_string(&mut said);
        let holder = Self { _line: line, pid };
        match heard {
            Ok(_) if said == MADE => Ok(holder),
            heard => {
                let _ = holder.end(); // the first failure is the one to report
                let said = heard.map_or_else(|error| error.to_string(), |_| said);
                Err(Error::Make { link: link.into(), said })
            }
        }
    }

    /// Ends the copy, which has nothing to clear up.
    pub(crate) fn end(self) -> io::Result<()> {
        kill(self.pid, Signal::SIGKILL)?; // our child, not yet waited for: the number is still its own
        waitpid(self.pid, None)?;
        Ok(())
    }
}

/// The copy's life.
fn hold(line: UnixStream, link: &str, helper: Pid, life: Life) -> i32 {
    let Ok(mut line) = settle(line, life) else { return 1 }; // the helper hears that the line ended
    let said = make(link, helper).err().unwrap_or_else(|| MADE.into());
    if line.write_all(said.as_bytes()).is_err() || line.shutdown(std::net::Shutdown::Write).is_err() {
        return 1;
    }
    let _ = line.read(&mut [0]); // the helper says nothing: this is its end
    0
}

/// Nothing of the helper's stays open in the copy: what ends when the helper does must not live on in here. The line takes the
/// place of standard input, which is spared.
fn settle(line: UnixStream, life: Life) -> io::Result<UnixStream> {
    if life == Life::OfHelper {
        set_pdeathsig(Signal::SIGKILL)?; // a watchdog may have a copy of the line
    }
    dup2_stdin(line.as_fd())?;
    let _ = line.into_raw_fd(); // closed with the rest
    process::close_inherited()?;
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

/// The sentence says why not.
fn make(link: &str, helper: Pid) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| match error {
        Errno::EPERM => {
            "a network namespace of our own needs CAP_SYS_ADMIN, which we do not have (in a container?)"
                .into()
        }
        error => format!("no network namespace of our own: {error}"),
    })?;
    let commands =
        format!("link add {FAR_END} type veth peer name {link} netns {helper}\nlink set {FAR_END} up\n");
    IP.run(&["-batch", "-"], &commands).map(drop).map_err(|error| error_chain(&error))
}
