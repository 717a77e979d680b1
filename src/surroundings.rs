//! What this machine's network already has where a redirect is about to reach: networks it is in, routes (VPNs), name
//! servers. Nothing is changed by it; it is told, or left alone.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use macos as system;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Files with `nameserver` lines: the one programs read, and what systemd-resolved asks itself.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Port of name servers.
const DNS: u16 = 53;

/// A network that this machine reaches in a way of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// Its addresses.
    pub net: IpNet,
    /// The interface that leads to it.
    pub interface: String,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (by {})", self.net, self.interface)
    }
}

/// Networks with an entry of their own in the routing tables, other than the default one; what cannot be read is none.
pub fn networks() -> BTreeSet<Network> {
    system::networks()
}

/// Those of which a redirect of `ranges` without `exclude` would take something, or that are wider than a range.
pub fn overlapping(networks: &BTreeSet<Network>, ranges: &[IpNet], exclude: &[IpNet]) -> Vec<Network> {
    let excluded = |net: &IpNet| exclude.iter().any(|one| one.contains(net));
    let met = |network: &&Network| {
        !excluded(&network.net) && ranges.iter().any(|range| overlap(range, &network.net) && !excluded(range))
    };
    networks.iter().filter(met).cloned().collect()
}

/// Whether they have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// This machine's name servers.
pub fn name_servers() -> BTreeSet<SocketAddr> {
    let texts = RESOLVERS.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.flat_map(|text| in_resolv_conf(&text)).map(|address| SocketAddr::new(address, DNS)).collect()
}

/// `nameserver ADDRESS` lines (resolv.conf(5)).
fn in_resolv_conf(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        address.split('%').next()?.parse().ok() // without the scope
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn networks_that_are_met_are_named() {
        let network =
            |net: &str, interface: &str| Network { net: net.parse().unwrap(), interface: interface.into() };
        let all: BTreeSet<_> = [
            network("10.0.5.0/24", "wlan0"),
            network("10.0.0.0/8", "tun0"),
            network("192.168.1.0/24", "eth0"),
        ]
        .into();
        let met = |ranges: &[&str], exclude: &[&str]| {
            let met = overlapping(&all, &nets(ranges), &nets(exclude));
            met.iter().map(|network| network.interface.clone()).collect::<Vec<_>>()
        };
        assert_eq!(met(&["10.96.0.0/12"], &[]), ["tun0"]);
        assert_eq!(met(&["10.0.0.0/16"], &[]), ["tun0", "wlan0"]);
        assert_eq!(met(&["10.0.0.0/16"], &["10.0.5.0/24"]), ["tun0"]);
        assert_eq!(met(&["10.0.0.0/16"], &["10.0.0.0/8"]), [""; 0]);
        assert_eq!(met(&["172.16.0.0/12", "fd00::/8"], &[]), [""; 0]);
    }

    #[test]
    fn name_servers_are_read() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.2\n nameserver\tfe80::1%wlan0 # x\nnameserver x\nnameserver\n";
        assert_eq!(in_resolv_conf(text), ["10.0.0.2", "fe80::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    }
}
