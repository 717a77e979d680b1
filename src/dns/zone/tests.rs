use super::*;

fn zones() -> Zones {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Zones {
        domain: name("cluster.local."),
        servers: vec!["10.96.0.10:53".parse().unwrap()],
        namespace: "shop".into(),
        namespaces: Some(set(&["default", "shop", "dev", "rs", "com", "io", "app", "local"])),
        mapped: set(&["app"]),
        ranges: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10::/32".parse().unwrap()],
        extra: Vec::new(),
        check: "Me-1".into(),
        ipv6: true,
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn whose(zones: &Zones, text: &str) -> String {
    let verdict = zones.whose(&name(text), RecordType::A);
    match verdict.way {
        Way::Stub => "stub".into(),
        Way::Cluster(full) => format!("cluster {full}"),
        Way::Perhaps(full) => format!("perhaps {full}"),
        Way::Server(server) => server.to_string(),
        Way::Upstream => "upstream".into(),
    }
}

#[test]
fn what_is_surely_the_clusters() {
    let zones = zones();
    for (asked, expected) in [
        ("cluster.local.", "cluster cluster.local."),
        ("hello.default.svc.cluster.local.", "cluster hello.default.svc.cluster.local."),
        ("HELLO.default.svc.Cluster.LOCAL.", "cluster HELLO.default.svc.Cluster.LOCAL."),
        ("www.example.com.default.svc.cluster.local.", "cluster www.example.com.default.svc.cluster.local."),
        ("hello.default.svc.", "cluster hello.default.svc.cluster.local."),
        ("_http._tcp.hello.default.SVC.", "cluster _http._tcp.hello.default.SVC.cluster.local."),
        ("svc.", "cluster svc.cluster.local."),
        ("hello.app.", "cluster hello.app.svc.cluster.local."), // mapped
    ] {
        assert_eq!(whose(&zones, asked), expected, "{asked}");
    }
}

#[test]
fn what_the_cluster_is_asked_about() {
    let zones = zones();
    for (asked, expected) in [
        ("hello.default.", "perhaps hello.default.svc.cluster.local."),
        ("Hello.Default.", "perhaps Hello.Default.svc.cluster.local."),
        ("pod.hello.default.", "perhaps pod.hello.default.svc.cluster.local."),
        ("pod.svc.default.", "perhaps pod.svc.default.svc.cluster.local."),
        ("printer.local.", "perhaps printer.local.svc.cluster.local."), // there is a namespace of this name
        ("hello.", "perhaps hello.shop.svc.cluster.local."),
        ("shop.", "perhaps shop.shop.svc.cluster.local."),
    ] {
        assert_eq!(whose(&zones, asked), expected, "{asked}");
    }
}

#[test]
fn what_the_cluster_never_hears_of() {
    let zones = zones();
    for asked in [
        ".",
        "localhost.",
        "www.example.com.",
        "shopify.dev.",
        "docs.rs.",
        "crates.io.",
        "x.y.COM.",
        "host.corp.",
        "default.example.org.",
        "mycluster.local.example.",
        "1.0.0.192.in-addr.arpa.",
        "x.home.arpa.",
    ] {
        assert_eq!(whose(&zones, asked), "upstream", "{asked}");
    }
    for kind in [RecordType::NS, RecordType::DS, RecordType::SOA, RecordType::DNSKEY] {
        assert_eq!(zones.whose(&name("dev."), kind).why, Why::Apex);
    }
    let long = format!("{}abcdefghijklmn.default.", "a23456789012345678901234567890.".repeat(7));
    assert_eq!(zones.whose(&name(&long), RecordType::A).why, Why::TooLong);
}

#[test]
fn reverse_zones_of_the_redirected_ranges() {
    let mut zones = zones();
    for (asked, ours) in [
        ("1.0.96.10.in-addr.arpa.", true),
        ("1.0.112.10.in-addr.arpa.", false),
        ("96.10.in-addr.arpa.", true),
        ("10.in-addr.arpa.", false),
        ("300.0.96.10.in-addr.arpa.", false),
        ("x.1.0.96.10.in-addr.arpa.", false),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa.", true),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.1.0.0.0.0.d.f.ip6.arpa.", false),
    ] {
        let expected = if ours { format!("cluster {asked}") } else { "upstream".into() };
        assert_eq!(whose(&zones, asked), expected, "{asked}");
    }
    zones.ranges.clear();
    assert_eq!(whose(&zones, "1.0.96.10.in-addr.arpa."), "upstream");
}

#[test]
fn without_a_list_of_namespaces() {
    let zones = Zones { namespaces: None, ..zones() };
    for (asked, expected) in [
        ("hello.default.", "perhaps hello.default.svc.cluster.local."),
        ("host.corp.", "perhaps host.corp.svc.cluster.local."),
        ("x.dev.", "upstream"),
        ("printer.local.", "upstream"),
        ("printer.lan.", "upstream"),
        ("a.under_score.", "upstream"),
        ("10.0.0.1.", "upstream"),
        ("hello.app.", "cluster hello.app.svc.cluster.local."),
    ] {
        assert_eq!(whose(&zones, asked), expected, "{asked}");
    }
}

#[test]
fn the_longest_extra_zone_wins_over_the_cluster() {
    let mut zones = zones();
    zones.extra = vec![
        (name("corp.example."), "10.1.1.1:53".parse().unwrap()),
        (name("eu.corp.example."), "10.1.1.2:53".parse().unwrap()),
        (name("consul.cluster.local."), "10.1.1.3:53".parse().unwrap()),
    ];
    for (asked, expected) in [
        ("www.corp.example.", "10.1.1.1:53"),
        ("www.EU.corp.example.", "10.1.1.2:53"),
        ("x.consul.cluster.local.", "10.1.1.3:53"),
        ("x.cluster.local.", "cluster x.cluster.local."),
        ("xcorp.example.", "upstream"),
    ] {
        assert_eq!(whose(&zones, asked), expected, "{asked}");
    }
}

#[test]
fn canaries() {
    let mut zones = zones();
    zones.extra = vec![(name("local."), "10.1.1.1:53".parse().unwrap())];
    for zone in ["kshuttle-check.cluster.local.", "Kshuttle-Check.svc.cluster.local.", "kshuttle-check.svc."]
    {
        assert_eq!(whose(&zones, &format!("7.me-1.{zone}")), "stub", "{zone}");
        assert_eq!(whose(&zones, &format!("7.me-2.{zone}")), "upstream", "{zone}, of another session");
        assert_eq!(whose(&zones, &format!("7.{zone}")), "upstream", "{zone}, of nobody");
    }
    assert_eq!(whose(&zones, "7.xkshuttle-check.cluster.local."), "10.1.1.1:53");
}

#[test]
fn reasons_are_sentences() {
    let zones = zones();
    let why = |asked: &str| zones.whose(&name(asked), RecordType::A).why.to_string();
    assert_eq!(why("hello.default."), "default is a namespace of the cluster and no public top-level domain");
    assert!(why("x.dev.").contains("--mapped-namespaces dev"), "{}", why("x.dev."));
    assert_eq!(why("x.svc."), "svc is short for svc.cluster.local.");
}
