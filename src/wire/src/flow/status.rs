//! "Could not connect", in the words of RFC 9209 (Proxy-Status), with the errno beside it.
//!
//! `proxy-status: kshuttle; error=connection_refused; errno=111`

use std::io;

use http::{HeaderValue, Response, StatusCode, header::HeaderName};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Why a flow's far side could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The target's host or a router answered: `connect(2)` failed in the pod with this errno.
    #[error("connect in the cluster")]
    Refused(#[source] io::Error),
    /// The name has no address in the cluster.
    #[error("the cluster knows no address for this name")]
    UnknownName,
    /// No answer from the target in the pod's time for it.
    #[error("no answer from the target")]
    TimedOut,
    /// The pod holds as many flows as it may.
    #[error("the pod holds as many connections as it may ({})", super::MAX_FLOWS)]
    TooMany,
    /// The pod did not understand the target.
    #[error("the pod refused the target as malformed")]
    BadTarget,
    /// An SSH server that is not ours tried and failed; SSH has no word for why (RFC 4254 §5.1).
    #[error("the SSH server could not connect")]
    Failed,
    /// An SSH server that is not ours does not allow it.
    #[error("the SSH server does not permit this connection (AllowTcpForwarding, PermitOpen)")]
    Prohibited,
    /// The session ended, or the flow was reset, before the answer.
    #[error("the tunnel ended")]
    Session(#[source] io::Error),
    /// An answer of a newer pod.
    #[error("the pod answered {status} {detail:?}")]
    Other {
        /// HTTP status of the answer.
        status: u16,
        /// Its Proxy-Status, cut to 200 characters.
        detail: String,
    },
}

impl ConnectError {
    /// The errno an application would have got from `connect(2)` itself.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(error) => error.raw_os_error(),
            Self::TimedOut => Some(ETIMEDOUT),
            _ => None,
        }
    }
}

/// `errno(3)` on Linux, the system the pod runs; numbers travel, so they are not the laptop's.
const ETIMEDOUT: i32 = 110;

/// The server's answer for a failed connect.
pub(super) fn write(error: &ConnectError) -> Response<()> {
    let (status, kind) = match error {
        ConnectError::Refused(cause) => match cause.kind() {
            io::ErrorKind::ConnectionRefused => (StatusCode::BAD_GATEWAY, "connection_refused"),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                (StatusCode::BAD_GATEWAY, "destination_ip_unroutable")
            }
            _ => (StatusCode::BAD_GATEWAY, "connection_terminated"),
        },
        ConnectError::UnknownName => (StatusCode::BAD_GATEWAY, "dns_error"),
        ConnectError::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
        ConnectError::TooMany => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached"),
        ConnectError::BadTarget => (StatusCode::BAD_REQUEST, "http_request_error"),
        ConnectError::Failed => (StatusCode::BAD_GATEWAY, "connection_terminated"),
        ConnectError::Prohibited => (StatusCode::FORBIDDEN, "http_request_denied"),
        ConnectError::Session(_) | ConnectError::Other { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "proxy_internal_error")
        }
    };
    let errno = error.errno().map(|errno| format!("; errno={errno}")).unwrap_or_default();
    let value = HeaderValue::from_str(&format!("kshuttle; error={kind}{errno}"))
        .expect("made of lower-case words and digits");
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(PROXY_STATUS, value);
    response
}

/// Reads the answer to a CONNECT.
pub(super) fn read<B>(response: &Response<B>) -> Result<(), ConnectError> {
    if response.status() == StatusCode::OK {
        return Ok(());
    }
    let value = response.headers().get(PROXY_STATUS).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let parameter = |name: &str| {
        value
            .split(';')
            .filter_map(|part| part.trim().split_once('='))
            .find(|(k, _)| *k == name)
            .map(|(_, v)| v)
    };
    let errno = parameter("errno").and_then(|errno| errno.parse().ok());
    Err(match (parameter("error"), errno) {
        (Some("dns_error"), _) => ConnectError::UnknownName,
        (Some("connection_timeout"), _) => ConnectError::TimedOut,
        (Some("connection_limit_reached"), _) => ConnectError::TooMany,
        (Some("http_request_error"), _) => ConnectError::BadTarget,
        (_, Some(errno)) => ConnectError::Refused(io::Error::from_raw_os_error(errno)),
        _ => ConnectError::Other {
            status: response.status().as_u16(),
            detail: value.chars().take(200).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(error: ConnectError) -> ConnectError {
        read(&write(&error)).unwrap_err()
    }

    #[test]
    fn every_error_keeps_its_meaning_on_the_wire() {
        let refused = ConnectError::Refused(io::Error::from_raw_os_error(111));
        assert_eq!(write(&refused).headers()[PROXY_STATUS], "kshuttle; error=connection_refused; errno=111");
        assert_eq!(there_and_back(refused).errno(), Some(111));
        assert_eq!(there_and_back(ConnectError::TimedOut).errno(), Some(110));
        assert!(matches!(there_and_back(ConnectError::UnknownName), ConnectError::UnknownName));
        assert!(matches!(there_and_back(ConnectError::TooMany), ConnectError::TooMany));
        assert!(matches!(there_and_back(ConnectError::BadTarget), ConnectError::BadTarget));
    }

    #[test]
    fn answers_of_other_servers_are_shown_shortened() {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response.headers_mut().insert(PROXY_STATUS, HeaderValue::from_str(&"x".repeat(1000)).unwrap());
        let ConnectError::Other { status, detail } = read(&response).unwrap_err() else {
            panic!("wrong kind")
        };
        assert_eq!((status, detail.len()), (418, 200));
    }
}
