//! From the user side's words to a plan that is safe to carry out, or a refusal that names the field.
//!
//! Types already rule out most nonsense (a subnet is a subnet, a port a number); here is what remains: names that go
//! into rule texts, counts, ports that are needed, ranges that make no sense. The checked plan is sorted and merged, so
//! equal plans give equal rule texts.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::protocol;

/// Most subnets to redirect. A large cluster has one service range and some hundred pod ranges; more than this is a
/// mistake, and the largest plan must fit in one frame.
pub const MAX_INCLUDE: usize = 4096;

/// Most subnets to leave alone: API servers, proxies, what the user named.
pub const MAX_EXCLUDE: usize = 1024;

/// Longest session name. nft allows 255 bytes for a table's name; people read this one in listings.
pub const MAX_SESSION: usize = 32;

/// A plan that was checked; only [`Plan::check`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    table: String,
    include: Ranges,
    exclude: Ranges,
    listener_v4: Option<u16>,
    listener_v6: Option<u16>,
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
    /// More subnets than [`MAX_INCLUDE`] or [`MAX_EXCLUDE`].
    #[error("{field}: {count} subnets are more than the {most} allowed")]
    TooMany {
        /// `include` or `exclude`.
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
    pub fn check(said: protocol::Plan) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if said.session.is_empty() || said.session.len() > MAX_SESSION || !said.session.bytes().all(allowed) {
            return Err(Error::Session);
        }
        if said.include.is_empty() {
            return Err(Error::NothingIncluded);
        }
        for (field, count, most) in
            [("include", said.include.len(), MAX_INCLUDE), ("exclude", said.exclude.len(), MAX_EXCLUDE)]
        {
            if count > most {
                return Err(Error::TooMany { field, count, most });
            }
        }
        for subnet in &said.include {
            if let Some(kind) = not_redirectable(subnet) {
                return Err(Error::NotRedirectable { subnet: *subnet, kind });
            }
        }
        let include = Ranges::merged(&said.include);
        listener("listener_v4", said.listener_v4, include.v4.first().map(|net| IpNet::V4(*net)))?;
        listener("listener_v6", said.listener_v6, include.v6.first().map(|net| IpNet::V6(*net)))?;
        Ok(Self {
            table: format!("kshuttle_{}", said.session),
            include,
            exclude: Ranges::merged(&said.exclude),
            listener_v4: said.listener_v4,
            listener_v6: said.listener_v6,
        })
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

    /// Port on 127.0.0.1.
    pub fn listener_v4(&self) -> Option<u16> {
        self.listener_v4
    }

    /// Port on ::1.
    pub fn listener_v6(&self) -> Option<u16> {
        self.listener_v6
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
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        match address {
            std::net::IpAddr::V4(address) => self.v4.iter().any(|net| net.contains(&address)),
            std::net::IpAddr::V6(address) => self.v6.iter().any(|net| net.contains(&address)),
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

fn listener(field: &'static str, port: Option<u16>, included: Option<IpNet>) -> Result<(), Error> {
    match (port, included) {
        (Some(0), _) => Err(Error::PortZero { field }),
        (None, Some(subnet)) => Err(Error::NoListener { field, subnet }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn said() -> protocol::Plan {
        protocol::Plan {
            session: "dev-1".into(),
            include: nets(&["10.96.0.0/12", "fd00::/8"]),
            exclude: nets(&["10.96.0.1/32"]),
            listener_v4: Some(40001),
            listener_v6: Some(40002),
        }
    }

    #[test]
    fn a_good_plan_is_sorted_and_merged() {
        let include = nets(&["10.5.0.1/16", "10.4.0.0/16", "10.4.1.0/24", "9.0.0.0/8", "fd00::1/64"]);
        let plan = Plan::check(protocol::Plan { include, ..said() }).unwrap();
        assert_eq!(plan.table(), "kshuttle_dev-1");
        assert_eq!(
            plan.include().v4.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["9.0.0.0/8", "10.4.0.0/15"]
        );
        assert_eq!(plan.include().v6.iter().map(ToString::to_string).collect::<Vec<_>>(), ["fd00::/64"]);
        assert!(plan.include().contains("10.5.255.255".parse().unwrap()));
        assert!(!plan.include().contains("10.6.0.0".parse().unwrap()));
        assert!(plan.include().contains("fd00::2".parse().unwrap()));
    }

    #[test]
    fn a_session_name_cannot_leave_its_place_in_a_rule() {
        for session in ["", "a b", "A", "a;", "a\n", "a{", "ä", "a_b", "123456789012345678901234567890123"] {
            assert_eq!(
                Plan::check(protocol::Plan { session: session.into(), ..said() }),
                Err(Error::Session)
            );
        }
    }

    #[test]
    fn counts_are_bounded() {
        let include = nets(&["10.0.0.0/8"]).repeat(MAX_INCLUDE + 1);
        let error = Plan::check(protocol::Plan { include, ..said() }).unwrap_err();
        assert_eq!(error.to_string(), "include: 4097 subnets are more than the 4096 allowed");
        let exclude = nets(&["10.0.0.0/8"]).repeat(MAX_EXCLUDE + 1);
        let error = Plan::check(protocol::Plan { exclude, ..said() }).unwrap_err();
        assert_eq!(error.to_string(), "exclude: 1025 subnets are more than the 1024 allowed");
        assert_eq!(Plan::check(protocol::Plan { include: vec![], ..said() }), Err(Error::NothingIncluded));
    }

    #[test]
    fn ranges_that_make_no_sense_are_named() {
        for subnet in
            ["127.0.0.0/8", "127.1.0.0/16", "::1/128", "224.0.0.0/4", "ff02::/16", "::ffff:10.0.0.0/104"]
        {
            let error = Plan::check(protocol::Plan { include: nets(&[subnet]), ..said() }).unwrap_err();
            assert!(error.to_string().starts_with("include: "), "{error}");
        }
        Plan::check(protocol::Plan { include: nets(&["0.0.0.0/0", "::/0"]), ..said() }).unwrap();
    }

    #[test]
    fn every_included_family_has_a_listener() {
        let error = Plan::check(protocol::Plan { listener_v4: None, ..said() }).unwrap_err();
        assert_eq!(error.to_string(), "listener_v4: needed, because 10.96.0.0/12 is included");
        let error = Plan::check(protocol::Plan { listener_v6: None, ..said() }).unwrap_err();
        assert_eq!(error.to_string(), "listener_v6: needed, because fd00::/8 is included");
        let error = Plan::check(protocol::Plan { listener_v6: Some(0), ..said() }).unwrap_err();
        assert_eq!(error.to_string(), "listener_v6: port 0 cannot be connected to");
        Plan::check(protocol::Plan { include: nets(&["10.0.0.0/8"]), listener_v6: None, ..said() }).unwrap();
    }
}
