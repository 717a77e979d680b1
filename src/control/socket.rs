//! The session's socket: questions and answers, one line each.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::getuid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::registry::Registered;
use super::{Answer, Request, Session};

/// Longest question.
const QUESTION_MAX: u64 = 4 << 10;

/// Longest answer: eight tunnels with long errors.
const ANSWER_MAX: u64 = 256 << 10;

/// Time for a question and its answer; both ends are on this machine.
const TIME: Duration = Duration::from_secs(5);

/// Who may ask at the same time.
const ASKERS_MAX: usize = 8;

/// Pause after a failed `accept`, so that running out of descriptors is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens.
pub struct Control {
    listener: UnixListener,
    registered: Registered,
}

/// Why a session could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It does not listen, or left meanwhile.
    #[error("ask session {name}")]
    Io {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not answer.
    #[error("session {name} did not answer within {} s", TIME.as_secs())]
    Timeout {
        /// Its name.
        name: String,
    },
    /// It answered something that this version does not know.
    #[error("session {0} answered something else: is it another version?")]
    Strange(String),
}

impl Control {
    /// Listens for questions about the session of this process.
    ///
    /// # Errors
    /// When there is no place for a socket.
    pub fn listen() -> io::Result<Self> {
        let registered = Registered::here()?;
        let socket = registered.socket();
        let listener = UnixListener::bind(&socket)?;
        // The folder keeps others away already; this says it again.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, registered })
    }

    /// Where it listens.
    pub fn path(&self) -> std::path::PathBuf {
        self.registered.socket()
    }

    /// Answers, for ever.
    pub async fn serve(self, session: Session) {
        let room = Arc::new(Semaphore::new(ASKERS_MAX));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let session = session.clone();
                    tokio::spawn(async move {
                        // Whoever asks and leaves has had enough.
                        let _ = timeout(TIME, answer(stream, &session)).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a question");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn answer(stream: UnixStream, session: &Session) -> io::Result<()> {
    let asker = stream.peer_cred()?.uid();
    if asker != getuid().as_raw() && asker != 0 {
        tracing::warn!(asker, "somebody else asked");
        return Ok(());
    }
    let (read, mut write) = stream.into_split();
    let mut question = Vec::new();
    BufReader::new(read.take(QUESTION_MAX)).read_until(b'\n', &mut question).await?;
    let answer = match serde_json::from_slice::<Request>(&question) {
        Ok(request) => session.answer(request).await,
        Err(error) => Answer::Error(error.to_string()),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    let written = write.write_all(&line).await;
    if matches!(answer, Answer::Ending) {
        session.end(); // not before: the process may be gone at once
    }
    written
}

/// Asks the session `name` at its socket.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(name: &str, socket: &Path, request: Request) -> Result<Answer, AskError> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = timeout(TIME, asked).await.map_err(|_| AskError::Timeout { name: name.to_owned() })?;
    let answer = answer.map_err(|source| AskError::Io { name: name.to_owned(), source })?;
    serde_json::from_slice(&answer).map_err(|_| AskError::Strange(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[tokio::test]
    async fn questions_are_answered_and_nonsense_is_told() {
        let session = Session::start("socks");
        let control = Control::listen().unwrap();
        let path = control.path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let serving = tokio::spawn(control.serve(session.clone()));
        let status = async || match ask("x", &path, Request::Status).await.unwrap() {
            Answer::Status(status) => status,
            other => panic!("{other:?}"),
        };
        let Status { name, command, ready, tunnels, .. } = status().await;
        assert_eq!((name, command.as_str(), ready), (std::process::id().to_string(), "socks", false));
        assert!(tunnels.is_empty());
        session.is_ready();
        assert!(status().await.ready);

        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"do\":\"dance\"}\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("{\"error\":"), "{answer}");

        assert!(matches!(ask("x", &path, Request::Quit).await.unwrap(), Answer::Ending));
        session.quit().await;
        serving.abort();
        assert!(serving.await.is_err());
        assert!(!path.exists(), "nothing is left");
        assert!(matches!(ask("x", &path, Request::Status).await, Err(AskError::Io { .. })));
    }
}
