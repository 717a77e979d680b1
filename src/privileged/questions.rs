//! Asking the helper while the rules stand: where datagrams wanted to go, and other ranges.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use kshuttle_helper::protocol::{self, Reply, Request};
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
    /// In the order in which they were asked.
    updates: VecDeque<oneshot::Sender<Result<(), String>>>,
}

/// Why other ranges do not stand.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The helper refused them; those from before stand.
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
        let (sender, answer) = oneshot::channel();
        let mut write = self.write.lock().await; // asked and written in one order
        self.lock().updates.push_back(sender);
        send(&mut write, &Request::Update { include, exclude }).await?;
        drop(write);
        within(answer).await?.map_err(UpdateError::Refused)
    }

    pub(super) async fn say(&self, request: &Request) -> Result<(), PrivilegedError> {
        send(&mut *self.write.lock().await, request).await
    }

    /// Gives an answer to whoever waits for it.
    pub(super) fn answered(&self, answer: Reply) {
        let mut waiting = self.lock();
        let result = match answer {
            Reply::Origin { from, to } => {
                for asker in waiting.origins.remove(&from).unwrap_or_default() {
                    let _ = asker.send(to); // it may have given up
                }
                return;
            }
            Reply::Updated {} => Ok(()),
            Reply::Refused { message } => Err(message),
            other => {
                tracing::debug!(?other, "the helper answered what nobody asked");
                return;
            }
        };
        if let Some(asker) = waiting.updates.pop_front() {
            let _ = asker.send(result); // it may have given up
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
