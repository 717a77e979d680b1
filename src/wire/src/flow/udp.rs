//! UDP flows: CONNECT-UDP (RFC 9298) in a stream of the session, each datagram a capsule (RFC 9297 §3).
//!
//! ```text
//! DatagramSend ─▶ queue ─┐            a task per flow                       ┌─▶ UDP socket, connected
//!                        ├─ capsules ══ stream: window, pacing ══ capsules ─┤
//! DatagramRecv ◀─ queue ─┘                                                  └── its kernel buffer
//! ```
//!
//! Both ends always take what the stream brings, so nothing stands in a window for long; what an application does not take
//! is dropped at the end of its way, as a full socket buffer drops it. What the path does not take is dropped at the
//! beginning. In between nothing is lost.
//!
//! A flow ends when its [`DatagramSend`] is dropped, when nothing was carried for [`IDLE_TIME`], or with its session.

pub mod capsule;
mod queue;
pub(super) mod relay;
pub(super) mod target;

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use self::capsule::Decoder;
use self::queue::{Entry, Exit, queue};
use super::{ConnectError, Flow, FlowRecv, FlowSend};

/// A flow that carried nothing for so long is ended by the laptop. RFC 4787 §4.3 and RFC 9298 §3.1 ask for two minutes at least, as
/// long as Linux' connection tracking keeps a UDP stream.
pub const IDLE_TIME: Duration = Duration::from_secs(180);

/// The same for the pod: later, so that what the laptop sends in the last moment still finds its socket.
const IDLE_TIME_IN_POD: Duration = Duration::from_secs(200);

/// Bytes of capsules that are sent as one, when so many wait: one HTTP/2 frame. Small datagrams of a fast flow would else cost a
/// frame each.
const BATCH: usize = super::MAX_FRAME as usize;

/// Both directions of a UDP flow.
pub struct DatagramFlow {
    /// Datagrams towards the target.
    pub send: DatagramSend,
    /// Datagrams from the target.
    pub recv: DatagramRecv,
}

/// Sending half. Dropped, it ends the flow once all that waits has been sent.
pub struct DatagramSend(Entry);

/// Receiving half. Dropped, what arrives is thrown away; the flow goes on.
pub struct DatagramRecv {
    queue: Exit,
    broken: oneshot::Receiver<ConnectError>,
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// The path takes less than is sent (256 KiB wait already): this one is dropped.
    #[error("datagram dropped: the tunnel is slower than its sender")]
    Full,
    /// No UDP datagram is so long.
    #[error("datagram longer than {} bytes", capsule::MAX_PAYLOAD)]
    TooLong,
    /// The flow has ended; [`DatagramRecv::recv`] tells why.
    #[error("the flow has ended")]
    Ended,
}

impl DatagramFlow {
    /// Datagrams over the stream of an extended CONNECT, answered or not.
    pub(super) fn start(flow: Flow) -> Self {
        let (to_task, outgoing) = queue();
        let (incoming, from_task) = queue();
        let (broken, why) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(error) = carry(flow, outgoing, &incoming).await {
                let _ = broken.send(error); // nobody may be interested
            }
        });
        Self { send: DatagramSend(to_task), recv: DatagramRecv { queue: from_task, broken: why } }
    }
}

impl DatagramSend {
    /// Sends a datagram, or drops it; never waits. It may be sent before the pod has answered, and travels with the question. That
    /// it was sent does not mean that it arrives, as with any datagram. It should own its bytes: a slice of something larger keeps
    /// all of that while it waits.
    ///
    /// # Errors
    /// Why it was dropped. Only [`Unsent::Ended`] lasts.
    pub fn send(&self, datagram: Bytes) -> Result<(), Unsent> {
        if datagram.len() > capsule::MAX_PAYLOAD {
            return Err(Unsent::TooLong);
        }
        self.0.put(datagram)
    }

    /// Datagrams dropped as [`Unsent::Full`].
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }
}

impl DatagramRecv {
    /// The next datagram; `None` after an orderly end: the flow was not used for long. Safe to cancel.
    ///
    /// A target that refuses (ICMP) is neither end nor error: it may come back.
    ///
    /// # Errors
    /// Once: why the pod has no socket for the target, or that the session ended or the pod reset the flow.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, ConnectError> {
        match self.queue.take().await {
            Some(datagram) => Ok(Some(datagram)),
            None => self.broken.try_recv().map_or(Ok(None), Err),
        }
    }

    /// Datagrams dropped because 256 KiB waited unread.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }
}

/// The laptop's end of a flow, until it ends.
async fn carry(flow: Flow, outgoing: Exit, incoming: &Entry) -> Result<(), ConnectError> {
    let (mut send, mut arriving) = (flow.send, Datagrams::of(flow.recv));
    let used = LastUse::now();
    tokio::select! {
        end = download(&mut arriving, incoming, &used) => return end,
        () = upload(&mut send, outgoing, &used) => {}
        () = used.long_ago(IDLE_TIME) => {}
    }
    let _ = send.finish(); // fails when the other end was quicker
    // The pod answers the end with its own, once it has sent what came before.
    tokio::select! {
        end = download(&mut arriving, incoming, &used) => end,
        () = used.long_ago(IDLE_TIME) => Ok(()),
    }
}

/// Queue to stream, until the queue ends.
async fn upload(send: &mut FlowSend, mut outgoing: Exit, used: &LastUse) {
    while let Some(first) = outgoing.take().await {
        let mut batch = BytesMut::new();
        capsule::encode(&first, &mut batch);
        while batch.len() < BATCH
            && let Some(next) = outgoing.take_now()
        {
            capsule::encode(&next, &mut batch);
        }
        if send.send(batch.freeze()).await.is_err() {
            // The other direction knows why.
            std::future::pending::<()>().await;
        }
        used.again();
    }
}

/// Stream to queue, until the stream ends.
async fn download(arriving: &mut Datagrams, incoming: &Entry, used: &LastUse) -> Result<(), ConnectError> {
    while let Some(datagram) = arriving.next().await? {
        used.again();
        let _ = incoming.put(datagram); // counts what finds no room
    }
    Ok(())
}

/// The datagrams that a stream brings.
struct Datagrams {
    stream: FlowRecv,
    decoder: Decoder,
    piece: Bytes,
}

impl Datagrams {
    fn of(stream: FlowRecv) -> Self {
        Self { stream, decoder: Decoder::default(), piece: Bytes::new() }
    }

    /// The next one; `None` after the stream's orderly end. Safe to cancel.
    async fn next(&mut self) -> Result<Option<Bytes>, ConnectError> {
        loop {
            let broken = |error| ConnectError::Session(io::Error::new(io::ErrorKind::InvalidData, error));
            if let Some(datagram) = self.decoder.next(&mut self.piece).map_err(broken)? {
                return Ok(Some(datagram));
            }
            let Some(piece) = self.stream.data().await? else { return Ok(None) };
            // At once: what is kept of it is bounded elsewhere.
            self.stream.release(piece.len());
            self.piece = piece;
        }
    }
}

/// When a flow last carried a datagram.
struct LastUse(Mutex<Instant>);

impl LastUse {
    fn now() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn again(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns once nothing was carried for `limit`.
    async fn long_ago(&self, limit: Duration) {
        loop {
            let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;
    use tokio::net::UdpSocket;
    use tokio::time::sleep;

    use super::*;
    use crate::flow::client::FlowClient;
    use crate::flow::server;

    const USED_AT: Duration = Duration::from_secs(100);

    fn served() -> DuplexStream {
        let (near, far) = tokio::io::duplex(256 << 10);
        tokio::spawn(server::serve(far));
        near
    }

    /// Somebody who takes what comes and answers nothing.
    async fn silent() -> (UdpSocket, u16) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    #[tokio::test(start_paused = true)]
    async fn the_laptop_ends_a_flow_that_is_not_used() {
        let client = FlowClient::start(served()).await.unwrap();
        let (_socket, port) = silent().await;
        let mut flow = client.open_udp("127.0.0.1", port).await.unwrap();
        let opened = Instant::now();
        sleep(USED_AT).await;
        flow.send.send("x".into()).unwrap();
        assert_eq!(flow.recv.recv().await.unwrap(), None);
        assert_eq!(opened.elapsed().as_secs(), (USED_AT + IDLE_TIME).as_secs());
        assert_eq!(flow.send.send("x".into()), Err(Unsent::Ended));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pod_ends_one_that_the_laptop_forgot() {
        let (requests, connection) = h2::client::handshake(served()).await.unwrap();
        tokio::spawn(connection);
        let mut requests = requests.ready().await.unwrap();
        while !requests.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let (_socket, port) = silent().await;
        let (response, mut send) = requests.send_request(target::request("127.0.0.1", port), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        let opened = Instant::now();
        sleep(USED_AT).await;
        let mut capsule = BytesMut::new();
        capsule::encode(b"x", &mut capsule);
        send.send_data(capsule.freeze(), false).unwrap();
        while let Some(piece) = body.data().await {
            assert!(piece.expect("an orderly end").is_empty());
        }
        assert_eq!(opened.elapsed().as_secs(), (USED_AT + IDLE_TIME_IN_POD).as_secs());
    }
}
