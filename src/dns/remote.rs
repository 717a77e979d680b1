//! DNS servers behind the tunnel: questions by TCP, many at once on one connection (RFC 7766 §6.2.1.1).
//!
//! States of the connection: none → (a question) → open → ended, by the server, by silence or because nobody asks → none.
//! What had no answer when it ended is asked again on the next one, which goes to the next server if this one was of no use.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hickory_proto::op::{Message, MessageType, Query};
use kshuttle_wire::flow::{Flow, FlowRecv};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{LIMIT, message};
use crate::addr::Target;
use crate::tunnel::Connect;

/// Questions under way at one time; more are refused. A browser that starts asks a hundred.
const UNDER_WAY_MAX: usize = 256;

/// A connection without questions is closed. CoreDNS closes after 8 s: ours goes first, so that seldom both happen at once.
const IDLE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("{UNDER_WAY_MAX} questions are under way already")]
    Busy,
    #[error("no answer in time")]
    TimedOut,
    #[error("no server could be asked")]
    Unreachable,
}

/// Servers that are asked in turn.
pub(super) struct Remote {
    asks: mpsc::Sender<Ask>,
    room: Semaphore,
    /// Has the connection; ends with this.
    _task: AbortOnDropHandle<()>,
}

/// A question that waits for its answer.
struct Ask {
    question: Query,
    dnssec: bool,
    answer: oneshot::Sender<Message>,
    /// Connections that ended without its answer.
    failed: usize,
}

impl Remote {
    pub(super) fn start(tunnel: impl Connect, servers: Vec<SocketAddr>) -> Self {
        let (asks, asked) = mpsc::channel(UNDER_WAY_MAX);
        let worker = Worker { tunnel, servers, at: 0, asks: asked, waiting: VecDeque::new() };
        let task = AbortOnDropHandle::new(tokio::spawn(worker.run()));
        Self { asks, room: Semaphore::new(UNDER_WAY_MAX), _task: task }
    }

    /// Asks, and waits for at most `limit`.
    pub(super) async fn ask(
        &self,
        question: Query,
        dnssec: bool,
        limit: Duration,
    ) -> Result<Message, RemoteError> {
        let _place = self.room.try_acquire().map_err(|_| RemoteError::Busy)?;
        let (answer, answered) = oneshot::channel();
        self.asks.try_send(Ask { question, dnssec, answer, failed: 0 }).map_err(|_| RemoteError::Busy)?;
        match timeout(limit, answered).await {
            Ok(answer) => answer.map_err(|_| RemoteError::Unreachable),
            Err(_) => Err(RemoteError::TimedOut),
        }
    }
}

struct Worker<C> {
    tunnel: C,
    servers: Vec<SocketAddr>,
    /// The server in use.
    at: usize,
    asks: mpsc::Receiver<Ask>,
    /// To be asked before what comes from `asks`.
    waiting: VecDeque<Ask>,
}

impl<C: Connect> Worker<C> {
    async fn run(mut self) {
        loop {
            self.waiting.retain(|ask| !ask.answer.is_closed());
            if self.waiting.is_empty() {
                let Some(ask) = self.asks.recv().await else { return };
                self.waiting.push_back(ask);
            }
            let open = Arc::new(Open::default());
            if let Some(server) = self.servers.get(self.at).copied() {
                self.talk(server, &open).await;
            }
            let (unanswered, useful) = open.leave();
            if !useful {
                self.at = (self.at + 1) % self.servers.len().max(1);
            }
            let again = unanswered.into_iter().chain(self.waiting.drain(..));
            let again = again.map(|ask| Ask { failed: ask.failed + 1, ..ask });
            // Each server once, and once more: a kept connection may end as the question goes out.
            self.waiting = again.filter(|ask| ask.failed <= self.servers.len()).collect();
        }
    }

    /// How long a server may be silent while it is asked.
    fn patience(&self) -> Duration {
        LIMIT / u32::try_from(self.servers.len()).unwrap_or(u32::MAX).max(1)
    }

    /// One connection, from its opening to its end.
    async fn talk(&mut self, server: SocketAddr, open: &Open) {
        let patience = self.patience();
        let target = Target::from(server);
        let connecting = self.tunnel.connect(&target);
        let Ok(Ok(Flow { mut send, recv })) = timeout(patience, connecting).await else {
            tracing::debug!(%server, "no way to a name server");
            return;
        };
        let write = async {
            loop {
                let ask = match self.waiting.pop_front() {
                    Some(ask) => ask,
                    None => match self.asks.recv().await {
                        Some(ask) => ask,
                        None => return,
                    },
                };
                if let Some(bytes) = open.add(ask)
                    && send.send(bytes).await.is_err()
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = write => {}
            () = read(recv, open) => {}
            () = open.silence(patience) => {}
        }
        tracing::debug!(%server, "connection to a name server ended");
    }
}

/// Gives the answers to those who asked, until there are no more.
async fn read(mut recv: FlowRecv, open: &Open) {
    let mut buffer = BytesMut::new();
    while let Ok(Some(data)) = recv.data().await {
        recv.release(data.len());
        buffer.extend_from_slice(&data);
        while let Some(answer) = take(&mut buffer) {
            open.answered(&answer);
        }
    }
}

/// A message behind its length (RFC 1035 §4.2.2), once all of it is there. So the buffer stays below twice the longest one.
fn take(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes([*buffer.first()?, *buffer.get(1)?]));
    if buffer.len() < 2 + length {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(length).freeze())
}

/// What is known about an open connection.
#[derive(Default)]
struct Open {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// By the IDs of our messages.
    asked: HashMap<u16, Ask>,
    next_id: u16,
    /// When it was last answered, or first asked after that.
    since: Instant,
    /// It gave an answer.
    useful: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { asked: HashMap::new(), next_id: 0, since: Instant::now(), useful: false }
    }
}

impl Open {
    /// Remembers a question; returns what to send for it.
    fn add(&self, ask: Ask) -> Option<Bytes> {
        let mut state = self.lock();
        // Who gave up makes room, whatever the server does: there are never many more than `UNDER_WAY_MAX`.
        state.asked.retain(|_, ask| !ask.answer.is_closed());
        while state.asked.contains_key(&state.next_id) {
            state.next_id = state.next_id.wrapping_add(1);
        }
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        let message = message::question(id, ask.question.clone(), ask.dnssec).to_vec().ok()?;
        let length = u16::try_from(message.len()).ok()?;
        if state.asked.is_empty() {
            state.since = Instant::now();
        }
        state.asked.insert(id, ask);
        self.changed.notify_one();
        Some([&length.to_be_bytes()[..], &message].concat().into())
    }

    fn answered(&self, answer: &[u8]) {
        let Some(id) = answer.first_chunk().map(|id| u16::from_be_bytes(*id)) else { return };
        let mut state = self.lock();
        let Some(ask) = state.asked.remove(&id) else { return }; // too late, or never asked
        match Message::from_vec(answer) {
            Ok(answer)
                if answer.metadata.message_type == MessageType::Response
                    && answer.queries == [ask.question.clone()] =>
            {
                (state.since, state.useful) = (Instant::now(), true);
                self.changed.notify_one();
                let _ = ask.answer.send(answer); // whoever gave up does not want it any more
            }
            // What cannot be read now will not be the next time: the question has no answer.
            Ok(_) | Err(_) => tracing::debug!(id, "a name server answered something else"),
        }
    }

    /// Ready once the server has been silent for too long, or nobody has asked for a while.
    async fn silence(&self, patience: Duration) {
        loop {
            let end = {
                let state = self.lock();
                state.since + if state.asked.is_empty() { IDLE } else { patience }
            };
            tokio::select! {
                () = sleep_until(end) => return,
                () = self.changed.notified() => {}
            }
        }
    }

    /// Questions without an answer, and whether there were answers.
    fn leave(&self) -> (Vec<Ask>, bool) {
        let mut state = self.lock();
        (std::mem::take(&mut state.asked).into_values().collect(), state.useful)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock cannot leave the list half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn ask(text: &str) -> (Ask, oneshot::Receiver<Message>) {
        let (answer, answered) = oneshot::channel();
        let question = Query::query(Name::from_ascii(text).unwrap(), RecordType::A);
        (Ask { question, dnssec: false, answer, failed: 0 }, answered)
    }

    /// What a server would get.
    fn sent(bytes: Bytes) -> Message {
        let mut buffer = BytesMut::from(&bytes[..]);
        let message = take(&mut buffer).unwrap();
        assert!(buffer.is_empty());
        Message::from_vec(&message).unwrap()
    }

    #[test]
    fn messages_come_in_any_pieces() {
        let mut buffer = BytesMut::new();
        let mut messages = Vec::new();
        for byte in [0, 3, b'a', b'b', b'c', 0, 0, 0, 1, b'd', 0] {
            buffer.extend_from_slice(&[byte]);
            messages.extend(take(&mut buffer));
        }
        assert_eq!(messages, ["abc", "", "d"]);
        assert_eq!(&buffer[..], [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_answer_to_the_question_is_one() {
        let open = Open::default();
        let (first, first_answered) = ask("first.");
        let (second, mut second_answered) = ask("second.");
        let [first, second] = [first, second].map(|ask| sent(open.add(ask).unwrap()).into_response());
        let mut swapped = first.clone();
        swapped.metadata.id = second.metadata.id;
        let mut stranger = first.clone();
        stranger.metadata.id ^= 0x100;
        for nonsense in [Vec::new(), vec![0], stranger.to_vec().unwrap()] {
            open.answered(&nonsense);
        }
        open.answered(&swapped.to_vec().unwrap());
        assert!(second_answered.try_recv().is_err());
        open.answered(&first.to_vec().unwrap());
        open.answered(&first.to_vec().unwrap()); // once more
        assert_eq!(first_answered.await.unwrap(), first);
        let (unanswered, useful) = open.leave();
        assert!(unanswered.is_empty() && useful, "the second question was answered by nonsense");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gave_up_is_forgotten_and_ids_are_not_shared() {
        let open = Open::default();
        let (patient, _patient_answered) = ask("patient.");
        open.add(patient).unwrap();
        for _ in 0..=u16::MAX {
            let (ask, answered) = ask("x.");
            assert_ne!(sent(open.add(ask).unwrap()).metadata.id, 0, "in use");
            drop(answered);
        }
        assert!(open.leave().0.len() <= 2);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_soon_and_idleness_later() {
        let patience = Duration::from_millis(700);
        let open = Open::default();
        let started = Instant::now();
        open.silence(patience).await;
        assert_eq!(started.elapsed(), IDLE);

        // A question while it waits for the end of idleness.
        let open = Open::default();
        let (question, answered) = ask("x.");
        let later = async {
            tokio::time::advance(Duration::from_secs(2)).await;
            let query = sent(open.add(question).unwrap());
            tokio::time::advance(patience / 2).await;
            open.answered(&query.into_response().to_vec().unwrap());
            answered.await.unwrap();
            let (next, _next_answered) = ask("y.");
            open.add(next).unwrap();
            std::future::pending::<()>().await;
        };
        let started = Instant::now();
        tokio::select! { () = open.silence(patience) => {}, () = later => {} }
        let expected = Duration::from_secs(2) + patience / 2 + patience;
        assert!(started.elapsed() - expected < Duration::from_millis(5), "{:?}", started.elapsed());
    }
}
