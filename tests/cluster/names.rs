//! Names of the cluster and of the rest of the world, asked by every kind of program.

mod laptop;

use std::fs;
use std::process::Command;
use std::time::Duration;

use kshuttle_test_support::dns::Server;
use kshuttle_test_support::harness::Test;
use kshuttle_test_support::kshuttle::{Kshuttle, eventually, kubectl, output, program};
use kshuttle_test_support::tests;
use nix::sys::signal::Signal;

use self::laptop::{Laptop, Program, has_resolved, lay_over_resolv_conf, programs, with};
use super::names;
use super::reach::RANGES;

/// All of them.
pub(crate) const TESTS: &[Test] = tests! {
    names:
        every_program_finds_every_name,
        a_program_that_uses_http_reaches_them,
        what_is_made_later_is_found,
        a_domain_of_another_name_is_learnt,
        namespaces_do_not_take_domains_of_the_internet,
        every_end_gives_names_back,
        other_name_servers_are_followed,
        sessions_stand_side_by_side,
        it_explains_what_becomes_of_a_name,
        names_can_be_left_alone;
};

/// What the program prints; empty where it does not find the name.
fn asked(program: &Program, name: &str) -> String {
    let found = (program.command)(name).output().unwrap();
    String::from_utf8_lossy(&found.stdout).into_owned()
}

fn address_of(service: &str) -> String {
    kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])
}

pub(crate) fn every_program_finds_every_name() {
    for laptop in [Laptop::Plain, Laptop::Forwarder, Laptop::Resolved, Laptop::NssResolve] {
        finds_every_name(laptop, "auto");
    }
    // What is done where systemd-resolved refuses the link.
    finds_every_name(Laptop::Resolved, "redirect");
}

fn finds_every_name(laptop: Laptop, method: &str) {
    with(laptop, |server| {
        let kshuttle = Kshuttle::start(&[&RANGES[..], &["--dns", method]].concat());
        let by_link = has_resolved(laptop) && method == "auto";
        let hello = address_of("hello");
        let pod = kubectl(&["get", "pod", "-l", "app=hello", "-o", "jsonpath={.items[0].status.podIP}"]);
        let found = [
            ("hello.default.svc.cluster.local", hello.as_str()),
            ("hello.default.svc", &hello),
            ("hello.default", &hello),
            ("hello", &hello),
            ("hello-headless.default", &pod),
            ("www.public.test", "203.0.113.80"),
        ];
        let absent = ["nope.default.svc.cluster.local", "nope.default", "nope.public.test"];
        let mut wrong = Vec::new();
        // It asks systemd-resolved by its bus, which nothing redirects.
        let served = |program: &Program| by_link || program.name != "resolvectl";
        for program in programs(laptop).into_iter().filter(served) {
            for (name, address) in found {
                // In front of dig is systemd-resolved, which gives single words to nobody.
                let nobody_asks = by_link && !program.completes;
                // systemd-resolved writes `search .`, of which musl 1.2.3 makes a question that is none.
                let malformed = has_resolved(laptop) && !by_link && program.name == "static musl";
                if name == "hello" && (nobody_asks || malformed) {
                    continue;
                }
                let said = asked(&program, name);
                if !said.split_whitespace().any(|word| word == address) {
                    wrong.push(format!("{}: {name} is {said:?}, not {address}", program.name));
                }
            }
            for name in absent {
                let said = asked(&program, name);
                if said.contains('.') && !said.contains("not found") {
                    wrong.push(format!("{}: {name} is {said:?}", program.name));
                }
            }
        }
        let name = output(Command::new("dig").args(["+short", "-x", &hello]));
        if name != "hello.default.svc.cluster.local." {
            wrong.push(format!("dig -x {hello} is {name:?}"));
        }
        assert!(wrong.is_empty(), "{laptop:?}: {wrong:#?}\n{}", kshuttle.said());
        let told: Vec<_> =
            server.seen().into_iter().filter(|query| query.name.starts_with("hello")).collect();
        assert!(told.is_empty(), "{laptop:?}: names of the cluster were told to others: {told:?}");
    });
}

pub(crate) fn a_program_that_uses_http_reaches_them() {
    with(Laptop::Plain, |_| {
        let _kshuttle = Kshuttle::start(&RANGES);
        for name in ["hello.default", "hello.default.svc", "hello.default.svc.cluster.local", "hello"] {
            let answer = output(Command::new("curl").args(["-sSf", "-m", "10", &format!("http://{name}/")]));
            assert_eq!(answer, "hello from the cluster", "{name}");
        }
    });
}

pub(crate) fn what_is_made_later_is_found() {
    for laptop in [Laptop::Plain, Laptop::NssResolve] {
        with(laptop, |_| {
            let _kshuttle = Kshuttle::start(&RANGES);
            let glibc = &programs(laptop)[0];
            let late = format!("late-{}-{laptop:?}", std::process::id()).to_lowercase(); // no cache knows it
            let is_found = |name: &str, address: &str| {
                eventually("what was made is found", Duration::from_secs(60), || {
                    asked(glibc, name).contains(address).then_some(())
                });
            };
            assert_eq!(asked(glibc, &format!("{late}.default")), "");
            kubectl(&["expose", "deployment", "hello", "--name", &late, "--port", "80"]);
            is_found(&format!("{late}.default"), &address_of(&late));
            kubectl(&["delete", "service", &late]);
            kubectl(&["create", "namespace", &late]);
            kubectl(&["-n", &late, "create", "service", "clusterip", "web", "--tcp", "80"]);
            let web = kubectl(&["-n", &late, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
            is_found(&format!("web.{late}"), &web);
            kubectl(&["delete", "namespace", &late, "--wait=false"]);
        });
    }
}

pub(crate) fn a_domain_of_another_name_is_learnt() {
    with(Laptop::Plain, |_| {
        let patch = r#"{"spec":{"dnsPolicy":"None","dnsConfig":{"nameservers":["10.96.0.10"],
            "searches":["default.svc.k8s.test","svc.k8s.test","k8s.test"]}}}"#;
        let file = std::env::temp_dir().join(format!("kshuttle-patch-{}", std::process::id()));
        fs::write(&file, patch).unwrap();
        for flags in [["--pod-patch", file.to_str().unwrap()], ["--cluster-domain", "k8s.test"]] {
            let kshuttle = Kshuttle::start(&[&RANGES[..], &flags].concat());
            assert!(kshuttle.said().contains("  names     k8s.test at 10.96.0.10"), "{}", kshuttle.said());
            let glibc = &programs(Laptop::Plain)[0];
            for name in ["hello.default.svc.k8s.test", "hello.default", "hello"] {
                assert!(asked(glibc, name).contains(&address_of("hello")), "{name}");
            }
        }
        fs::remove_file(&file).unwrap();
    });
}

/// A namespace whose name is a domain of the Internet takes nothing away from it, unless the user says so.
pub(crate) fn namespaces_do_not_take_domains_of_the_internet() {
    let namespaces = ["dev", "rs", "com", "io"];
    for namespace in namespaces {
        let _ = Command::new("kubectl").args(["create", "namespace", namespace]).output();
        let service = ["-n", namespace, "create", "service", "clusterip", "docs", "--tcp", "80"];
        let _ = Command::new("kubectl").args(service).output();
    }
    for laptop in [Laptop::Plain, Laptop::NssResolve] {
        with(laptop, |_| {
            let glibc = &programs(laptop)[0];
            let inside =
                kubectl(&["-n", "dev", "get", "service", "docs", "-o", "jsonpath={.spec.clusterIP}"]);
            let kshuttle = Kshuttle::start(&RANGES);
            assert!(kshuttle.said().contains("--mapped-namespaces dev"), "{}", kshuttle.said());
            assert!(asked(glibc, "docs.dev").contains("203.0.113.81"));
            assert!(asked(glibc, "docs.dev.svc.cluster.local").contains(&inside));
            drop(kshuttle);
            let _kshuttle = Kshuttle::start(&[&RANGES[..], &["--mapped-namespaces", "dev"]].concat());
            assert!(asked(glibc, "docs.dev").contains(&inside));
        });
    }
    for namespace in namespaces {
        kubectl(&["delete", "namespace", namespace, "--wait=false"]);
    }
}

/// Whatever ends it, names are resolved as before.
pub(crate) fn every_end_gives_names_back() {
    for laptop in [Laptop::Plain, Laptop::NssResolve] {
        with(laptop, |_| {
            let glibc = &programs(laptop)[0];
            for signal in [Signal::SIGINT, Signal::SIGKILL] {
                let mut kshuttle = Kshuttle::start(&RANGES);
                assert!(!asked(glibc, "hello.default").is_empty());
                kshuttle.stop(signal);
                eventually("names of the cluster are not known", Duration::from_secs(10), || {
                    asked(glibc, "hello.default").is_empty().then_some(())
                });
                assert!(asked(glibc, "www.public.test").contains("203.0.113.80"), "{laptop:?} {signal}");
            }
        });
    }
}

/// An address of the laptop's until this is dropped.
struct Address(&'static str);

impl Address {
    fn add(address: &'static str) -> Self {
        output(Command::new("ip").args(["addr", "add", address, "dev", "wan0"]));
        Self(address)
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        output(Command::new("ip").args(["addr", "del", self.0, "dev", "wan0"]));
    }
}

/// Written in place, and by a mount over it, of which the system tells nobody.
pub(crate) fn other_name_servers_are_followed() {
    with(Laptop::Plain, |_| {
        let glibc = &programs(Laptop::Plain)[0];
        let _addresses = [Address::add("198.51.100.7/32"), Address::add("198.51.100.8/32")];
        let other =
            |address: &str, www| Server::with_names(address.parse().unwrap(), &[("www.public.test", www)]);
        let (written, mounted) =
            (other("198.51.100.7:53", "203.0.113.97"), other("198.51.100.8:53", "203.0.113.98"));
        let kshuttle = Kshuttle::start(&RANGES);
        let both = |outside: &str| {
            eventually("the other server is asked, and the cluster", Duration::from_secs(10), || {
                let inside = asked(glibc, "hello.default").contains(&address_of("hello"));
                (inside && asked(glibc, "www.public.test").contains(outside)).then_some(())
            });
        };
        both("203.0.113.80");
        fs::write("/etc/resolv.conf", format!("nameserver {}\n", written.address.ip())).unwrap();
        both("203.0.113.97");
        lay_over_resolv_conf(mounted.address);
        both("203.0.113.98");
        assert!(kshuttle.said().contains("name servers changed"), "{}", kshuttle.said());
    });
}

/// Two clusters, as far as one box can be two: each with ranges and a domain of its own. Whichever came or goes first, names of
/// both are found, and the rest.
pub(crate) fn sessions_stand_side_by_side() {
    let flags: [&[&str]; 2] = [&["10.96.0.0/12"], &["10.244.0.0/16", "--cluster-domain", "k8s.test"]];
    for (laptop, first) in [(Laptop::Plain, 0), (Laptop::Forwarder, 1), (Laptop::NssResolve, 0)] {
        with(laptop, |_| {
            let hello = address_of("hello");
            let finds = |domains: &[&str]| {
                for program in programs(laptop) {
                    for domain in domains {
                        let name = format!("hello.default.svc.{domain}");
                        let said = asked(&program, &name);
                        assert!(said.contains(&hello), "{laptop:?}, {}: {name} is {said:?}", program.name);
                    }
                    assert!(asked(&program, "www.public.test").contains("203.0.113.80"), "{}", program.name);
                }
            };
            let mut older = Kshuttle::start(flags[first]);
            let mut newer = Kshuttle::start(flags[1 - first]);
            finds(&["cluster.local", "k8s.test"]);
            // The one below the other, and the one above.
            older.stop(Signal::SIGKILL);
            let again = Kshuttle::start(flags[first]);
            finds(&["cluster.local", "k8s.test"]);
            newer.stop(Signal::SIGINT);
            finds(&[["cluster.local"], ["k8s.test"]][first]);
            for kshuttle in [older, newer, again] {
                assert!(!kshuttle.said().contains("names of the cluster:"), "{}", kshuttle.said());
            }
            let _one = Kshuttle::start(flags[0]);
            let other = Kshuttle::start(&["10.244.0.0/16"]);
            assert!(other.said().contains("cluster.local is the domain of session"), "{}", other.said());
            finds(&["cluster.local"]);
        });
    }
}

pub(crate) fn it_explains_what_becomes_of_a_name() {
    with(Laptop::Plain, |_| {
        let kshuttle = Kshuttle::start(&RANGES);
        let dns = |arguments: &[&str]| output(Command::new(program("kshuttle")).arg("dns").args(arguments));
        let said = dns(&["hello.default"]);
        assert!(said.contains("the cluster's: default is a namespace"), "{said}");
        assert!(said.contains(&address_of("hello")), "{said}");
        let said = dns(&["www.public.test"]);
        assert!(said.contains("not the cluster's") && said.contains("203.0.113.80"), "{said}");
        let said: serde_json::Value = serde_json::from_str(&dns(&["hello", "-o", "json"])).unwrap();
        assert_eq!((&said["ours"], &said["kind"]), (&true.into(), &"A".into()));
        drop(kshuttle);
        let failed = Command::new(program("kshuttle")).args(["dns", "hello"]).output().unwrap();
        assert!(String::from_utf8_lossy(&failed.stderr).contains("no session"));
    });
}

pub(crate) fn names_can_be_left_alone() {
    with(Laptop::Plain, |server| {
        let kshuttle = Kshuttle::start(&[&RANGES[..], &["--no-dns"]].concat());
        assert!(!kshuttle.said().contains("  names "), "{}", kshuttle.said());
        assert_eq!(asked(&programs(Laptop::Plain)[0], "hello.default"), "");
        assert!(server.has_seen("hello.default"));
    });
}

/// Why these tests cannot run here.
pub(crate) fn missing(name: &str) -> Option<String> {
    let needed = |variable: &str| std::env::var_os(variable).is_none();
    let wanted =
        ["KSHUTTLE_TEST_LOOKUP", "KSHUTTLE_TEST_RESOLVER"].into_iter().find(|variable| needed(variable));
    wanted
        .filter(|_| name.starts_with("names::"))
        .map(|variable| format!("needs {variable}: scripts/test has it"))
}
