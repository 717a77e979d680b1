use super::*;
use crate::protocol;

fn text(include: &[&str], exclude: &[&str], listeners: [Option<u16>; 2], standing: &[Tuple]) -> String {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let plan = protocol::Plan {
        session: "golden".into(),
        include: nets(include),
        exclude: nets(exclude),
        listener_v4: listeners[0],
        listener_v6: listeners[1],
        ..protocol::Plan::default()
    };
    apply(&Plan::check(plan).unwrap(), standing, true).join("\n") + "\n"
}

#[test]
fn both_families() {
    let tuple = |src: &str, dst: &str| Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() };
    let text = text(
        &["10.96.0.0/12", "10.244.0.0/16", "fd00:10:96::/112"],
        &["10.96.0.1/32", "192.0.2.10/32", "fd00:10:96::1/128"],
        [Some(40001), Some(40002)],
        &[
            tuple("198.51.100.2:22", "10.96.5.5:40000"),
            tuple("198.51.100.2:40001", "10.96.5.6:443"),
            tuple("[2001:db8:51::2]:22", "[fd00:10:96::5]:40002"),
        ],
    );
    assert_eq!(text, include_str!("../../../../../fixtures/firewall/both-families.nft"));
}

#[test]
fn only_ipv4() {
    let text = text(&["10.0.0.0/16"], &[], [Some(40001), None], &[]);
    assert_eq!(text, include_str!("../../../../../fixtures/firewall/only-ipv4.nft"));
}

#[test]
fn everything_else() {
    let bridge = |address: &str, subnet: &str| Bridge {
        name: "docker0".into(),
        address: address.parse().unwrap(),
        subnet: subnet.parse().unwrap(),
        listener: 40005,
        datagrams: Some(40006),
    };
    let said = protocol::Plan {
        session: "golden".into(),
        include: ["10.0.0.0/16", "fd00::/64"].map(|net| net.parse().unwrap()).into(),
        exclude_ports: ["10.0.0.1:6443", "[fd00::1]:53"].map(|host| host.parse().unwrap()).into(),
        listener_v4: Some(40001),
        listener_v6: Some(40002),
        datagrams_v4: Some(40003),
        datagrams_v6: Some(40004),
        who: Who { users: vec![1000, 1001], groups: vec![5], cgroups: vec!["a".into(), "b/c".into()] },
        bridges: vec![bridge("172.17.0.1", "172.17.0.0/16"), bridge("fd77::1", "fd77::/64")],
        ..protocol::Plan::default()
    };
    let server = |address: &str, port| protocol::NameServer { address: address.parse().unwrap(), port };
    let plan = Plan::check(said).unwrap().with_exempt(vec![27507, 27509]);
    let plan = plan.with_names(&[server("10.0.0.53", 5301), server("::1", 5302)]).unwrap();
    let text = apply(&plan, &[], true).join("\n") + "\n";
    assert_eq!(text, include_str!("../../../../../fixtures/firewall/everything.nft"));
    assert_eq!(
        flush(&plan),
        ["flush chain inet kshuttle_golden capture", "flush chain inet kshuttle_golden bridged"]
    );
}

#[test]
fn other_ranges() {
    let plan = protocol::Plan {
        session: "golden".into(),
        include: ["10.0.0.0/16", "10.5.0.0/16"].map(|net| net.parse().unwrap()).into(),
        listener_v4: Some(40001),
        ..protocol::Plan::default()
    };
    let standing = Tuple { src: "198.51.100.2:22".parse().unwrap(), dst: "10.5.0.1:40000".parse().unwrap() };
    assert_eq!(
        update(&Plan::check(plan).unwrap(), &[standing]),
        [
            "flush set inet kshuttle_golden include4",
            "add element inet kshuttle_golden include4 { 10.0.0.0/16, 10.5.0.0/16 }",
            "flush set inet kshuttle_golden include6",
            "flush set inet kshuttle_golden exclude4",
            "flush set inet kshuttle_golden exclude6",
            "add element inet kshuttle_golden standing4 { 198.51.100.2 . 22 . 10.5.0.1 . 40000 }",
        ]
    );
}

#[test]
fn the_end() {
    assert_eq!(delete("kshuttle_golden"), "delete table inet kshuttle_golden");
}
