use super::*;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn said() -> protocol::Plan {
    protocol::Plan {
        session: "dev-1".into(),
        include: nets(&["10.96.0.0/12", "fd00::/8"]),
        exclude: nets(&["10.96.0.1/32"]),
        listener_v4: Some(40001),
        listener_v6: Some(40002),
        ..protocol::Plan::default()
    }
}

#[test]
fn a_good_plan_is_sorted_and_merged() {
    let include = nets(&["10.5.0.1/16", "10.4.0.0/16", "10.4.1.0/24", "9.0.0.0/8", "fd00::1/64"]);
    let plan = Plan::check(protocol::Plan { include, ..said() }).unwrap();
    assert_eq!(plan.table(), "kshuttle_dev-1");
    assert_eq!(
        plan.include().v4.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["9.0.0.0/8", "10.4.0.0/15"]
    );
    assert_eq!(plan.include().v6.iter().map(ToString::to_string).collect::<Vec<_>>(), ["fd00::/64"]);
    assert!(plan.include().contains("10.5.255.255".parse().unwrap()));
    assert!(!plan.include().contains("10.6.0.0".parse().unwrap()));
    assert!(plan.include().contains("fd00::2".parse().unwrap()));
}

#[test]
fn a_session_name_cannot_leave_its_place_in_a_rule() {
    for session in ["", "a b", "A", "a;", "a\n", "a{", "ä", "a_b", "1234567890123456789"] {
        assert_eq!(Plan::check(protocol::Plan { session: session.into(), ..said() }), Err(Error::Session));
    }
}

#[test]
fn counts_are_bounded() {
    let include = nets(&["10.0.0.0/8"]).repeat(MAX_INCLUDE + 1);
    let error = Plan::check(protocol::Plan { include, ..said() }).unwrap_err();
    assert_eq!(error.to_string(), "include: 4097 are more than the 4096 allowed");
    let exclude = nets(&["10.0.0.0/8"]).repeat(MAX_EXCLUDE + 1);
    let error = Plan::check(protocol::Plan { exclude, ..said() }).unwrap_err();
    assert_eq!(error.to_string(), "exclude: 1025 are more than the 1024 allowed");
    assert_eq!(Plan::check(protocol::Plan { include: vec![], ..said() }), Err(Error::NothingIncluded));
}

#[test]
fn ranges_that_make_no_sense_are_named() {
    for subnet in
        ["127.0.0.0/8", "127.1.0.0/16", "::1/128", "224.0.0.0/4", "ff02::/16", "::ffff:10.0.0.0/104"]
    {
        let error = Plan::check(protocol::Plan { include: nets(&[subnet]), ..said() }).unwrap_err();
        assert!(error.to_string().starts_with("include: "), "{error}");
    }
    Plan::check(protocol::Plan { include: nets(&["0.0.0.0/0", "::/0"]), ..said() }).unwrap();
}

#[test]
fn every_included_family_has_a_listener() {
    let error = Plan::check(protocol::Plan { listener_v4: None, ..said() }).unwrap_err();
    assert_eq!(error.to_string(), "listener_v4: needed, because 10.96.0.0/12 is included");
    let error = Plan::check(protocol::Plan { listener_v6: None, ..said() }).unwrap_err();
    assert_eq!(error.to_string(), "listener_v6: needed, because fd00::/8 is included");
    let error = Plan::check(protocol::Plan { listener_v6: Some(0), ..said() }).unwrap_err();
    assert_eq!(error.to_string(), "listener_v6: port 0 cannot be connected to");
    Plan::check(protocol::Plan { include: nets(&["10.0.0.0/8"]), listener_v6: None, ..said() }).unwrap();
}

#[test]
fn other_ranges_are_checked_like_the_first_ones() {
    let plan =
        Plan::check(protocol::Plan { listener_v6: None, include: nets(&["10.0.0.0/8"]), ..said() }).unwrap();
    let other = plan.with_ranges(&nets(&["10.1.0.0/16"]), &[]).unwrap();
    let covered = |text: &str| other.covers(text.parse().unwrap());
    assert_eq!((covered("10.1.2.3:80"), covered("10.2.0.1:80")), (true, false));
    assert!(other.exclude().v4.is_empty());
    assert!(matches!(plan.with_ranges(&nets(&["fd00::/8"]), &[]), Err(Error::NoListener { .. })));
    assert_eq!(plan.with_ranges(&[], &[]), Err(Error::NothingIncluded));
}

#[test]
fn what_is_covered() {
    let exclude_ports = vec!["10.96.0.5:443".parse().unwrap()];
    let plan = Plan::check(protocol::Plan { exclude_ports, ..said() }).unwrap();
    for (to, covered) in
        [("10.96.0.5:80", true), ("10.96.0.5:443", false), ("10.96.0.1:80", false), ("[fd00::1]:443", true)]
    {
        assert_eq!(plan.covers(to.parse().unwrap()), covered, "{to}");
    }
}

#[test]
fn a_control_group_cannot_leave_its_place_in_a_rule() {
    let check = |path: &str| {
        let who = Who { cgroups: vec![path.into()], ..Who::default() };
        Plan::check(protocol::Plan { who, ..said() })
    };
    check("user.slice/user-1000.slice/user@1000.service/app.slice").unwrap();
    for path in ["", "/", "/a", "a/", "a//b", "../a", "a/./b", "a\"b", "a b", "a;b", "a\\x2db", "ä"] {
        assert!(matches!(check(path), Err(Error::Who(_))), "{path}");
    }
    assert!(matches!(check(&"a".repeat(MAX_CGROUP + 1)), Err(Error::Who(_))));
}

#[test]
fn combinations_of_people_are_bounded() {
    let check = |users: u32, groups: u32| {
        let who = Who { users: (0..users).collect(), groups: (0..groups).collect(), ..Who::default() };
        Plan::check(protocol::Plan { who, ..said() })
    };
    check(64, 16).unwrap();
    check(64, 0).unwrap();
    assert_eq!(
        check(64, 17).unwrap_err().to_string(),
        "who: 1088 combinations are more than the 1024 allowed"
    );
}

#[test]
fn a_bridge_is_named_with_what_is_wrong() {
    let good = Bridge {
        name: "docker0".into(),
        address: "172.17.0.1".parse().unwrap(),
        subnet: "172.17.0.0/16".parse().unwrap(),
        listener: 40003,
        datagrams: None,
    };
    let check = |bridge: Bridge| Plan::check(protocol::Plan { bridges: vec![bridge], ..said() });
    check(good.clone()).unwrap();
    for bad in [
        Bridge { name: String::new(), ..good.clone() },
        Bridge { name: "a b".into(), ..good.clone() },
        Bridge { name: "eth+".into(), ..good.clone() },
        Bridge { name: "-j".into(), ..good.clone() },
        Bridge { name: "a234567890123456".into(), ..good.clone() },
        Bridge { address: "127.0.0.1".parse().unwrap(), ..good.clone() },
        Bridge { address: "fd00::1".parse().unwrap(), ..good.clone() },
        Bridge { subnet: "0.0.0.0/0".parse().unwrap(), ..good.clone() },
        Bridge { listener: 0, ..good.clone() },
        Bridge { datagrams: Some(0), ..good },
    ] {
        assert!(matches!(check(bad.clone()), Err(Error::Bridge { .. })), "{bad:?}");
    }
}
