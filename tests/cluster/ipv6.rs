//! The cluster's IPv6 from laptops with every kind of address of their own.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use kshuttle_test_support::http::get;
use kshuttle_test_support::kshuttle::{Kshuttle, LeakMeter, kubectl, output};

use super::reach::{RANGES, bench};

/// Addresses and their devices.
type List = &'static [(&'static str, &'static str)];

/// What `scripts/cluster` gave the laptop.
const USUAL: List = &[("wan0", "2001:db8:51::2/64"), ("eth0", "fd00:250::10/64")];
const GATEWAY: &str = "2001:db8:51::1";

/// What a laptop gives itself.
const LINK_LOCAL: List = &[("wan0", "fe80::2/64")];

/// Other addresses and another default route of IPv6, until this is dropped.
struct Instead(List);

impl Instead {
    fn of_the_usual(these: List, gateway: Option<&str>) -> Self {
        exchange(USUAL, these, gateway);
        Self(these)
    }
}

impl Drop for Instead {
    fn drop(&mut self) {
        exchange(self.0, USUAL, Some(GATEWAY));
    }
}

fn exchange(old: List, new: List, gateway: Option<&str>) {
    let ip = |arguments: &str| drop(output(Command::new("ip").arg("-6").args(arguments.split(' '))));
    old.iter().for_each(|(device, address)| ip(&format!("addr del {address} dev {device}")));
    new.iter().for_each(|(device, address)| ip(&format!("addr add {address} dev {device} nodad")));
    // Whatever the addresses are: a router is most often named by its link-local one.
    match gateway {
        Some(gateway) => ip(&format!("route replace default via {gateway} dev wan0 onlink")),
        None => ip("route del default dev wan0"),
    }
}

/// The `hello` Service's and its pod's addresses of IPv6.
fn hello() -> [SocketAddr; 2] {
    let v6 = |arguments: &[&str], port| {
        let ips = kubectl(arguments);
        let ip = ips.split_whitespace().find_map(|ip| ip.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6));
        SocketAddr::new(ip.unwrap(), port)
    };
    [
        v6(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIPs[*]}"], 80),
        v6(&["get", "pod", "-l", "app=hello", "-o", "jsonpath={.items[*].status.podIPs[*].ip}"], 8080),
    ]
}

fn assert_reached() {
    let meter = LeakMeter::start();
    for address in hello() {
        assert_eq!(get(address, "/").unwrap().text, "hello from the cluster\n", "{address}");
    }
    assert_eq!(meter.leaked(), 0);
}

pub(crate) fn from_a_global_address() {
    let _kshuttle = Kshuttle::start(&RANGES);
    assert_reached();
}

pub(crate) fn from_a_unique_local_address() {
    let _addresses = Instead::of_the_usual(&[("wan0", "fd77::2/64")], Some("fe80::1"));
    let kshuttle = Kshuttle::start(&RANGES);
    assert_reached();
    assert!(!kshuttle.said().contains("no route"), "{}", kshuttle.said());
}

/// What it sends from there cannot come back from the loopback: it is told, and IPv4 is not harmed.
pub(crate) fn with_only_a_link_local_address_it_is_told() {
    let _addresses = Instead::of_the_usual(LINK_LOCAL, Some("fe80::1"));
    let kshuttle = Kshuttle::start(&RANGES);
    assert!(kshuttle.said().contains("no route towards fd00:10:96::/112"), "{}", kshuttle.said());
    assert!(kshuttle.said().contains("--ipv6-routes makes one"), "{}", kshuttle.said());
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
}

pub(crate) fn with_only_a_link_local_address_and_routes_of_its_own() {
    reached_by_routes_of_its_own(LINK_LOCAL, Some("fe80::1"));
}

pub(crate) fn without_any_address_and_routes_of_its_own() {
    reached_by_routes_of_its_own(&[], None);
}

fn reached_by_routes_of_its_own(addresses: List, gateway: Option<&str>) {
    let _addresses = Instead::of_the_usual(addresses, gateway);
    let kshuttle = Kshuttle::start(&[&RANGES[..], &["--ipv6-routes"]].concat());
    assert_reached();
    assert!(!kshuttle.said().contains("no route"), "{}", kshuttle.said());
    drop(kshuttle);
    let links = output(Command::new("ip").arg("link"));
    assert!(!links.contains("kip6"), "{links}");
}
