//! While the rules stand: what is redirected, what is not, and that nothing gets past.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use kshuttle_helper::plan::{MAX_EXCLUDE, MAX_INCLUDE};

use super::helper::{Helper, plan};
use super::listener::{Listener, reset};
use super::neighbour::Neighbour;
use super::scene::{self, accept, begin_connect, connect_to, eventually, finish_connect, leaked, says};

pub(crate) fn both_families_arrive_with_their_destination() {
    scene::run(|| {
        let listener = Listener::start();
        let helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &[]));
        for destination in ["10.1.2.3:80", "10.255.255.255:65535", "[fd00::9]:443"] {
            let mut application = connect_to(destination);
            let (original, mut stream) = listener.next();
            assert_eq!(original.to_string(), destination);
            assert_eq!(application.peer_addr().unwrap(), original, "what the application sees");
            stream.write_all(b"answer").unwrap();
            let mut answer = [0; 6];
            application.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer");
        }
        assert_eq!(leaked(), 0);
        let report = helper.stop();
        assert_eq!((report.guard_dropped, report.failures), (0, vec![]));
    });
}

pub(crate) fn excludes_are_left_alone() {
    scene::run(|| {
        let listener = Listener::start();
        let excluded = ["10.1.0.0/16", "fd00:1::/32"];
        let helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &excluded));
        for (count, destination) in [(1, "10.1.2.3:80"), (2, "[fd00:1::9]:80")] {
            let _pending = begin_connect(0, destination);
            eventually("it left by wan0", || leaked() >= count);
        }
        assert!(listener.is_idle());
        let _redirected = connect_to("10.2.0.1:80");
        assert_eq!(listener.next().0.to_string(), "10.2.0.1:80");
        assert_eq!(helper.stop().guard_dropped, 0);
    });
}

pub(crate) fn addresses_of_this_machine_are_left_alone() {
    scene::run(|| {
        let listener = Listener::start();
        let helper = Helper::ready(&plan("a", &listener, &["198.51.100.0/24", "2001:db8:51::/64"], &[]));
        for address in [scene::WAN4, scene::WAN6] {
            let ours = TcpListener::bind((address, 0)).unwrap();
            let application = connect_to(&ours.local_addr().unwrap().to_string());
            assert_eq!(ours.accept().unwrap().1, application.local_addr().unwrap());
        }
        assert!(listener.is_idle());
        assert_eq!(helper.stop().guard_dropped, 0);
    });
}

pub(crate) fn nothing_leaks_over_reused_source_ports() {
    const BEFORE: std::ops::Range<u16> = 20_000..20_050; // below those that the kernel chooses
    const PORTS: std::ops::Range<u16> = 20_000..20_200;
    scene::run(|| {
        scene::foreign_nat_table(); // conntrack remembers what was tried before the rules
        let listener = Listener::start();
        for port in BEFORE {
            drop(begin_connect(port, "10.1.2.3:80"));
            drop(begin_connect(port, "[fd00::9]:443"));
        }
        let pending = begin_connect(19_999, "10.1.2.3:80");
        assert_eq!(leaked(), u64::from(2 * u16::try_from(BEFORE.len()).unwrap() + 1));

        let helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &[]));
        let at_ready = leaked();
        let mut connections = 0;
        for _ in 0..5 {
            for destination in ["10.1.2.3:80", "[fd00::9]:443"] {
                for port in PORTS {
                    let application = finish_connect(begin_connect(port, destination));
                    loop {
                        let (original, stream) = listener.next();
                        // The one that was begun before may arrive among these.
                        if stream.peer_addr().unwrap().port() == port {
                            assert_eq!(original.to_string(), destination);
                            connections += 1;
                            reset(stream);
                            break;
                        }
                    }
                    drop(application);
                }
            }
        }
        finish_connect(pending); // its next SYN found the rules
        assert_eq!(connections, 2000);
        assert_eq!(leaked() - at_ready, 0, "packets on wan0 after ready");
        let report = helper.stop();
        println!(
            "      guard dropped {} packets, {} entries deleted",
            report.guard_dropped, report.entries_deleted
        );
        assert_eq!(report.failures, []);
    });
}

pub(crate) fn what_is_not_translated_is_dropped() {
    scene::run(|| {
        // Packets that conntrack does not follow are not translated; somebody's rules can ask for that.
        scene::nft(
            "add table inet foreign; \
             add chain inet foreign raw { type filter hook output priority -300; policy accept; }; \
             add rule inet foreign raw tcp dport 81 notrack",
        );
        let listener = Listener::start();
        let helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &[]));
        for destination in ["10.1.2.3:81", "[fd00::9]:81"] {
            let _pending = begin_connect(0, destination);
        }
        assert!(listener.is_idle());
        let report = helper.stop();
        assert_eq!(leaked(), 0);
        assert!(report.guard_dropped >= 2, "{report:?}");
    });
}

pub(crate) fn answers_to_included_addresses_pass() {
    scene::run(|| {
        let listener = Listener::start();
        let ours = TcpListener::bind((scene::WAN4, 0)).unwrap();
        let address = ours.local_addr().unwrap();
        let neighbour = Neighbour::move_in();
        let mut connections = vec![(neighbour.connects_to(address.to_string()), accept(&ours))];
        let helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        connections.push((neighbour.connects_to(address.to_string()), accept(&ours)));
        for (theirs, ours) in &mut connections {
            says(theirs, ours);
            says(ours, theirs);
        }
        assert!(listener.is_idle());
        assert_eq!(helper.stop().guard_dropped, 0);
    });
}

pub(crate) fn a_foreign_flush_does_not_open_the_way() {
    scene::run(|| {
        scene::foreign_nat_table();
        let listener = Listener::start();
        let helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        scene::nft("flush ruleset");
        assert!(!scene::ruleset().contains("docker"));
        let _application = connect_to("10.1.2.3:80");
        assert_eq!(listener.next().0.to_string(), "10.1.2.3:80");
        assert_eq!(leaked(), 0);
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn two_helpers_do_not_disturb_each_other() {
    scene::run(|| {
        let (first_listener, second_listener) = (Listener::start(), Listener::start());
        let first = Helper::ready(&plan("first", &first_listener, &["10.1.0.0/16"], &[]));
        let mut application = connect_to("10.1.2.3:80");
        let mut stream = first_listener.next().1;
        let second = Helper::ready(&plan("second", &second_listener, &["10.2.0.0/16"], &[]));
        let _other = connect_to("10.2.2.3:80");
        assert_eq!(second_listener.next().0.to_string(), "10.2.2.3:80");
        assert_eq!(second.stop().failures, []);
        // The first still translates what was open, and what is new.
        stream.write_all(b"answer").unwrap();
        let mut answer = [0; 6];
        application.read_exact(&mut answer).unwrap();
        let _again = connect_to("10.1.2.4:80");
        assert_eq!(first_listener.next().0.to_string(), "10.1.2.4:80");
        assert!(scene::ruleset().contains("kshuttle_first") && !scene::ruleset().contains("kshuttle_second"));
        let report = first.stop();
        assert_eq!((report.guard_dropped, report.failures), (0, vec![]));
        assert_eq!((scene::ruleset(), leaked()), (String::new(), 0));
    });
}

pub(crate) fn the_largest_plan_is_carried_out() {
    scene::run(|| {
        let listener = Listener::start();
        let mut plan = plan("a", &listener, &[], &[]);
        // Every other subnet, so that nothing merges.
        let subnet = |net: &str, count: usize| format!("{net}:{:x}::/64", 2 * count).parse().unwrap();
        plan.include = (0..MAX_INCLUDE).map(|count| subnet("fd00:1111:2222", count)).collect();
        plan.exclude = (0..MAX_EXCLUDE).map(|count| subnet("fd00:1111:3333", count)).collect();
        let helper = Helper::ready(&plan);
        let _application: OwnedFd = connect_to("[fd00:1111:2222:1ffe::1]:80").into();
        assert_eq!(listener.next().0.to_string(), "[fd00:1111:2222:1ffe::1]:80");
        assert_eq!(helper.stop().failures, []);
    });
}
