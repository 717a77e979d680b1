//! The pod's end: connects to what flows ask for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::{ConnectError, Flow, MAX_FLOWS, Session, Stream, status, tune, udp};
use crate::pacing::Pacer;
use crate::relay;

/// How long a target may take to accept, names included. The kernel's own limit is over two minutes, longer than
/// most applications wait; this leaves five tries of SYN (0, 1, 3, 7 and 15 s).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves the flows of one session until its stream ends.
///
/// # Errors
/// When the stream fails or the peer breaks HTTP/2; all its flows are reset then.
pub async fn serve(stream: impl Stream) -> Result<(), h2::Error> {
    serve_paced(stream, None).await
}

/// As [`serve`]; `pacer` hands out what the flows may send. It must be told what the link under `stream` does
/// ([`crate::link::Observer`]).
///
/// # Errors
/// As [`serve`].
pub async fn serve_paced(stream: impl Stream, pacer: Option<Arc<Pacer>>) -> Result<(), h2::Error> {
    let mut connection =
        tune!(h2::server::Builder::new()).enable_connect_protocol().handshake(stream).await?;
    let room = Arc::new(Semaphore::new(MAX_FLOWS));
    let session = Session::new(pacer);
    loop {
        let request = tokio::select! {
            request = connection.accept() => request,
            window = session.windows.changed() => {
                // Fails while the client has not confirmed the last change.
                if connection.set_initial_window_size(window).is_ok() {
                    session.windows.told(window);
                }
                continue;
            }
        };
        let Some(request) = request else { return Ok(()) };
        let (request, respond) = request?;
        let (room, session) = (room.clone(), session.clone());
        tokio::spawn(async move {
            let _place = match room.try_acquire() {
                Ok(place) => place,
                Err(_) => return refuse(respond, &ConnectError::TooMany),
            };
            serve_flow(request, respond, &session).await;
        });
    }
}

async fn serve_flow(request: Request<RecvStream>, respond: SendResponse<Bytes>, session: &Session) {
    if udp::target::is_extended(&request) {
        return serve_datagrams(request, respond, session).await;
    }
    let socket = async {
        let (host, port) = target(&request).ok_or(ConnectError::BadTarget)?;
        connect(&host, port).await
    };
    let Some((socket, send)) = answer(respond, socket, Response::new(())).await else { return };
    let flow = Flow::open(send, request.into_body(), session);
    if let Err(error) = relay::relay(socket, flow).await {
        tracing::debug!(%error, "flow ended early");
    }
}

async fn serve_datagrams(request: Request<RecvStream>, respond: SendResponse<Bytes>, session: &Session) {
    let socket = async {
        let (host, port) = udp::target::read(&request).ok_or(ConnectError::BadTarget)?;
        udp::relay::connect(&host, port).await
    };
    let Some((socket, send)) = answer(respond, socket, udp::target::accepted()).await else { return };
    let flow = Flow::open(send, request.into_body(), session);
    if let Err(error) = udp::relay::relay(socket, flow).await {
        tracing::debug!(%error, "UDP flow ended early");
    }
}

/// Waits for the socket and says `yes` or why not; `None` when there is nothing to carry.
async fn answer<S>(
    mut respond: SendResponse<Bytes>,
    socket: impl Future<Output = Result<S, ConnectError>>,
    yes: Response<()>,
) -> Option<(S, SendStream<Bytes>)> {
    // The laptop may give up while we still connect; then there is nobody to connect for.
    let socket = tokio::select! {
        socket = socket => socket,
        _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return None,
    };
    match socket {
        Ok(socket) => Some((socket, respond.send_response(yes, false).ok()?)),
        Err(error) => {
            refuse(respond, &error);
            None
        }
    }
}

fn refuse(mut respond: SendResponse<Bytes>, error: &ConnectError) {
    // Fails when the session ended meanwhile: then there is nobody to tell.
    let _ = respond.send_response(status::write(error), true);
}

/// Host and port of a CONNECT request; brackets of an IPv6 address taken off.
fn target<B>(request: &Request<B>) -> Option<(String, u16)> {
    let authority = request.uri().authority().filter(|_| request.method() == Method::CONNECT)?;
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.to_owned(), authority.port_u16()?))
}

/// Connects from the pod. A name's addresses are tried one after the other.
///
/// # Errors
/// That of the last address tried.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    first_that_connects(host, port, TcpStream::connect).await
}

/// The same for any socket.
pub(super) async fn first_that_connects<S, F>(
    host: &str,
    port: u16,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<S, ConnectError>
where
    F: Future<Output = io::Result<S>>,
{
    let attempt = async {
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(|_| ConnectError::UnknownName)?.collect();
        let mut last = ConnectError::UnknownName;
        for address in addresses {
            match connect(address).await {
                Ok(socket) => return Ok(socket),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => last = ConnectError::TimedOut,
                Err(error) => last = ConnectError::Refused(error),
            }
        }
        Err(last)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or(Err(ConnectError::TimedOut))
}
