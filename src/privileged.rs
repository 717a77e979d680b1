//! The user side of the root helper: start it, give it the plan, hear of its end.
//!
//! The conversation is the crate `kshuttle-helper`'s; closing our end of it, however we end, makes the helper undo.

pub mod elevation;
pub mod questions;
mod receive;
pub mod sockets;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use kshuttle_helper::protocol::{self, Frames, Plan, Reply, Request, UndoReport};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use self::elevation::{Elevation, Program};
use self::questions::Questions;
use self::receive::{Received, receive};

/// Name of the helper's executable; it stands beside ours.
const PROGRAM: &str = "kshuttle-helper";

/// Time for the rules to stand: a handful of system calls and two runs of `nft`.
const APPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for an orderly undo: the helper itself waits up to 2 s for connections to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a helper that was started as root to speak; elsewhere a person may have to type a password first.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to get a password: sudo's own limit (`passwd_timeout`) is 5 min a try; doas and polkit's agents have none.
const PASSWORD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Why nothing is redirected.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegedError {
    /// The installation is incomplete.
    #[error("find the helper {}", .0.display())]
    Missing(PathBuf),
    /// Not root, and no way to become it.
    #[error("become root for the redirect rules: `{0}` is not installed")]
    NoElevation(&'static str),
    /// The helper, or what makes it root, did not start.
    #[error("start {program}")]
    Start {
        /// What was started.
        program: String,
        /// Its cause.
        #[source]
        source: io::Error,
    },
    /// The program that was to make the helper root has ended, and the helper said nothing.
    #[error("{} did not start the helper as root", .0.name())]
    Refused(Program),
    /// The helper, started by root, ended.
    #[error("the helper ended before it said anything")]
    Mute,
    /// The helper ended in the middle of the conversation.
    #[error("the helper ended unexpectedly")]
    Ended,
    /// Reading from or writing to it failed.
    #[error("talk to the helper")]
    Talk(#[source] io::Error),
    /// It said something we do not understand.
    #[error("understand the helper")]
    Protocol(#[source] protocol::Error),
    /// Another version than ours.
    #[error("the helper speaks protocol {theirs}, this program {}", protocol::VERSION)]
    Version {
        /// The helper's protocol version.
        theirs: u32,
    },
    /// It does not answer.
    #[error("no answer from the helper within {} s", .0.as_secs())]
    Silent(Duration),
    /// It could not redirect; everything it had done is undone.
    #[error("redirect ({step}): {message}")]
    Failed {
        /// Which part failed.
        step: String,
        /// The helper's words.
        message: String,
    },
}

/// A helper that was started and has not spoken yet. Started before anything else, so that a password is asked for
/// first and the rest of the program can give up root.
pub struct Starting {
    conversation: StdUnixStream,
    child: Child,
    by: Option<Program>,
}

/// Starts the helper. Single-threaded callers only: nothing here needs a runtime.
///
/// # Errors
/// When it is not installed or cannot be started.
pub fn start(elevation: &Elevation) -> Result<Starting, PrivilegedError> {
    start_as(elevation, &beside_us()?)
}

fn start_as(elevation: &Elevation, helper: &Path) -> Result<Starting, PrivilegedError> {
    let mut command = elevation.command(helper);
    let program = PathBuf::from(command.get_program());
    let (ours, theirs) = StdUnixStream::pair().map_err(start_error(&program))?;
    let output = theirs.try_clone().map_err(start_error(&program))?;
    // One socket pair as both ends, as sudo leaves what is no terminal alone. stderr stays ours: the prompt and the
    // helper's last words.
    let child = command
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(OwnedFd::from(output)))
        .spawn()
        .map_err(start_error(&program))?;
    Ok(Starting { conversation: ours, child, by: elevation.program() })
}

fn start_error(program: &Path) -> impl Fn(io::Error) -> PrivilegedError {
    let program = program.display().to_string();
    move |source| PrivilegedError::Start { program: program.clone(), source }
}

/// The helper, beside this program and without symbolic links: what rules of sudo name.
///
/// # Errors
/// When it is not there.
pub fn beside_us() -> Result<PathBuf, PrivilegedError> {
    let here = std::env::current_exe().map_err(start_error(Path::new(PROGRAM)))?;
    let helper = here.with_file_name(PROGRAM);
    helper.canonicalize().ok().filter(|helper| helper.is_file()).ok_or(PrivilegedError::Missing(helper))
}

impl Starting {
    /// Waits for the helper's first words. Needs a tokio runtime.
    ///
    /// # Errors
    /// When it ends, does not speak, or is of another version.
    pub async fn hello(self) -> Result<Helper, PrivilegedError> {
        let by = self.by;
        let limit = if by.is_some() { PASSWORD_TIMEOUT } else { HELLO_TIMEOUT };
        self.conversation.set_nonblocking(true).map_err(PrivilegedError::Talk)?;
        let stream = UnixStream::from_std(self.conversation).map_err(PrivilegedError::Talk)?;
        let (stream, write) = stream.into_split();
        let questions = Questions::over(write);
        let mut helper = Helper { stream, frames: Frames::default(), child: Some(self.child), questions };
        match helper.reply(limit).await {
            Ok(Reply::Hello { protocol: protocol::VERSION, .. }) => Ok(helper),
            Ok(Reply::Hello { protocol, .. }) => Err(PrivilegedError::Version { theirs: protocol }),
            Ok(Reply::Failed { step, message }) => Err(PrivilegedError::Failed { step, message }),
            Ok(_) | Err(PrivilegedError::Ended) => {
                Err(by.map_or(PrivilegedError::Mute, PrivilegedError::Refused))
            }
            Err(error) => Err(error),
        }
    }
}

/// A running helper. Dropping it makes it undo.
pub struct Helper {
    stream: OwnedReadHalf,
    frames: Frames,
    child: Option<Child>,
    questions: Questions,
}

/// The rules stand.
#[derive(Debug, Clone)]
pub struct Redirected {
    /// Who redirects: `nft` or `iptables`.
    pub method: String,
    /// The table's name, or what its chains' names begin with.
    pub table: String,
    /// What could not be had on this machine, a sentence each.
    pub notes: Vec<String>,
    /// How long the system remembers an exchange of datagrams without an answer, and one with answers.
    pub datagrams: [Duration; 2],
}

impl Helper {
    /// Puts the rules in.
    ///
    /// # Errors
    /// When it cannot; nothing is redirected then.
    pub async fn apply(&mut self, plan: Plan) -> Result<Redirected, PrivilegedError> {
        self.questions.say(&Request::Plan(plan)).await?;
        match self.reply(APPLY_TIMEOUT).await? {
            Reply::Ready { method, table, notes, datagram_seconds } => {
                let datagrams = datagram_seconds.map(|seconds| Duration::from_secs(seconds.into()));
                Ok(Redirected { method, table, notes, datagrams })
            }
            Reply::Failed { step, message } => Err(PrivilegedError::Failed { step, message }),
            _ => Err(PrivilegedError::Ended),
        }
    }

    /// To ask it while the rules stand. Answers come as long as [`Helper::lost`] is waited for.
    pub fn questions(&self) -> Questions {
        self.questions.clone()
    }

    /// Hears it for as long as the rules stand. Returns when it has ended or failed by itself: from then on nothing is
    /// redirected. `repaired` is told what somebody had taken out and stands again.
    pub async fn lost(&mut self, mut repaired: impl FnMut(String)) -> PrivilegedError {
        loop {
            match self.next().await {
                Ok(Reply::Failed { step, message }) => return PrivilegedError::Failed { step, message },
                Ok(Reply::Repaired { what }) => repaired(what),
                Ok(answer) => self.questions.answered(answer),
                Err(error) => return error,
            }
        }
    }

    /// Takes the rules out. The redirected connections must have been reset before.
    ///
    /// # Errors
    /// When the helper is gone or does not answer; its input ends in any case, which makes it undo.
    pub async fn stop(mut self) -> Result<UndoReport, PrivilegedError> {
        self.questions.say(&Request::Stop {}).await?;
        loop {
            match self.reply(STOP_TIMEOUT).await? {
                Reply::Stopped { report } => return Ok(report),
                Reply::Failed { step, message } => return Err(PrivilegedError::Failed { step, message }),
                _ => {}
            }
        }
    }

    async fn reply(&mut self, limit: Duration) -> Result<Reply, PrivilegedError> {
        tokio::time::timeout(limit, self.next()).await.unwrap_or(Err(PrivilegedError::Silent(limit)))
    }

    async fn next(&mut self) -> Result<Reply, PrivilegedError> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(reply) = self.frames.take().map_err(PrivilegedError::Protocol)? {
                return Ok(reply);
            }
            match receive(self.stream.as_ref(), &mut bytes).await {
                Ok(Received { length: 0, .. }) => return Err(PrivilegedError::Ended),
                Ok(Received { length, files }) => {
                    self.frames.push(&bytes[..length]);
                    self.questions.came(files);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(PrivilegedError::Ended);
                }
                Err(error) => return Err(PrivilegedError::Talk(error)),
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Its input ends now. Waiting for the process keeps no zombie while we live on; after us, init does it.
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Says hello in protocol version 3, and then waits for its input's end.
    const HELPER: &str = r#"#!/bin/sh
[ $# = 0 ] && [ "${HOME-none}" = none ] || exit 1
printf '\000\000\000\064{"type":"hello","protocol":3,"version":"0.0.0-test"}'
exec cat >/dev/null
"#;

    fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// What comes of a program that makes root with this script, and with the helper above.
    async fn hello(program: Program, elevates: &str) -> Result<Helper, PrivilegedError> {
        let folder = tempfile::tempdir().unwrap();
        let helper = script(folder.path(), PROGRAM, HELPER);
        let path = script(folder.path(), program.name(), elevates);
        let helper = start_as(&Elevation::By { program, path }, &helper)?.hello().await;
        drop(folder);
        helper
    }

    /// As the three do: only one argument, an absolute path; an empty environment, nothing open but 0, 1 and 2.
    const ELEVATES: &str =
        "#!/bin/bash\n[[ $# == 1 && $1 == /* ]] && exec env -i \"$1\" 3<&- 4<&- 5<&-\nexit 1\n";

    /// As doas with PAM: it stays, and watches.
    const STAYS: &str = "#!/bin/bash\n[[ $# == 1 && $1 == /* ]] || exit 1\nenv -i \"$1\" <&0\n";

    /// As pkexec: refuses whose parent is not who started it.
    const ASKS_FOR_ITS_PARENT: &str = "#!/bin/bash\n[[ $PPID == PARENT ]] && exec env -i \"$1\"\nexit 127\n";

    #[tokio::test]
    async fn a_helper_speaks_through_each_program() {
        let parent = ASKS_FOR_ITS_PARENT.replace("PARENT", &std::process::id().to_string());
        for (program, elevates) in
            [(Program::Sudo, ELEVATES), (Program::Doas, STAYS), (Program::Pkexec, parent.as_str())]
        {
            hello(program, elevates).await.unwrap();
        }
    }

    #[tokio::test]
    async fn who_refused_is_named() {
        for program in [Program::Sudo, Program::Doas, Program::Pkexec] {
            let Err(error) = hello(program, "#!/bin/sh\nexit 126\n").await else { panic!("it spoke") };
            let name = program.name();
            assert_eq!(error.to_string(), format!("{name} did not start the helper as root"));
        }
    }

    #[tokio::test]
    async fn a_helper_that_ends_by_itself_is_not_blamed_on_others() {
        let folder = tempfile::tempdir().unwrap();
        let helper = script(folder.path(), PROGRAM, "#!/bin/sh\nexit 1\n");
        let started = start_as(&Elevation::Root, &helper).unwrap();
        assert!(matches!(started.hello().await, Err(PrivilegedError::Mute)));
    }
}
