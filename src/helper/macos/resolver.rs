//! Files in `/etc/resolver`: which server is asked for the names of a domain (resolver(5); configd's `dnsinfo_flatfile.c`).
//!
//! Every file of that folder counts, also a half-written one: it is written elsewhere on the same volume and renamed. The
//! system notices by itself. Files outlive us and the next boot, so their names tell whose they are.

use std::net::SocketAddrV4;

/// The folder; made with mode 0755 if it is not there.
pub const FOLDER: &str = "/etc/resolver";

/// Before the domain in a file's name.
const PREFIX: &str = "kshuttle.";

/// mDNSResponder takes it for multicast DNS and does not ask.
const MDNS_PORT: u16 = 5353;

/// Seconds until the system asks again; our server always answers.
const TIMEOUT: u32 = 2;

/// Longest name and longest label (RFC 1035 §2.3.4).
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Most domains in a `search` line (`MAXDNSRCH` of resolv.h).
const SEARCH_MAX: usize = 6;

/// Why a file cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing that could stand in a file or be its name.
    #[error("{0:?} is no domain of a-z, 0-9, - and _")]
    Domain(String),
    /// Elsewhere than on this machine.
    #[error("{0} is no name server of this machine")]
    NotLocal(SocketAddrV4),
    /// The port of multicast DNS, or none.
    #[error("macOS asks no name server on port {0}")]
    Port(u16),
    /// More than the system takes.
    #[error("{0} search domains are more than the {SEARCH_MAX} that macOS takes")]
    Search(usize),
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name in [`FOLDER`].
    pub name: String,
    /// What is in it.
    pub text: String,
}

impl File {
    /// Names of `domain` are asked of `server`. The `search` domains complete names of one label, everywhere; a domain below
    /// `.local` needs them, too: only then a negative answer counts at once, else after the time of multicast DNS.
    ///
    /// # Errors
    /// When the system would not understand it.
    pub fn new(domain: &str, server: SocketAddrV4, search: &[&str]) -> Result<Self, Error> {
        for name in search.iter().chain([&domain]) {
            check(name)?;
        }
        if !server.ip().is_loopback() {
            return Err(Error::NotLocal(server));
        }
        if matches!(server.port(), 0 | MDNS_PORT) {
            return Err(Error::Port(server.port()));
        }
        if search.len() > SEARCH_MAX {
            return Err(Error::Search(search.len()));
        }
        let (ip, port) = (server.ip(), server.port());
        // The file's name would be the domain if it were not said.
        let mut text = format!(
            "# by kshuttle, until it ends\ndomain {domain}\nnameserver {ip}\nport {port}\nsearch_order 1\ntimeout {TIMEOUT}\n"
        );
        if !search.is_empty() {
            text.push_str(&format!("search {}\n", search.join(" ")));
        }
        Ok(Self { name: format!("{PREFIX}{domain}"), text })
    }
}

/// Whether a file of this name is kshuttle's; when no session runs, it is a left-over.
pub fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|domain| check(domain).is_ok())
}

/// Forgets the answers that the system keeps, those that a name does not exist among them. Two calls.
pub fn flush_caches() -> [(&'static str, &'static [&'static str]); 2] {
    [("/usr/bin/dscacheutil", &["-flushcache"]), ("/usr/bin/killall", &["-HUP", "mDNSResponder"])]
}

fn check(domain: &str) -> Result<(), Error> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let label = |label: &str| (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(allowed);
    if domain.len() <= NAME_MAX && domain.split('.').all(label) {
        Ok(())
    } else {
        Err(Error::Domain(domain.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn server(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    #[test]
    fn the_domain_of_the_cluster() {
        let search = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];
        let file = File::new("cluster.local", server(53_053), &search).unwrap();
        assert_eq!(file.name, "kshuttle.cluster.local");
        assert_eq!(
            file.text,
            "# by kshuttle, until it ends\ndomain cluster.local\nnameserver 127.0.0.1\nport 53053\nsearch_order 1\n\
             timeout 2\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n"
        );
    }

    #[test]
    fn a_reverse_zone_completes_nothing() {
        let file = File::new("96.10.in-addr.arpa", server(53_053), &[]).unwrap();
        assert_eq!(file.name, "kshuttle.96.10.in-addr.arpa");
        assert!(!file.text.contains("search "), "{}", file.text);
    }

    #[test]
    fn what_macos_would_not_understand_is_refused() {
        assert_eq!(File::new("svc", server(5353), &[]), Err(Error::Port(5353)));
        assert_eq!(File::new("svc", server(0), &[]), Err(Error::Port(0)));
        assert_eq!(File::new("svc", server(1), &["svc"; 7]), Err(Error::Search(7)));
        let elsewhere = "192.0.2.1:53".parse().unwrap();
        assert_eq!(File::new("svc", elsewhere, &[]), Err(Error::NotLocal(elsewhere)));
        let long = "a".repeat(64);
        for domain in ["", ".", "a..b", "../hosts", "a b", "a\nport 1", "A", "a.", &long, &"a.".repeat(200)] {
            assert_eq!(File::new(domain, server(1), &[]), Err(Error::Domain(domain.to_owned())));
            assert_eq!(File::new("svc", server(1), &[domain]), Err(Error::Domain(domain.to_owned())));
        }
    }

    #[test]
    fn ours_are_known_by_their_names() {
        for (name, ours) in [
            ("kshuttle.svc", true),
            ("svc", false),
            ("kshuttle.", false),
            ("kshuttle", false),
            ("xkshuttle.svc", false),
        ] {
            assert_eq!(is_ours(name), ours, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_domain_cannot_leave_its_place(domain in "(?s).{0,40}|[a-z./\n ]{0,9}") {
            if let Ok(file) = File::new(&domain, server(1), &[]) {
                prop_assert!(!file.name.contains('/'));
                prop_assert_eq!(file.text.lines().count(), 6);
                prop_assert!(is_ours(&file.name));
            }
        }
    }
}
