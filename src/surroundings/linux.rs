//! Linux: the main routing table, as `/proc/net/route` and `/proc/net/ipv6_route` list it (the kernel's `net/ipv4/fib_trie.c`
//! and `net/ipv6/route.c`). VPNs with a table of their own are not in there.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Network;

pub(super) fn networks() -> BTreeSet<Network> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (v4, v6) = (read("/proc/net/route"), read("/proc/net/ipv6_route"));
    v4.lines().filter_map(v4_route).chain(v6.lines().filter_map(v6_route)).collect()
}

/// `wlan0 0005000A 00000000 0001 0 0 0 00FFFFFF …`: interface, destination and, as eighth, mask, in hex and host order.
fn v4_route(line: &str) -> Option<Network> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let address = |word: &str| Some(Ipv4Addr::from(u32::from_str_radix(word, 16).ok()?.to_ne_bytes()));
    let net = Ipv4Net::with_netmask(address(words.get(1)?)?, address(words.get(7)?)?).ok()?;
    let usual = net.prefix_len() == 0 || net.addr().is_link_local() || net.addr().is_multicast();
    (!usual).then(|| Network { net: IpNet::V4(net.trunc()), interface: words[0].to_owned() })
}

/// `fd77…00 40 0…0 00 0…0 00000100 00000001 00000000 00000001 wlan0`: destination, its length in hex, …, interface.
fn v6_route(line: &str) -> Option<Network> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let address = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
    let net = Ipv6Net::new(address, u8::from_str_radix(words.get(1)?, 16).ok()?).ok()?;
    let usual = net.prefix_len() == 0
        || address.is_loopback()
        || address.is_unicast_link_local()
        || address.is_multicast();
    let interface = *words.get(9)?;
    (!usual && interface != "lo")
        .then(|| Network { net: IpNet::V6(net.trunc()), interface: interface.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(network: Option<Network>) -> Option<String> {
        network.map(|network| network.to_string())
    }

    /// Lines of Linux 6.18, little-endian, as every Linux we ship for is.
    #[test]
    fn routes_of_both_families() {
        let v4 = |line: &str| text(v4_route(line));
        assert_eq!(
            v4("wlan0\t0005000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"),
            Some("10.0.5.0/24 (by wlan0)".into())
        );
        assert_eq!(v4("wlan0\t00000000\t0105000A\t0003\t0\t0\t600\t00000000\t0\t0\t0"), None, "the default");
        assert_eq!(v4("wlan0\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0"), None, "link-local");
        assert_eq!(
            v4("Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"),
            None
        );
        let v6 = |line: &str| text(v6_route(line));
        let zeros = "00000000000000000000000000000000";
        let rest = format!("00 {zeros} 00000100 00000001 00000000 00000001");
        assert_eq!(
            v6(&format!("fd770000000000000000000000000000 40 {zeros} {rest}    tun0")),
            Some("fd77::/64 (by tun0)".into())
        );
        assert_eq!(v6(&format!("fe800000000000000000000000000000 40 {zeros} {rest} eth0")), None);
        assert_eq!(v6(&format!("{zeros} 00 {zeros} {rest} eth0")), None);
        assert_eq!(
            v6(&format!("fd770000000000000000000000000001 80 {zeros} {rest} lo")),
            None,
            "an address of ours"
        );
        assert_eq!((v6(""), v4("")), (None, None));
    }
}
