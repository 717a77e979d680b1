//! The laptop's end: opens flows.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Ping;
use h2::client::SendRequest;
use http::{Method, Request, Uri, Version};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::udp::{self, DatagramFlow};
use super::{Flow, Session, Stream, tune};
use crate::pacing::Pacer;

/// Streams the client may open before the server has said its own limit (it sets none).
const INITIAL_STREAMS: usize = 10_000;

/// How long a UDP flow waits to learn whether the server can serve it, which takes the session's first round trip; behind a deep
/// queue on a slow line that is seconds.
const SETTINGS_TIME: Duration = Duration::from_secs(10);

/// Opens flows over one session. Cheap to clone.
#[derive(Clone)]
pub struct FlowClient {
    requests: SendRequest<Bytes>,
    session: Session,
    closed: CancellationToken,
    /// The server's settings are here.
    settled: watch::Receiver<bool>,
}

/// Why no flow could be asked for at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The session ended.
    #[error("open a flow in the session")]
    Closed(#[source] h2::Error),
    /// The same, with nothing more known about it.
    #[error("the SSH session ended")]
    Ended,
    /// `host:port` is not an authority (RFC 3986 §3.2).
    #[error("{0:?} is not a host and port")]
    Target(String),
    /// It does not announce extended CONNECT (RFC 8441 §3).
    #[error("the pod's server is of a version without UDP")]
    NoDatagrams,
    /// An SSH server that is not ours: its channels carry TCP only (RFC 4254 §7).
    #[error("an SSH server that is not kshuttle's own carries TCP only, no UDP")]
    OnlyTcp,
    /// It has not said yet what it can do.
    #[error("no settings of the pod's server within {} s", SETTINGS_TIME.as_secs())]
    NoSettings,
}

impl FlowClient {
    /// Starts HTTP/2 on `stream`. Its task ends with the stream, or when the last client and flow are dropped.
    ///
    /// # Errors
    /// When the stream ends during the handshake.
    pub async fn start(stream: impl Stream) -> Result<Self, OpenError> {
        Self::start_paced(stream, None).await
    }

    /// As [`start`](Self::start); `pacer` hands out what the flows may send. It must be told what the link under
    /// `stream` does ([`crate::link::Observer`]).
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_paced(stream: impl Stream, pacer: Option<Arc<Pacer>>) -> Result<Self, OpenError> {
        let (requests, mut connection) = tune!(h2::client::Builder::new())
            .initial_max_send_streams(INITIAL_STREAMS)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(OpenError::Closed)?;
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        let session = Session::new(pacer);
        let windows = session.windows.clone();
        let (tell, settled) = watch::channel(false);
        let mut pings = connection.ping_pong().expect("nobody took it before");
        tokio::spawn(async move {
            // A server's first frame is its SETTINGS (RFC 9113 §3.4): when it has answered anything, they are here.
            let mut answered = pin!(pings.ping(Ping::opaque()));
            let result = loop {
                tokio::select! {
                    result = &mut connection => break result,
                    // Fails only with the connection.
                    _ = &mut answered, if !*tell.borrow() => { tell.send_replace(true); }
                    window = windows.changed() => {
                        // Fails while the server has not confirmed the last change.
                        if connection.set_initial_window_size(window).is_ok() {
                            windows.told(window);
                        }
                    }
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "flows connection ended");
            }
            drop(guard);
        });
        Ok(Self { requests, session, closed, settled })
    }

    /// Asks for a connection to `authority` (`host:port`, IPv6 in brackets) and returns at once: data may be sent
    /// before the answer, which [`super::FlowRecv::opened`] waits for.
    ///
    /// # Errors
    /// When the session has ended or `authority` is malformed.
    pub async fn open(&self, authority: &str) -> Result<Flow, OpenError> {
        let target = || OpenError::Target(authority.to_owned());
        let uri = Uri::builder().authority(authority).build().map_err(|_| target())?;
        if uri.port_u16().is_none() {
            return Err(target());
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri;
        let mut requests = self.requests.clone().ready().await.map_err(OpenError::Closed)?;
        let (response, stream) = requests.send_request(request, false).map_err(OpenError::Closed)?;
        Ok(Flow::opening(stream, response, &self.session))
    }

    /// Asks for a UDP flow to `host` (a name or an address, no brackets) and `port`. Datagrams may be sent before the answer, which
    /// [`udp::DatagramRecv::recv`] waits for. Waits itself until the server has said that it can do this: only in a
    /// session's first moments.
    ///
    /// # Errors
    /// When the session has ended, the server cannot do this, or the target is malformed.
    pub async fn open_udp(&self, host: &str, port: u16) -> Result<DatagramFlow, OpenError> {
        if host.is_empty() || port == 0 {
            return Err(OpenError::Target(format!("{host}:{port}")));
        }
        let mut settled = self.settled.clone();
        let settled = tokio::time::timeout(SETTINGS_TIME, settled.wait_for(|settled| *settled));
        settled.await.map_err(|_| OpenError::NoSettings)?.map_err(|_| OpenError::Ended)?;
        let mut requests = self.requests.clone().ready().await.map_err(OpenError::Closed)?;
        if !requests.is_extended_connect_protocol_enabled() {
            return Err(OpenError::NoDatagrams);
        }
        let request = udp::target::request(host, port);
        let (response, stream) = requests.send_request(request, false).map_err(OpenError::Closed)?;
        Ok(DatagramFlow::start(Flow::opening(stream, response, &self.session)))
    }

    /// Flows that are open now.
    pub fn open_flows(&self) -> usize {
        self.session.windows.flows()
    }

    /// Cancelled when the session has ended; every flow of it has then got an error.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}
