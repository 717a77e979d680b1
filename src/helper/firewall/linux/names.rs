//! Name servers: connection tracking follows when others are asked, and sockets that the rules let past.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Gid, Group, setfsgid};

use super::super::conntrack::{Conntrack, Entry};
use super::Error;
use crate::plan::Plan;
use crate::protocol::NameServer;

/// Where names are asked for (RFC 1035 §4.2).
const DNS: u16 = 53;

/// Most groups that are looked at. A directory that knows this many in a row invents them.
const MOST_GROUPS: u32 = 64;

/// Groups of the sockets that the rules let past, one for each rank up to this one: from the plan's on, those that nobody has.
/// All helpers of a machine find the same ones. Where no answer is to be had, nobody has it.
pub(super) fn exempt_groups(plan: &Plan, rank: u8) -> Vec<u32> {
    let first = plan.own_group();
    let wanted = usize::from(rank) + 1;
    let is_free = |group: &u32| !matches!(Group::from_gid(Gid::from_raw(*group)), Ok(Some(_)));
    let free: Vec<u32> = (first..first + MOST_GROUPS).filter(is_free).take(wanted).collect();
    if free.len() == wanted { free } else { (first..).take(wanted).collect() }
}

/// Sockets of this group, as the rules see it: who opened a socket counts, not who uses it. So they need no mark, which
/// could meet other people's routing, and the user side no right.
pub(super) fn sockets(group: u32, v6: bool, stream: bool, count: u8) -> io::Result<Vec<OwnedFd>> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let kind = if stream { SockType::Stream } else { SockType::Datagram };
    let group = Gid::from_raw(group);
    let ours = setfsgid(group);
    // The call says what was before, also when it did nothing: in a user namespace without this group.
    let sockets = if setfsgid(group) == group {
        (0..count).map(|_| Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?)).collect()
    } else {
        Err(io::Error::other(format!("the group {group} cannot be had here")))
    };
    setfsgid(ours);
    sockets
}

/// Who answers queries to other addresses, or other queries, than before: those that came and those that went.
pub(super) fn changed(before: &Plan, now: &Plan) -> Vec<NameServer> {
    let only_in = |one: &Plan, other: &Plan| -> Vec<NameServer> {
        one.name_servers().iter().filter(|server| !other.name_servers().contains(server)).copied().collect()
    };
    [only_in(before, now), only_in(now, before)].concat()
}

/// Deletes what conntrack knows of queries of this machine to these servers and that goes elsewhere than the plan says. A
/// socket that was connected before has an entry that its next query would follow, and so has a source port used again.
/// TCP connections that stand go on: nobody could take them over in the middle.
pub(super) fn follow(
    conntrack: &mut Conntrack,
    plan: &Plan,
    servers: &[NameServer],
    local: &HashSet<IpAddr>,
) -> Result<(), Error> {
    let astray = |entry: &Entry| {
        let to = entry.destination();
        to.port() == DNS
            && servers.iter().any(|server| server.address == to.ip())
            && local.contains(&entry.source().ip())
            && !entry.is_standing()
            && entry.translated_to() != answering(plan, to.ip())
    };
    for entry in conntrack.entries(astray).map_err(Error::Conntrack)? {
        conntrack.delete(&entry).map_err(Error::Conntrack)?;
    }
    Ok(())
}

/// A query that somebody here waits for. Of a program that asks more than once from one port only the first can be told.
pub(super) fn awaits_answer(entry: &Entry, plan: &Plan) -> bool {
    entry.is_datagrams()
        && !entry.is_answered()
        && entry.destination().port() == DNS
        && entry.translated_to().is_some_and(|to| plan.is_answering(to))
}

fn answering(plan: &Plan, server: IpAddr) -> Option<SocketAddr> {
    let NameServer { port, .. } = plan.name_servers().iter().find(|one| one.address == server)?;
    let here = if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    Some(SocketAddr::new(here, *port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    fn plan(servers: &[(&str, u16)]) -> Plan {
        let said = protocol::Plan {
            session: "a".into(),
            include: vec!["10.0.0.0/8".parse().unwrap()],
            listener_v4: Some(40001),
            ..protocol::Plan::default()
        };
        let servers: Vec<_> = servers.iter().map(|(address, port)| server(address, *port)).collect();
        Plan::check(said).unwrap().with_names(&servers).unwrap()
    }

    fn server(address: &str, port: u16) -> NameServer {
        NameServer { address: address.parse().unwrap(), port }
    }

    #[test]
    fn what_came_and_went_has_changed() {
        let before = plan(&[("10.0.0.2", 5), ("10.0.0.3", 6), ("::1", 7)]);
        let now = plan(&[("10.0.0.2", 5), ("10.0.0.4", 6), ("::1", 8)]);
        let expected = [server("10.0.0.3", 6), server("::1", 7), server("10.0.0.4", 6), server("::1", 8)];
        assert_eq!(changed(&before, &now), expected);
        assert_eq!(changed(&now, &now), []);
    }

    #[test]
    fn a_server_is_answered_for_by_its_own_port() {
        let plan = plan(&[("10.0.0.2", 5), ("fd00::2", 6)]);
        let at = |address: &str| answering(&plan, address.parse().unwrap()).map(|at| at.to_string());
        assert_eq!(at("10.0.0.2").as_deref(), Some("127.0.0.1:5"));
        assert_eq!(at("fd00::2").as_deref(), Some("[::1]:6"));
        assert_eq!(at("10.0.0.3"), None);
    }
}
