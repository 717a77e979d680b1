//! Runs one of the system's programs: by absolute path, without environment or shell, and not for longer than it may take.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::process;

/// How long one call may take. pfctl needs milliseconds, with the largest plan some hundred; a loaded machine, ten times that.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes of a program's words that are kept: the largest table has 80 KiB.
const MOST_SAID: usize = 1024 * 1024;

/// Most characters of a complaint that go into an error.
const MOST_QUOTED: usize = 500;

/// Why a program did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be run.
    #[error("{0} cannot be started")]
    Start(&'static str, #[source] io::Error),
    /// Its pipes fail.
    #[error("talking to {0} failed")]
    Talk(&'static str, #[source] io::Error),
    /// It did not end in time.
    #[error("{program} did not end within {} s", PATIENCE.as_secs())]
    Silent {
        /// Its path.
        program: &'static str,
    },
    /// It says that it failed.
    #[error("{program} refused: {complaint}")]
    Refused {
        /// Its path.
        program: &'static str,
        /// Its words.
        complaint: String,
    },
}

/// What a program said when all went well.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Said {
    /// On standard output.
    pub output: String,
    /// On standard error: remarks.
    pub remarks: String,
}

/// Runs it with this input, to its end.
///
/// # Errors
/// When it cannot, does not end, or ends with another code than 0.
pub fn run(program: &'static str, arguments: &[String], input: &str) -> Result<Said, ProgramError> {
    let talk = |error| ProgramError::Talk(program, error);
    let (output, their_output) = io::pipe().map_err(talk)?;
    let (remarks, their_remarks) = io::pipe().map_err(talk)?;
    let mut child = {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(their_output).stderr(their_remarks);
        process::detach(&mut command);
        command.spawn().map_err(|error| ProgramError::Start(program, error))?
        // The command holds the writing ends; it goes here.
    };
    let said = converse(&mut child, input, [output, remarks]);
    if said.is_err() {
        let _ = child.kill(); // it may have ended in this moment
    }
    let status = child.wait().map_err(talk)?;
    let [output, remarks] = said.map_err(talk)?.ok_or(ProgramError::Silent { program })?;
    if status.success() {
        Ok(Said { output, remarks })
    } else {
        Err(ProgramError::Refused { program, complaint: quoted(&format!("{remarks} {output}")) })
    }
}

/// Writes the input and reads both outputs until they have ended; none when patience has.
fn converse(child: &mut Child, input: &str, mut outputs: [PipeReader; 2]) -> io::Result<Option<[String; 2]>> {
    let deadline = Instant::now() + PATIENCE;
    let mut stdin = child.stdin.take();
    let mut rest = input.as_bytes();
    if let Some(stdin) = &stdin {
        // A long text is longer than the pipe; the program may want to be heard before it reads on.
        fcntl(stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let mut said = [Vec::new(), Vec::new()];
    let mut ended = [false; 2];
    while ended.contains(&false) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        stdin = stdin.filter(|_| !rest.is_empty()); // closed, for the program waits for the end of its input
        let [readable, complaining, writable] = wait(&outputs, ended, stdin.as_ref(), left)?;
        if let (true, Some(stdin)) = (writable, &mut stdin) {
            match stdin.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => rest = &[], // its last words follow
                Err(error) => return Err(error),
            }
        }
        for (which, _) in [readable, complaining].iter().enumerate().filter(|(_, ready)| **ready) {
            let mut buffer = [0; 16 * 1024];
            let length = outputs[which].read(&mut buffer)?;
            let room = MOST_SAID.saturating_sub(said[which].len());
            said[which].extend_from_slice(&buffer[..length.min(room)]);
            ended[which] = length == 0;
        }
    }
    Ok(Some(said.map(|said| String::from_utf8_lossy(&said).into_owned())))
}

/// Which of the two outputs have something, and whether the input takes something.
fn wait(
    outputs: &[PipeReader; 2],
    ended: [bool; 2],
    stdin: Option<&ChildStdin>,
    left: Duration,
) -> io::Result<[bool; 3]> {
    // One that has ended would be ready for ever.
    let pipes = [
        outputs.first().filter(|_| !ended[0]).map(|output| (output.as_fd(), PollFlags::POLLIN)),
        outputs.last().filter(|_| !ended[1]).map(|output| (output.as_fd(), PollFlags::POLLIN)),
        stdin.map(|stdin| (stdin.as_fd(), PollFlags::POLLOUT)),
    ];
    let mut fds: Vec<PollFd> = pipes.iter().flatten().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
    match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok([false; 3]),
        Err(error) => return Err(error.into()),
    }
    let mut fds = fds.iter();
    Ok(pipes.map(|pipe| pipe.is_some() && fds.next().is_some_and(|fd| fd.any().unwrap_or(true))))
}

fn quoted(said: &str) -> String {
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    match said.char_indices().nth(MOST_QUOTED) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str) -> Result<Said, ProgramError> {
        run("/bin/sh", &["-c".into(), script.into()], input)
    }

    #[test]
    fn what_it_says_is_kept_apart() {
        let said = shell("echo out; echo remark >&2; pwd; echo ${HOME-homeless}", "").unwrap();
        assert_eq!(said, Said { output: "out\n/\nhomeless\n".into(), remarks: "remark\n".into() });
    }

    #[test]
    fn long_texts_pass_in_both_directions() {
        let text = "10.96.0.0/12, ".repeat(20_000);
        assert_eq!(shell("cat", &text).unwrap().output, text);
        assert_eq!(shell("cat >&2", &text).unwrap().remarks, text);
        assert_eq!(shell("exec <&-; echo deaf", &text).unwrap().output, "deaf\n");
    }

    #[test]
    fn a_refusal_has_its_words() {
        let error = shell("echo 'stdin:1: syntax error' >&2; exit 1", "x").unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh refused: stdin:1: syntax error");
        let error = shell("yes ä | head -n 2000 >&2; exit 1", "").unwrap_err();
        let ProgramError::Refused { complaint, .. } = error else { panic!("{error}") };
        assert_eq!(complaint.chars().count(), MOST_QUOTED + 1);
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let error = run("/nonexistent/pfctl", &[], "").unwrap_err();
        assert!(matches!(error, ProgramError::Start("/nonexistent/pfctl", _)), "{error}");
    }
}
