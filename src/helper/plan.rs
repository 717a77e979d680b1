//! From the user side's words to a plan that is safe to carry out, or a refusal that names the field.
//!
//! Types already rule out most nonsense (a subnet is a subnet, a port a number); here is what remains: names that go
//! into rule texts, counts, ports that are needed, ranges that make no sense. The checked plan is sorted and merged, so
//! equal plans give equal rule texts.

mod names;
mod routes;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::protocol::{self, Bridge, Method, NameServer, Who};

pub use names::{MAX_NAME_SERVERS, MAX_RANKS, MAX_SOCKETS};

/// Most subnets to redirect. A large cluster has one service range and some hundred pod ranges; more than this is a
/// mistake, and the largest plan must fit in one frame.
pub const MAX_INCLUDE: usize = 4096;

/// Most subnets to leave alone: API servers, proxies, what the user named.
pub const MAX_EXCLUDE: usize = 1024;

/// Most single ports to leave alone: API servers, proxies, name servers, what the user named.
pub const MAX_EXCLUDE_PORTS: usize = 256;

/// Most users, groups or control groups; each makes every rule longer.
pub const MAX_WHO: usize = 64;

/// Most combinations of a user, a group and a control group: iptables has no lists and needs a rule for each.
const MAX_WHO_COMBINED: usize = 1024;

/// Longest path of a control group, in bytes; the kernel's own limit is 4096 (`PATH_MAX`).
const MAX_CGROUP: usize = 512;

/// Most bridges; each family of a bridge counts.
pub const MAX_BRIDGES: usize = 32;

/// Longest name of an interface (`IFNAMSIZ` without the NUL).
const MAX_INTERFACE: usize = 15;

/// Longest session name: `kshuttle_`, the name and one capital make a chain of iptables, which has at most 28 bytes
/// (`XT_EXTENSION_MAXNAMELEN`).
pub const MAX_SESSION: usize = 18;

/// A plan that was checked; only [`Plan::check`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    table: String,
    include: Ranges,
    exclude: Ranges,
    /// Sorted by address, each once.
    name_servers: Vec<NameServer>,
    /// Ports of all that ever were in `name_servers`: connections to them may still be open.
    answering: BTreeSet<u16>,
    /// The groups whose sockets speak to name servers themselves; never empty.
    exempt: Vec<u32>,
    /// What [`protocol::Plan`] says of the rest, checked.
    said: protocol::Plan,
}

/// Subnets of both families, each sorted and without overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// IPv4 subnets.
    pub v4: Vec<Ipv4Net>,
    /// IPv6 subnets.
    pub v6: Vec<Ipv6Net>,
}

/// Why a plan is refused. Every message begins with the field's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The session's name would not make a table's name.
    #[error("session: must be 1 to {MAX_SESSION} of a-z, 0-9 and -")]
    Session,
    /// Nothing to redirect.
    #[error("include: no subnet is named")]
    NothingIncluded,
    /// More than one of the limits above.
    #[error("{field}: {count} are more than the {most} allowed")]
    TooMany {
        /// Which list.
        field: &'static str,
        /// How many were named.
        count: usize,
        /// How many may be.
        most: usize,
    },
    /// A subnet that no TCP connection can be redirected from.
    #[error("include: {subnet} is {kind}; it cannot be redirected")]
    NotRedirectable {
        /// The subnet.
        subnet: IpNet,
        /// What it is.
        kind: &'static str,
    },
    /// A user, group or control group that cannot be in a rule.
    #[error("who: {0}")]
    Who(String),
    /// A bridge that cannot be in a rule.
    #[error("bridges: {name:?}: {wrong}")]
    Bridge {
        /// Its name.
        name: String,
        /// What is wrong.
        wrong: &'static str,
    },
    /// A name server whose queries cannot come to us.
    #[error("servers: {address}: {wrong}")]
    NameServer {
        /// Its address.
        address: IpAddr,
        /// What is wrong.
        wrong: &'static str,
    },
    /// Something would be cut off by routes of ours.
    #[error("ipv6_routes: no way would be left to {0}")]
    Routes(String),
    /// A family is included, but nobody listens for it.
    #[error("{field}: needed, because {subnet} is included")]
    NoListener {
        /// `listener_v4` or `listener_v6`.
        field: &'static str,
        /// The first subnet of that family.
        subnet: IpNet,
    },
    /// Port 0 is nobody's.
    #[error("{field}: port 0 cannot be connected to")]
    PortZero {
        /// `listener_v4` or `listener_v6`.
        field: &'static str,
    },
}

impl Plan {
    /// Checks every field; the first that is wrong is named.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn check(said: protocol::Plan) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if said.session.is_empty() || said.session.len() > MAX_SESSION || !said.session.bytes().all(allowed) {
            return Err(Error::Session);
        }
        count("exclude_ports", said.exclude_ports.len(), MAX_EXCLUDE_PORTS)?;
        for (field, port) in [
            ("listener_v4", said.listener_v4),
            ("listener_v6", said.listener_v6),
            ("datagrams_v4", said.datagrams_v4),
            ("datagrams_v6", said.datagrams_v6),
        ] {
            if port == Some(0) {
                return Err(Error::PortZero { field });
            }
        }
        who(&said.who)?;
        count("bridges", said.bridges.len(), MAX_BRIDGES)?;
        said.bridges.iter().try_for_each(bridge)?;
        let (include, exclude) = ranges(&said, &said.include, &said.exclude)?;
        Ok(Self {
            table: format!("kshuttle_{}", said.session),
            include,
            exclude,
            name_servers: Vec::new(),
            answering: BTreeSet::new(),
            exempt: vec![names::EXEMPT],
            said,
        })
    }

    /// The same with other ranges.
    ///
    /// # Errors
    /// As [`Plan::check`].
    pub fn with_ranges(&self, include: &[IpNet], exclude: &[IpNet]) -> Result<Self, Error> {
        let (include, exclude) = ranges(&self.said, include, exclude)?;
        Ok(Self { include, exclude, ..self.clone() })
    }

    /// Which of the system's ways.
    pub fn method(&self) -> Method {
        self.said.method
    }

    /// Name of the nft table.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Destinations to redirect; for each family that has some there is a listener.
    pub fn include(&self) -> &Ranges {
        &self.include
    }

    /// Destinations to leave alone.
    pub fn exclude(&self) -> &Ranges {
        &self.exclude
    }

    /// Single ports to leave alone.
    pub fn exclude_ports(&self) -> &[SocketAddr] {
        &self.said.exclude_ports
    }

    /// Where this machine's own connections and datagrams of a family go, as far as they are redirected.
    pub fn listeners(&self, v6: bool) -> Listeners {
        let (address, connections, datagrams) = if v6 {
            (Ipv6Addr::LOCALHOST.into(), self.said.listener_v6, self.said.datagrams_v6)
        } else {
            (Ipv4Addr::LOCALHOST.into(), self.said.listener_v4, self.said.datagrams_v4)
        };
        Listeners { address, connections, datagrams }
    }

    /// Whose connections.
    pub fn who(&self) -> &Who {
        &self.said.who
    }

    /// Bridges that are redirected, too.
    pub fn bridges(&self) -> &[Bridge] {
        &self.said.bridges
    }

    /// Is this one of our listeners?
    pub fn is_listener(&self, address: SocketAddr) -> bool {
        let of_bridge = |bridge: &Bridge| Listeners {
            address: bridge.address,
            connections: Some(bridge.listener),
            datagrams: bridge.datagrams,
        };
        let own = [false, true].map(|v6| self.listeners(v6));
        let others = self.bridges().iter().map(of_bridge);
        self.is_answering(address) || own.into_iter().chain(others).any(|listeners| listeners.has(address))
    }

    /// Would the rules redirect what goes to this address and port?
    pub fn covers(&self, to: SocketAddr) -> bool {
        self.include.contains(to.ip())
            && !self.exclude.contains(to.ip())
            && !self.exclude_ports().contains(&to)
    }
}

/// Ports of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listeners {
    /// Where they are.
    pub address: IpAddr,
    /// For connections.
    pub connections: Option<u16>,
    /// For datagrams.
    pub datagrams: Option<u16>,
}

impl Listeners {
    fn has(self, address: SocketAddr) -> bool {
        self.address == address.ip() && [self.connections, self.datagrams].contains(&Some(address.port()))
    }
}

impl Ranges {
    fn merged(subnets: &[IpNet]) -> Self {
        let v4: Vec<_> = subnets
            .iter()
            .filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None })
            .collect();
        let v6: Vec<_> = subnets
            .iter()
            .filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None })
            .collect();
        Self { v4: Ipv4Net::aggregate(&v4), v6: Ipv6Net::aggregate(&v6) }
    }

    /// Is this address in one of the subnets?
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.iter().any(|net| net.contains(&address)),
            IpAddr::V6(address) => self.v6.iter().any(|net| net.contains(&address)),
        }
    }
}

fn not_redirectable(subnet: &IpNet) -> Option<&'static str> {
    let special = |range: &str| range.parse::<IpNet>().is_ok_and(|range| range.contains(subnet));
    if special("127.0.0.0/8") || special("::1/128") {
        Some("loopback")
    } else if special("224.0.0.0/4") || special("ff00::/8") {
        Some("multicast")
    } else if special("::ffff:0:0/96") {
        Some("IPv4 written as IPv6")
    } else {
        None
    }
}

/// Both lists, checked against the limits and the listeners of the plan.
fn ranges(said: &protocol::Plan, include: &[IpNet], exclude: &[IpNet]) -> Result<(Ranges, Ranges), Error> {
    if include.is_empty() {
        return Err(Error::NothingIncluded);
    }
    count("include", include.len(), MAX_INCLUDE)?;
    count("exclude", exclude.len(), MAX_EXCLUDE)?;
    for subnet in include {
        if let Some(kind) = not_redirectable(subnet) {
            return Err(Error::NotRedirectable { subnet: *subnet, kind });
        }
    }
    let include = Ranges::merged(include);
    listener("listener_v4", said.listener_v4, include.v4.first().map(|net| IpNet::V4(*net)))?;
    listener("listener_v6", said.listener_v6, include.v6.first().map(|net| IpNet::V6(*net)))?;
    let exclude = Ranges::merged(exclude);
    routes::check(said, &include.v6, &exclude.v6)?;
    Ok((include, exclude))
}

fn count(field: &'static str, count: usize, most: usize) -> Result<(), Error> {
    if count > most { Err(Error::TooMany { field, count, most }) } else { Ok(()) }
}

fn listener(field: &'static str, port: Option<u16>, included: Option<IpNet>) -> Result<(), Error> {
    match (port, included) {
        (None, Some(subnet)) => Err(Error::NoListener { field, subnet }),
        _ => Ok(()),
    }
}

/// The paths become quoted words in a rule: no quote, no backslash, nothing that walks out of the tree.
fn who(who: &Who) -> Result<(), Error> {
    count("who.users", who.users.len(), MAX_WHO)?;
    count("who.groups", who.groups.len(), MAX_WHO)?;
    count("who.cgroups", who.cgroups.len(), MAX_WHO)?;
    let combined: usize = [who.users.len(), who.groups.len(), who.cgroups.len()]
        .iter()
        .map(|length| (*length).max(1))
        .product();
    if combined > MAX_WHO_COMBINED {
        let told = format!("{combined} combinations are more than the {MAX_WHO_COMBINED} allowed");
        return Err(Error::Who(told));
    }
    let part = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._@:-".contains(&byte);
        !["", ".", ".."].contains(&part) && part.bytes().all(allowed)
    };
    match who.cgroups.iter().find(|path| path.len() > MAX_CGROUP || !path.split('/').all(part)) {
        Some(path) => {
            let shown: String = path.chars().take(MAX_CGROUP).collect();
            Err(Error::Who(format!("{shown:?} is no path of a control group in letters, digits and ._@:-")))
        }
        None => Ok(()),
    }
}

fn bridge(bridge: &Bridge) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let name = &bridge.name;
    // A dash in front would look like an option to iptables.
    let plain = name.bytes().all(allowed) && !name.starts_with('-');
    let wrong = if name.is_empty() || name.len() > MAX_INTERFACE || !plain {
        "the name must be 1 to 15 of letters, digits, `.`, `_` and `-`, which does not come first"
    } else if bridge.address.is_loopback() || bridge.address.is_unspecified() || bridge.address.is_multicast()
    {
        "its address must be one of this machine's, and not loopback"
    } else if bridge.address.is_ipv4() != bridge.subnet.addr().is_ipv4() {
        "its address and its subnet must be of one family"
    } else if bridge.subnet.prefix_len() == 0 {
        "its subnet must not be everybody"
    } else if bridge.listener == 0 || bridge.datagrams == Some(0) {
        "port 0 cannot be connected to"
    } else {
        return Ok(());
    };
    Err(Error::Bridge { name: name.chars().take(MAX_INTERFACE).collect(), wrong })
}

#[cfg(test)]
mod tests;
