//! The laptop's end: opens flows.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Uri, Version};
use tokio_util::sync::CancellationToken;

use super::{Flow, Session, Stream, tune};
use crate::pacing::Pacer;

/// Streams the client may open before the server has said its own limit (it sets none).
const INITIAL_STREAMS: usize = 10_000;

/// Opens flows over one session. Cheap to clone.
#[derive(Clone)]
pub struct FlowClient {
    requests: SendRequest<Bytes>,
    session: Session,
    closed: CancellationToken,
}

/// Why no flow could be asked for at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The session ended.
    #[error("open a flow in the session")]
    Closed(#[source] h2::Error),
    /// The same, where flows are channels.
    #[error("the SSH session ended")]
    Ended,
    /// `host:port` is not an authority (RFC 3986 §3.2).
    #[error("{0:?} is not a host and port")]
    Target(String),
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
        tokio::spawn(async move {
            let result = loop {
                tokio::select! {
                    result = &mut connection => break result,
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
        Ok(Self { requests, session, closed })
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

    /// Flows that are open now.
    pub fn open_flows(&self) -> usize {
        self.session.windows.flows()
    }

    /// Cancelled when the session has ended; every flow of it has then got an error.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}
