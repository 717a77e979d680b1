use proptest::prelude::*;

use super::*;
use crate::protocol::{self, Bridge};

fn plan() -> Plan {
    let said = protocol::Plan {
        session: "golden".into(),
        include: ["10.0.0.0/16", "10.5.0.0/24", "fd00::/64"].map(|net| net.parse().unwrap()).into(),
        exclude: ["10.0.1.0/24", "fd00::5/128"].map(|net| net.parse().unwrap()).into(),
        exclude_ports: ["10.0.0.1:6443"].map(|host| host.parse().unwrap()).into(),
        listener_v4: Some(40001),
        listener_v6: Some(40002),
        datagrams_v4: Some(40003),
        ..protocol::Plan::default()
    };
    let servers = [("10.0.0.2", 5301), ("127.0.0.53", 5302), ("::1", 5303)];
    let server = |(address, port): (&str, u16)| NameServer { address: address.parse().unwrap(), port };
    Plan::check(said).unwrap().with_names(&servers.map(server)).unwrap()
}

fn standing() -> [Tuple; 2] {
    let tuple = |src: &str, dst: &str| Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() };
    [tuple("198.51.100.2:22", "10.0.5.5:40000"), tuple("[2001:db8::2]:22", "[fd00::9]:40000")]
}

#[test]
fn both_families() {
    let both = [false, true].map(|v6| apply(&plan(), v6, &standing(), true, "")).concat();
    assert_eq!(both, include_str!("../../../../../fixtures/firewall/both-families.iptables"));
}

#[test]
fn everybody_s_and_bridges() {
    let bridge = Bridge {
        name: "docker0".into(),
        address: "172.17.0.1".parse().unwrap(),
        subnet: "172.17.0.0/16".parse().unwrap(),
        listener: 40005,
        datagrams: Some(40006),
    };
    let said = protocol::Plan {
        session: "golden".into(),
        include: vec!["10.0.0.0/16".parse().unwrap()],
        listener_v4: Some(40001),
        who: Who { users: vec![1000, 1001], groups: vec![5], cgroups: vec!["b/c".into()] },
        bridges: vec![bridge],
        ..protocol::Plan::default()
    };
    let text = apply(&Plan::check(said).unwrap().with_exempt(vec![27507, 27509]), false, &[], false, "");
    assert_eq!(text, include_str!("../../../../../fixtures/firewall/everything.iptables"));
}

/// What `iptables-save -c` 1.8.9 shows after [`both_families`], beside somebody else's rules.
const SAVED: &str = include_str!("../../../../../fixtures/firewall/both-families.saved");

#[test]
fn a_captured_listing_is_complete() {
    assert_eq!(lacking(&plan(), false, &standing(), true, SAVED), None);
    assert_eq!(names(SAVED), ["kshuttle_golden"]);
    assert_eq!(dropped("kshuttle_golden", SAVED), 3);
}

#[test]
fn whatever_lacks_is_named() {
    for (part, lacks) in [
        ("-A OUTPUT -j kshuttle_golden\n", "filter: OUTPUT -j kshuttle_golden"),
        ("--to-ports 40001\n", "nat: rules in kshuttle_golden: 18 instead of 19"),
        ("-j DROP\n", "filter: rules in kshuttle_golden: 17 instead of 18"),
    ] {
        let cut = SAVED.lines().position(|line| format!("{line}\n").ends_with(part)).unwrap();
        let saved: Vec<&str> =
            SAVED.lines().enumerate().filter(|(at, _)| *at != cut).map(|(_, line)| line).collect();
        assert_eq!(lacking(&plan(), false, &standing(), true, &saved.join("\n")).as_deref(), Some(lacks));
    }
    assert!(lacking(&plan(), false, &standing(), true, "").is_some());
}

#[test]
fn what_is_taken_out_is_ours_alone() {
    let filter = "*filter\n-D OUTPUT -j kshuttle_golden\n-F kshuttle_golden\n-F kshuttle_goldenB\n\
        -F kshuttle_goldenI\n-X kshuttle_golden\n-X kshuttle_goldenB\n-X kshuttle_goldenI\nCOMMIT\n";
    let removal = removal(SAVED, "kshuttle_golden");
    let raw = "*raw\n-D OUTPUT -j kshuttle_golden\n-F kshuttle_golden\n-X kshuttle_golden\nCOMMIT\n";
    assert_eq!(removal, format!("{raw}{}{filter}", filter.replace("*filter", "*nat")));
    assert_eq!(super::removal(SAVED, "kshuttle_gold"), "");
    assert_eq!(super::removal("", "kshuttle_golden"), "");
}

proptest! {
    #[test]
    fn hostile_listings_never_panic(saved in r"([*:\[]?(raw|nat|filter|-A|kshuttle_[a-zA-Z]{0,3}|-j| |[0-9]|\]|\n)){0,40}") {
        let _ = (names(&saved), removal(&saved, "kshuttle_a"), dropped("kshuttle_a", &saved));
        let _ = lacking(&plan(), true, &[], true, &saved);
    }
}
