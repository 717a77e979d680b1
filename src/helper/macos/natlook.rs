//! The question to pf where a redirected connection wanted to go: `struct pfioc_natlook` of XNU's `bsd/net/pfvar.h`, as bytes.
//!
//! The layout is the same on both processors and from macOS 10.15 to 15: two addresses asked and two answered of 16 bytes
//! each, four ports in 4-byte unions, then single bytes. Other systems have other layouts behind the same name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the struct.
pub const SIZE: usize = 84;

/// The request `_IOWR('D', 23, struct pfioc_natlook)`.
pub const DIOCNATLOOK: u32 = inout(b'D', 23, SIZE);
const _: () = assert!(DIOCNATLOOK == 0xc054_4417, "as XNU's own headers have it");

/// Both processors of a Mac are little-endian; the fields that matter are in the network's order anyway.
const SADDR: usize = 0;
const DADDR: usize = 16;
const RDADDR: usize = 48;
const SPORT: usize = 64;
const DPORT: usize = 68;
const RDPORT: usize = 76;
const AF: usize = 80;
const PROTO: usize = 81;
const DIRECTION: usize = 83;
const _: () = assert!(DIRECTION + 1 == SIZE, "the direction is the last byte");

/// `AF_INET` and `AF_INET6` of macOS; the latter has another number on every system.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 30;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// `PF_OUT`. The answer belongs to the way back, from our listener to the application; `PF_IN` finds nothing.
const PF_OUT: u8 = 2;

/// Why a question cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One IPv4 and one IPv6 address.
    #[error("both ends of a connection have addresses of one family")]
    Families,
    /// pf refuses to look for port 0.
    #[error("no connection has port 0")]
    PortZero,
}

/// The question about the connection that our socket `own` has with `peer`. `own` is the listener's very address, as the rule
/// has it; a socket that was bound to all addresses tells another.
///
/// # Errors
/// When there can be no such connection.
pub fn question(peer: SocketAddr, own: SocketAddr) -> Result<[u8; SIZE], Error> {
    if peer.port() == 0 || own.port() == 0 {
        return Err(Error::PortZero);
    }
    let mut bytes = [0; SIZE];
    bytes[AF] = match (peer.ip(), own.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => AF_INET,
        (IpAddr::V6(_), IpAddr::V6(_)) => AF_INET6,
        _ => return Err(Error::Families),
    };
    put_address(&mut bytes, SADDR, peer.ip());
    put_address(&mut bytes, DADDR, own.ip());
    bytes[SPORT..SPORT + 2].copy_from_slice(&peer.port().to_be_bytes());
    bytes[DPORT..DPORT + 2].copy_from_slice(&own.port().to_be_bytes());
    bytes[PROTO] = TCP;
    bytes[DIRECTION] = PF_OUT;
    Ok(bytes)
}

/// Where the connection wanted to go, from the struct that pf has filled in; none if it did not.
pub fn destination(bytes: &[u8; SIZE]) -> Option<SocketAddr> {
    let ip = match bytes[AF] {
        AF_INET => IpAddr::V4(Ipv4Addr::from(array::<4>(bytes, RDADDR))),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(array::<16>(bytes, RDADDR))),
        _ => return None,
    };
    let port = u16::from_be_bytes(array(bytes, RDPORT));
    (port != 0 && !ip.is_unspecified()).then_some(SocketAddr::new(ip, port))
}

fn put_address(bytes: &mut [u8; SIZE], at: usize, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => bytes[at..at + 4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes[at..at + 16].copy_from_slice(&ip.octets()),
    }
}

fn array<const LENGTH: usize>(bytes: &[u8; SIZE], at: usize) -> [u8; LENGTH] {
    std::array::from_fn(|index| bytes[at + index])
}

/// `_IOWR` of `sys/ioccom.h`: in and out, 13 bits of length, a group and a number.
const fn inout(group: u8, number: u8, size: usize) -> u32 {
    0xc000_0000 | (size as u32 & 0x1fff) << 16 | (group as u32) << 8 | number as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Written down by hand from the header: what the compiler for both Macs makes of it.
    #[test]
    fn a_question_has_every_byte_in_its_place() {
        let bytes = question(address("192.0.2.7:51234"), address("127.0.0.1:12300")).unwrap();
        let mut expected = [0; 84];
        expected[0..4].copy_from_slice(&[192, 0, 2, 7]);
        expected[16..20].copy_from_slice(&[127, 0, 0, 1]);
        expected[64..66].copy_from_slice(&[0xc8, 0x22]);
        expected[68..70].copy_from_slice(&[0x30, 0x0c]);
        expected[80..84].copy_from_slice(&[2, 6, 0, 2]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn ipv6_has_its_own_number() {
        let bytes = question(address("[2001:db8::7]:1"), address("[::1]:2")).unwrap();
        assert_eq!(bytes[0..16], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(bytes[31], 1);
        assert_eq!(bytes[80..84], [30, 6, 0, 2]);
    }

    #[test]
    fn an_answer_is_read_from_its_place() {
        let mut bytes = question(address("192.0.2.7:51234"), address("127.0.0.1:12300")).unwrap();
        assert_eq!(destination(&bytes), None, "pf has not answered");
        bytes[48..52].copy_from_slice(&[10, 96, 0, 10]);
        assert_eq!(destination(&bytes), None, "a port is needed, too");
        bytes[76..78].copy_from_slice(&[1, 0xbb]);
        assert_eq!(destination(&bytes), Some(address("10.96.0.10:443")));
    }

    #[test]
    fn what_is_no_connection_is_not_asked() {
        let own = address("127.0.0.1:12300");
        assert_eq!(question(address("[::1]:5"), own), Err(Error::Families));
        assert_eq!(question(address("192.0.2.7:0"), own), Err(Error::PortZero));
        assert_eq!(question(own, address("127.0.0.1:0")), Err(Error::PortZero));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), SIZE)) {
            let _ = destination(&bytes.try_into().unwrap());
        }
    }
}
