//! What a UDP flow asks for: an extended CONNECT (RFC 8441 §4) to the path that RFC 9298 §2 gives each target.
//!
//! `/.well-known/masque/udp/10.96.0.10/53/`, `/.well-known/masque/udp/fd00%3A%3A1/53/`

use std::fmt::Write;

use h2::ext::Protocol;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version};

/// `:protocol` of a UDP flow (RFC 9298 §3.4).
const PROTOCOL: &str = "connect-udp";

/// The default template's fixed part (RFC 9298 §2).
const PREFIX: &str = "/.well-known/masque/udp/";

/// Who is asked. The request needs a name; nobody looks at it.
const AUTHORITY: &str = "kshuttle";

/// Says that the stream carries capsules (RFC 9297 §3.4), in request and answer.
const CAPSULE_PROTOCOL: HeaderName = HeaderName::from_static("capsule-protocol");

/// Its value: a true boolean (RFC 8941 §3.3.6).
const TRUE: HeaderValue = HeaderValue::from_static("?1");

/// The request for a flow to `host` (no brackets) and `port`.
pub(in crate::flow) fn request(host: &str, port: u16) -> Request<()> {
    let uri = Uri::builder()
        .scheme("https")
        .authority(AUTHORITY)
        .path_and_query(path(host, port))
        .build()
        .expect("a path of unreserved characters, percent signs and slashes");
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    request.extensions_mut().insert(Protocol::from_static(PROTOCOL));
    request.headers_mut().insert(CAPSULE_PROTOCOL, TRUE);
    request
}

/// The answer to a request that is served.
pub(in crate::flow) fn accepted() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CAPSULE_PROTOCOL, TRUE);
    response
}

/// Whether the request is for anything but TCP.
pub(in crate::flow) fn is_extended<B>(request: &Request<B>) -> bool {
    request.extensions().get::<Protocol>().is_some()
}

/// Host and port of a [`request`].
pub(in crate::flow) fn read<B>(request: &Request<B>) -> Option<(String, u16)> {
    let protocol = request.extensions().get::<Protocol>()?;
    let path = Some(request.uri().path()).filter(|_| protocol.as_str() == PROTOCOL)?;
    let (host, port) = path.strip_prefix(PREFIX)?.strip_suffix('/')?.split_once('/')?;
    let (host, port) = (decode(host)?, port.parse().ok()?);
    (!host.is_empty() && port > 0).then_some((host, port))
}

fn path(host: &str, port: u16) -> String {
    let mut path = PREFIX.to_owned();
    for byte in host.bytes() {
        match byte {
            // RFC 3986 §2.3: what never has to be encoded.
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(byte.into()),
            _ => write!(path, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    write!(path, "/{port}/").expect("a string takes everything");
    path
}

/// Undoes percent-encoding (RFC 3986 §2.1).
fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut out = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).filter(|(digits, _)| !digits.starts_with('+'))?;
        out.push(u8::from_str_radix(digits, 16).ok()?);
        out.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_those_of_the_rfc() {
        let request = request("2001:db8::42", 443);
        let uri = "https://kshuttle/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/";
        assert_eq!(request.uri().to_string(), uri);
        assert_eq!(request.headers()["capsule-protocol"], "?1");
        assert_eq!(read(&request), Some(("2001:db8::42".to_owned(), 443)));
    }

    #[test]
    fn malformed_targets_are_none() {
        for path in [
            "/",
            "/.well-known/masque/udp/a/53",
            "/.well-known/masque/udp//53/",
            "/.well-known/masque/udp/a/0/",
            "/.well-known/masque/udp/a/65536/",
            "/.well-known/masque/udp/a/53/x/",
            "/.well-known/masque/udp/%+f/53/",
            "/.well-known/masque/udp/%e/53/",
            "/.well-known/masque/udp/%ff/53/",
        ] {
            let mut request = request("a", 53);
            *request.uri_mut() = format!("https://kshuttle{path}").parse().unwrap();
            assert_eq!(read(&request), None, "{path}");
        }
        let mut other = request("a", 53);
        other.extensions_mut().insert(Protocol::from_static("websocket"));
        assert_eq!(read(&other), None);
    }

    proptest! {
        #[test]
        fn every_host_comes_back(host in "\\PC+", port in 1u16..) {
            prop_assert_eq!(read(&request(&host, port)), Some((host, port)));
        }
    }
}
