//! Addresses as users and the kernel give them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

/// Where a connection wants to go: an address, or a name that only the cluster can resolve.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address and port.
    Address(SocketAddr),
    /// A host name and port; looked up in the pod.
    Name(String, u16),
}

impl Target {
    /// Host (an address without brackets, or a name) and port.
    pub fn host_and_port(&self) -> (String, u16) {
        match self {
            Self::Address(address) => (address.ip().to_string(), address.port()),
            Self::Name(name, port) => (name.clone(), *port),
        }
    }
}

impl fmt::Display for Target {
    /// `host:port`, IPv6 in brackets: an authority as in RFC 3986 §3.2.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

/// A range on the command line: `10.96.0.0/12`, `fd00::/8`, or one address. Host bits are ignored, as by sshuttle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet(pub IpNet);

/// Text that is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an address or a range like 10.96.0.0/12 or fd00::/8")]
pub struct SubnetError;

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let net = match text.parse::<IpNet>() {
            Ok(net) => net,
            Err(_) => IpNet::from(text.parse::<IpAddr>().map_err(|_| SubnetError)?),
        };
        Ok(Self(net.trunc()))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What `-x` leaves alone: a range, or one port of one host (`10.0.0.1:6443`, `[fd00::1]:443`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exclude {
    /// All of these addresses.
    Net(IpNet),
    /// One port.
    Port(SocketAddr),
}

/// Text that is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an address, a range like 10.1.0.0/16, or an address and port like 10.1.2.3:443 or [fd00::1]:443"
)]
pub struct ExcludeError;

impl FromStr for Exclude {
    type Err = ExcludeError;

    fn from_str(text: &str) -> Result<Self, ExcludeError> {
        let port = |_| text.parse().map(Self::Port).map_err(|_| ExcludeError);
        text.parse::<Subnet>().map(|subnet| Self::Net(subnet.0)).or_else(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_authorities() {
        let v6: SocketAddr = "[fd00::1]:443".parse().unwrap();
        assert_eq!(Target::from(v6).to_string(), "[fd00::1]:443");
        assert_eq!(Target::from(v6).host_and_port(), ("fd00::1".to_owned(), 443));
        assert_eq!(Target::Name("hello.default".into(), 80).to_string(), "hello.default:80");
    }

    #[test]
    fn what_can_be_left_alone() {
        let exclude = |text: &str| text.parse::<Exclude>();
        assert_eq!(exclude("10.1.2.3/16"), Ok(Exclude::Net("10.1.0.0/16".parse().unwrap())));
        assert_eq!(exclude("fd00::1"), Ok(Exclude::Net("fd00::1/128".parse().unwrap())));
        assert_eq!(exclude("10.1.2.3:443"), Ok(Exclude::Port("10.1.2.3:443".parse().unwrap())));
        assert_eq!(exclude("[fd00::1]:443"), Ok(Exclude::Port("[fd00::1]:443".parse().unwrap())));
        for text in ["", "office", "10.1.0.0/16:443", "10.1.2.3:", "10.1.2.3:99999", "office:443"] {
            assert!(exclude(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn subnets_as_people_write_them() {
        for (text, net) in [
            ("10.96.0.0/12", "10.96.0.0/12"),
            ("10.96.0.1/12", "10.96.0.0/12"),
            ("10.0.0.7", "10.0.0.7/32"),
            ("fd00:10:96::/112", "fd00:10:96::/112"),
            ("fd00::1", "fd00::1/128"),
        ] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), net);
        }
        for text in ["", "10.0.0.0/33", "10.0.0", "hello", "10.0.0.0/", "/8"] {
            assert!(text.parse::<Subnet>().is_err(), "{text:?}");
        }
    }
}
