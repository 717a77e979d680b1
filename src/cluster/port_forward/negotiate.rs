//! From a request to an upgraded connection, or to the reason why not.
//!
//! kube's client does URL, TLS, credentials and proxies. Its own `connect` cannot be used: it insists on other subprotocols.
//! Nothing is sent after the request until the 101 has been read: API servers throw such bytes away. hyper keeps bytes
//! that came with the 101.

use std::{error::Error as _, future::poll_fn, io, pin::Pin, sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use hyper::{body::Body as _, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde::Deserialize;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{PortForwardError, Transport};

const SPDY: &str = "SPDY/3.1";
const STREAM_VERSION: &str = "x-stream-protocol-version";
const STREAM_PROTOCOL: &str = "portforward.k8s.io";
/// Not a valid RFC 7230 token (the slash), but what Kubernetes uses (KEP-4006).
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNEL_PROTOCOL: &str = "v4.channel.k8s.io";

/// Bytes of an error body that are read. A Status has a few hundred; a proxy's page should not cost us memory.
const BODY_MAX: usize = 64 * 1024;
/// For the body after the status line: it may come late, but the status alone says enough.
const BODY_WAIT: Duration = Duration::from_secs(5);
/// Characters of a foreign page that are shown.
const PAGE_SHOWN: usize = 200;

/// The resource's path; the names are checked, because they come from people.
pub(super) fn path(namespace: &str, pod: &str) -> Result<String, PortForwardError> {
    if let Some(name) = [namespace, pod].into_iter().find(|name| !is_name(name)) {
        return Err(PortForwardError::Name(name.to_owned()));
    }
    Ok(format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward"))
}

/// Whether the Kubernetes API would take it as an object's name (RFC 1123 subdomain), so that it is safe in a URL.
pub(in crate::cluster) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty() && !text.starts_with('.') && text.len() <= 253 && text.chars().all(allowed)
}

/// One attempt over one way.
pub(super) async fn upgrade(
    client: &kube::Client,
    path: &str,
    port: u16,
    transport: Transport,
) -> Result<TokioIo<Upgraded>, PortForwardError> {
    let key = generate_key();
    let response = match client.send(request(path, port, transport, &key)).await {
        Ok(response) => response,
        Err(error) => return Err(PortForwardError::Dial(Arc::new(error))),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response, transport).await);
    }
    check(response.headers(), transport, &key)?;
    match hyper::upgrade::on(response).await {
        Ok(upgraded) => Ok(TokioIo::new(upgraded)),
        Err(error) => Err(PortForwardError::Upgrade(Arc::new(error))),
    }
}

fn request(path: &str, port: u16, transport: Transport, key: &str) -> Request<Body> {
    let request = Request::builder().header(header::CONNECTION, "Upgrade");
    let request = match transport {
        Transport::Spdy => request
            .method(Method::POST)
            .uri(path)
            .header(header::UPGRADE, SPDY)
            .header(header::CONTENT_LENGTH, "0") // hyper adds none for an empty POST
            .header(STREAM_VERSION, STREAM_PROTOCOL),
        Transport::V4 => websocket(request.uri(format!("{path}?ports={port}")), key, CHANNEL_PROTOCOL),
        Transport::Websocket | Transport::Auto => websocket(request.uri(path), key, TUNNEL_PROTOCOL),
    };
    request.body(Body::empty()).expect("the path was checked and the headers are constant")
}

fn websocket(request: request::Builder, key: &str, protocol: &str) -> request::Builder {
    request
        .method(Method::GET)
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
}

/// Whether the 101 is to what we asked for.
pub(super) fn check(headers: &HeaderMap, transport: Transport, key: &str) -> Result<(), PortForwardError> {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let wrong = |what| Err(PortForwardError::BadUpgrade(what));
    // A list of tokens: proxies add "keep-alive".
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    if !connection
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
    {
        return wrong("no `Connection: Upgrade`");
    }
    if transport == Transport::Spdy {
        if !value("upgrade").eq_ignore_ascii_case(SPDY) {
            return wrong("not upgraded to SPDY/3.1");
        }
        // Very old servers may omit it.
        if headers.contains_key(STREAM_VERSION) && value(STREAM_VERSION) != STREAM_PROTOCOL {
            return wrong("another X-Stream-Protocol-Version");
        }
    } else {
        if !value("upgrade").eq_ignore_ascii_case("websocket") {
            return wrong("not upgraded to websocket");
        }
        if value("sec-websocket-accept") != derive_accept_key(key.as_bytes()) {
            return wrong("a wrong Sec-WebSocket-Accept");
        }
        let protocol = if transport == Transport::V4 { CHANNEL_PROTOCOL } else { TUNNEL_PROTOCOL };
        if value("sec-websocket-protocol") != protocol {
            return wrong("another WebSocket subprotocol");
        }
    }
    Ok(())
}

/// All ways in the order to try them: what worked last, then the cheapest.
pub(super) fn ways(worked: Option<Transport>) -> &'static [Transport] {
    match worked {
        Some(Transport::Websocket) => &[Transport::Websocket, Transport::Spdy, Transport::V4],
        Some(Transport::V4) => &[Transport::V4, Transport::Spdy, Transport::Websocket],
        Some(Transport::Spdy | Transport::Auto) | None => {
            &[Transport::Spdy, Transport::Websocket, Transport::V4]
        }
    }
}

/// Whether this way may succeed where others were refused so.
///
/// Not after answers that would be the same (who we are, no such pod, overload), nor when nothing answered. After 403
/// yes, because the ways need different verbs; but the two kinds of WebSocket are the same request to whatever
/// decides in Kubernetes, so its answer to one is its answer to the other. Silence, and an overload that is not said
/// in Kubernetes' words, may be a proxy that does not know SPDY.
pub(super) fn worth_trying(way: Transport, refused: &[(Transport, PortForwardError)]) -> bool {
    refused.iter().all(|(other, error)| match error {
        PortForwardError::Proxy { .. } | PortForwardError::BadUpgrade(_) | PortForwardError::Upgrade(_) => {
            true
        }
        PortForwardError::Forbidden { .. } => !both_websocket(way, *other),
        PortForwardError::Server { status: 503 | 504, reason, .. } => {
            *other == Transport::Spdy && reason.is_empty()
        }
        PortForwardError::Server { reason, .. } => reason.is_empty() || !both_websocket(way, *other),
        PortForwardError::Timeout { .. } => *other == Transport::Spdy,
        PortForwardError::Dial(error) => cut_off_after_request(error),
        _ => false,
    })
}

fn both_websocket(way: Transport, other: Transport) -> bool {
    way != Transport::Spdy && other != Transport::Spdy
}

/// Some middleboxes let the TLS session through and cut the connection at an `Upgrade` they do not like. An error of
/// the connector (DNS, TCP, TLS) has no hyper error in its chain; one of an established connection has.
fn cut_off_after_request(error: &kube::Error) -> bool {
    let mut established = false;
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(hyper) = error.downcast_ref::<hyper::Error>() {
            established = true;
            if hyper.is_incomplete_message() || hyper.is_closed() {
                return true;
            }
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
            return established
                && matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
        }
        next = error.source();
    }
    false
}

/// Joins the errors of all attempts, in the order they were made; SPDY's leads, if it was an answer: only it comes from the
/// kubelet and the runtime in their own words.
pub(super) fn summary(mut refused: Vec<(Transport, PortForwardError)>) -> PortForwardError {
    let answer = |error: &PortForwardError| !matches!(error, PortForwardError::Timeout { .. });
    let spdy = refused.iter().position(|(way, error)| *way == Transport::Spdy && answer(error));
    let last = refused.len().checked_sub(1).expect("at least one way was tried");
    let (way, error) = refused.remove(spdy.unwrap_or(last));
    if refused.is_empty() {
        return error;
    }
    PortForwardError::Refusals { way, error: Box::new(error), others: refused }
}

#[derive(Deserialize)]
struct Status {
    kind: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
}

/// What an answer other than 101 means.
pub(super) async fn refusal(response: Response<Body>, transport: Transport) -> PortForwardError {
    let status = response.status();
    let headers = response.headers().clone();
    let body = read_body(response.into_body()).await;
    let text = String::from_utf8_lossy(&body);
    let parsed = serde_json::from_slice::<Status>(&body).ok().filter(|parsed| parsed.kind == "Status");
    let reason = parsed.as_ref().map_or("", |parsed| &parsed.reason).to_owned();
    let mut message = parsed.as_ref().map_or(text.trim(), |parsed| &parsed.message).to_owned();
    if message.is_empty() {
        message = status.canonical_reason().unwrap_or("no message").to_owned();
    }
    if parsed.is_none() && (status.is_redirection() || is_page(&headers, &text)) {
        let target = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let text = target.map_or_else(|| page_text(&text), |target| format!("redirect to {target}"));
        return PortForwardError::Proxy { status: status.as_u16(), text };
    }
    match status {
        StatusCode::UNAUTHORIZED => PortForwardError::Unauthorized { message },
        StatusCode::FORBIDDEN if parsed.is_some() => {
            let verb = if transport == Transport::Spdy { "create" } else { "get" };
            PortForwardError::Forbidden { message, verb }
        }
        StatusCode::NOT_FOUND if reason == "NotFound" => PortForwardError::NotFound { message },
        StatusCode::TOO_MANY_REQUESTS => {
            let seconds =
                headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            PortForwardError::TooManyRequests { retry_after: seconds.map(Duration::from_secs), message }
        }
        _ => PortForwardError::Server { status: status.as_u16(), message, reason },
    }
}

/// At most [`BODY_MAX`] bytes within [`BODY_WAIT`]; what came until then if it breaks.
async fn read_body(mut body: Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = async {
        while bytes.len() < BODY_MAX {
            let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else { break };
            if let Some(data) = frame.data_ref() {
                bytes.extend_from_slice(&data[..data.len().min(BODY_MAX - bytes.len())]);
            }
        }
    };
    let _ = tokio::time::timeout(BODY_WAIT, read).await; // late is as good as cut off
    bytes
}

fn is_page(headers: &HeaderMap, text: &str) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    kind.contains("html") || text.trim_start().starts_with('<')
}

/// A page's words without its tags, white space joined, shortened.
fn page_text(page: &str) -> String {
    let mut text = String::new();
    let mut inside_tag = false;
    for c in page.chars() {
        match c {
            '<' => inside_tag = true,
            '>' => inside_tag = false,
            _ if inside_tag => continue,
            c if c.is_whitespace() || c.is_control() => {}
            c => {
                text.push(c);
                continue;
            }
        }
        if !text.is_empty() && !text.ends_with(' ') {
            text.push(' ');
        }
    }
    let mut shown: String = text.trim_end().chars().take(PAGE_SHOWN).collect();
    if shown.len() < text.trim_end().len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        assert_eq!(path("ns", "pod-1.x").unwrap(), "/api/v1/namespaces/ns/pods/pod-1.x/portforward");
        for bad in ["", "..", "a/b", "a?b", "A", "a b", "ä", "%2e"] {
            assert!(matches!(path("ns", bad), Err(PortForwardError::Name(_))), "{bad:?}");
            assert!(matches!(path(bad, "pod"), Err(PortForwardError::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn pages_are_shown_as_short_text() {
        let page =
            "<html><head><title>502 Bad Gateway</title></head>\r\n<body><center><h1>502 Bad\n Gateway</h1>";
        assert_eq!(page_text(page), "502 Bad Gateway 502 Bad Gateway");
        assert_eq!(page_text(&"wörd ".repeat(1000)).chars().count(), PAGE_SHOWN + 1);
    }
}
