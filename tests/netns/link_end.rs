//! Where there is no link, because it was refused, and where there is none any more: all is as before.

use std::process::Command;

use kshuttle_helper::link;
use kshuttle_helper::protocol::{self, Reply, Request};
use kshuttle_test_support::kshuttle;
use kshuttle_test_support::resolver::{self, Library};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};

use super::helper::Helper;
use super::link_scene::{found, refused, rules_stand, set, with, with_each};
use super::scene::{self, eventually};

pub(crate) fn what_is_refused_leaves_the_first() {
    with(Library::Resolve, |mut scene| {
        let before = scene::state();
        let mut helper = scene.helper();
        let rules = scene::state();
        let message = refused(&mut helper, &scene.link(&["--help"], &[]));
        assert!(message.starts_with("the link's settings are refused: domains: \"--help\""), "{message}");
        assert_eq!(scene::state(), rules, "nothing of a first link is left");

        let first = scene.link(&["svc"], &[]);
        set(&mut helper, &first);
        let standing = resolver::told();
        refused(&mut helper, &protocol::Link { port_v4: Some(0), ..first.clone() });
        assert_eq!(resolver::told(), standing);
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);

        // resolved has gone: it keeps what it was told, and so do we.
        scene.resolver.stop();
        let message = refused(&mut helper, &scene.link(&["cluster.local"], &[]));
        assert!(message.contains("telling systemd-resolved about the link failed"), "{message}");
        rules_stand(&scene);
        scene.resolver.start_resolved();
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
        set(&mut helper, &scene.link(&["cluster.local"], &[]));
        assert_eq!(found("hello.demo.svc.cluster.local"), ["10.96.7.7", "fd00:10:96::7"]);
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::state(), before);
    });
}

pub(crate) fn without_resolved_it_is_refused_and_the_rules_stand() {
    with(Library::Dns, |mut scene| {
        scene.resolver.stop();
        let mut helper = scene.helper();
        let rules = scene::state();
        let message = refused(&mut helper, &scene.link(&["svc"], &[]));
        assert!(message.starts_with("systemd-resolved does not answer: resolvectl refused: "), "{message}");
        assert_eq!(scene::state(), rules);
        rules_stand(&scene);
        // Nor is its program there on most of such machines.
        let (nothing, program) = (Some("/dev/null"), "/usr/bin/resolvectl");
        mount(nothing, program, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let message = refused(&mut helper, &scene.link(&["svc"], &[]));
        assert!(message.ends_with("install the package systemd-resolved"), "{message}");
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn a_resolved_that_hangs_is_not_waited_for() {
    with(Library::Dns, |scene| {
        let mut helper = scene.helper();
        let rules = scene::state();
        scene.resolver.hang(true);
        helper.say(&Request::Link(scene.link(&["svc"], &[])));
        let reply = helper.hear_after(kshuttle::PATIENCE);
        let Some(Reply::Refused { message }) = reply else { panic!("instead of refused: {reply:?}") };
        assert!(message.contains("resolvectl did not answer within"), "{message}");
        scene.resolver.hang(false);
        assert_eq!(scene::state(), rules);
        // One that hangs later does not keep the end.
        set(&mut helper, &scene.link(&["svc"], &[]));
        scene.resolver.hang(true);
        assert_eq!(helper.stop().failures, []);
        scene.resolver.hang(false);
        eventually("it is as before", || found("hello.demo.svc") == ["203.0.113.66"]);
    });
}

pub(crate) fn without_rules_it_is_an_error() {
    with(Library::Dns, |scene| {
        let before = scene::state();
        let mut helper = Helper::start();
        helper.say(&Request::Link(scene.link(&["svc"], &[])));
        match helper.hear() {
            Some(Reply::Failed { step, message }) => {
                assert_eq!((&*step, &*message), ("protocol", "the user side sent no plan before"));
            }
            other => panic!("instead of failed: {other:?}"),
        }
        helper.wait();
        assert_eq!(scene::state(), before);
    });
}

pub(crate) fn without_the_right_to_namespaces_it_is_refused() {
    with(Library::Dns, |scene| {
        // All of root's rights but CAP_SYS_ADMIN, as in a container.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"]);
        let mut helper = Helper::start_by(command);
        helper.make_ready(&scene.plan("a"));
        let rules = scene::state();
        let message = refused(&mut helper, &scene.link(&["svc"], &[]));
        assert!(message.contains("needs CAP_SYS_ADMIN"), "{message}");
        assert_eq!(scene::state(), rules);
        rules_stand(&scene);
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn a_link_of_that_name_is_not_touched() {
    with(Library::Dns, |scene| {
        let name = link::name("kshuttle_a");
        scene::ip(&format!("link add {name} type veth peer name foreign"));
        let mut helper = scene.helper();
        let rules = scene::state();
        let message = refused(&mut helper, &scene.link(&["svc"], &[]));
        assert!(message.contains(&format!("making the link {name} failed")), "{message}");
        assert!(message.contains("File exists"), "{message}");
        assert_eq!(helper.stop().failures, []);
        assert!(rules.contains(&name) && scene::state().contains(&name));
    });
}

/// Ends the helper in some way; no link is left, resolved has forgotten it, and all is as before.
fn leaves_nothing(end: impl Fn(Helper) + Send + Sync) {
    with_each(|scene| {
        let before = (scene::state(), resolver::told());
        let name = link::name("kshuttle_a");
        let helper = scene.linked(&["svc"], &["demo.svc"]);
        assert!(scene::state().contains(&name) && resolver::told().contains(&name));
        assert_eq!(found("hello"), ["10.96.7.7"]);
        end(helper);
        eventually("it is as before", || (scene::state(), resolver::told()) == before);
        assert_eq!(found("hello"), [""; 0]);
        assert_eq!(found("hello.demo.svc"), ["203.0.113.66"]);
        assert_eq!(found("www.public.test"), ["203.0.113.80"]);
    });
}

pub(crate) fn stop_leaves_nothing() {
    leaves_nothing(|helper| assert_eq!(helper.stop().failures, []));
}

pub(crate) fn end_of_input_leaves_nothing() {
    leaves_nothing(|mut helper| {
        helper.hang_up();
        assert_eq!(helper.wait(), (Some(0), String::new()));
    });
}

pub(crate) fn sigterm_leaves_nothing() {
    leaves_nothing(|mut helper| {
        helper.signal(Signal::SIGTERM);
        assert_eq!(helper.wait(), (Some(0), String::new()));
    });
}

pub(crate) fn sigkill_leaves_nothing() {
    leaves_nothing(|mut helper| {
        helper.signal(Signal::SIGKILL);
        assert_eq!(helper.wait(), (None, String::new()));
    });
}

pub(crate) fn sigkill_of_all_leaves_nothing() {
    leaves_nothing(|mut helper| {
        let copies = helper.children("kshuttle-helper");
        assert_eq!(copies.len(), 2, "the watchdog and the link's holder");
        helper.kill_with(&copies);
    });
}

pub(crate) fn a_link_that_somebody_took_away_is_made_anew_when_said_again() {
    with(Library::Resolve, |scene| {
        let before = (scene::state(), resolver::told());
        let mut helper = scene.linked(&["svc"], &[]);
        let name = link::name("kshuttle_a");
        let kill_the_holder = |helper: &Helper| {
            kill(*helper.children("kshuttle-helper").last().unwrap(), Signal::SIGKILL).unwrap()
        };
        let delete = |_: &Helper| scene::ip(&format!("link delete {name}"));
        for take_away in [&kill_the_holder as &dyn Fn(&Helper), &delete] {
            assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
            take_away(&helper);
            eventually("resolved has forgotten it", || found("hello.demo.svc") == ["203.0.113.66"]);
            rules_stand(&scene);
            set(&mut helper, &scene.link(&["svc"], &[]));
        }
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
        assert_eq!(helper.stop().failures, []);
        eventually("it is as before", || (scene::state(), resolver::told()) == before);
    });
}

pub(crate) fn settings_that_somebody_changed_are_restored_when_said_again() {
    with(Library::Resolve, |scene| {
        let mut helper = scene.linked(&["svc"], &[]);
        let told = resolver::told();
        scene::output("resolvectl", &["revert", &link::name("kshuttle_a")]);
        assert_eq!(found("hello.demo.svc"), ["203.0.113.66"]);
        set(&mut helper, &scene.link(&["svc"], &[]));
        assert_eq!(found("hello.demo.svc"), ["10.96.7.7"]);
        assert_eq!(resolver::told(), told);
        assert_eq!(helper.stop().failures, []);
    });
}
