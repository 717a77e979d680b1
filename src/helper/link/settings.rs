//! From the user side's words to the words that resolved is told: they become arguments of a program that runs as root.

use super::{MAX_LABEL, MAX_NAME, MAX_NAMES};
use crate::protocol;

/// Settings that were checked; only [`Settings::check`] makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// As resolved wants them: `127.0.0.1:5300`.
    servers: Vec<String>,
    /// As resolved wants them: `~` before those that are not to complete names.
    domains: Vec<String>,
}

/// Why settings are refused. Every message begins with the field's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody to ask.
    #[error("port_v4, port_v6: neither is named")]
    NoPort,
    /// Port 0 is nobody's.
    #[error("{0}: port 0 cannot be asked")]
    PortZero(&'static str),
    /// Nothing to ask about: resolved would ask about everything.
    #[error("domains, search: no name is named")]
    NoName,
    /// More than [`MAX_NAMES`].
    #[error("domains, search: {0} names are more than the {MAX_NAMES} allowed")]
    TooMany(usize),
    /// Not a name.
    #[error(
        "{field}: {name:?} is not a name of at most {MAX_NAME} bytes in parts of 1 to {MAX_LABEL} of a-z, 0-9, - and _, none of which begins with -"
    )]
    Name {
        /// `domains` or `search`.
        field: &'static str,
        /// What was said, shortened.
        name: String,
    },
}

impl Settings {
    /// Checks every field; the first that is wrong is named.
    pub(super) fn check(said: &protocol::Link) -> Result<Self, Error> {
        let ports = [("port_v4", "127.0.0.1", said.port_v4), ("port_v6", "[::1]", said.port_v6)];
        let mut servers = Vec::new();
        for (field, address, port) in ports {
            match port {
                Some(0) => return Err(Error::PortZero(field)),
                Some(port) => servers.push(format!("{address}:{port}")),
                None => {}
            }
        }
        if servers.is_empty() {
            return Err(Error::NoPort);
        }
        match said.domains.len() + said.search.len() {
            0 => return Err(Error::NoName),
            count if count > MAX_NAMES => return Err(Error::TooMany(count)),
            _ => {}
        }
        let mut domains = Vec::new();
        for (field, mark, names) in [("domains", "~", &said.domains), ("search", "", &said.search)] {
            for name in names {
                if !is_name(name) {
                    return Err(Error::Name { field, name: name.chars().take(MAX_NAME).collect() });
                }
                domains.push(format!("{mark}{name}"));
            }
        }
        Ok(Self { servers, domains })
    }

    /// The arguments of every call of `resolvectl` that is needed for them on this link, in order.
    pub(super) fn commands(&self, link: &str) -> Vec<Vec<String>> {
        let command = |verb: &str, values: &[String]| [&[verb.to_owned(), link.to_owned()], values].concat();
        // Other names are not asked here, and nothing is asked by multicast; and whatever the system's settings are, the
        // stub speaks neither DNSSEC nor TLS.
        let mut commands = ["default-route", "llmnr", "mdns", "dnssec", "dnsovertls"]
            .map(|verb| command(verb, &["no".to_owned()]))
            .to_vec();
        commands.push(command("domain", &self.domains));
        commands.push(command("dns", &self.servers)); // last: nothing is asked before
        commands
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    (1..=MAX_LABEL).contains(&label.len()) && !label.starts_with('-') && label.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said() -> protocol::Link {
        protocol::Link {
            port_v4: Some(5300),
            port_v6: Some(5301),
            domains: vec!["cluster.local".into(), "96.10.in-addr.arpa".into()],
            search: vec!["demo.svc.cluster.local".into()],
        }
    }

    #[test]
    fn resolved_is_told_this() {
        let commands = Settings::check(&said()).unwrap().commands("kdns7");
        let lines: Vec<String> = commands.iter().map(|command| command.join(" ")).collect();
        assert_eq!(
            lines,
            [
                "default-route kdns7 no",
                "llmnr kdns7 no",
                "mdns kdns7 no",
                "dnssec kdns7 no",
                "dnsovertls kdns7 no",
                "domain kdns7 ~cluster.local ~96.10.in-addr.arpa demo.svc.cluster.local",
                "dns kdns7 127.0.0.1:5300 [::1]:5301",
            ]
        );
    }

    #[test]
    fn one_family_will_do() {
        let commands = Settings::check(&protocol::Link { port_v4: None, ..said() }).unwrap().commands("l");
        assert_eq!(commands.last().unwrap(), &["dns", "l", "[::1]:5301"]);
    }

    #[test]
    fn ports_are_somebodys() {
        let check = |port_v4, port_v6| Settings::check(&protocol::Link { port_v4, port_v6, ..said() });
        assert_eq!(check(None, None), Err(Error::NoPort));
        assert_eq!(check(Some(0), Some(1)), Err(Error::PortZero("port_v4")));
        assert_eq!(check(Some(1), Some(0)), Err(Error::PortZero("port_v6")));
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let of = |domains, search| {
            let names = |count| vec!["a".to_owned(); count];
            Settings::check(&protocol::Link { domains: names(domains), search: names(search), ..said() })
        };
        assert_eq!(of(0, 0), Err(Error::NoName));
        assert!(of(0, 1).is_ok() && of(MAX_NAMES, 0).is_ok());
        assert_eq!(of(MAX_NAMES, 1), Err(Error::TooMany(MAX_NAMES + 1)));
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        let label = "a".repeat(MAX_LABEL);
        let longest = format!("{label}.{label}.{label}.{}", &label[2..]);
        assert_eq!(longest.len(), MAX_NAME);
        for name in ["svc", "_tcp.a-b.x_1", "0.ip6.arpa", &label, &longest] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a",
            "b.-a",
            "--help",
            "A",
            "ä",
            "a b",
            "a\n",
            "a\0",
            "~a",
            "~.",
            "*.a",
            "a/24",
            "a:1",
            &format!("{label}a"),
            &format!("a{longest}"),
        ] {
            assert!(!is_name(name), "{name}");
            let search = vec![name.to_owned()];
            let refused = Settings::check(&protocol::Link { search, ..said() }).unwrap_err();
            assert!(refused.to_string().starts_with("search: "), "{refused}");
            let domains = vec![name.to_owned()];
            let refused = Settings::check(&protocol::Link { domains, ..said() }).unwrap_err();
            assert!(refused.to_string().starts_with("domains: "), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_argument_is_an_option(names in proptest::collection::vec("[-a-z0-9_.~]{0,12}", 0..4)) {
            if let Ok(settings) = Settings::check(&protocol::Link { search: names, ..said() }) {
                for argument in settings.commands("kdns7").concat() {
                    prop_assert!(!argument.starts_with('-') && !argument.is_empty());
                }
            }
        }
    }
}
