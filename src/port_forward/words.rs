//! The command's words: `[LOCAL:]REMOTE` and `--address`. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::cluster::target::ports::{Remote, RemoteError};

/// `[LOCAL:]REMOTE`, as kubectl reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Port to listen on: 0 lets the kernel choose, none is the remote port's number.
    pub local: Option<u16>,
    /// The target's port.
    pub remote: Remote,
}

/// Text that is not `[LOCAL:]REMOTE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardWordError {
    /// Before the colon.
    #[error("`{0}` is not a local port from 0 to 65535")]
    Local(String),
    /// `80/udp` and the like.
    #[error("only TCP can be forwarded; leave out `/{0}`")]
    Protocol(String),
    /// After the colon.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

impl FromStr for Forward {
    type Err = ForwardWordError;

    fn from_str(text: &str) -> Result<Self, ForwardWordError> {
        if let Some((_, protocol)) = text.split_once('/') {
            return Err(ForwardWordError::Protocol(protocol.to_owned()));
        }
        let Some((local, remote)) = text.split_once(':') else {
            return Ok(Self { local: None, remote: text.parse()? });
        };
        let number = if local.is_empty() { Ok(0) } else { local.parse() };
        let local = number.map_err(|_| ForwardWordError::Local(local.to_owned()))?;
        Ok(Self { local: Some(local), remote: remote.parse()? })
    }
}

/// One entry of `--address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// 127.0.0.1 and ::1, the latter if this machine has IPv6.
    Localhost,
    /// This one.
    Ip(IpAddr),
}

/// Text that is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an IP address or `localhost`")]
pub struct AddressWordError;

impl Address {
    /// What to listen on, the first first.
    pub fn ips(self) -> Vec<IpAddr> {
        match self {
            Self::Localhost => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Self::Ip(ip) => vec![ip],
        }
    }
}

impl FromStr for Address {
    type Err = AddressWordError;

    fn from_str(text: &str) -> Result<Self, AddressWordError> {
        if text == "localhost" {
            return Ok(Self::Localhost);
        }
        text.parse().map(Self::Ip).map_err(|_| AddressWordError)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Localhost => f.write_str("localhost"),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_kubectl_reads_them() {
        let number = Remote::Number;
        let name = |text: &str| Remote::Name(text.into());
        for (text, local, remote) in [
            ("8080", None, number(8080)),
            ("8888:5000", Some(8888), number(5000)),
            (":5000", Some(0), number(5000)),
            ("0:5000", Some(0), number(5000)),
            ("https", None, name("https")),
            ("8443:https", Some(8443), name("https")),
            (":https", Some(0), name("https")),
        ] {
            assert_eq!(text.parse(), Ok(Forward { local, remote }), "{text}");
        }
        for text in [
            "",
            ":",
            "8080:",
            "0",
            "http:80",
            "70000:80",
            "80:70000",
            "1:2:3",
            "-1:80",
            "53/udp",
            "53:53/UDP",
        ] {
            assert!(text.parse::<Forward>().is_err(), "{text:?}");
        }
        assert!("53/udp".parse::<Forward>().unwrap_err().to_string().contains("only TCP"));
    }

    #[test]
    fn addresses() {
        assert_eq!("localhost".parse::<Address>().unwrap().ips().len(), 2);
        assert_eq!("::".parse::<Address>().unwrap().to_string(), "::");
        for text in ["", "example.org", "127.0.0.1:80", "[::1]"] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
