//! The part of a plan that is about routes of our own: they take everything to a range, so all of it has to be redirected.

use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};

use super::{Error, Plan};
use crate::protocol;

impl Plan {
    /// Where routes of our own are to lead; none if the machine's are to do.
    pub fn routed(&self) -> Option<&[Ipv6Net]> {
        self.said.ipv6_routes.then_some(&self.include.v6)
    }
}

/// Nothing may be left alone in a range with a route of ours: it would not find its own way any more.
pub(super) fn check(said: &protocol::Plan, include: &[Ipv6Net], exclude: &[Ipv6Net]) -> Result<(), Error> {
    if !said.ipv6_routes {
        return Ok(());
    }

    for (left_alone, what) in [
        (!said.who.is_anybody(), "what `who` does not mean"),
        (!said.bridges.is_empty(), "what comes in through bridges and is not redirected"),
        (said.listener_v6.is_some() && said.datagrams_v6.is_none(), "datagrams, which are left alone"),
    ] {
        if left_alone {
            return Err(Error::Routes(what.into()));
        }
    }
    let of_port = |port: &SocketAddr| match port.ip() {
        IpAddr::V6(address) => Some(Ipv6Net::from(address)),
        IpAddr::V4(_) => None,
    };
    let ports = said.exclude_ports.iter().filter_map(of_port);
    let meets = |net: &Ipv6Net| include.iter().any(|range| range.contains(net) || net.contains(range));
    match exclude.iter().copied().chain(ports).find(meets) {
        Some(net) => {
            Err(Error::Routes(format!("{}, which is left alone inside what is included", IpNet::V6(net))))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Bridge, Who};

    fn said() -> protocol::Plan {
        protocol::Plan {
            session: "a".into(),
            include: ["fd00:10::/64", "10.0.0.0/8"].map(|net| net.parse().unwrap()).into(),
            exclude: ["fd00:11::1/128", "10.1.0.0/16"].map(|net| net.parse().unwrap()).into(),
            exclude_ports: ["[fd00:11::2]:443", "10.2.0.1:443"].map(|port| port.parse().unwrap()).into(),
            listener_v4: Some(1),
            listener_v6: Some(2),
            datagrams_v6: Some(3),
            ipv6_routes: true,
            ..protocol::Plan::default()
        }
    }

    fn refused(said: protocol::Plan) -> String {
        Plan::check(said).unwrap_err().to_string()
    }

    #[test]
    fn the_included_ranges_of_ipv6_are_routed() {
        let plan = Plan::check(said()).unwrap();
        assert_eq!(plan.routed(), Some(&["fd00:10::/64".parse().unwrap()][..]));
        let plan = Plan::check(protocol::Plan { ipv6_routes: false, ..said() }).unwrap();
        assert_eq!(plan.routed(), None);
        let include = vec!["10.0.0.0/8".parse().unwrap()];
        let plan = Plan::check(protocol::Plan { include, listener_v6: None, datagrams_v6: None, ..said() });
        assert_eq!(plan.unwrap().routed(), Some(&[][..]));
    }

    #[test]
    fn what_is_left_alone_keeps_its_way() {
        for exclude in ["fd00:10::1/128", "fd00:10::/64", "fd00::/16"] {
            let exclude = vec![exclude.parse().unwrap()];
            let message = refused(protocol::Plan { exclude: exclude.clone(), ..said() });
            let expected = format!("ipv6_routes: no way would be left to {}, which", exclude[0]);
            assert!(message.starts_with(&expected), "{message}");
            Plan::check(protocol::Plan { exclude, ipv6_routes: false, ..said() }).unwrap();
        }
        let exclude_ports = vec!["[fd00:10::9]:443".parse().unwrap()];
        let message = refused(protocol::Plan { exclude_ports, ..said() });
        assert!(message.contains("fd00:10::9/128, which is left alone"), "{message}");
        let plan = Plan::check(said()).unwrap();
        let (include, exclude) = (["fd00:11::/64".parse().unwrap()], ["fd00:11::1/128".parse().unwrap()]);
        assert!(matches!(plan.with_ranges(&include, &exclude), Err(Error::Routes(_))));
    }

    #[test]
    fn whoever_is_not_redirected_keeps_their_way() {
        let message = refused(protocol::Plan { who: Who { users: vec![1], ..Who::default() }, ..said() });
        assert!(message.contains("`who`"), "{message}");
        let message = refused(protocol::Plan { datagrams_v6: None, ..said() });
        assert!(message.contains("datagrams"), "{message}");
        let bridge = Bridge {
            name: "docker0".into(),
            address: "172.17.0.1".parse().unwrap(),
            subnet: "172.17.0.0/16".parse().unwrap(),
            listener: 4,
            datagrams: None,
        };
        let message = refused(protocol::Plan { bridges: vec![bridge], ..said() });
        assert!(message.contains("bridges"), "{message}");
    }
}
