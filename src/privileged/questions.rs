//! Asking the helper while the rules stand: where datagrams wanted to go, other ranges and name servers, sockets.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use kshuttle_helper::protocol::{self, Link, NameServer, Reply, Request};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::PrivilegedError;

/// Time for an answer. An origin takes microseconds, the largest update with its read-back a second; an update may be
/// in front of an origin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Puts questions to the helper. Cheap to clone.
#[derive(Clone)]
pub struct Questions {
    write: Arc<AsyncMutex<OwnedWriteHalf>>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Who waits for an answer.
#[derive(Default)]
struct Waiting {
    /// By the sender that was asked about. Several may ask about one.
    origins: HashMap<SocketAddr, Vec<oneshot::Sender<Option<SocketAddr>>>>,
    /// For all else, in the order in which it was asked.
    others: VecDeque<Asker>,
    /// What came with answers that are still to come, one list for each.
    files: VecDeque<Vec<OwnedFd>>,
}

/// What is asked for.
enum Asker {
    /// That something stands.
    Change(oneshot::Sender<Result<(), String>>),
    /// Sockets.
    Sockets(oneshot::Sender<Result<Vec<OwnedFd>, String>>),
}

impl Waiting {
    fn answer(&mut self, result: Result<Reply, String>) {
        // Whoever asked may have given up.
        match (self.others.pop_front(), result) {
            (Some(Asker::Change(asker)), Ok(Reply::Updated {})) => drop(asker.send(Ok(()))),
            (Some(Asker::Sockets(asker)), Ok(Reply::Sockets { .. })) => {
                drop(asker.send(Ok(self.files.pop_front().unwrap_or_default())))
            }
            (Some(Asker::Change(asker)), Err(message)) => drop(asker.send(Err(message))),
            (Some(Asker::Sockets(asker)), Err(message)) => drop(asker.send(Err(message))),
            (_, result) => tracing::debug!(?result, "the helper answered what nobody asked"),
        }
    }
}

/// Why what was asked for is not done.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The helper refused it; what was before stands.
    #[error("{0}")]
    Refused(String),
    /// The helper is gone or does not answer.
    #[error(transparent)]
    Helper(#[from] PrivilegedError),
}

impl Questions {
    pub(super) fn over(write: OwnedWriteHalf) -> Self {
        Self { write: Arc::new(AsyncMutex::new(write)), waiting: Arc::default() }
    }

    /// Where the datagrams wanted to go that came `from` there to our socket `at`; none if the system does not know.
    ///
    /// # Errors
    /// When the helper is gone or does not answer.
    pub async fn origin(
        &self,
        from: SocketAddr,
        at: SocketAddr,
    ) -> Result<Option<SocketAddr>, PrivilegedError> {
        let (sender, answer) = oneshot::channel();
        self.lock().origins.entry(from).or_default().push(sender);
        self.say(&Request::Origin { from, at }).await?;
        within(answer).await
    }

    /// Redirects these ranges instead.
    ///
    /// # Errors
    /// See [`UpdateError`].
    pub async fn update(&self, include: Vec<IpNet>, exclude: Vec<IpNet>) -> Result<(), UpdateError> {
        self.change(&Request::Update { include, exclude }).await
    }

    /// Has queries to these name servers come to us instead.
    ///
    /// # Errors
    /// See [`UpdateError`].
    pub async fn names(&self, servers: Vec<NameServer>) -> Result<(), UpdateError> {
        self.change(&Request::Names { servers }).await
    }

    /// Has systemd-resolved ask us about names.
    ///
    /// # Errors
    /// See [`UpdateError`].
    pub async fn link(&self, link: Link) -> Result<(), UpdateError> {
        self.change(&Request::Link(link)).await
    }

    /// Sockets of this family that ask name servers themselves: for a TCP connection each, or for datagrams. Fewer than `count`
    /// where this process may not have so many files.
    ///
    /// # Errors
    /// See [`UpdateError`].
    pub async fn sockets(&self, v6: bool, stream: bool, count: u8) -> Result<Vec<OwnedFd>, UpdateError> {
        let (sender, answer) = oneshot::channel();
        self.ask(&Request::Sockets { v6, stream, count }, Asker::Sockets(sender)).await?;
        within(answer).await?.map_err(UpdateError::Refused)
    }

    async fn change(&self, request: &Request) -> Result<(), UpdateError> {
        let (sender, answer) = oneshot::channel();
        self.ask(request, Asker::Change(sender)).await?;
        within(answer).await?.map_err(UpdateError::Refused)
    }

    async fn ask(&self, request: &Request, asker: Asker) -> Result<(), PrivilegedError> {
        let mut write = self.write.lock().await; // asked and written in one order
        self.lock().others.push_back(asker);
        send(&mut write, request).await
    }

    pub(super) async fn say(&self, request: &Request) -> Result<(), PrivilegedError> {
        send(&mut *self.write.lock().await, request).await
    }

    /// Takes what came along with an answer. What nobody asked for is closed.
    pub(super) fn came(&self, files: Option<Vec<OwnedFd>>) {
        let mut waiting = self.lock();
        let asked = waiting.others.iter().filter(|asker| matches!(asker, Asker::Sockets(_))).count();
        if waiting.files.len() < asked {
            waiting.files.extend(files);
        }
    }

    /// Gives an answer to whoever waits for it.
    pub(super) fn answered(&self, answer: Reply) {
        let mut waiting = self.lock();
        match answer {
            Reply::Origin { from, to } => {
                for asker in waiting.origins.remove(&from).unwrap_or_default() {
                    let _ = asker.send(to); // it may have given up
                }
            }
            Reply::Refused { message } => waiting.answer(Err(message)),
            answer @ (Reply::Updated {} | Reply::Sockets { .. }) => waiting.answer(Ok(answer)),
            other => tracing::debug!(?other, "the helper said what is no answer"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic while holding the lock cannot leave the lists half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(write: &mut OwnedWriteHalf, request: &Request) -> Result<(), PrivilegedError> {
    let mut frame = Vec::new();
    protocol::write(&mut frame, request).map_err(PrivilegedError::Protocol)?;
    write.write_all(&frame).await.map_err(PrivilegedError::Talk)
}

async fn within<T>(answer: oneshot::Receiver<T>) -> Result<T, PrivilegedError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(PrivilegedError::Ended),
        Err(_) => Err(PrivilegedError::Silent(ANSWER_TIMEOUT)),
    }
}

#[cfg(test)]
mod tests {
    use kshuttle_helper::protocol::Frames;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    async fn next(helper: &mut UnixStream, frames: &mut Frames) -> Request {
        loop {
            if let Some(request) = frames.take().unwrap() {
                return request;
            }
            let mut bytes = [0; 1024];
            let length = helper.read(&mut bytes).await.unwrap();
            assert!(length > 0);
            frames.push(&bytes[..length]);
        }
    }

    #[tokio::test]
    async fn each_answer_finds_who_asked() {
        let (ours, mut helper) = UnixStream::pair().unwrap();
        let questions = Questions::over(ours.into_split().1);
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (first, second, at) = (address("127.0.0.1:1"), address("127.0.0.1:2"), address("127.0.0.1:9"));
        let (to_first, to_second) = (address("10.0.0.1:53"), address("10.0.0.2:53"));
        let helped = async {
            let mut frames = Frames::default();
            let mut asked = Vec::new();
            for _ in 0..4 {
                asked.push(next(&mut helper, &mut frames).await);
            }
            let updates = asked.iter().filter(|request| matches!(request, Request::Update { .. }));
            assert_eq!(updates.count(), 2);
            questions.answered(Reply::Origin { from: second, to: Some(to_second) });
            questions.answered(Reply::Updated {});
            questions.answered(Reply::Origin { from: first, to: Some(to_first) });
            questions.answered(Reply::Refused { message: "no".into() });
            questions.answered(Reply::Updated {}); // nobody asked
        };
        let (a, b, one, two, ()) = tokio::join!(
            questions.origin(first, at),
            questions.origin(second, at),
            questions.update(vec![], vec![]),
            questions.update(vec![], vec![]),
            helped,
        );
        assert_eq!((a.unwrap(), b.unwrap()), (Some(to_first), Some(to_second)));
        one.unwrap();
        assert!(matches!(two, Err(UpdateError::Refused(message)) if message == "no"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_helper_that_says_nothing_is_told() {
        let (ours, _helper) = UnixStream::pair().unwrap();
        let questions = Questions::over(ours.into_split().1);
        let address = "127.0.0.1:1".parse().unwrap();
        let error = questions.origin(address, address).await.unwrap_err();
        assert!(matches!(error, PrivilegedError::Silent(ANSWER_TIMEOUT)), "{error}");
    }
}
