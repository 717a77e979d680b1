//! The end, in every way it can come: the machine is as before, applications are told, nothing gets out meanwhile.

use std::io::ErrorKind;
use std::net::TcpStream;

use kshuttle_helper::protocol::{Reply, Request};
use nix::sys::signal::{Signal, kill};

use super::helper::{Helper, plan};
use super::listener::{Listener, reset};
use super::scene::{self, begin_connect, connect_to, eventually, leaked, read_end};

/// A redirected connection: the application's end and ours.
fn open(listener: &Listener) -> (TcpStream, TcpStream) {
    let application = connect_to("10.1.2.3:80");
    (application, listener.next().1)
}

pub(crate) fn assert_was_reset(mut application: TcpStream) {
    let end = read_end(&mut application);
    assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

/// The undo has begun; it stays there as long as a connection is open, up to its limit of two seconds.
pub(crate) fn wait_for_the_flush() {
    eventually("the redirect is flushed", || !scene::nft("list table inet kshuttle_a").contains("redirect"));
}

fn leaves_nothing(mut helper: Helper, end: impl FnOnce(&mut Helper)) {
    scene::foreign_nat_table();
    let listener = Listener::start();
    let before = scene::state();
    helper.make_ready(&plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &[]));
    assert_ne!(scene::state(), before);
    let (application, stream) = open(&listener);
    reset(stream);
    end(&mut helper);
    helper.wait_for_silence();
    assert_eq!(helper.wait(), (Some(0), String::new()));
    assert_eq!(scene::state(), before);
    assert_was_reset(application);
    assert_eq!(leaked(), 0);
    // And the way is free again.
    let _pending = begin_connect(0, "10.1.2.3:80");
    eventually("it left by wan0", || leaked() == 1);
}

pub(crate) fn end_of_input_leaves_nothing() {
    scene::run(|| leaves_nothing(Helper::start(), Helper::hang_up));
}

pub(crate) fn a_socket_pair_serves_as_well() {
    scene::run(|| leaves_nothing(Helper::start_over_socket_pair(), Helper::hang_up));
}

pub(crate) fn sigterm_leaves_nothing() {
    scene::run(|| leaves_nothing(Helper::start(), |helper| helper.signal(Signal::SIGTERM)));
}

pub(crate) fn stop_resets_applications_and_reports() {
    scene::run(|| {
        scene::foreign_nat_table(); // conntrack entries outlive our table, unless they are deleted
        let before = scene::ruleset();
        let listener = Listener::start();
        let helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        let connections: Vec<_> = (0..50).map(|_| open(&listener)).collect();
        let mut applications = Vec::new();
        for (application, stream) in connections {
            reset(stream);
            applications.push(application);
        }
        let report = helper.stop();
        assert_eq!((report.still_open, report.entries_deleted, report.guard_dropped), (0, 50, 0));
        assert_eq!(report.failures, []);
        applications.into_iter().for_each(assert_was_reset);
        assert_eq!((scene::ruleset(), scene::conntrack_entries(), leaked()), (before, 0, 0));
    });
}

/// Ours is the only nat table here: a reset must still reach the application after its redirect rule is gone.
pub(crate) fn translation_outlives_the_flush() {
    scene::run(|| {
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        let (application, stream) = open(&listener);
        helper.hang_up();
        wait_for_the_flush();
        reset(stream);
        assert_was_reset(application);
        assert_eq!(helper.wait(), (Some(0), String::new()));
        assert_eq!((scene::ruleset(), leaked()), (String::new(), 0));
    });
}

pub(crate) fn nothing_leaks_while_the_undo_waits() {
    scene::run(|| {
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        let (_application, _stream) = open(&listener); // nobody ends it: the undo waits as long as it may
        helper.say(&Request::Stop {});
        wait_for_the_flush();
        let pending: Vec<_> = (0..10).map(|_| begin_connect(0, "10.1.2.4:80")).collect();
        assert!(scene::ruleset().contains("kshuttle_a"), "the table stands while we try");
        drop(pending);
        let Some(Reply::Stopped { report }) = helper.hear() else { panic!("no report") };
        assert_eq!((report.still_open, report.failures.as_slice()), (1, [].as_slice()));
        assert!(report.guard_dropped >= 10, "{report:?}");
        assert!(report.waited_ms >= 2000, "{report:?}");
        assert_eq!(leaked(), 0);
        assert!(listener.is_idle());
    });
}

/// Ours is the only nat table here, too: the watchdog must keep the translation until the reset is through.
pub(crate) fn sigkill_is_undone_by_the_watchdog() {
    scene::run(|| {
        let before = scene::state();
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        let (application, stream) = open(&listener);
        helper.signal(Signal::SIGKILL);
        helper.wait_for_silence(); // the user side hears that the helper is gone …
        wait_for_the_flush(); // … the watchdog is at work …
        reset(stream); // … and the user side resets
        assert_was_reset(application);
        assert_eq!(helper.wait(), (None, String::new()), "the watchdog is through");
        eventually("nothing is left", || scene::ruleset().is_empty());
        assert_eq!(scene::state(), before);
        assert!(listener.is_idle());
        let _pending = begin_connect(0, "10.1.2.3:80");
        eventually("the way is free", || leaked() == 1);
    });
}

pub(crate) fn sigkill_of_both_is_undone_by_the_kernel() {
    scene::run(|| {
        let before = scene::state();
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        helper.kill_with(&[helper.child("kshuttle-helper")]);
        eventually("the table is gone", || scene::ruleset().is_empty());
        assert_eq!(scene::state(), before);
    });
}

pub(crate) fn signals_of_the_terminal_are_not_heard() {
    scene::run(|| {
        let listener = Listener::start();
        let helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        for process in [helper.pid(), helper.child("kshuttle-helper"), helper.child("nft")] {
            for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
                kill(process, signal).unwrap();
            }
        }
        let _open = open(&listener);
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::ruleset(), "");
    });
}

pub(crate) fn lost_rules_are_told() {
    scene::run(|| {
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        kill(helper.child("nft"), Signal::SIGKILL).unwrap();
        match helper.hear() {
            Some(Reply::Failed { step, message }) => {
                assert_eq!(step, "lost");
                assert!(message.starts_with("nft ended without us"), "{message}");
            }
            other => panic!("instead of failed: {other:?}"),
        }
        assert_eq!(helper.wait().0, Some(1));
    });
}
