//! The TCP connections that this machine has at this moment, as the kernel lists them in `/proc/net/tcp` and `tcp6`.
//!
//! Not over netlink: `sock_diag` needs modules that a machine may lack (`inet_diag`, `tcp_diag`), and promises no more
//! about connections that come and go while it lists. Format: the kernel's `Documentation/networking/proc_net_tcp.rst`
//! and `net/ipv4/tcp_ipv4.c`; numbers in hex, addresses as words of 32 bits in the order of this machine.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::conntrack::Tuple;

/// Most connections that are kept. nft takes this many in half a second, and its listing of them stays below what we
/// read of it. A development machine has hundreds; who has more towards a cluster's addresses is asked to exclude some.
pub(super) const MOST: usize = 8192;

/// Of this network namespace. Without IPv6 the second one is not there.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// States of the kernel's `include/net/tcp_states.h` in which both sides know each other: ESTABLISHED, SYN_RECV,
/// FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING. Not SYN_SENT (2): what is only tried is redirected at its next
/// try; nor TIME_WAIT (6), CLOSE (7) and LISTEN (10).
const STANDING: [u8; 7] = [1, 3, 4, 5, 8, 9, 11];

/// Why the connections are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No list.
    #[error("{0} cannot be read")]
    Read(&'static str, #[source] io::Error),
    /// A line that is not as the kernel writes it.
    #[error("a line of the kernel's list is not understood: {0}")]
    Malformed(String),
    /// More than [`MOST`].
    #[error("more than {MOST} connections with included addresses are open: exclude some of these addresses")]
    TooMany,
}

/// The connections with a remote end that is `wanted`, as packets of this machine are addressed. What an IPv6
/// socket speaks over IPv4 (`::ffff:10.1.2.3`: sshd does) counts as IPv4.
pub(super) fn connections(wanted: impl Fn(SocketAddr) -> bool) -> Result<Vec<Tuple>, Error> {
    let mut connections = Vec::new();
    for path in TABLES {
        match File::open(path) {
            Ok(table) => collect(path, BufReader::new(table), &wanted, &mut connections)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != TABLES[0] => {}
            Err(error) => return Err(Error::Read(path, error)),
        }
    }
    Ok(connections)
}

fn collect(
    path: &'static str,
    table: impl BufRead,
    wanted: impl Fn(SocketAddr) -> bool,
    connections: &mut Vec<Tuple>,
) -> Result<(), Error> {
    for line in table.lines().skip(1) {
        let line = line.map_err(|error| Error::Read(path, error))?;
        let Some((tuple, state)) = connection(&line) else { return Err(Error::Malformed(line)) };
        if STANDING.contains(&state) && wanted(tuple.dst) {
            if connections.len() == MOST {
                return Err(Error::TooMany);
            }
            connections.push(tuple);
        }
    }
    Ok(())
}

/// `0: 026433C6:0016 0505600A:9C40 01 …`: number, local end, remote end, state.
fn connection(line: &str) -> Option<(Tuple, u8)> {
    let mut words = line.split_whitespace().skip(1);
    let (src, dst) = (end(words.next()?)?, end(words.next()?)?);
    Some((Tuple { src, dst }, u8::from_str_radix(words.next()?, 16).ok()?))
}

fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let bytes = |at: usize| {
        let word = u32::from_str_radix(address.get(8 * at..8 * at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let address = match address.len() {
        8 => Ipv4Addr::from(bytes(0)?).into(),
        32 => {
            let bytes = [bytes(0)?, bytes(1)?, bytes(2)?, bytes(3)?].concat();
            Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines of Linux 6.18, little-endian, as every Linux we ship for is.
    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n";
    const V4: &str =
        "   1: 026433C6:0016 0505600A:9C40 01 00000000:00000000 02:0009A7EE 00000000     0        0 7 2\n";
    const V6: &str = "   2: B80D01200000510000000000020000AA:0050 000000FD000000000000000009000000:01BB 08 00000000:00000000\n";
    const MAPPED: &str = "   3: 0000000000000000FFFF0000026433C6:0016 0000000000000000FFFF00000505600A:9C41 01 00000000:00000000\n";

    fn list(text: &str) -> Result<Vec<(String, String)>, Error> {
        let mut connections = Vec::new();
        collect("test", text.as_bytes(), |to| !to.ip().is_unspecified(), &mut connections)?;
        Ok(connections.iter().map(|Tuple { src, dst }| (src.to_string(), dst.to_string())).collect())
    }

    fn pair(src: &str, dst: &str) -> (String, String) {
        (src.into(), dst.into())
    }

    #[test]
    fn both_families_and_one_in_the_other() {
        let expected = [
            pair("198.51.100.2:22", "10.96.5.5:40000"),
            pair("[2001:db8:51:0:0:0:aa00:2]:80", "[fd00::9]:443"),
            pair("198.51.100.2:22", "10.96.5.5:40001"),
        ]
        .map(|(src, dst)| (src.replace(":0:0:0:", "::"), dst));
        assert_eq!(list(&[HEAD, V4, V6, MAPPED].concat()).unwrap(), expected);
        assert_eq!(list(HEAD).unwrap(), []);
    }

    #[test]
    fn states_in_which_both_sides_know_each_other() {
        let standing = |state: u8| {
            !list(&[HEAD, &V4.replace(" 01 ", &format!(" {state:02X} "))].concat()).unwrap().is_empty()
        };
        assert_eq!((1..=12).filter(|state| standing(*state)).collect::<Vec<_>>(), [1, 3, 4, 5, 8, 9, 11]);
    }

    #[test]
    fn too_many_are_refused() {
        assert_eq!(list(&(HEAD.to_owned() + &V4.repeat(MOST))).unwrap().len(), MOST);
        assert!(matches!(list(&(HEAD.to_owned() + &V4.repeat(MOST + 1))), Err(Error::TooMany)));
    }

    #[test]
    fn a_line_that_is_cut_is_named() {
        for length in 1..V4.find(" 00000000").unwrap() - 2 {
            let error = list(&[HEAD, &V4[..length]].concat()).unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{length}: {error}");
        }
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in "[ :0-9A-Fä\n]{0,200}") {
            let _ = list(&text);
        }
    }
}
