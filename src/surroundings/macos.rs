//! macOS: the networks of the interfaces. Routes of VPNs are to come with redirecting.

use std::collections::BTreeSet;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::Network;

pub(super) fn networks() -> BTreeSet<Network> {
    let network = |interface: nix::ifaddrs::InterfaceAddress| {
        let ip = |address: SockaddrStorage| {
            let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
        };
        let net = IpNet::with_netmask(ip(interface.address?)?, ip(interface.netmask?)?).ok()?.trunc();
        let host = net.prefix_len() == net.max_prefix_len();
        (!host && !net.addr().is_loopback()).then_some(Network { net, interface: interface.interface_name })
    };
    getifaddrs().map(|all| all.filter_map(network).collect()).unwrap_or_default()
}
