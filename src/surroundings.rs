//! What this machine's network already has where a redirect is about to reach: networks it is in, routes (VPNs).
//! Nothing is changed by it; it is told, or left alone.

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

use ipnet::IpNet;

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
}
