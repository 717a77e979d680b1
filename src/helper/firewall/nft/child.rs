//! The program `nft`: one living `nft -i` that owns our table, and short runs that only list.
//!
//! The kernel removes a table with `flags owner` when the netlink socket that made it closes, so the table lives as
//! long as this child, and the child as long as somebody holds the other end of its input. It is started by absolute
//! path with an empty environment (`HOME` set to nowhere: it would write a history file), in a session of its own, deaf
//! to the signals of ours.
//!
//! nft says nothing when a command is carried out. To know, each command is followed by a question about a set that
//! cannot exist: what stands on standard error before the complaint about it belongs to the command.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdin, Stdio};
use std::time::Duration;

use super::super::program::{self, Error, Input, NFT, PATIENCE, Talk, quoted};

/// How long nft may take to end when its input has ended; it needs milliseconds.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The child that owns the table. Its pipes are shared with the watchdog, which speaks only when we are dead.
#[derive(Debug)]
pub(crate) struct Nft {
    table: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stderr: ChildStderr,
    questions: u32,
}

impl Nft {
    /// Starts `nft -i`; makes nothing yet.
    pub(crate) fn start(table: &str) -> Result<Self, Error> {
        let mut command = NFT.command()?;
        // With a line editor built in, nft echoes what it reads; nobody wants to know.
        command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Error::Start(NFT.name, error))?;
        let (Some(stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            unreachable!("both were asked to be pipes");
        };
        program::nonblocking(&stdin).map_err(talk)?;
        Ok(Self { table: table.into(), child, stdin: Some(stdin), stderr, questions: 0 })
    }

    /// Carries out the commands as one transaction: all or none.
    pub(crate) fn run(&mut self, commands: &[String]) -> Result<(), Error> {
        self.questions += 1;
        // The process id keeps questions of the watchdog apart from those that its dead parent still had in the pipe.
        let sentinel = format!("sentinel_{}_{}", std::process::id(), self.questions);
        // The first newline ends what a killed predecessor left half written.
        let line = format!("\n{}\nlist set inet {} {sentinel}\n", commands.join("; "), self.table);
        let Some(stdin) = &mut self.stdin else { return Err(Error::Ended(NFT.name, String::new())) };
        let mut talk = Talk::new(NFT, PATIENCE);
        let answered =
            talk.until(&mut self.stderr, Some((Input::Stays(stdin), line.as_bytes())), |said| {
                said.windows(sentinel.len()).any(|window| window == sentinel.as_bytes())
            })?;
        if !answered {
            return Err(Error::Ended(NFT.name, quoted(&talk.said())));
        }
        match complaint(&talk.said(), &sentinel) {
            complaint if complaint.is_empty() => Ok(()),
            complaint => Err(Error::Refused(NFT.name, quoted(&complaint))),
        }
    }

    /// What `nft -n list …` prints, asked from another process: what the kernel has, not what we think we told it.
    pub(crate) fn list(what: &[&str]) -> Result<String, Error> {
        NFT.run(&[&["-n", "list"], what].concat(), "")
    }

    /// Hangs up when the child ends; nothing is to be read from it.
    pub(crate) fn ending(&self) -> BorrowedFd<'_> {
        self.stderr.as_fd()
    }

    /// Ends the child by the end of its input. Nobody else may hold that input any more. `parent` is false in the
    /// watchdog, whose child it is not.
    pub(crate) fn end(mut self, parent: bool) -> Result<(), Error> {
        self.stdin = None;
        let ended = Talk::new(NFT, END_PATIENCE).until(&mut self.stderr, None, |_| false);
        if ended.is_err() && parent {
            let _ = self.child.kill(); // it may have ended in this moment
        }
        if parent {
            self.child.wait().map_err(talk)?;
        }
        ended.map(drop)
    }
}

fn talk(error: std::io::Error) -> Error {
    Error::Talk(NFT.name, error)
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
}
