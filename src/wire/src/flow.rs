//! TCP flows as HTTP/2 CONNECT streams (RFC 9113 §8.5) over one reliable byte stream, and UDP flows beside them ([`udp`]).
//!
//! A flow's FIN is END_STREAM, its RST is RST_STREAM(CONNECT_ERROR); data sent before the answer travels with the
//! opening. Only stream windows limit, never the connection's: a flow nobody reads holds back nobody else.
//!
//! Towards SSH servers that are not ours a flow is an SSH channel instead ([`channel`]), with less to promise.

pub mod channel;
pub mod client;
pub mod server;
pub mod status;
pub mod udp;
mod windows;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

pub use status::ConnectError;
use windows::{Counted, Windows};

use crate::pacing::{FlowHistory, Pacer};

/// Bytes one flow's receiver has not read yet and may hold; the memory bound of a stuck flow at each end. 4 MiB gave
/// no measurable speed on short paths; on long ones a paced session's windows grow ([`windows`]).
const STREAM_WINDOW: u32 = 1 << 20;

/// The largest HTTP/2 allows (RFC 9113 §6.9.1): a finite connection window lets flows nobody reads stall all others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Largest DATA frame in bytes: 16 KiB is measurably slower, above 64 KiB nothing is gained.
const MAX_FRAME: u32 = 64 << 10;

/// Bytes a flow's sender may hand to HTTP/2 before it waits.
const SEND_BUFFER: usize = 256 << 10;

/// Flows one session may hold open. With [`STREAM_WINDOW`] each, stuck flows stay below [`CONNECTION_WINDOW`].
pub const MAX_FLOWS: usize = 2_000;

/// Denial limits of the h2 crate that ordinary load trips and that would end the whole session; the peer is our own,
/// authenticated end, so they protect nobody here. Used by both builders, whose methods are alike but share no trait.
macro_rules! tune {
    ($builder:expr) => {
        $builder
            .initial_window_size($crate::flow::STREAM_WINDOW)
            .initial_connection_window_size($crate::flow::CONNECTION_WINDOW)
            .max_frame_size($crate::flow::MAX_FRAME)
            .max_send_buffer_size($crate::flow::SEND_BUFFER)
            // Default 1,024 per connection lifetime: data for a flow we reset counts (hyperium/h2#856).
            .max_local_error_reset_streams(None)
            // Defaults 50 and 1 s: how long and for how many reset flows late data is recognised.
            .max_concurrent_reset_streams(10_000)
            .reset_stream_duration($crate::flow::RESET_MEMORY)
            .max_pending_accept_reset_streams(100_000)
            // Default: half the connection window. Many small unread frames of one flow would end all of them.
            .data_frame_budget(1 << 30)
    };
}
pub(crate) use tune;

/// How long late data of a reset flow is expected.
const RESET_MEMORY: Duration = Duration::from_secs(30);

/// Both directions of one open (or opening) TCP flow.
pub struct Flow {
    /// Bytes towards the peer.
    pub send: FlowSend,
    /// Bytes from the peer.
    pub recv: FlowRecv,
}

/// Sending half of a [`Flow`]. Dropped before [`finish`](Self::finish), the peer sees a reset.
pub struct FlowSend(SendWay);

enum SendWay {
    Stream(StreamSend),
    Channel(channel::Upload),
}

/// Of an HTTP/2 stream.
struct StreamSend {
    stream: SendStream<Bytes>,
    paced: Option<Paced>,
}

/// A flow's part in its session's pacing.
struct Paced {
    pacer: Arc<Pacer>,
    history: FlowHistory,
}

/// Receiving half of a [`Flow`].
pub struct FlowRecv(RecvWay);

enum RecvWay {
    Stream(StreamRecv),
    Channel(channel::Download),
}

/// Of an HTTP/2 stream.
struct StreamRecv {
    state: RecvState,
    counted: Counted,
}

enum RecvState {
    Opening(ResponseFuture),
    Open(RecvStream),
}

impl Flow {
    fn opening(stream: SendStream<Bytes>, response: ResponseFuture, session: &Session) -> Self {
        session.flow(stream, RecvState::Opening(response))
    }

    fn open(stream: SendStream<Bytes>, recv: RecvStream, session: &Session) -> Self {
        session.flow(stream, RecvState::Open(recv))
    }
}

/// What the flows of one end of a session share.
#[derive(Clone)]
struct Session {
    pacer: Option<Arc<Pacer>>,
    windows: Arc<Windows>,
}

impl Session {
    fn new(pacer: Option<Arc<Pacer>>) -> Self {
        Self { windows: Windows::new(pacer.clone()), pacer }
    }

    fn flow(&self, stream: SendStream<Bytes>, state: RecvState) -> Flow {
        let paced = self.pacer.clone().map(|pacer| Paced { pacer, history: FlowHistory::default() });
        let recv = StreamRecv { state, counted: self.windows.count() };
        Flow {
            send: FlowSend(SendWay::Stream(StreamSend { stream, paced })),
            recv: FlowRecv(RecvWay::Stream(recv)),
        }
    }
}

impl FlowSend {
    /// Sends all of `data`, waiting for the peer's window and for the session's budget.
    ///
    /// # Errors
    /// `ConnectionReset` when the peer reset the flow or the session ended.
    pub async fn send(&mut self, data: Bytes) -> io::Result<()> {
        match &mut self.0 {
            SendWay::Stream(stream) => stream.send(data).await,
            SendWay::Channel(channel) => channel.send(data).await,
        }
    }

    /// Sends the end of input (FIN); the other direction stays open.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn finish(&mut self) -> io::Result<()> {
        match &mut self.0 {
            SendWay::Stream(stream) => stream.finish(),
            SendWay::Channel(channel) => channel.finish(),
        }
    }

    /// Resets the flow: the peer's socket gets RST.
    pub fn reset(&mut self) {
        match &mut self.0 {
            SendWay::Stream(stream) => stream.stream.send_reset(Reason::CONNECT_ERROR),
            SendWay::Channel(channel) => channel.reset(),
        }
    }

    /// Ready once the peer has reset the flow or the session ended. Never ready on an orderly end.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.0 {
            SendWay::Stream(stream) => poll_reset(&mut stream.stream, cx),
            SendWay::Channel(channel) => channel.poll_reset(cx),
        }
    }
}

impl StreamSend {
    async fn send(&mut self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            // `poll_capacity` reports only changes; what is assigned already must be asked for first.
            let granted = match self.stream.capacity() {
                0 => match poll_fn(|cx| self.stream.poll_capacity(cx)).await {
                    Some(granted) => granted.map_err(ended)?,
                    None => return Err(io::ErrorKind::ConnectionReset.into()),
                },
                granted => granted,
            };
            let size = self.permit(granted.min(data.len())).await?;
            if size > 0 {
                self.stream.send_data(data.split_to(size), false).map_err(ended)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.stream.send_data(Bytes::new(), true).map_err(ended)
    }

    /// Waits until the session's budget has room for some of `size` bytes. Only for what the flow's window has room
    /// for already: a flow that waits for its reader must not hold budget.
    async fn permit(&mut self, size: usize) -> io::Result<usize> {
        let Some(Paced { pacer, history }) = self.paced.as_mut().filter(|_| size > 0) else {
            return Ok(size);
        };
        tokio::select! {
            biased;
            permitted = pacer.take(history, size) => Ok(permitted),
            // A flow that is reset while it waits must give its place up.
            error = poll_fn(|cx| poll_reset(&mut self.stream, cx)) => Err(error),
        }
    }
}

impl FlowRecv {
    /// Waits until the far side is connected. Idempotent; [`data`](Self::data) does it by itself.
    ///
    /// # Errors
    /// Why the pod could not connect, or that the session ended first.
    pub async fn opened(&mut self) -> Result<(), ConnectError> {
        match &mut self.0 {
            RecvWay::Stream(stream) => stream.opened().await,
            RecvWay::Channel(channel) => channel.opened().await,
        }
    }

    /// Next bytes, or `None` after the peer's FIN. The peer may send as much again as soon as
    /// [`release`](Self::release) is told these are used.
    ///
    /// # Errors
    /// The connect error as in [`opened`](Self::opened); `ConnectionReset` when the flow was reset or the session
    /// ended: never a clean end.
    pub async fn data(&mut self) -> Result<Option<Bytes>, ConnectError> {
        match &mut self.0 {
            RecvWay::Stream(stream) => stream.data().await,
            RecvWay::Channel(channel) => channel.data().await,
        }
    }

    /// Tells that `bytes` received bytes are used up.
    pub fn release(&mut self, bytes: usize) {
        if let RecvWay::Stream(StreamRecv { state: RecvState::Open(stream), counted }) = &mut self.0 {
            // Fails only for more than was received.
            let _ = stream.flow_control().release_capacity(bytes);
            counted.used(bytes);
        }
    }
}

impl StreamRecv {
    async fn opened(&mut self) -> Result<(), ConnectError> {
        if let RecvState::Opening(response) = &mut self.state {
            let response = response.await.map_err(|error| ConnectError::Session(ended(error)))?;
            status::read(&response)?;
            self.state = RecvState::Open(response.into_body());
        }
        Ok(())
    }

    async fn data(&mut self) -> Result<Option<Bytes>, ConnectError> {
        self.opened().await?;
        let RecvState::Open(stream) = &mut self.state else {
            unreachable!("opened() left the opening state")
        };
        loop {
            tokio::select! {
                biased;
                data = stream.data() => {
                    if let Some(Ok(_)) = data {
                        self.counted.took();
                    }
                    return data.transpose().map_err(|error| ConnectError::Session(ended(error)));
                }
                // The sender may wait for what h2 kept to itself under the larger window.
                () = self.counted.shrunk() => {
                    let _ = stream.flow_control().release_capacity(0); // fails only for more than was received
                }
            }
        }
    }
}

fn poll_reset(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<io::Error> {
    match ready!(stream.poll_reset(cx)) {
        // RFC 9113 §8.1: the peer has all it wants of our input; its answer is complete and still valid.
        Ok(Reason::NO_ERROR) => Poll::Pending,
        Ok(reason) => Poll::Ready(io::Error::new(io::ErrorKind::ConnectionReset, h2::Error::from(reason))),
        Err(error) => Poll::Ready(ended(error)),
    }
}

/// Every way a flow can end badly looks like a reset to its user; the cause stays in `source()`.
fn ended(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// What an HTTP/2 connection may use as its byte stream.
pub trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Stream for T {}
