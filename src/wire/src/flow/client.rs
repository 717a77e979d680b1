//! The laptop's end: opens flows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Uri, Version};
use tokio_util::sync::CancellationToken;

use super::{Flow, Stream, tune};

/// Streams the client may open before the server has said its own limit (it sets none).
const INITIAL_STREAMS: usize = 10_000;

/// Opens flows over one session. Cheap to clone.
#[derive(Clone)]
pub struct FlowClient {
    requests: SendRequest<Bytes>,
    closed: CancellationToken,
    open: Arc<AtomicUsize>,
}

/// A flow that is open, for whoever counts them.
pub(super) struct Counted(Arc<AtomicUsize>);

/// Why no flow could be asked for at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The session ended.
    #[error("open a flow in the session")]
    Closed(#[source] h2::Error),
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
        let (requests, connection) = tune!(h2::client::Builder::new())
            .initial_max_send_streams(INITIAL_STREAMS)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(OpenError::Closed)?;
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "flows connection ended");
            }
            drop(guard);
        });
        Ok(Self { requests, closed, open: Arc::default() })
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
        Ok(Flow::opening(stream, response, Counted::new(&self.open)))
    }

    /// Cancelled when the session has ended; every flow of it has then got an error.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Flows that are open now.
    pub fn open_flows(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
