//! The other backend, in both of its makes: iptables over nf_tables, and the legacy one.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use kshuttle_helper::protocol::{Method, Plan, Reply, Request};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use super::helper::{Helper, plan};
use super::listener::{Listener, reset};
use super::neighbour::Neighbour;
use super::scene::{self, accept, begin_connect, connect_to, eventually, leaked, read_end, says};

/// What runs under the name of each program of the package, and what would run instead.
const MAKES: [&str; 2] = ["/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"];

/// The test with each make in turn.
pub(crate) fn with_each(test: impl Fn() + Send + Copy) {
    for legacy in [false, true] {
        scene::run(move || {
            // The package's links lead to one of the two: put the other in its place, in this namespace only.
            let [nft, old] = MAKES;
            let linked = fs::canonicalize("/usr/sbin/iptables-save").unwrap();
            let wanted = Path::new(if legacy { old } else { nft });
            if linked != wanted {
                mount(Some(wanted), &linked, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            }
            // Others have rules, too; with them the tables of iptables are there before.
            for program in ["iptables", "ip6tables"] {
                for table in ["raw", "nat", "filter"] {
                    scene::output(program, &["-t", table, "-N", "OTHER"]);
                    scene::output(program, &["-t", table, "-A", "OUTPUT", "-j", "OTHER"]);
                }
            }
            test();
        });
    }
}

fn by_iptables(plan: Plan) -> Plan {
    Plan { method: Method::Iptables, ..plan }
}

/// All rules, without counts and times.
pub(crate) fn saved() -> String {
    let text = scene::output("iptables-save", &[]) + &scene::output("ip6tables-save", &[]);
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with(':'))
        .collect::<Vec<_>>()
        .join("\n")
}

pub(crate) fn both_families_go_where_they_should() {
    with_each(|| {
        let before = saved();
        let listener = Listener::start();
        let excluded = ["10.1.0.0/16", "fd00:1::/32"];
        let helper =
            Helper::ready(&by_iptables(plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &excluded)));
        for destination in ["10.2.2.3:80", "[fd00::9]:443"] {
            let mut application = connect_to(destination);
            let (original, mut stream) = listener.next();
            assert_eq!(original.to_string(), destination);
            says(&mut stream, &mut application);
        }
        assert_eq!(leaked(), 0);
        let _excluded = begin_connect(0, "10.1.2.3:80");
        eventually("it left by wan0", || leaked() == 1);
        assert_eq!(helper.stop().failures, []);
        assert_eq!(saved(), before);
    });
}

pub(crate) fn who_is_logged_in_stays() {
    with_each(|| {
        let neighbour = Neighbour::move_in();
        let listener = Listener::start();
        let ours = std::net::TcpListener::bind((scene::WAN4, 0)).unwrap();
        let mut theirs = neighbour.connects_to(ours.local_addr().unwrap().to_string());
        let mut our_end = accept(&ours);
        let helper = Helper::ready(&by_iptables(plan("a", &listener, &["10.96.0.0/16"], &[])));
        says(&mut our_end, &mut theirs);
        says(&mut theirs, &mut our_end);
        assert!(listener.is_idle());
        assert_eq!(helper.stop().guard_dropped, 0);
    });
}

pub(crate) fn a_foreign_flush_is_mended() {
    with_each(|| {
        let listener = Listener::start();
        let mut helper = Helper::ready(&by_iptables(plan("a", &listener, &["10.0.0.0/8"], &[])));
        let stands = saved();
        // As `firewall-cmd --reload` does, and somebody who makes room.
        scene::output("iptables", &["-t", "nat", "-F"]);
        scene::output("iptables", &["-t", "filter", "-F", "OUTPUT"]);
        match helper.hear() {
            Some(Reply::Repaired { what }) => assert!(what.contains("kshuttle_a"), "{what}"),
            other => panic!("instead of repaired: {other:?}"),
        }
        let ours = |text: &str| {
            text.lines().filter(|line| line.contains("kshuttle")).map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(ours(&saved()), ours(&stands));
        let _application = connect_to("10.2.2.3:80");
        assert_eq!(listener.next().0.to_string(), "10.2.2.3:80");
        assert_eq!((leaked(), helper.stop().failures), (0, vec![]));
        assert!(!saved().contains("kshuttle"));
    });
}

pub(crate) fn other_ranges_replace_the_first() {
    with_each(|| {
        let listener = Listener::start();
        let mut helper = Helper::ready(&by_iptables(plan("a", &listener, &["10.1.0.0/16"], &[])));
        helper.say(&Request::Update { include: vec!["10.2.0.0/16".parse().unwrap()], exclude: vec![] });
        assert_eq!(helper.hear(), Some(Reply::Updated {}));
        let _application = connect_to("10.2.2.3:80");
        assert_eq!(listener.next().0.to_string(), "10.2.2.3:80");
        let _outside = begin_connect(0, "10.1.2.3:80");
        eventually("it left by wan0", || leaked() == 1);
        assert_eq!(helper.stop().failures, []);
        assert!(!saved().contains("kshuttle"));
    });
}

pub(crate) fn sigkill_is_undone_by_the_watchdog() {
    with_each(|| {
        let before = scene::state();
        let listener = Listener::start();
        let mut helper = Helper::ready(&by_iptables(plan("a", &listener, &["10.0.0.0/8"], &[])));
        let mut application = connect_to("10.1.2.3:80");
        let stream = listener.next().1;
        helper.signal(Signal::SIGKILL);
        helper.wait_for_silence();
        reset(stream);
        let end = read_end(&mut application);
        assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
        assert_eq!(helper.wait(), (None, String::new()));
        assert_eq!(scene::state(), before);
    });
}

pub(crate) fn what_both_left_is_taken_out_by_the_next() {
    with_each(|| {
        let before = saved();
        let listener = Listener::start();
        let mut helper = Helper::ready(&by_iptables(plan("a", &listener, &["10.1.0.0/16", "fd00::/8"], &[])));
        helper.kill_with(&[helper.child("kshuttle-helper")]);
        assert!(saved().contains("kshuttle_a"), "iptables' rules outlive everybody");
        // Of an older version, or of one whose record is lost: the process in its name is no more.
        scene::output("iptables", &["-t", "nat", "-N", "kshuttle_4194304"]);
        scene::output("iptables", &["-t", "nat", "-A", "OUTPUT", "-j", "kshuttle_4194304"]);
        // Of one that runs, without a record.
        let running = format!("kshuttle_{}", std::process::id());
        scene::output("iptables", &["-t", "nat", "-N", &running]);

        // Whatever way the next one redirects.
        let mut next = Helper::start();
        let notes = next.make_ready(&plan("b", &listener, &["10.2.0.0/16"], &[]));
        assert_eq!(notes.iter().filter(|note| note.contains("were taken out")).count(), 2, "{notes:?}");
        assert_eq!(saved(), before);
        assert!(scene::output("iptables-save", &[]).contains(&running));
        assert_eq!(next.stop().failures, []);
    });
}

pub(crate) fn the_same_session_twice_is_refused() {
    with_each(|| {
        let listener = Listener::start();
        let plan = by_iptables(plan("a", &listener, &["10.0.0.0/8"], &[]));
        let first = Helper::ready(&plan);
        let mut second = Helper::start();
        second.say(&Request::Plan(plan));
        match second.hear() {
            Some(Reply::Failed { message, .. }) => {
                assert!(message.contains("redirects already"), "{message}")
            }
            other => panic!("instead of failed: {other:?}"),
        }
        let _application = connect_to("10.2.2.3:80");
        assert_eq!(listener.next().0.to_string(), "10.2.2.3:80");
        assert_eq!(first.stop().failures, []);
    });
}

pub(crate) fn it_serves_where_nft_is_missing() {
    with_each(|| {
        mount(Some("/dev/null"), "/usr/sbin/nft", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let listener = Listener::start();
        let mut helper = Helper::start();
        helper.say(&Request::Plan(plan("a", &listener, &["10.0.0.0/8"], &[])));
        let Some(Reply::Ready { method, notes, .. }) = helper.hear() else { panic!("not ready") };
        assert_eq!(method, "iptables");
        let why = "nft cannot be used: starting nft failed: nft is not in ";
        assert!(notes.iter().any(|note| note.starts_with(why)), "{notes:?}");
        let _application = connect_to("10.2.2.3:80");
        assert_eq!(listener.next().0.to_string(), "10.2.2.3:80");
        assert_eq!(helper.stop().failures, []);
    });
}
