//! The text of a resolv.conf, whatever somebody wrote into it.
//!
//! The crate `resolv-conf` leaves out lines that are no UTF-8, servers behind a byte order mark and servers with a port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use nix::net::if_::if_nametoindex;

/// Port of name servers.
pub const DNS: u16 = 53;

/// glibc takes more dots for so many (`RES_MAXNDOTS` in its `resolv.h`).
const NDOTS_MAX: u8 = 15;

/// What one file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// `nameserver`, in their order.
    pub servers: Vec<SocketAddr>,
    /// `search`, or `domain`.
    pub search: Vec<String>,
    /// Of `options`.
    pub ndots: u8,
}

/// Reads what can be read: lines of other kinds are left out, and so are servers that are no addresses.
pub fn resolv_conf(text: &[u8]) -> Parsed {
    let mut parsed = Parsed { servers: Vec::new(), search: Vec::new(), ndots: 1 };
    let text = String::from_utf8_lossy(text);
    let text = text.trim_start_matches('\u{feff}');
    for line in text.split(['\n', '\r']) {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split(|c: char| c.is_whitespace() || c == '\0').filter(|word| !word.is_empty());
        match words.next() {
            Some("nameserver") => parsed.servers.extend(words.next().and_then(server)),
            // The last of both counts.
            Some("domain") => parsed.search = words.next().map(str::to_owned).into_iter().collect(),
            Some("search") => parsed.search = words.map(str::to_owned).collect(),
            Some("options") => {
                for option in words {
                    let ndots = option.strip_prefix("ndots:").and_then(|dots| dots.parse::<u32>().ok());
                    if let Some(dots) = ndots {
                        parsed.ndots = u8::try_from(dots).unwrap_or(NDOTS_MAX).min(NDOTS_MAX);
                    }
                }
            }
            _ => {}
        }
    }
    parsed
}

/// `10.0.0.1`, `fd00::1`, `fe80::1%wlan0`, and with a port as the BSDs write it (`[fd00::1]:5353`) or simply `10.0.0.1:5353`.
fn server(word: &str) -> Option<SocketAddr> {
    let (address, port) = match word.strip_prefix('[').and_then(|word| word.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':')),
        None => match word.split_once(':') {
            Some((address, port)) if !port.contains(':') => (address, Some(port)),
            _ => (word, None),
        },
    };
    let port = port.and_then(|port| port.parse().ok()).unwrap_or(DNS);
    if let Some(address) = ipv4(address) {
        return Some(SocketAddr::new(IpAddr::V4(address), port));
    }
    let (address, scope) = address.split_once('%').unwrap_or((address, ""));
    let address: Ipv6Addr = address.parse().ok()?;
    // An interface that is not there now: the server stays one.
    let scope = scope.parse().ok().or_else(|| if_nametoindex(scope).ok()).unwrap_or(0);
    Some(SocketAddrV6::new(address, port, 0, scope).into())
}

/// As the C library's inet_aton(3) reads it: octal and hexadecimal parts, and fewer than four, of which the last fills the rest.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let part = |text: &str| {
        let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => (digits, 16),
            None if text.len() > 1 && text.starts_with('0') => (text, 8),
            None => (text, 10),
        };
        let plain = digits.chars().all(|c| c.is_ascii_hexdigit()); // no sign
        u32::from_str_radix(digits, radix).ok().filter(|_| plain)
    };
    let parts: Vec<u32> = text.split('.').map(part).collect::<Option<_>>()?;
    let (last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|part| *part > 255) {
        return None;
    }
    let room = 32 - 8 * u32::try_from(first.len()).ok()?;
    if u64::from(*last) >= 1 << room {
        return None;
    }
    let high = first.iter().zip([24, 16, 8]).fold(0, |sum, (part, shift)| sum | part << shift);
    Some(Ipv4Addr::from(high | last))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// As in the golden files beside the corpus.
    fn golden(parsed: &Parsed) -> String {
        let servers = parsed.servers.iter().map(|server| format!("server {server}\n"));
        let search = parsed.search.iter().map(|suffix| format!("search {suffix}\n"));
        servers.chain(search).chain([format!("ndots {}\n", parsed.ndots)]).collect()
    }

    #[test]
    fn the_corpus_is_read_as_its_golden_files_say() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/resolver");
        let mut seen = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "conf") {
                let expected = fs::read_to_string(path.with_extension("golden")).unwrap();
                assert_eq!(golden(&resolv_conf(&fs::read(&path).unwrap())), expected, "{}", path.display());
                seen += 1;
            }
        }
        assert!(seen >= 20, "{seen}");
    }

    #[test]
    fn addresses_as_the_c_library_reads_them() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1"),
            ("127.1", "127.0.0.1"),
            ("10.1.258", "10.1.1.2"),
            ("0x7f000001", "127.0.0.1"),
            ("010.0.0.1", "8.0.0.1"),
            ("0", "0.0.0.0"),
        ] {
            assert_eq!(ipv4(text).unwrap().to_string(), expected, "{text}");
        }
        for text in [
            "",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.2.3.256",
            "1.2.65536",
            "4294967296",
            "+1.1.1.1",
            "1..2",
            "08.1.1.1",
            "x",
        ] {
            assert_eq!(ipv4(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            resolv_conf(&text);
        }

        #[test]
        fn no_server_is_lost(
            servers in proptest::collection::vec(any::<IpAddr>(), 0..8),
            noise in proptest::collection::vec(any::<u8>(), 0..40),
            ending in prop_oneof![Just("\n"), Just("\r\n"), Just(" # x\n"), Just("\t;\n")],
        ) {
            let mut text = Vec::new();
            for server in &servers {
                text.extend(noise.iter().filter(|byte| **byte != b'\n' && **byte != b'\r'));
                text.extend(format!("\nnameserver\t{server}{ending}").bytes());
            }
            let found: Vec<IpAddr> = resolv_conf(&text).servers.iter().map(SocketAddr::ip).collect();
            let noisy = |server: &IpAddr| !servers.contains(server);
            prop_assert_eq!(found.into_iter().filter(|server| !noisy(server)).collect::<Vec<_>>(), servers.clone());
        }
    }
}
