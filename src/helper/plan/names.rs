//! The part of a plan that is about name servers: whose queries come to us, and who may ask them all the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Error, Plan};
use crate::protocol::NameServer;

/// Most name servers whose queries come to us. glibc and musl ask the first three of resolv.conf, others all of them: an
/// office network and a VPN, each with two or three of both families, make a dozen. With iptables each is two rules
/// that every new connection passes.
pub const MAX_NAME_SERVERS: usize = 16;

/// Most sockets in one answer; the kernel passes at most 253 (`SCM_MAX_FD`), the user side asks for four at a time.
pub const MAX_SOCKETS: u8 = 16;

/// The first of the groups whose sockets speak to name servers themselves: numbers that no distribution and no site is known
/// to give to anybody. Where one is taken, the system leaves it out. Each session of a machine has one of its own.
pub(super) const EXEMPT: u32 = 27507;

/// Where conntrack has the outgoing halves of our own queries' entries: zones that nobody is known to use, one for each rank.
const ZONE: u16 = 53053;

/// Most sessions of one machine at once; each lets past the queries of all below it.
pub const MAX_RANKS: u8 = 16;

impl Plan {
    /// The same with these name servers instead.
    ///
    /// # Errors
    /// When there are too many, one has no port, or queries to one could not be answered.
    pub fn with_names(&self, servers: &[NameServer]) -> Result<Self, Error> {
        super::count("servers", servers.len(), MAX_NAME_SERVERS)?;
        let mut name_servers = servers.to_vec();
        name_servers.sort();
        for (at, server) in name_servers.iter().enumerate() {
            let twice = at > 0 && name_servers[at - 1].address == server.address;
            let wrong = if twice { Some("it is there twice") } else { wrong(server) };
            if let Some(wrong) = wrong {
                return Err(Error::NameServer { address: server.address, wrong });
            }
        }
        let mut answering = self.answering.clone();
        answering.extend(name_servers.iter().map(|server| server.port));
        Ok(Self { name_servers, answering, ..self.clone() })
    }

    /// The same with these groups instead, the own one last, behind those of all lower ranks: at most [`MAX_RANKS`].
    pub fn with_exempt(self, exempt: Vec<u32>) -> Self {
        Self { exempt, ..self }
    }

    /// Whose queries come to us, sorted by address.
    pub fn name_servers(&self) -> &[NameServer] {
        &self.name_servers
    }

    /// The place of this session among those of the machine. Where two have the same name servers, programs' queries come to
    /// the one of higher rank; what that asks the servers comes to the lower one, which asks the servers themselves. So each
    /// lets past what those below it send, and none what those above it send: no two would ever ask each other.
    pub fn rank(&self) -> i32 {
        i32::try_from(self.exempt.len()).unwrap_or(i32::MAX) - 1
    }

    /// The groups whose sockets speak to name servers themselves: those of lower ranks, then the own one.
    pub fn exempt(&self) -> &[u32] {
        &self.exempt
    }

    /// The group of the sockets that this session may have.
    pub fn own_group(&self) -> u32 {
        self.exempt.last().copied().unwrap_or(EXEMPT)
    }

    /// What these sockets send is followed here, see `apart` in the texts of the rules.
    pub fn zone(&self) -> u16 {
        ZONE + u16::try_from(self.rank()).unwrap_or_default()
    }

    /// Is this who answers for a name server, or did?
    pub fn is_answering(&self, address: SocketAddr) -> bool {
        [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&address.ip())
            && self.answering.contains(&address.port())
    }
}

/// Loopback addresses are right: dnsmasq and systemd-resolved are there.
fn wrong(server: &NameServer) -> Option<&'static str> {
    let of_ipv6 = |is: fn(&Ipv6Addr) -> bool| matches!(&server.address, IpAddr::V6(address) if is(address));
    if server.port == 0 {
        Some("port 0 cannot be asked")
    } else if server.address.is_unspecified() || server.address.is_multicast() {
        Some("no single machine has this address")
    } else if of_ipv6(|address| address.to_ipv4_mapped().is_some()) {
        Some("it is IPv4 written as IPv6")
    } else if of_ipv6(Ipv6Addr::is_unicast_link_local) {
        // The packet would leave an address of a link for ::1, and the kernel drops it.
        Some("it is known on one link only, and its queries cannot be redirected")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    fn plan() -> Plan {
        let include = vec!["10.0.0.0/8".parse().unwrap()];
        let said = protocol::Plan {
            session: "a".into(),
            include,
            listener_v4: Some(40001),
            ..protocol::Plan::default()
        };
        Plan::check(said).unwrap()
    }

    fn server(address: &str, port: u16) -> NameServer {
        NameServer { address: address.parse().unwrap(), port }
    }

    #[test]
    fn name_servers_replace_those_before() {
        let first = plan().with_names(&[server("::1", 7), server("127.0.0.53", 5), server("10.0.0.2", 6)]);
        let first = first.unwrap();
        assert_eq!(first.name_servers(), [server("10.0.0.2", 6), server("127.0.0.53", 5), server("::1", 7)]);
        let second = first.with_names(&[server("10.0.0.2", 8)]).unwrap();
        assert_eq!(second.name_servers(), [server("10.0.0.2", 8)]);
        // What was open to the first is ours still.
        for (address, ours) in [("127.0.0.1:5", true), ("[::1]:8", true), ("127.0.0.1:9", false)] {
            assert_eq!(second.is_listener(address.parse().unwrap()), ours, "{address}");
        }
        assert!(second.with_names(&[]).unwrap().name_servers().is_empty());
    }

    #[test]
    fn other_ranges_leave_the_name_servers() {
        let named = plan().with_names(&[server("10.0.0.2", 6)]).unwrap();
        let other = named.with_ranges(&["10.1.0.0/16".parse().unwrap()], &[]).unwrap();
        assert_eq!(other.name_servers(), named.name_servers());
    }

    #[test]
    fn name_servers_that_make_no_sense_are_named() {
        for (address, port) in [
            ("10.0.0.2", 0),
            ("0.0.0.0", 5),
            ("::", 5),
            ("224.0.0.251", 5),
            ("ff02::fb", 5),
            ("fe80::1", 5),
            ("::ffff:10.0.0.2", 5),
        ] {
            let error = plan().with_names(&[server(address, port)]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("servers: {address}: ")), "{error}");
        }
        let error = plan().with_names(&[server("::1", 5), server("::1", 6)]).unwrap_err();
        assert_eq!(error.to_string(), "servers: ::1: it is there twice");
        let many: Vec<_> = (0..=16).map(|host| server(&format!("10.0.0.{host}"), 5)).collect();
        plan().with_names(&many[..MAX_NAME_SERVERS]).unwrap();
        let error = plan().with_names(&many).unwrap_err();
        assert_eq!(error.to_string(), "servers: 17 are more than the 16 allowed");
    }
}
