//! Programs of the system, run as root: by absolute path, with an empty environment, in a session of their own, deaf to the
//! signals of ours, with bounds on time and words. The seven [`Program`]s here are all that is ever run.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::process;

/// Where they may be. Root's search path is not asked: it can be the user's.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];

/// Of the package nftables.
pub(super) const NFT: Program = Program { name: "nft", package: "nftables" };
/// Of the package iptables, as the next three.
pub(super) const IPTABLES_SAVE: Program = Program { name: "iptables-save", package: "iptables" };
/// Reads rules and carries them out, a table in one step.
pub(super) const IPTABLES_RESTORE: Program = Program { name: "iptables-restore", package: "iptables" };
/// For IPv6.
pub(super) const IP6TABLES_SAVE: Program = Program { name: "ip6tables-save", package: "iptables" };
/// For IPv6.
pub(super) const IP6TABLES_RESTORE: Program = Program { name: "ip6tables-restore", package: "iptables" };

/// Of the package iproute2: links.
pub(crate) const IP: Program = Program { name: "ip", package: "iproute2" };
/// What systemd-resolved is told by; older systems have it in the package systemd.
pub(crate) const RESOLVECTL: Program = Program { name: "resolvectl", package: "systemd-resolved" };

/// How long one command may take. The largest plan takes 0.1 s; a loaded machine, ten times that.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes of a program's words that are kept: a listing of the largest plan has 200 KiB; a complaint repeats the line.
const MOST_SAID: usize = 2 * 1024 * 1024;

/// Most characters of a complaint that go into an error.
const MOST_QUOTED: usize = 500;

/// A program of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    /// File name.
    pub(super) name: &'static str,
    /// Debian's package with it; other systems call it the same.
    package: &'static str,
}

/// Why a program did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Not installed.
    #[error("{name} is not in {places}; install the package {package}", places = PLACES.join(", "))]
    Missing {
        /// The program.
        name: &'static str,
        /// Where it is from.
        package: &'static str,
    },
    /// It cannot be run.
    #[error("{0} cannot be started")]
    Start(&'static str, #[source] io::Error),
    /// Its pipes fail.
    #[error("talking to {0} failed")]
    Talk(&'static str, #[source] io::Error),
    /// It ended before it answered.
    #[error("{0} ended; it said: {1}")]
    Ended(&'static str, String),
    /// No answer in time.
    #[error("{0} did not answer within {patience} s", patience = PATIENCE.as_secs())]
    Silent(&'static str),
    /// It refused a command.
    #[error("{0} refused: {1}")]
    Refused(&'static str, String),
}

impl Program {
    /// A command that runs it; nothing of ours is in its environment but a home that does not exist, since nft would
    /// write a history there.
    pub(super) fn command(self) -> Result<Command, Error> {
        let files = PLACES.iter().map(|place| Path::new(place).join(self.name));
        let missing = Error::Missing { name: self.name, package: self.package };
        let file = files.into_iter().find(|file| file.is_file()).ok_or(missing)?;
        let mut command = Command::new(file);
        command.env_clear().env("HOME", "/nonexistent").current_dir("/");
        process::detach(&mut command);
        Ok(command)
    }

    /// Runs it to its end; what it printed, or its complaint as [`Error::Refused`].
    pub(crate) fn run(self, arguments: &[&str], input: &str) -> Result<String, Error> {
        let talk_error = |error| Error::Talk(self.name, error);
        let (mut output, writer) = io::pipe().map_err(talk_error)?;
        let mut child = {
            let mut command = self.command()?;
            let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
            // One pipe: what it prints, or else the complaint. The command holds the writing ends, so it goes first.
            command
                .args(arguments)
                .stdin(stdin)
                .stderr(writer.try_clone().map_err(talk_error)?)
                .stdout(writer);
            command.spawn().map_err(|error| Error::Start(self.name, error))?
        };
        let mut talk = Talk::new(self, PATIENCE);
        let heard = match child.stdin.take() {
            Some(stdin) => nonblocking(&stdin).map_err(talk_error).and_then(|()| {
                talk.until(&mut output, Some((Input::Ends(stdin), input.as_bytes())), |_| false)
            }),
            None => talk.until(&mut output, None, |_| false),
        };
        if heard.is_err() {
            let _ = child.kill(); // it may have ended in this moment
        }
        let status = child.wait().map_err(talk_error)?;
        heard?;
        let said = talk.said();
        if status.success() { Ok(said) } else { Err(Error::Refused(self.name, quoted(&said))) }
    }
}

/// A long text is longer than the pipe; the program may want to be heard before it reads on.
pub(super) fn nonblocking(stdin: &ChildStdin) -> io::Result<()> {
    fcntl(stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The input of a program: for this exchange only, closed when all is written, or for longer.
pub(super) enum Input<'a> {
    /// For this exchange only.
    Ends(ChildStdin),
    /// For longer.
    Stays(&'a mut ChildStdin),
}

impl AsFd for Input<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ends(stdin) => stdin.as_fd(),
            Self::Stays(stdin) => stdin.as_fd(),
        }
    }
}

impl Input<'_> {
    fn pipe(&mut self) -> &mut ChildStdin {
        match self {
            Self::Ends(stdin) => stdin,
            Self::Stays(stdin) => stdin,
        }
    }
}

/// One exchange with bounds on time and bytes.
pub(super) struct Talk {
    program: &'static str,
    deadline: Instant,
    said: Vec<u8>,
}

impl Talk {
    pub(super) fn new(program: Program, patience: Duration) -> Self {
        Self { program: program.name, deadline: Instant::now() + patience, said: Vec::new() }
    }

    pub(super) fn said(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Writes `input` and reads until `done` likes what was said (true) or the output has ended (false).
    pub(super) fn until(
        &mut self,
        output: &mut (impl Read + AsFd),
        mut input: Option<(Input, &[u8])>,
        done: impl Fn(&[u8]) -> bool,
    ) -> Result<bool, Error> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Silent(self.program));
            }
            let mut fds = vec![PollFd::new(output.as_fd(), PollFlags::POLLIN)];
            fds.extend(input.iter().map(|(stdin, _)| PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)));
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::Talk(self.program, error.into())),
            }
            let ready = |fd: Option<&PollFd>| fd.is_some_and(|fd| fd.any().unwrap_or(true));
            let (readable, writable) = (ready(fds.first()), ready(fds.get(1)));
            if let (true, Some((stdin, rest))) = (writable, &mut input) {
                match stdin.pipe().write(rest) {
                    Ok(written) => *rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => *rest = &[], // its last words follow
                    Err(error) => return Err(Error::Talk(self.program, error)),
                }
                if rest.is_empty() {
                    input = None;
                }
            }
            if readable {
                let mut buffer = [0; 16 * 1024];
                let length = output.read(&mut buffer).map_err(|error| Error::Talk(self.program, error))?;
                self.said.extend_from_slice(&buffer[..length]);
                self.said.drain(..self.said.len().saturating_sub(MOST_SAID));
                if length == 0 || done(&self.said) {
                    return Ok(length > 0);
                }
            }
        }
    }
}

pub(super) fn quoted(said: &str) -> String {
    let mut quoted: String = said.trim().chars().take(MOST_QUOTED).collect();
    if quoted.len() < said.trim().len() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_short() {
        let quote = quoted(&"ä".repeat(10_000));
        assert_eq!(quote.chars().count(), MOST_QUOTED + 1);
    }

    #[test]
    fn what_is_missing_names_its_package() {
        let error = Program { name: "kshuttle-no-such", package: "p" }.run(&[], "").unwrap_err();
        assert!(error.to_string().ends_with("install the package p"), "{error}");
    }
}
