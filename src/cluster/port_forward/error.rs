//! Everything that can go wrong with a port-forward, before and after the upgrade, as one type.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use thiserror::Error;

use super::{Transport, channel::ChannelError, spdy::SpdyError, websocket::WebSocketError};

/// Why a port-forward could not be opened, or how it ended. `Clone`, because reader and writer both get it.
///
/// The first group comes from [`Dialer::open`](super::Dialer::open); the second is found as the inner error of an
/// [`io::Error`] from the stream (`error.get_ref()`, then `downcast_ref`).
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum PortForwardError {
    /// Not a name the Kubernetes API allows, so it was not put into a URL.
    #[error("{0:?} is not a valid pod or namespace name")]
    Name(String),
    /// 401: the credentials are missing, wrong or expired.
    #[error("the API server does not accept the credentials: {message}")]
    Unauthorized {
        /// The server's words.
        message: String,
    },
    /// 403 with a Kubernetes `Status`: a right on `pods/portforward` is missing.
    #[error("not permitted to port-forward: {message}")]
    Forbidden {
        /// The server's words.
        message: String,
        /// The verb this way needs: `get` for both kinds of WebSocket, `create` for SPDY; API servers from 1.35 on ask for
        /// `create` too in the first case, so a role should have both.
        verb: &'static str,
    },
    /// 404 with a Kubernetes `Status`: no such pod (or namespace).
    #[error("{message}")]
    NotFound {
        /// The server's words.
        message: String,
    },
    /// 429: the API server or kubelet asks for patience.
    #[error("too many requests: {message}")]
    TooManyRequests {
        /// From `Retry-After`, when given in seconds.
        retry_after: Option<Duration>,
        /// The server's words.
        message: String,
    },
    /// Any other answer of a Kubernetes program: API server, kubelet or container runtime.
    #[error("the API server answered {status} to the port-forward: {message}")]
    Server {
        /// HTTP status code.
        status: u16,
        /// `message` of the Status object, else the text.
        message: String,
        /// `reason` of the Status object; empty when the answer was none, as those of kubelet and runtime are.
        reason: String,
    },
    /// An answer that did not come from Kubernetes: a page, a redirect.
    #[error("something between us and the API server answered {status} to the port-forward: {text}")]
    Proxy {
        /// HTTP status code.
        status: u16,
        /// The page without its tags, shortened; or where a redirect points.
        text: String,
    },
    /// 101, but not to what was asked for.
    #[error("the upgrade was answered wrongly: {0}")]
    BadUpgrade(&'static str),
    /// No HTTP answer: the API server could not be reached, TLS failed, credentials could not be made, or the
    /// connection ended early.
    #[error("cannot send the port-forward request")]
    Dial(#[source] Arc<kube::Error>),
    /// 101, but the connection was not handed over.
    #[error("the upgraded connection was lost at once")]
    Upgrade(#[source] Arc<hyper::Error>),
    /// No answer to the upgrade in time.
    #[error("no answer to the port-forward request within {} s", .after.as_secs())]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// More than one way was tried, and refused; SPDY, if among them, is the source, because its answer says most.
    #[error("port-forward refused over {way}{}", also(.others))]
    Refusals {
        /// The way `error` is about.
        way: Transport,
        /// What came of it.
        #[source]
        error: Box<PortForwardError>,
        /// The others, in the order they were tried.
        others: Vec<(Transport, PortForwardError)>,
    },

    /// Nothing listens on the pod's port.
    #[error("connection refused in the pod: {text}")]
    Refused {
        /// The container runtime's words.
        text: String,
    },
    /// The pod's side reset the connection, or the runtime cancelled the stream (status 5, also its idle timeout).
    #[error("connection reset by the pod (stream status {status:?}){}{text}", if .text.is_empty() { "" } else { ": " })]
    Reset {
        /// Status of the RST_STREAM, if there was one.
        status: Option<u32>,
        /// The container runtime's words, often none.
        text: String,
    },
    /// The pod's sandbox is not there any more.
    #[error("the pod is gone: {text}")]
    SandboxGone {
        /// The container runtime's words.
        text: String,
    },
    /// The runtime reported something else.
    #[error("port-forward failed on the node: {text}")]
    Node {
        /// The container runtime's words.
        text: String,
    },
    /// Both streams ended cleanly without a byte. VM runtimes (Kata under CRI-O) do this because they do not implement
    /// port-forward; a server that closes at once looks the same.
    #[error("the pod closed the connection before any data (a VM runtime without port-forward does this)")]
    ClosedBeforeData,
    /// The streams were not confirmed in time.
    #[error("the node did not open the streams within {} s", .after.as_secs())]
    StreamTimeout {
        /// How long was waited.
        after: Duration,
    },
    /// The connection to the API server broke or ended.
    #[error("lost the connection to the API server")]
    ConnectionLost(#[source] Arc<io::Error>),
    /// Nothing was heard from the node although pings were sent.
    #[error("no sign of life from the node for {} s", .after.as_secs())]
    PingTimeout {
        /// Length of the silence.
        after: Duration,
    },
    /// The runtime's streaming server is going away.
    #[error("the node closed the session (GOAWAY status {status})")]
    GoAway {
        /// 0 is an ordinary end.
        status: u32,
    },
    /// The peer broke SPDY.
    #[error("protocol error")]
    Protocol(#[from] SpdyError),
    /// The peer broke WebSocket.
    #[error("protocol error")]
    WebSocket(#[from] WebSocketError),
    /// The peer broke `v4.channel.k8s.io`.
    #[error("protocol error")]
    Channel(#[from] ChannelError),
    /// The other side has closed; what is written now goes nowhere.
    #[error("the pod has closed the connection")]
    Closed,
}

impl PortForwardError {
    /// Whether the cluster knows us and does not permit it, over any of the ways that were tried: with the right it
    /// names, that way would have been open.
    pub fn is_forbidden(&self) -> bool {
        self.any(|error| matches!(error, Self::Forbidden { .. }))
    }

    /// This error among the causes of another: the tunnels share theirs, so it may be behind an [`Arc`].
    pub fn among<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let shared = || cause.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?.downcast_ref();
        cause.downcast_ref().or_else(shared)
    }

    /// Whether the cluster refuses who we are, or what we may.
    pub fn is_denied(&self) -> bool {
        self.is_forbidden() || self.any(|error| matches!(error, Self::Unauthorized { .. }))
    }

    /// Of this error, or of one of those it is made of.
    fn any(&self, test: fn(&Self) -> bool) -> bool {
        match self {
            Self::Refusals { error, others, .. } => {
                test(error) || others.iter().any(|(_, error)| test(error))
            }
            error => test(error),
        }
    }

    /// As the error of a read or write, with this as its inner error.
    pub(super) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Refused { .. } => io::ErrorKind::ConnectionRefused,
            Self::Reset { .. } => io::ErrorKind::ConnectionReset,
            Self::PingTimeout { .. } | Self::StreamTimeout { .. } => io::ErrorKind::TimedOut,
            Self::ClosedBeforeData => io::ErrorKind::UnexpectedEof,
            Self::Protocol(_) | Self::WebSocket(_) | Self::Channel(_) => io::ErrorKind::InvalidData,
            Self::Closed => io::ErrorKind::BrokenPipe,
            Self::SandboxGone { .. } | Self::ConnectionLost(_) | Self::GoAway { .. } => {
                io::ErrorKind::ConnectionAborted
            }
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }

    pub(super) fn lost(error: io::Error) -> Self {
        Self::ConnectionLost(Arc::new(error))
    }
}

fn also(others: &[(Transport, PortForwardError)]) -> String {
    others.iter().map(|(way, error)| format!(", and over {way} ({error})")).collect()
}
