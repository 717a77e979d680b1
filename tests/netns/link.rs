//! Names, with a real systemd-resolved: those below the link's domains are asked of the stub, all others of the server that
//! was asked before.

use std::fs;
use std::process::Command;
use std::time::Duration;

use kshuttle_test_support::dns::Server;
use kshuttle_test_support::resolver::{self, Library};

use super::helper::{Helper, plan};
use super::link_scene::{INSIDE, dug, found, link_to, set, with, with_each};
use super::scene::{self, eventually, output};

pub(crate) fn names_inside_are_asked_of_the_stub_and_no_others() {
    with_each(|scene| {
        let helper = scene.linked(&["cluster.local", "svc", "96.10.in-addr.arpa"], &[]);
        for name in ["hello.demo.svc.cluster.local", "HELLO.demo.svc.Cluster.Local"] {
            assert_eq!(found(name), ["10.96.7.7", "fd00:10:96::7"], "{name}");
        }
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
        assert_eq!(found("no.demo.svc"), [""; 0]);
        assert_eq!(found("www.public.test"), ["203.0.113.80"]);
        assert_eq!(found("no.public.test"), [""; 0]);
        // By its number, as servers look up who connects.
        assert!(output("getent", &["hosts", "10.96.7.7"]).ends_with("hello.demo.svc.cluster.local\n"));
        let said = output("resolvectl", &["query", "hello.demo.svc.cluster.local"]);
        assert!(said.contains("10.96.7.7") && said.contains("fd00:10:96::7"), "{said}");
        assert!(output("resolvectl", &["query", "www.public.test"]).contains("203.0.113.80"));
        for over in ["+notcp", "+tcp"] {
            assert_eq!(dug(&[over, "hello.demo.svc.cluster.local"]), "10.96.7.7");
            assert_eq!(dug(&[over, "hello.demo.svc.cluster.local", "AAAA"]), "fd00:10:96::7");
            assert_eq!(dug(&[over, "-x", "10.96.7.7"]), "hello.demo.svc.cluster.local.");
            assert_eq!(dug(&[over, "www.public.test"]), "203.0.113.80");
        }
        let ours = |name: &str| {
            [".cluster.local", ".svc", ".96.10.in-addr.arpa"].iter().any(|end| name.ends_with(end))
        };
        let seen = scene.stub.seen();
        assert!(!seen.is_empty() && seen.iter().all(|query| ours(&query.name)), "{seen:?}");
        let seen = scene.upstream.seen();
        assert!(!seen.is_empty() && !seen.iter().any(|query| ours(&query.name)), "{seen:?}");
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn a_stub_of_ipv6_serves_as_well() {
    with(Library::Dns, |scene| {
        let stub = Server::with_names("[::1]:0".parse().unwrap(), INSIDE);
        let mut helper = scene.helper();
        set(&mut helper, &link_to(&stub, &["cluster.local"], &[]));
        assert_eq!(found("hello.demo.svc.cluster.local"), ["10.96.7.7", "fd00:10:96::7"]);
        assert!(stub.has_seen("hello.demo.svc.cluster.local"));
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn search_domains_complete_short_names() {
    let both = ["10.96.7.7", "fd00:10:96::7"];
    for library in [Library::Dns, Library::Resolve] {
        with(library, |scene| {
            // Without one in `domains` resolved would ask this link about everything, were it not told otherwise.
            let helper = scene.linked(&[], &["demo.svc.cluster.local", "svc.cluster.local"]);
            assert_eq!(found("hello"), both);
            assert_eq!(found("www.public.test"), ["203.0.113.80"]);
            assert!(!scene.stub.has_seen("www.public.test"));
            // Names of several parts are completed by the C library only; resolved has another opinion on that.
            let completed = if library == Library::Dns { &both[..] } else { &[] };
            assert_eq!(found("hello.demo"), completed);
            assert_eq!(helper.stop().failures, []);
            assert_eq!(found("hello"), [""; 0]);
        });
    }
}

pub(crate) fn a_name_asked_before_is_found_afterwards_and_not_after_the_end() {
    with_each(|scene| {
        let before = found("hello.demo.svc");
        assert_eq!(before, ["203.0.113.66"]);
        assert_eq!(found("hello.demo.svc.cluster.local"), [""; 0]);
        let helper = scene.linked(&["cluster.local", "svc"], &[]);
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
        assert_eq!(found("hello.demo.svc.cluster.local"), ["10.96.7.7", "fd00:10:96::7"]);
        assert_eq!(helper.stop().failures, []);
        eventually("it is as before", || found("hello.demo.svc") == before);
        assert_eq!(found("hello.demo.svc.cluster.local"), [""; 0]);
    });
}

pub(crate) fn other_domains_replace_the_first() {
    with(Library::Resolve, |scene| {
        let mut helper = scene.linked(&["cluster.local"], &["demo.svc.cluster.local"]);
        assert_eq!(found("hello.demo.svc"), ["203.0.113.66"]);
        assert_eq!(found("hello"), ["10.96.7.7", "fd00:10:96::7"]);
        set(&mut helper, &scene.link(&["svc"], &[]));
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
        assert_eq!(found("hello"), [""; 0]);
        // Another stub, too.
        let next = Server::with_names("127.0.0.1:0".parse().unwrap(), &[("hello.demo.svc", "10.96.8.8")]);
        set(&mut helper, &link_to(&next, &["svc"], &[]));
        output("resolvectl", &["flush-caches"]);
        assert_eq!(found("hello.demo.svc"), ["10.96.8.8"]);
        assert_eq!(helper.stop().failures, []);
    });
}

/// The stub speaks neither DNSSEC nor TLS, and names with a dot are no multicast names.
pub(crate) fn the_system_s_own_settings_may_be_strict() {
    with_each(|mut scene| {
        scene.resolver.stop();
        let settings = fs::read_to_string("/etc/systemd/resolved.conf").unwrap();
        let strict = settings.replace("=no\n", "=yes\n");
        assert!(strict.contains("DNSSEC=yes") && strict.contains("DNSOverTLS=yes"), "{strict}");
        fs::write("/etc/systemd/resolved.conf", strict).unwrap();
        scene.resolver.start_resolved();
        let helper = scene.linked(&["cluster.local", "svc"], &["demo.svc.cluster.local"]);
        for name in ["hello.demo.svc.cluster.local", "hello"] {
            assert_eq!(found(name), ["10.96.7.7", "fd00:10:96::7"], "{name}");
        }
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
        // They are in force: the server outside has no TLS.
        assert_eq!(found("www.public.test"), [""; 0]);
        assert!(!scene.upstream.has_seen("www.public.test"));
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn it_survives_a_restart_of_resolved() {
    with_each(|mut scene| {
        let helper = scene.linked(&["cluster.local"], &["demo.svc.cluster.local"]);
        scene.resolver.stop();
        scene.resolver.start_resolved();
        eventually("the domains are back", || found("hello") == ["10.96.7.7", "fd00:10:96::7"]);
        assert_eq!(found("www.public.test"), ["203.0.113.80"]);
        // Without it nothing has to be told at the end.
        scene.resolver.stop();
        assert_eq!(helper.stop().failures, []);
        scene.resolver.start_resolved();
        assert_eq!(found("hello"), [""; 0]);
    });
}

pub(crate) fn two_sessions_have_a_link_each() {
    with(Library::Resolve, |scene| {
        let before = (scene::state(), resolver::told());
        let first = scene.linked(&["cluster.local"], &[]);
        let other_stub = Server::with_names(
            "127.0.0.1:0".parse().unwrap(),
            &[("hello.demo.svc.other.test", "10.200.7.7")],
        );
        let mut other = Helper::ready(&plan("other-session", &scene.listener, &["10.200.0.0/16"], &[]));
        set(&mut other, &link_to(&other_stub, &["other.test"], &[]));
        let both = || (found("hello.demo.svc.cluster.local"), found("hello.demo.svc.other.test"));
        let (ours, others) = (["10.96.7.7", "fd00:10:96::7"], ["10.200.7.7"]);
        assert_eq!(both(), (ours.map(String::from).to_vec(), others.map(String::from).to_vec()));
        assert_eq!(first.stop().failures, []);
        assert_eq!(both(), (vec![], others.map(String::from).to_vec()));
        assert_eq!(other.stop().failures, []);
        eventually("it is as before", || (scene::state(), resolver::told()) == before);
    });
}

pub(crate) fn a_silent_stub_holds_back_no_other_names() {
    with_each(|scene| {
        let helper = scene.linked(&["svc"], &[]);
        scene.stub.set_silent(true);
        let mut waiting = Command::new("getent").args(["ahosts", "hello.demo.svc"]).spawn().unwrap();
        eventually("the stub is asked", || scene.stub.has_seen("hello.demo.svc"));
        assert_eq!(found("www.public.test"), ["203.0.113.80"]);
        assert!(waiting.try_wait().unwrap().is_none(), "it still waits for the stub");
        waiting.kill().unwrap();
        waiting.wait().unwrap();
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn a_dead_stub_fails_and_holds_back_no_other_names() {
    with_each(|scene| {
        let mut helper = scene.helper();
        // Refused at once: a resolver that waited would say so by a timeout, which dig does not outwait.
        let dead = Server::with_names("127.0.0.1:0".parse().unwrap(), &[]);
        let link = link_to(&dead, &["svc"], &[]);
        drop(dead);
        set(&mut helper, &link);
        let dug = output("dig", &["@127.0.0.53", "+tries=1", "+time=4", "hello.demo.svc"]);
        assert!(dug.contains("status: SERVFAIL"), "{dug}");
        assert_eq!(found("hello.demo.svc"), [""; 0]);
        assert_eq!(found("www.public.test"), ["203.0.113.80"]);
        assert!(!scene.upstream.has_seen("hello.demo.svc"), "names inside are not told to others");
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn the_stub_may_be_slow() {
    with(Library::Resolve, |scene| {
        let helper = scene.linked(&["svc"], &[]);
        scene.stub.set_delay(Duration::from_millis(300));
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
        assert_eq!(helper.stop().failures, []);
    });
}
