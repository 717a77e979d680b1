//! What systemd-resolved is told: which domains are ours. It does not know what a namespace is, so each is named.

use std::net::IpAddr;

use ipnet::IpNet;
use kshuttle_helper::link::MAX_NAMES;

use crate::dns::zone::{Way, Zones};
use crate::dns::{Name, RecordType};

/// Domains whose names we are asked about, and those that complete single words.
pub(super) fn of(zones: &Zones, search: bool) -> (Vec<String>, Vec<String>) {
    let mut domains = vec![text(&zones.domain), "svc".to_owned()];
    domains.extend(zones.extra.iter().map(|(zone, _)| text(zone)));
    let known = zones.namespaces.iter().flatten();
    let namespaces = known.chain(&zones.mapped).chain([&zones.namespace]).filter(|name| is_ours(zones, name));
    for namespace in namespaces {
        if !domains.contains(namespace) {
            domains.push(namespace.clone());
        }
    }
    // Last, because they may be very many, and are missed least.
    domains.extend(zones.ranges.iter().flat_map(reverse));
    let search = search.then(|| format!("{}.svc.{}", zones.namespace, text(&zones.domain)));
    let search: Vec<String> = search.into_iter().collect();
    let most = MAX_NAMES - search.len();
    if domains.len() > most {
        tracing::info!(
            "systemd-resolved is told {most} of {} domains; the rest needs NAME.NAMESPACE.svc",
            domains.len()
        );
        domains.truncate(most);
    }
    (domains, search)
}

/// Does the stub ask the cluster about names in it?
fn is_ours(zones: &Zones, namespace: &str) -> bool {
    let name = Name::from_ascii(format!("x.{namespace}."));
    name.is_ok_and(|name| !matches!(zones.whose(&name, RecordType::A).way, Way::Upstream))
}

/// As systemd-resolved writes it: without the dot at the end.
pub(super) fn text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// The zones of a range's addresses (RFC 1035 §3.5, RFC 3596 §2.5): as many as end at the next label.
fn reverse(range: &IpNet) -> Vec<String> {
    let (step, labels): (u8, fn(IpAddr, usize) -> String) = match range {
        IpNet::V4(_) => (8, v4),
        IpNet::V6(_) => (4, v6),
    };
    let length = range.prefix_len().max(1).next_multiple_of(step);
    let Ok(parts) = range.subnets(length) else { return Vec::new() };
    parts.map(|part| labels(part.addr(), usize::from(length / step))).collect()
}

fn v4(address: IpAddr, labels: usize) -> String {
    let IpAddr::V4(address) = address else { return String::new() };
    let labels: Vec<String> = address.octets()[..labels].iter().rev().map(ToString::to_string).collect();
    format!("{}.in-addr.arpa", labels.join("."))
}

fn v6(address: IpAddr, labels: usize) -> String {
    let IpAddr::V6(address) = address else { return String::new() };
    let digits = format!("{:032x}", u128::from(address));
    let labels: Vec<String> = digits[..labels].chars().rev().map(String::from).collect();
    format!("{}.ip6.arpa", labels.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_zones_hold_the_range_and_nothing_else() {
        let of = |range: &str| reverse(&range.parse().unwrap());
        assert_eq!(of("10.244.3.0/24"), ["3.244.10.in-addr.arpa"]);
        assert_eq!(of("10.0.0.0/8"), ["10.in-addr.arpa"]);
        assert_eq!(of("10.96.0.7/32"), ["7.0.96.10.in-addr.arpa"]);
        let services = of("10.96.0.0/12");
        assert_eq!(
            (services.len(), &*services[0], &*services[15]),
            (16, "96.10.in-addr.arpa", "111.10.in-addr.arpa")
        );
        assert_eq!(of("fd00:10:96::/112").len(), 1);
        assert!(of("fd00:10:96::/112")[0].ends_with("6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa"));
        assert_eq!(of("fd00:10:96::/49").len(), 8);
    }

    #[test]
    fn namespaces_are_named_unless_the_internet_has_them() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut zones = Zones {
            domain: Name::from_ascii("Cluster.Local.").unwrap(),
            servers: Vec::new(),
            namespace: "team-a".into(),
            namespaces: Some(set(&["default", "dev", "rs", "team-a"])),
            mapped: set(&["rs"]),
            ranges: Vec::new(),
            extra: vec![(Name::from_ascii("corp.example.").unwrap(), "10.0.0.53:53".parse().unwrap())],
            check: String::new(),
            ipv6: false,
        };
        let (domains, search) = of(&zones, true);
        assert_eq!(domains, ["cluster.local", "svc", "corp.example", "default", "rs", "team-a"]);
        assert_eq!(search, ["team-a.svc.cluster.local"]);
        zones.namespaces = None;
        assert_eq!(
            of(&zones, false),
            (
                vec![
                    "cluster.local".into(),
                    "svc".into(),
                    "corp.example".into(),
                    "rs".into(),
                    "team-a".into()
                ],
                vec![]
            )
        );
    }

    #[test]
    fn more_than_systemd_resolved_may_be_told_are_cut() {
        let zones = Zones {
            domain: Name::from_ascii("cluster.local.").unwrap(),
            servers: Vec::new(),
            namespace: "team-a".into(),
            namespaces: Some((0..2 * MAX_NAMES).map(|number| format!("team-{number}")).collect()),
            mapped: Default::default(),
            ranges: Vec::new(),
            extra: Vec::new(),
            check: String::new(),
            ipv6: false,
        };
        let (domains, search) = of(&zones, true);
        assert_eq!(domains.len() + search.len(), MAX_NAMES);
    }
}
