//! The program `nft`: one living `nft -i` that owns our table, and short runs that only list.
//!
//! The kernel removes a table with `flags owner` when the netlink socket that made it closes, so the table lives as
//! long as this child, and the child as long as somebody holds the other end of its input. It is started by absolute
//! path with an empty environment (`HOME` set to nowhere: it would write a history file), in a session of its own, deaf
//! to the signals of ours.
//!
//! nft says nothing when a command is carried out. To know, each command is followed by a question about a set that
//! cannot exist: what stands on standard error before the complaint about it belongs to the command.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::process;

/// Where nft may be. Root's search path is not asked: it can be the user's.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];

/// How long one command may take. The largest plan takes 0.1 s; a loaded machine, ten times that.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nft may take to end when its input has ended; it needs milliseconds.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of nft's words that are kept: a listing of the largest plan has 200 KiB; a complaint repeats the line.
const MOST_SAID: usize = 2 * 1024 * 1024;

/// Most characters of nft's complaint that go into an error.
const MOST_QUOTED: usize = 500;

/// Why nft did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Not installed.
    #[error("nft is not in /usr/sbin, /sbin, /usr/bin or /usr/local/sbin; install the package nftables")]
    Missing,
    /// It cannot be run.
    #[error("{0} cannot be started")]
    Start(&'static str, #[source] io::Error),
    /// Its pipes fail.
    #[error("talking to nft failed")]
    Talk(#[source] io::Error),
    /// It ended before it answered.
    #[error("nft ended; it said: {0}")]
    Ended(String),
    /// No answer in time.
    #[error("nft did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// It refused a command.
    #[error("nft refused: {0}")]
    Refused(String),
}

/// The child that owns the table. Its pipes are shared with the watchdog, which speaks only when we are dead.
#[derive(Debug)]
pub(crate) struct Nft {
    program: &'static str,
    table: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stderr: ChildStderr,
    questions: u32,
}

impl Nft {
    /// Starts `nft -i`; makes nothing yet.
    pub(crate) fn start(table: &str) -> Result<Self, Error> {
        let program = *PLACES.iter().find(|place| Path::new(place).is_file()).ok_or(Error::Missing)?;
        let mut command = command(program);
        // With a line editor built in, nft echoes what it reads; nobody wants to know.
        command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Error::Start(program, error))?;
        let (Some(stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            unreachable!("both were asked to be pipes");
        };
        // A long line is longer than the pipe; nft may want to be heard before it reads on.
        fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| Error::Talk(error.into()))?;
        Ok(Self { program, table: table.into(), child, stdin: Some(stdin), stderr, questions: 0 })
    }

    /// Carries out the commands as one transaction: all or none.
    pub(crate) fn run(&mut self, commands: &[String]) -> Result<(), Error> {
        self.questions += 1;
        // The process id keeps questions of the watchdog apart from those that its dead parent still had in the pipe.
        let sentinel = format!("sentinel_{}_{}", std::process::id(), self.questions);
        // The first newline ends what a killed predecessor left half written.
        let line = format!("\n{}\nlist set inet {} {sentinel}\n", commands.join("; "), self.table);
        let Some(stdin) = &mut self.stdin else { return Err(Error::Ended(String::new())) };
        let mut talk = Talk::new(PATIENCE);
        let answered = talk.until(&mut self.stderr, Some((stdin, line.as_bytes())), |said| {
            said.windows(sentinel.len()).any(|window| window == sentinel.as_bytes())
        })?;
        if !answered {
            return Err(Error::Ended(quoted(&talk.said())));
        }
        match complaint(&talk.said(), &sentinel) {
            complaint if complaint.is_empty() => Ok(()),
            complaint => Err(Error::Refused(quoted(&complaint))),
        }
    }

    /// What `nft -n list …` prints, asked from another process: what the kernel has, not what we think we told it.
    pub(crate) fn list(&self, what: &[&str]) -> Result<String, Error> {
        let (mut output, writer) = io::pipe().map_err(Error::Talk)?;
        let mut child = {
            let mut command = command(self.program);
            command.arg("-n").arg("list").args(what).stdin(Stdio::null());
            // One pipe: the listing, or else the complaint. The command holds the writing ends, so it goes first.
            command.stderr(writer.try_clone().map_err(Error::Talk)?).stdout(writer);
            command.spawn().map_err(|error| Error::Start(self.program, error))?
        };
        let mut talk = Talk::new(PATIENCE);
        let heard = talk.until(&mut output, None, |_| false);
        if heard.is_err() {
            let _ = child.kill(); // it may have ended in this moment
        }
        let status = child.wait().map_err(Error::Talk)?;
        heard?;
        if status.success() { Ok(talk.said()) } else { Err(Error::Refused(quoted(&talk.said()))) }
    }

    /// Hangs up when the child ends; nothing is to be read from it.
    pub(crate) fn ending(&self) -> BorrowedFd<'_> {
        self.stderr.as_fd()
    }

    /// Ends the child by the end of its input. Nobody else may hold that input any more. `parent` is false in the
    /// watchdog, whose child it is not.
    pub(crate) fn end(mut self, parent: bool) -> Result<(), Error> {
        self.stdin = None;
        let ended = Talk::new(END_PATIENCE).until(&mut self.stderr, None, |_| false);
        if ended.is_err() && parent {
            let _ = self.child.kill(); // it may have ended in this moment
        }
        if parent {
            self.child.wait().map_err(Error::Talk)?;
        }
        ended.map(drop)
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", "/nonexistent").current_dir("/");
    process::detach(&mut command);
    command
}

/// One exchange with bounds on time and bytes.
struct Talk {
    deadline: Instant,
    said: Vec<u8>,
}

impl Talk {
    fn new(patience: Duration) -> Self {
        Self { deadline: Instant::now() + patience, said: Vec::new() }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Writes `input` and reads until `done` likes what was said (true) or the output has ended (false).
    fn until(
        &mut self,
        output: &mut (impl Read + AsFd),
        mut input: Option<(&mut ChildStdin, &[u8])>,
        done: impl Fn(&[u8]) -> bool,
    ) -> Result<bool, Error> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Silent);
            }
            let mut fds = vec![PollFd::new(output.as_fd(), PollFlags::POLLIN)];
            fds.extend(input.iter().map(|(stdin, _)| PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)));
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::Talk(error.into())),
            }
            let ready = |fd: Option<&PollFd>| fd.is_some_and(|fd| fd.any().unwrap_or(true));
            let (readable, writable) = (ready(fds.first()), ready(fds.get(1)));
            if let (true, Some((stdin, rest))) = (writable, &mut input) {
                match stdin.write(rest) {
                    Ok(written) => *rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => *rest = &[], // its last words follow
                    Err(error) => return Err(Error::Talk(error)),
                }
                if rest.is_empty() {
                    input = None;
                }
            }
            if readable {
                let mut buffer = [0; 16 * 1024];
                let length = output.read(&mut buffer).map_err(Error::Talk)?;
                self.said.extend_from_slice(&buffer[..length]);
                self.said.drain(..self.said.len().saturating_sub(MOST_SAID));
                if length == 0 || done(&self.said) {
                    return Ok(length > 0);
                }
            }
        }
    }
}

/// What was said before the complaint about the sentinel. The lines of carets under an earlier one may come late.
fn complaint(said: &str, sentinel: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in said.lines() {
        if line.contains(sentinel) {
            lines.pop(); // "Error: No such file or directory" belongs to the sentinel
            break;
        }
        if !line.trim_matches([' ', '^', '~']).is_empty() {
            lines.push(line);
        }
    }
    lines.join(" / ")
}

fn quoted(said: &str) -> String {
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
    fn silence_before_the_sentinel_is_success() {
        let said = "               ^^^^^^^^\nError: No such file or directory\nlist set inet t sentinel_7_2\n   ^^^\n";
        assert_eq!(complaint(said, "sentinel_7_2"), "");
    }

    #[test]
    fn a_complaint_before_the_sentinel_belongs_to_the_command() {
        let said = concat!(
            "Error: Could not process rule: File exists\ncreate table inet t { flags owner; }\n        ^^^^\n",
            "Error: No such file or directory; did you mean set ‘s’ in table inet ‘t’?\nlist set inet t sentinel_7_3\n"
        );
        let expected = "Error: Could not process rule: File exists / create table inet t { flags owner; }";
        assert_eq!(complaint(said, "sentinel_7_3"), expected);
    }

    #[test]
    fn quotes_are_short() {
        let quote = quoted(&"ä".repeat(10_000));
        assert_eq!(quote.chars().count(), MOST_QUOTED + 1);
    }
}
