//! A byte stream to a port inside a pod, through the API server: the client of `kubectl port-forward`'s protocol.
//!
//! ```text
//!  Dialer::open ─ negotiate ─ 101 ─▶ PortForwardStream (stream.rs: poll functions, driver task)
//!                                      └ connection.rs   I/O, buffers, deadlines, verdict
//!                                          ├ websocket.rs  envelope (two of three ways)
//!                                          ├ framing.rs    spdy.rs: frames; channel.rs: the old protocol's channels
//!                                          ├ pair.rs       what the frames of our two streams mean
//!                                          ├ liveness.rs   pings, silence, a machine that slept
//!                                          └ outbox.rs     frames gathered into messages
//! ```
//!
//! One upgraded connection carries one data stream and its error stream: a connection is one head-of-line domain in the
//! container runtime, so a second pair in it would wait for the first. What is on the wire: `docs/port-forward.md`.

mod channel;
mod connection;
mod error;
mod framing;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod liveness;
mod negotiate;
mod outbox;
mod pair;
mod spdy;
mod stream;
#[cfg(test)]
mod tests;
mod websocket;

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use thiserror::Error;

pub(super) use self::negotiate::is_name;
pub use self::{
    channel::ChannelError, connection::STREAM_MEMORY_MAX, error::PortForwardError, spdy::SpdyError,
    stream::PortForwardStream, websocket::WebSocketError,
};

/// From the request to the 101, all attempts together. Through proxies, to kubelet and runtime, with their dials.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(30);
/// Of it for SPDY, as long as nothing is known about the way there: something that does not know SPDY may also swallow
/// the request. Half of what a tunnel's attempt lasts, so that WebSocket has the other half.
const SPDY_WAIT: Duration = Duration::from_secs(5);

/// How to ask the API server for the upgrade, and what is spoken then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// SPDY, the cheapest; WebSocket when it is refused or not answered, then v4; what worked is remembered.
    #[default]
    Auto,
    /// `GET` with `Upgrade: websocket`, SPDY/3.1 inside: passes most proxies; API servers from 1.31 on.
    Websocket,
    /// `POST` with `Upgrade: SPDY/3.1`: all API servers, fewer proxies.
    Spdy,
    /// `GET` with `Upgrade: websocket` and the old subprotocol `v4.channel.k8s.io`: all API servers, most proxies, but
    /// nothing keeps it open over 4 hours without data.
    V4,
}

/// Not one of `auto`, `websocket`, `spdy`, `v4`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unknown transport {0:?}: expected auto, websocket, spdy or v4")]
pub struct UnknownTransport(String);

impl FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        [Transport::Auto, Transport::Websocket, Transport::Spdy, Transport::V4]
            .into_iter()
            .find(|transport| transport.name() == text)
            .ok_or_else(|| UnknownTransport(text.to_owned()))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Transport::Auto => "auto",
            Transport::Websocket => "websocket",
            Transport::Spdy => "spdy",
            Transport::V4 => "v4",
        }
    }
}

/// Opens connections to pods of one namespace. Clones share what was learnt about the way that works.
///
/// The client should be built without kube's own retries (`Config::default_retry = false`): they would use up the
/// handshake's time on an answer the caller wants to see.
#[derive(Clone)]
pub struct Dialer {
    client: kube::Client,
    namespace: Arc<str>,
    transport: Transport,
    works: Arc<Works>,
}

impl Dialer {
    /// Nothing is sent before [`open`](Self::open).
    pub fn new(client: kube::Client, namespace: &str, transport: Transport) -> Self {
        Dialer { client, namespace: namespace.into(), transport, works: Arc::default() }
    }

    /// Asks for the upgrade; the stream's data may be written at once. Whether anything listens on `port` shows only
    /// when reading. Takes at most 30 s; must be called within a tokio runtime. Safe to cancel.
    pub async fn open(&self, pod: &str, port: u16) -> Result<PortForwardStream, PortForwardError> {
        let (transport, io) = self.upgrade(pod, port).await?;
        tracing::debug!(pod, port, %transport, "port-forward open");
        Ok(PortForwardStream::start(io, transport, port))
    }

    /// Asks for the upgrade and leaves at once: whether we may, and which way works. No port of the pod is touched, except
    /// over v4, where the upgrade itself connects to `port`. Takes at most 30 s. Safe to cancel.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn probe(&self, pod: &str, port: u16) -> Result<Transport, PortForwardError> {
        Ok(self.upgrade(pod, port).await?.0)
    }

    async fn upgrade(
        &self,
        pod: &str,
        port: u16,
    ) -> Result<(Transport, TokioIo<Upgraded>), PortForwardError> {
        let path = negotiate::path(&self.namespace, pod)?;
        let ways = match &self.transport {
            Transport::Auto => negotiate::ways(self.works.get()),
            forced => std::slice::from_ref(forced),
        };
        let (transport, io) = tokio::time::timeout(HANDSHAKE_WAIT, self.handshake(&path, port, ways))
            .await
            .unwrap_or(Err(PortForwardError::Timeout { after: HANDSHAKE_WAIT }))?;
        self.works.set(transport);
        Ok((transport, io))
    }

    /// Tries these ways in turn, as long as the answers leave hope.
    async fn handshake(
        &self,
        path: &str,
        port: u16,
        ways: &[Transport],
    ) -> Result<(Transport, TokioIo<Upgraded>), PortForwardError> {
        let mut refused = Vec::new();
        for &way in ways {
            if !negotiate::worth_trying(way, &refused) {
                continue;
            }
            let choice = way == Transport::Spdy && ways.len() > 1 && self.works.get().is_none();
            let after = if choice { SPDY_WAIT } else { HANDSHAKE_WAIT };
            let upgraded =
                tokio::time::timeout(after, negotiate::upgrade(&self.client, path, port, way)).await;
            match upgraded.unwrap_or(Err(PortForwardError::Timeout { after })) {
                Ok(io) => return Ok((way, io)),
                Err(error) => {
                    tracing::debug!(%way, %error, "port-forward refused");
                    refused.push((way, error));
                }
            }
        }
        Err(negotiate::summary(refused))
    }
}

/// The way that worked last, if one did.
#[derive(Default)]
struct Works(AtomicU8);

impl Works {
    fn get(&self) -> Option<Transport> {
        match self.0.load(Ordering::Relaxed) {
            1 => Some(Transport::Spdy),
            2 => Some(Transport::Websocket),
            3 => Some(Transport::V4),
            _ => None,
        }
    }

    fn set(&self, transport: Transport) {
        let number = match transport {
            Transport::Auto => 0,
            Transport::Spdy => 1,
            Transport::Websocket => 2,
            Transport::V4 => 3,
        };
        self.0.store(number, Ordering::Relaxed);
    }
}
